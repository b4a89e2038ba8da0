import io
import struct
import zlib

import pytest
import sources
from datasets import Dataset, Features, Image, Value
from PIL import Image as PIL

from omit_hf.data.pictures import open_picture, stored_pictures, unreadable_pictures


def huge_png(width, height) -> bytes:
    """A few bytes that say they are a huge picture."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def stored(content: bytes) -> dict:
    return {"bytes": content, "path": None}


def jpeg(size=(64, 48), **options) -> bytes:
    buffer = io.BytesIO()
    PIL.effect_noise(size, 50).convert("RGB").save(buffer, "jpeg", **options)
    return buffer.getvalue()


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
