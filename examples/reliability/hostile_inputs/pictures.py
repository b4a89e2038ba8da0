"""Files of pictures, of every format that Pillow writes, and what a URL may answer."""

import base64
import io
import os
import random
import struct
import threading
import warnings
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image, PngImagePlugin

from hostile_inputs.case import ANY, REFUSED, Case, WrongValue
from hostile_inputs.mutations import EVIL, mutate_bytes
from omit_hf.data.inputs import ImageTextInputs
from omit_hf.modeling.pictures_omit import as_picture

PLAIN = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)).resize((48, 32))
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "PA", "HSV", "LAB")
LOSSLESS = ("PNG", "BMP", "DIB", "PPM", "TGA", "SGI", "PCX", "TIFF", "QOI")
WRITTEN_ONLY = ("PDF", "EPS")  # Pillow leaves what these say to other programs
ENDINGS = ("png", "jpg", "webp", "tiff", "txt", "pdf", "", f"a{EVIL}", "\u202egnp", "'\"")
# A directory with the entry orientation = 6, and what may be wrong with it.
WHOLE = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
EXIF = {
    "no header": WHOLE[:6] + b"??\0*" + WHOLE[10:],
    "another order": WHOLE[:6] + b"II\0*" + WHOLE[10:],
    "cut off": WHOLE[:27],
    "an offset beyond": WHOLE[:10] + b"\xff\xff\xff\xff" + WHOLE[14:],
    "an offset to itself": WHOLE[:24] + b"\0\0\0\x01\0\x01\0\0" + b"\0\0\0\x08",
    "noise": b"Exif\0\0" + bytes(range(7, 207)),
    "orientation 9": WHOLE[:24] + b"\0\0\0\x01\0\x09\0\0\0\0\0\0",
    "much": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(60_000),
}


def _frames(**options) -> dict:
    return {"save_all": True, "append_images": [PLAIN.rotate(90), PLAIN.rotate(180)], **options}


def made() -> dict[str, tuple[bytes, Image.Image | None]]:
    """By format and mode: a file, and the picture that it must be read as where that is known."""
    Image.init()
    files = {}
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN) - set(WRITTEN_ONLY)):
        for mode in MODES:
            options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
            try:
                stored = PLAIN.convert("L").convert(mode) if mode in ("I;16", "I", "F") else PLAIN.convert(mode)
                file = io.BytesIO()
                stored.save(file, kind, **options)
                with Image.open(io.BytesIO(file.getvalue())) as again:
                    again.load()
            except Exception:  # which the format has not
                continue
            known = kind in LOSSLESS and mode in ("RGB", "L", "1", "P")
            files[f"{kind} {mode}"] = (file.getvalue(), stored.convert("RGB") if known else None)
    more = {
        "GIF animated": ("GIF", _frames()),
        "GIF transparent": ("GIF", {"transparency": 3}),
        "PNG animated": ("PNG", _frames()),
        "WEBP animated": ("WEBP", _frames()),
        "TIFF of pages": ("TIFF", _frames()),
        "TIFF LZW": ("TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflated": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "JPEG progressive": ("JPEG", {"progressive": True}),
        "MPO": ("MPO", _frames()),
        "PNG interlaced palette": ("PNG", {"transparency": 0}),
    }
    for name, (kind, options) in more.items():
        file = io.BytesIO()
        (PLAIN.convert("P") if "transparency" in options else PLAIN).save(file, kind, **options)
        files[name] = (file.getvalue(), PLAIN if kind in LOSSLESS and "transparency" not in options else None)
    return files


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(*chunks: tuple[bytes, bytes], size=(48, 32), depth=8, color=2, data: bytes | None = None) -> bytes:
    lines = b"".join(b"\0" + row.tobytes() for row in np.asarray(PLAIN))  # each with its filter
    data = zlib.compress(lines if data is None else data)
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    body = b"".join(_chunk(*each) for each in [(b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def _tiff(count: int, length: int) -> bytes:
    """A directory of so many tags, whose values of so many bytes lie one over the other."""
    entries = b"".join(struct.pack("<HHII", 700 + n, 7, length, 8 + 2 + 12 * count + 4) for n in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + entries + bytes(4) + bytes(length)


def _with_much_exif() -> dict[str, bytes]:
    """Whole pictures whose Exif would take gigabytes, wherever a format has it."""
    exif = _tiff(5000, 600_000)
    profile = _tiff(8000, 250_000)
    whole = _png()
    late = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    information = PngImagePlugin.PngInfo()
    information.add_text("Raw profile type exif", f"\nexif\n{len(profile):8d}\n{profile.hex()}", zip=True)
    jpeg, webp, png = io.BytesIO(), io.BytesIO(), io.BytesIO()
    PLAIN.save(jpeg, "JPEG")
    PLAIN.save(webp, "WEBP", lossless=True, exif=exif)
    PLAIN.save(png, "PNG", pnginfo=information)
    parts = [b"Exif\0\0" + exif[start : start + 65_000] for start in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    jfif = struct.unpack(">H", jpeg.getvalue()[4:6])[0]  # without whose density PIL looks for one in the Exif
    found = {
        "PNG with Exif one over the other": _png((b"eXIf", exif)),
        "PNG with Exif one over the other at the end": whole[:-12] + late + whole[-12:],
        "PNG with a profile of Exif one over the other": png.getvalue(),
        "JPEG with Exif one over the other": b"\xff\xd8" + segments + jpeg.getvalue()[4 + jfif :],
        "WEBP with Exif one over the other": webp.getvalue(),
    }
    if "AVIF" in Image.SAVE:
        avif, room = io.BytesIO(), _tiff(1, 8) + bytes(len(exif) - len(_tiff(1, 8)))
        PLAIN.save(avif, "AVIF", exif=room)
        found["AVIF with Exif one over the other"] = avif.getvalue().replace(room, exif)
    return found


def bombs() -> dict[str, bytes]:
    """Files of some bytes that say they are large; none may be read, and none may cost much."""
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    jpeg = io.BytesIO()
    PLAIN.save(jpeg, "JPEG")
    head = jpeg.getvalue().index(b"\xff\xc0") + 5
    large = {}
    for side in (12_000, 30_000, 65_500):
        large[f"PNG of {side}²"] = _png(size=(side, side))
        large[f"PNG of {side}², 16 bits"] = _png(size=(side, side), depth=16, color=6)
        large[f"BMP of {side}²"] = bmp + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        large[f"BMP of {side}², RLE"] = (
            bmp + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, 9, 0, 0, 0, 0) + b"\xff\1" * 99
        )
        large[f"JPEG of {side}²"] = (
            jpeg.getvalue()[:head] + struct.pack(">HH", side, side) + jpeg.getvalue()[head + 4 :]
        )
        large[f"GIF of {side}²"] = (
            b"GIF89a"
            + struct.pack("<HH", side, side)
            + b"\0\0\0,\0\0\0\0"
            + struct.pack("<HH", side, side)
            + b"\0\x08\1\0\0;"
        )
        large[f"PPM of {side}²"] = f"P6 {side} {side} 255\n".encode() + bytes(99)
        large[f"TGA of {side}²"] = (
            bytes((0, 0, 10)) + bytes(9) + struct.pack("<HHBB", side, side, 24, 0) + b"\xff\1\2\3" * 99
        )
        large[f"QOI of {side}²"] = b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + b"\xfd" * 99
    text = zlib.compress(bytes(100_000_000), 1)
    return (
        large
        | _with_much_exif()
        | {
            "PNG with much text": _png((b"zTXt", b"a\0\0" + text)),
            "PNG with a large profile": _png((b"iCCP", b"a\0\0" + text)),
            "PNG with much Exif": _png((b"eXIf", WHOLE[6:16] + b"\xff\xff" + bytes(60_000))),
            "TIFF of tags one over the other": _tiff(4000, 1_000_000),
            "PNG of 1 × 89 000 000": _png(size=(1, 89_000_000)),
            "PNG of no pixels": _png(size=(0, 32)),
            "PNG of negative size": _png(size=(2**32 - 1, 1)),
        }
    )


class Pictures:
    """Makes cases from files that are made once."""

    def __init__(self):
        warnings.simplefilter("ignore")
        self.files, self.bombs = made(), bombs()

    def picture(self, rng: random.Random, folder: Path) -> Case:
        """A picture in a file, in a row of data, or in base64."""
        way, expected = rng.randrange(10), ANY
        name = rng.choice(list(self.files))
        content, same = self.files[name]
        if way == 0:
            what = rng.choice(list(self.bombs))
            content, name = self.bombs[what], "bomb"
            lossless = "Exif one over the other" in what and what.startswith(("PNG", "WEBP"))
            expected = PLAIN if lossless else ANY if " with " in what or what.startswith("JPEG") else REFUSED
        elif way == 1:
            what, content, expected = self._metadata(rng)
        elif way < 4:
            what, expected = "as it is, under any name", ANY if same is None else same
        elif way == 4:
            ends = len(content) * rng.randint(40, 85) // 100
            what, content = "cut off", content[:ends]
            expected = (
                REFUSED if name.split()[0] in ("PNG", "JPEG", "BMP", "WEBP", "PPM") and "anim" not in name else ANY
            )
        else:
            what, content = mutate_bytes(rng, content)
        file = folder / f"picture.{rng.choice(ENDINGS)}"
        if way == 9 and rng.random() < 0.1:
            what, expected = "a pipe", REFUSED
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        entry = rng.choice(["file", "data", "base64"]) if content and what != "a pipe" else "file"

        def read():
            if entry == "file":
                found = as_picture(str(file))
            elif entry == "base64":
                found = as_picture(base64.b64encode(content).decode())
            else:
                row = {"image": {"bytes": content, "path": file.name}, "captions": ["a"], "image_id": "number 0"}
                found = ImageTextInputs(Dataset.from_list([row]), None).picture(0)
            sizes = (found.size,)
            if name != "bomb":  # whose metadata PIL by itself reads into gigabytes
                with Image.open(io.BytesIO(content)) as told:
                    sizes = (told.size, told.size[::-1])
            if found.mode != "RGB" or found.size not in sizes:
                raise WrongValue(f"{found.mode} of {found.size}, not {sizes[0]}")
            if isinstance(expected, Image.Image):
                return None if found.tobytes() == expected.tobytes() else "other pixels"
            return None

        known = None if isinstance(expected, Image.Image) else expected
        return Case("picture", f"{name}, {what}", read, known, ("images[0]", "number 0"))

    def _metadata(self, rng: random.Random) -> tuple[str, bytes, Image.Image | None]:
        """A whole picture whose metadata are broken."""
        what = rng.choice(list(EXIF))
        kind = rng.choice(["PNG", "WEBP", "JPEG", "TIFF", "text"])
        file = io.BytesIO()
        if kind == "PNG":
            return f"Exif in PNG: {what}", _png((b"eXIf", EXIF[what][6:])), PLAIN
        if kind == "text":
            information = PngImagePlugin.PngInfo()
            information.add_text("Raw profile type exif", rng.choice(["exif", "\nexif\n 8\nzz", "\nexif\n 4\n4d4d00"]))
            information.add_text("XML:com.adobe.xmp", "<tiff:Orientation>x</tiff:Orientation>")
            PLAIN.save(file, "PNG", pnginfo=information)
            return "Exif in the text of PNG", file.getvalue(), PLAIN
        if kind == "TIFF":
            PLAIN.save(file, "TIFF", tiffinfo={700: EXIF[what], 34675: b"no profile", 274: 1})
            return "a profile in TIFF", file.getvalue(), PLAIN
        options = {"lossless": True} if kind == "WEBP" else {}
        PLAIN.save(file, kind, exif=EXIF[what], **options)
        return f"Exif in {kind}: {what}", file.getvalue(), PLAIN if kind == "WEBP" else ANY

    def url(self, rng: random.Random, folder: Path) -> Case:
        """What a server may answer."""
        png = self.files["PNG RGB"][0]
        answers = {
            "a picture": (200, {"Content-Length": len(png)}, [png]),
            "a picture without its length": (200, {}, [png]),
            "an endless answer": (200, {}, _endless),
            "an endless answer of a given length": (200, {"Content-Length": 2**40}, _endless),
            "less than was told": (200, {"Content-Length": len(png)}, [png[:50]]),
            "a negative length": (200, {"Content-Length": -1}, [png]),
            "a length that is none": (200, {"Content-Length": "x"}, [png]),
            "nothing": (200, {"Content-Length": 0}, []),
            "an error": (500, {}, [b"sorry"]),
            "a web page": (200, {}, [b"<html>"]),
            "a redirect to itself": (302, {"Location": "/"}, []),
            "a redirect to a file": (302, {"Location": "file:///etc/hostname"}, []),
            "a redirect to nowhere": (302, {"Location": "http://[::1"}, []),
            "no status": (None, {}, [b"\0" * 99]),
            "a status that is none": (None, {}, [b"HTTP/1.1 abc\r\n\r\n"]),
            "a head without end": (None, {}, lambda: iter([b"HTTP/1.1 200 OK\r\n"] + [b"A: b\r\n"] * 10_000)),
            "a line without end": (None, {}, lambda: iter([b"HTTP/1.1 200 OK\r\nA: "] + [b"a" * 2**16] * 99)),
        }
        what = rng.choice(list(answers))

        def read():
            with _server(*answers[what]) as address:
                found = as_picture(f"{address}/a.png", timeout=5)
            return found.tobytes() == PLAIN.tobytes()

        right = what in ("a picture", "a picture without its length", "a negative length", "a length that is none")
        return Case("URL", what, read, True if right else REFUSED, ("images[0]",))


def _endless():
    while True:
        yield bytes(2**20)


class _server:
    """A server on this machine that gives one answer to all that is asked, for as long as the block lasts."""

    def __init__(self, status: int | None, headers: dict, body):
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if status is not None:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                try:
                    for block in body() if callable(body) else body:
                        self.wfile.write(block)
                except OSError:  # nobody listens any more
                    pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_):
        self.server.socket.close()
