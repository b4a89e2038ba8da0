"""Files of pictures with something wrong: those of one whole picture whose metadata are broken, and others."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.TiffImagePlugin import ImageFileDirectory_v2

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 200, (4, 6, 3), dtype=np.uint8)).resize((48, 32))
# A directory with the one entry orientation = 6, and what may be wrong with it.
WHOLE = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
ORIENTATION = 6 + 8 + 2
EXIF = {
    "header": WHOLE[:6] + b"??\0*" + WHOLE[10:],
    "order": WHOLE[:6] + b"II\0*" + WHOLE[10:],
    "version": WHOLE[:6] + b"MM\0\0" + WHOLE[10:],
    "empty": b"Exif\0\0",
    "short": WHOLE[:9],
    "truncated": WHOLE[: ORIENTATION + 5],
    "offset": WHOLE[:10] + b"\xff\xff\xff\xff" + WHOLE[14:],
    "zeros": b"Exif\0\0" + bytes(40),
    "noise": b"Exif\0\0" + bytes(range(7, 207)),
    "a string": WHOLE[:ORIENTATION] + b"\x01\x12\0\x02\0\0\0\x026\0\0\0" + bytes(4),
    "a rational": WHOLE[:ORIENTATION] + b"\x01\x12\0\x05\0\0\0\x01\0\0\0\x1a" + bytes(4) + b"\0\0\0\x06\0\0\0\0",
    "bytes": WHOLE[:ORIENTATION] + b"\x01\x12\0\x07\0\0\0\x04\xff\xff\xff\xff" + bytes(4),
    "0": WHOLE[:ORIENTATION] + b"\x01\x12\0\x03\0\0\0\x01\0\0\0\0" + bytes(4),
    "9": WHOLE[:ORIENTATION] + b"\x01\x12\0\x03\0\0\0\x01\0\x09\0\0" + bytes(4),
}


def with_metadata(kind: str, exif: bytes = b"", **options) -> bytes:
    file = io.BytesIO()
    if kind in ("WEBP", "PNG", "AVIF") or not exif:
        options |= {"lossless": True} if kind == "WEBP" else {}
        PICTURE.save(file, kind, **({"exif": exif} if exif else {}), **options)
    elif kind == "TIFF":  # whose own directory it is in
        whole = Image.Exif()
        whole.load(exif)
        PICTURE.save(file, kind, exif=whole, **options)
    else:
        PICTURE.save(file, kind, exif=exif, quality=95, **options)
    return file.getvalue()


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """With chunks before the pixels."""
    content = with_metadata("PNG")
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return content[:33] + b"".join(made) + content[33:]


def tiff_with(tag: int, kind: int, value) -> bytes:
    tags = ImageFileDirectory_v2()
    tags.tagtype[tag] = kind
    tags[tag] = value
    return with_metadata("TIFF", tiffinfo=tags)


def _raw_profile(text: str) -> bytes:
    information = PngImagePlugin.PngInfo()
    information.add_text("Raw profile type exif", text, zip=True)
    return with_metadata("PNG", pnginfo=information)


FILES = {f"png {name}": png_with((b"eXIf", exif[6:])) for name, exif in EXIF.items()}
FILES |= {f"webp {name}": with_metadata("WEBP", exif) for name, exif in EXIF.items()}
FILES |= {f"jpeg {name} lossy": with_metadata("JPEG", exif) for name, exif in EXIF.items()}
FILES |= {
    f"mpo {name} lossy": with_metadata("MPO", exif, save_all=True, append_images=[PICTURE])
    for name, exif in EXIF.items()
}
FILES |= {
    "png raw profile": _raw_profile("\nexif\n 8\nno hexadecimal"),
    "png raw profile cut": _raw_profile("exif"),
    "png raw profile of noise": _raw_profile("\nexif\n 4\n4d4d00"),
    "png profile": png_with((b"iCCP", b"icc\0\0" + zlib.compress(b"no profile"))),
    "png profile not compressed": png_with((b"iCCP", b"icc\0\0" + b"no stream")),
    "png text": png_with((b"tEXt", b"\xff\xfe"), (b"zTXt", b"a\0\0no stream"), (b"iTXt", b"a\0\1\0\0\0no stream")),
    "png xmp": png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<tiff:Orientation>x</tiff:Orientation>")),
    "png time": png_with((b"tIME", b"\0"), (b"pHYs", bytes(9)), (b"gAMA", bytes(4))),
    "webp xmp": with_metadata("WEBP", xmp=b"\xff\0<tiff:Orientation"),
    "webp profile": with_metadata("WEBP", icc_profile=b"no profile"),
    "jpeg xmp lossy": with_metadata("JPEG", xmp=b"\xff\0<tiff:Orientation", quality=95),
    "jpeg profile lossy": with_metadata("JPEG", icc_profile=b"no profile", quality=95),
    "tiff xmp of numbers": tiff_with(700, 4, (1, 2, 3)),
    "tiff xmp of text": tiff_with(700, 2, "tiff:Orientation"),
    "tiff profile": tiff_with(34675, 7, b"no profile"),
    "tiff orientation of text": tiff_with(274, 2, "6"),
    "tiff camera": tiff_with(34665, 4, 10**6),
    "tiff place": tiff_with(34853, 4, 10**6),
    "gif comment lossy": with_metadata("GIF", comment=b"Exif\0\0MM\0*"),
}


def huge_png(width, height) -> bytes:
    """A few bytes that say they are a huge picture."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(size=(64, 48), **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(buffer, "jpeg", **options)
    return buffer.getvalue()
