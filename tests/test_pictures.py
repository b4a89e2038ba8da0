import base64
import contextlib
import http.server
import io
import os
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import sources
from broken_pictures import FILES, PICTURE, huge_png, jpeg, png_with, with_metadata
from datasets import Dataset, Features, Image, Value
from PIL import Image as PIL
from PIL import ImageOps, PngImagePlugin, features

from omit_hf.data import load_image_text
from omit_hf.data.pictures import open_picture, stored_pictures, unreadable_pictures
from omit_hf.data.sources.cutouts import open_cutout
from omit_hf.library.files import decode
from omit_hf.modeling.pictures_omit import as_pictures, rgb_picture, upright


def stored(content: bytes) -> dict:
    return {"bytes": content, "path": None}


def test_a_picture_is_upright_and_in_rgb():
    exif = PIL.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert open_picture(stored(jpeg(exif=exif))).size == (48, 64)
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        buffer = io.BytesIO()
        PIL.new(mode, (4, 3), 1).save(buffer, "tiff")
        assert open_picture(stored(buffer.getvalue())).mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "cannot identify image file"),
        (jpeg()[:-300], "truncated"),
        (huge_png(10_000, 10_000), r"10000 x 10000 pixels; expected at most 89478485, scaled down"),
        (huge_png(50_000, 50_000), "2500000000 pixels.*exceeds limit"),
        (b"", "cannot identify image file"),
    ],
    ids=["other", "truncated", "large", "bomb", "empty"],
)
def test_what_cannot_be_opened(content, message):
    with pytest.raises(Exception, match=message):
        open_picture(stored(content))


def test_unreadable_pictures_are_found(tmp_path):
    contents = [sources.png(n % 12) for n in range(300)]
    contents[7], contents[299] = b"broken", sources.png(0)[:60]
    paths = []
    for number, content in enumerate(contents):
        paths.append(str(tmp_path / f"{number}.png"))
        (tmp_path / f"{number}.png").write_bytes(content)
    (tmp_path / "100.png").unlink()
    split = Dataset.from_dict(
        {"image": paths, "n": range(300)}, features=Features({"image": Image(), "n": Value("int32")})
    )
    found = unreadable_pictures(split, progress=False)
    assert list(found) == [7, 100, 299]
    assert "No such file" in found[100]
    assert list(unreadable_pictures(split.select([299, 1, 7]), progress=False)) == [0, 2]


def test_stored_pictures_are_not_decoded(scenes):
    assert stored_pictures(scenes["test"])[0]["image"]["bytes"].startswith(b"\x89PNG")


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_broken_metadata_leave_a_picture_as_it_stands(name):
    picture = open_picture(stored(FILES[name]))
    assert (picture.mode, picture.size) == ("RGB", PICTURE.size)
    difference = np.asarray(picture).astype(int) - np.asarray(PICTURE)
    assert np.abs(difference).mean() < (6 if "lossy" in name else 1e-9)


def test_broken_metadata_do_not_shrink_a_split(tmp_path):
    """Nor does a rotation that cannot be done in them: every file is read, and none is left out."""
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        lines = []
        for number, (kind, content) in enumerate(FILES.items()):
            name = f"{split}{number}.{kind.split()[0]}"
            (tmp_path / split / name).write_bytes(content)
            lines.append(f'{{"file_name": "{name}", "text": "a picture"}}\n')
        (tmp_path / split / "metadata.jsonl").write_text("".join(lines))
    data = load_image_text(tmp_path, skip_unreadable=True)
    assert [len(rows) for rows in data.values()] == [len(FILES)] * 3
    assert unreadable_pictures(data["test"], progress=False) == {}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_that_of_pil_and_a_second_look_turns_nothing(kind, orientation):
    exif = PIL.Exif()
    exif[0x0112] = orientation
    content = with_metadata(kind, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(PIL.open(io.BytesIO(content))).convert("RGB")
    picture = open_picture(stored(content))
    assert picture.tobytes() == expected.tobytes()
    assert rgb_picture(picture).tobytes() == expected.tobytes()
    assert upright(picture.copy()).tobytes() == expected.tobytes()


def test_a_turned_picture_whose_other_metadata_cannot_be_written_again():
    """What PIL's own `exif_transpose` does, and fails at."""
    exif = PIL.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    wrong = raw[:14] + struct.pack(">H", 2) + raw[16:28] + struct.pack(">HHL4s", 0xFF9C, 12, 1, b"abcd") + raw[28:]
    content = with_metadata("PNG", exif=wrong)
    assert open_picture(stored(content)).size == PICTURE.size[::-1]


def test_a_truncated_picture_with_broken_metadata_is_still_truncated():
    for name in ("png header", "jpeg truncated lossy", "tiff xmp of numbers"):
        with pytest.raises(Exception, match="(?i)truncated|broken data stream"):
            open_picture(stored(FILES[name][:-1000]))


def test_cutouts_are_upright_too(tmp_path):
    exif = PIL.Exif()
    exif[0x0112] = 6
    black = PIL.new("RGB", (40, 20))
    black.save(tmp_path / "turned.png", exif=exif)
    assert open_cutout(tmp_path / "turned.png").size == (20, 40)
    (tmp_path / "broken.png").write_bytes(FILES["png header"])
    assert open_cutout(tmp_path / "broken.png").size == PICTURE.size


def tags_one_over_the_other(count: int, length: int) -> bytes:
    """Each of which would be read into memory by itself."""
    entries = b"".join(struct.pack("<HHII", 700 + n, 7, length, 8 + 2 + 12 * count + 4) for n in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4) + bytes(length)


def much_exif(kind: str) -> bytes:
    """A whole picture of 600 kB whose Exif, if it is read, takes a gigabyte."""
    exif = tags_one_over_the_other(2000, 500_000)
    if kind == "PNG":
        return png_with((b"eXIf", exif))
    if kind == "late PNG":
        whole = with_metadata("PNG")
        return whole[:-12] + png_with((b"eXIf", exif))[33 : 33 + 12 + len(exif)] + whole[-12:]
    if kind == "profile":
        exif = tags_one_over_the_other(4000, 250_000)
        information = PngImagePlugin.PngInfo()
        information.add_text("Raw profile type exif", f"\nexif\n{len(exif):8d}\n{exif.hex()}", zip=True)
        return with_metadata("PNG", pnginfo=information)
    if kind == "JPEG":
        whole, parts = with_metadata("JPEG", quality=95), [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
        segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts]
        jfif = struct.unpack(">H", whole[4:6])[0]  # without whose density PIL looks for one in the Exif
        return b"\xff\xd8" + b"".join(segments) + whole[4 + jfif :]
    if kind == "AVIF":
        room = tags_one_over_the_other(1, 8)
        room += bytes(len(exif) - len(room))
        return with_metadata("AVIF", exif=room, quality=100).replace(room, exif)
    return with_metadata(kind, exif)


@pytest.mark.parametrize("kind", ["PNG", "late PNG", "profile", "JPEG", "WEBP", "AVIF"])
def test_metadata_that_lie_one_over_the_other(tmp_path, kind):
    """The picture is read, and they are not."""
    if kind == "AVIF" and not features.check("avif"):
        kind = "WEBP"
    content = much_exif(kind)
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    found = [
        open_picture(stored(content)),
        open_picture({"bytes": None, "path": str(tmp_path / "a")}),
        *as_pictures([str(tmp_path / "a"), base64.b64encode(content).decode()]),
        decode(content)[0],
    ]
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    for picture in found:
        difference = np.abs(np.asarray(picture, np.int16) - np.asarray(PICTURE, np.int16)).mean()
        assert difference < {"JPEG": 3, "AVIF": 3}.get(kind, 1e-9)
    assert open_cutout(tmp_path / "a").size == PICTURE.size


def test_tags_that_lie_one_over_the_other(tmp_path):
    """Of TIFF, where the tags are the picture's own."""
    content = tags_one_over_the_other(4000, 2**20)
    (tmp_path / "a.tiff").write_bytes(content)
    tracemalloc.start()
    for read in (
        lambda: open_picture(stored(content)),
        lambda: open_picture({"bytes": None, "path": str(tmp_path / "a.tiff")}),
        lambda: as_pictures([str(tmp_path / "a.tiff")]),
        lambda: as_pictures([base64.b64encode(content).decode()]),
        lambda: open_cutout(tmp_path / "a.tiff"),
        lambda: decode(content),
    ):
        with pytest.raises(Exception, match="cannot identify image file|no picture|its tags come to far more"):
            read()
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_the_orientation_of_avif_is_that_of_pil(tmp_path, turn):
    """Which is not in its Exif, whatever that says."""
    if not features.check("avif"):
        return
    for orientation in (1, 3, 6, 8):
        exif = PIL.Exif()
        exif[0x0112] = orientation
        PICTURE.rotate(90 * turn, expand=True).save(tmp_path / "a.avif", exif=exif, quality=100)
        with PIL.open(tmp_path / "a.avif") as plain:
            expected = ImageOps.exif_transpose(plain).convert("RGB")
        found = open_picture(stored((tmp_path / "a.avif").read_bytes()))
        assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())


def test_pictures_that_other_programs_draw():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "EPS")
    with pytest.raises(ValueError, match="it is PostScript, a program that draws; expected a picture of pixels"):
        open_picture(stored(buffer.getvalue()))


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF", "WEBP", "JPEG", "GIF"])
def test_a_whole_picture_is_read_as_from_its_file(tmp_path, kind):
    picture = PIL.effect_noise((1200, 900), 90).convert("RGB")
    picture.save(tmp_path / "a", kind)
    with PIL.open(tmp_path / "a") as expected:
        expected = expected.convert("RGB").tobytes()
    for file in (stored((tmp_path / "a").read_bytes()), {"bytes": None, "path": str(tmp_path / "a")}):
        assert open_picture(file).tobytes() == expected


def test_a_file_larger_than_any_picture(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # which takes no room
    with pytest.raises(ValueError, match="its file has more than 1073741824 bytes; expected a picture of at most that"):
        open_picture({"bytes": None, "path": str(tmp_path / "a.png")})


@pytest.mark.parametrize("name", ["a\nerror: b.png", "\u202egnp.a", "\x1b[31m.png"])
def test_the_name_of_a_file_stays_in_its_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify image file") as caught:
        as_pictures([str(tmp_path / name)])
    assert str(caught.value).isprintable()


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tmp_path, "/dev/zero"):
        with pytest.raises(ValueError, match=f"no file at '{path}', and it is no URL"):
            as_pictures([str(path)])


def test_a_url_without_end():
    class Endless(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**22))

    with http.server.HTTPServer(("127.0.0.1", 0), Endless) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        with pytest.raises(ValueError, match=f"images.0. .{url}.: the URL gives more than 268435456 bytes"):
            as_pictures([url])
