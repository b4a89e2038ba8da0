"""Picture files of folders: which there are, what they hold, and when they were taken."""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import PIL.Image

from omit_hf.data.pictures import open_picture
from omit_hf.modeling.pictures_omit import MAX_EXIF, BoundedFile

TAKEN, DIGITIZED, EXIF_IFD = 0x9003, 0x9004, 0x8769  # tags of EXIF
FORMAT_OF_DATES = "%Y:%m:%d %H:%M:%S"


@dataclass(frozen=True)
class PictureFile:
    """A file that may be a picture.

    Args:
        path: absolute.
        folder: that was searched, absolute.
        bytes: its size.
        modified: time of its last change, nanoseconds.
    """

    path: str
    folder: str
    bytes: int
    modified: int

    def metadata(self) -> dict:
        return {"path": self.path, "folder": self.folder, "bytes": self.bytes, "modified": self.modified}


def find_pictures(places: Sequence[str | Path], problems: dict[str, str] | None = None) -> list[PictureFile]:
    """Find the picture files of folders, by their endings, and take the files that are named.

    Links are followed, a folder is searched once, and what begins with a dot is left out.

    Args:
        places: folders and files.
        problems: a dict that receives what could not be looked at, by path, and why: folders below the places that
            cannot be read, and files whose names are no UTF-8, with escapes. Without it they raise an OSError.

    Raises:
        FileNotFoundError: if a place is not there.
        PermissionError: if it cannot be read.
        ValueError: if there is no picture in a folder.
    """
    PIL.Image.init()
    found: dict[str, PictureFile] = {}
    met: dict[str, str] = {}
    for place in places:
        place = os.path.abspath(os.path.expanduser(place))
        if os.path.isdir(place):
            os.scandir(place).close()  # raises what there is against it
            names, folder = list(_pictures_below(place, set(), met)), place
            if not names and not met:
                endings = ", ".join(sorted(PIL.Image.registered_extensions())[:8])
                raise ValueError(f"There is no picture in {place!r}; expected files that end in {endings} or the like.")
        elif os.path.isfile(place):
            names, folder = [place], os.path.dirname(place)
        else:
            raise FileNotFoundError(f"There is no file or folder {place!r}; expected pictures, or a folder of them.")
        for name in names:
            try:
                stat = os.stat(name)
                os.fsencode(name).decode()
            except FileNotFoundError:  # since it was listed
                continue
            except UnicodeDecodeError:
                met[escaped(name)] = "its name is no UTF-8; rename it"
                continue
            except OSError as error:
                met[escaped(name)] = error.strerror
                continue
            found.setdefault(name, PictureFile(name, folder, stat.st_size, stat.st_mtime_ns))
    if met and problems is None:
        raise OSError("; ".join(f"{path}: {why}" for path, why in met.items()))
    if problems is not None:
        problems |= met
    return list(found.values())


def escaped(path: str) -> str:
    """A path as UTF-8, with escapes for what is none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_gone(path: str) -> bool:
    """Whether a file is not there any more; one that cannot be looked at may be."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def _pictures_below(folder: str, seen: set, problems: dict[str, str]) -> Iterator[str]:
    try:
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            return
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            entries = sorted(entries, key=lambda each: each.name)
    except FileNotFoundError:  # since it was listed
        return
    except OSError as error:
        problems[escaped(folder)] = error.strerror
        return
    endings = PIL.Image.registered_extensions()
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:
            if error.errno != errno.ELOOP:  # a link to itself is nothing
                problems[escaped(entry.path)] = error.strerror
            continue
        if is_folder:
            yield from _pictures_below(entry.path, seen, problems)
        elif is_file and os.path.splitext(entry.name)[1].lower() in endings:
            yield entry.path


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes) -> tuple[PIL.Image.Image, dict]:
    """A picture, upright and in RGB, and its metadata: `width`, `height` and, where EXIF tells, `taken` and `year`.

    Raises:
        ValueError: if it is no picture, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    try:
        picture = open_picture({"bytes": content, "path": None})
    except PIL.UnidentifiedImageError as error:
        raise ValueError("it is no picture in a format that Pillow reads") from error
    except Exception as error:  # PIL raises many kinds
        raise ValueError(str(error) or type(error).__name__) from error
    taken = _taken(content)
    known = {} if taken is None else {"taken": taken, "year": taken.year}
    return picture, {"width": picture.width, "height": picture.height, **known}


def _taken(content: bytes) -> datetime | None:
    """When a picture was taken, as its camera says; None where that is missing or cannot be read, as from AVIF."""
    try:
        with PIL.Image.open(BoundedFile(content)) as picture:
            if picture.format == "PNG":  # in which they may come last
                picture.load()
            if len(picture.info.get("exif") or picture.info.get("Raw profile type exif") or "") > MAX_EXIF:
                return None
            exif = picture.getexif()
            inner = exif.get_ifd(EXIF_IFD)
        text = inner.get(TAKEN) or inner.get(DIGITIZED)
        return datetime.strptime(str(text).strip("\0 "), FORMAT_OF_DATES)
    except Exception:  # PIL raises many kinds for metadata that are broken
        return None
