"""Pictures of every form in one: RGB, 8 bits where the form tells its bits, transparency on white, upright."""

import base64
import contextlib
import io
import os
import re
from urllib.request import Request, urlopen

import torch
from PIL import Image, UnidentifiedImageError

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
MAX_EXIF, MAX_ANSWER = 2**16, 2**28  # bytes: what a segment of a JPEG can have, and what a URL may give
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE"}
TURNS[8] = "ROTATE_90"  # by EXIF's orientation
FORMS = "expected PIL, a path, a URL, or an array or tensor [H, W], [C, H, W] or [H, W, C] with 1, 3 or 4 channels"


def as_pictures(images) -> list:
    """Pictures that an image processor takes, PIL in RGB or tensors [3, H, W].

    Args:
        images: a picture or a list of pictures, or an array of several, [B, …]. A picture is PIL, a path, a URL,
            base64, or an array or tensor [H, W], [C, H, W] or [H, W, C] with C = 1 (grey), 3 (RGB) or 4 (RGB and
            alpha): integers from 0 to 255 (uint16: to 65535), or floats, which keep their scale.

    `ValueError` or `OSError` names the first that is no picture by its number and its file, and says why.
    """
    images = list(images) if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4 else [images]
    if not images:
        raise ValueError("images is an empty list; expected at least one picture.")
    return [as_picture(image, f"images[{number}]") for number, image in enumerate(images)]


def as_picture(image, where: str = "images[0]", timeout: float | None = None):
    """One picture of `as_pictures`; errors call it `where`, and a URL has `timeout` seconds."""
    try:
        if isinstance(image, str | os.PathLike):
            with _opened(os.fspath(image), timeout) as picture:
                return rgb_picture(picture)
        if isinstance(image, Image.Image):
            return rgb_picture(image)
        if hasattr(image, "shape"):
            return _rgb_tensor(image)
    except Exception as error:  # PIL raises many kinds
        name, said = str(getattr(image, "filename", image)), str(error) if error.args else type(error).__name__
        told = name not in said and (name.startswith(("http://", "https://")) or os.path.exists(name))
        kind = OSError if isinstance(error, OSError) else ValueError
        message = f"{where}{f' ({name:.300})' * told}: {said}"
        raise kind(message if message.isprintable() else ascii(message)) from error
    raise ValueError(f"{where} is {image!r:.80}, which is no picture; {FORMS}.")


class BoundedFile(io.BytesIO):
    """A file whose tags, which may lie one over the other, PIL cannot read into far more memory than it has bytes."""

    def __init__(self, content: bytes):
        if content[:2] == b"\xff\xd8":  # of all segments of a JPEG PIL makes one; the first is enough
            content = content.replace(b"Exif\0\0", b"Exif\0\1").replace(b"Exif\0\1", b"Exif\0\0", 1)
        if content[4:11] == b"ftypavi":  # of AVIF, whose orientation is not in Exif, PIL reads it as it opens it
            content = re.sub(rb"(infe.{8}(?:..)?)Exif", rb"\1None", content, flags=re.DOTALL)
        super().__init__(content)
        self.left = 2**25 + 4 * len(content)

    def read(self, size=-1, /):
        content = super().read(size)
        self.left -= len(content)
        if self.left < 0:
            raise OSError("its tags come to far more than the file")
        return content


def upright(picture: Image.Image) -> Image.Image:
    """A PIL image, turned as its metadata say; as it stands where they do not, or cannot be read."""
    if picture.format == "TIFF":  # reads them as it is loaded too, and fails where they are broken, but the second time
        with contextlib.suppress(Exception):
            picture.getexif()
    picture.load()  # what is wrong with the picture itself is raised here
    turn, metadata = None, (picture.info.get(name) or "" for name in ("exif", "Raw profile type exif"))
    with contextlib.suppress(Exception):  # PIL raises many kinds
        turn = TURNS.get(picture.getexif().get(0x0112)) if max(map(len, metadata)) <= MAX_EXIF else None
    if turn is not None:
        picture = picture.transpose(Image.Transpose[turn])
        for name in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # or it would be turned again
            picture.info.pop(name, None)
    return picture


def rgb_picture(picture: Image.Image) -> Image.Image:
    """A PIL image upright and in RGB, transparency on white, 16 bits scaled to 8; `ValueError` for empty and mode F."""
    if 0 in picture.size:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels; expected at least 1 x 1.")
    picture = upright(picture)
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # I;16 in its byte orders, and I, as which some formats are read
        picture = picture.convert("I")
        darkest, brightest = picture.getextrema()
        if darkest < 0 or brightest > 65535:
            raise ValueError(f"it holds integers from {darkest} to {brightest}; expected 16 bits, 0 to 65535.")
        return picture.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if picture.mode == "F":
        found = "it is of PIL's mode F, in which white may be 1, 255 or any other number; expected 8 or 16 bits"
        raise ValueError(f"{found}. Scale it, as in Image.fromarray((255 * array).astype('uint8')).")
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _opened(source: str, timeout: float | None) -> Image.Image:
    if source.startswith(("http://", "https://")):
        with urlopen(Request(source, headers={"User-Agent": "omit-hf"}), timeout=timeout) as answer:
            content = answer.read(MAX_ANSWER + 1)
        if len(content) > MAX_ANSWER:
            raise ValueError(f"the URL gives more than {MAX_ANSWER} bytes; expected a picture of at most that.")
        return Image.open(BoundedFile(content))
    if os.path.isfile(source):
        with open(source, "rb") as file:
            return Image.open(BoundedFile(file.read()))
    try:
        return Image.open(BoundedFile(base64.b64decode(source.rpartition(",")[2])))
    except (ValueError, UnidentifiedImageError) as error:
        raise ValueError(f"no file at {source!r:.300}, and it is no URL and no picture in base64.") from error


def _rgb_tensor(array) -> torch.Tensor:
    """[3, H, W] of an array or tensor in any of the layouts."""
    found = f"an array of shape {tuple(array.shape)} and type {getattr(array, 'dtype', None)}, which is no picture"
    try:
        picture = array if isinstance(array, torch.Tensor) else torch.tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:  # objects and strings
        raise ValueError(f"{found}; {FORMS}.") from error
    picture = picture[None] if picture.ndim == 2 else picture
    # Where both may be channels, the first are, as in transformers.
    if picture.ndim == 3 and picture.shape[0] not in (1, 3) and picture.shape[2] in CHANNELS:
        picture = picture.movedim(-1, 0)
    if picture.ndim != 3 or picture.shape[0] not in CHANNELS or 0 in picture.shape or picture.is_complex():
        raise ValueError(f"{found}; {FORMS}.")
    if picture.dtype == torch.bool:
        picture = picture.to(torch.uint8) * 255
    elif picture.dtype == torch.uint16:
        picture = (picture.float() / 257).round().to(torch.uint8)
    if not picture.isfinite().all():
        raise ValueError("it holds NaN or infinity; expected numbers.")
    if not picture.is_floating_point() and not (picture.min() >= 0 and picture.max() <= 255):
        found = f"it holds integers from {picture.min()} to {picture.max()}"
        raise ValueError(f"{found}; expected 0 to 255, or uint16 for 16 bits.")
    if picture.shape[0] != 4:
        return picture.expand(3, -1, -1)
    white = 1 if picture.is_floating_point() and picture.max() <= 1 else 255
    alpha = picture[3:].float() / white
    mixed = alpha * picture[:3] + (1 - alpha) * white
    return mixed.to(picture.dtype) if picture.is_floating_point() else mixed.round().to(torch.uint8)
