"""A column of `datasets` whose values are tables of numbers of any height, which lie somewhere in a file.

As with `omit_hf.data.sources.npy`, Arrow holds where a table is, and it is read when its row is accessed. It lies in
the file as it is, in base64, or as an array of a `.npz` archive.
"""

import base64
import math
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from datasets.table import array_cast

from omit_hf.data.sources.npy import read_header
from omit_hf.parsing import label

MAX_BYTES = 2**28  # of an array in an archive, which may hold a thousand times of what its file has
MAX_REGIONS = 10_000  # of an image


@dataclass
class StoredArray:
    """The feature of such a column; a value is float32 [rows, width], whatever the file holds.

    Args:
        decode: give arrays; otherwise the place: `path`, `coding` (`raw`, `base64`, or `npz:` and the array's name),
            `offset` of the first byte, `rows`, `width`, numpy's `dtype`, and the `line` of a text file.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "numpy.ndarray"
    pa_type: ClassVar[pa.DataType] = pa.struct(
        {
            "path": pa.string(),
            "coding": pa.string(),
            "offset": pa.int64(),
            "rows": pa.int64(),
            "width": pa.int64(),
            "dtype": pa.string(),
            "line": pa.int64(),
        }
    )
    _type: str = field(default="StoredArray", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def cast_storage(self, storage: pa.StructArray) -> pa.StructArray:
        return array_cast(storage, self.pa_type)

    def encode_example(self, value: dict) -> dict:
        names = {each.name for each in self.pa_type}
        if not (isinstance(value, dict) and value.keys() == names):
            raise TypeError(f"{value!r:.80} is no place of an array; expected {', '.join(sorted(names))} in a dict.")
        return value

    def decode_example(self, value: dict, token_per_repo_id=None) -> np.ndarray:
        return read_place(**value)


with warnings.catch_warnings():  # that registering a feature is experimental, which is no news to a user
    warnings.simplefilter("ignore", UserWarning)
    register_feature(StoredArray, "StoredArray")


def place(
    path: str | Path, shape: tuple[int, int], dtype="<f4", *, coding: str = "raw", offset: int = 0, line: int = 0
) -> dict:
    """A value of `StoredArray`, as Arrow holds it."""
    rows, width = map(int, shape)
    kind = np.dtype(dtype).str
    values = {"path": str(path), "coding": coding, "offset": offset, "rows": rows, "width": width}
    return values | {"dtype": kind, "line": line}


def read_place(path: str, coding: str, offset: int, rows: int, width: int, dtype: str, line: int) -> np.ndarray:
    """The table at a place, float32 [rows, width].

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if it does not hold that table there (any more), or what is there is no base64.
    """
    kind = np.dtype(dtype)
    size = rows * width * kind.itemsize
    if coding.startswith("npz:"):
        return read_member(path, coding.removeprefix("npz:"), (rows, width))
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size if coding == "raw" else base64_length(size))
    if coding == "base64":
        content = decoded(content, size, f"{path} line {line}")
    if len(content) < size:
        raise ValueError(
            f"{path} ends within the {rows} x {width} numbers at byte {offset}; expected the file that was there when "
            "the data were loaded. Fetch it again, and load them anew."
        )
    return np.frombuffer(content, kind).reshape(rows, width).astype(np.float32)


def base64_length(size: int) -> int:
    """Characters of so many bytes in base64."""
    return 4 * math.ceil(size / 3)


def decoded(text: bytes, size: int, where: str) -> bytes:
    """The `size` bytes that a text in base64 stands for.

    Raises:
        ValueError: if it stands for another number, or is none.
    """
    try:
        if len(text) != base64_length(size):
            raise ValueError(f"{len(text)} characters")
        content = base64.b64decode(text, validate=True)
        if len(content) != size:
            raise ValueError(f"{len(content)} bytes")
    except ValueError as error:
        raise ValueError(
            f"{where} has no base64 of {size} bytes ({label(error)}); expected float32 numbers, num_boxes rows. Fetch "
            "the file again, or write base64.b64encode(array.astype('<f4').tobytes())."
        ) from error
    return content


def archive_layout(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of a `.npz` file, of which no more than the headers is read.

    Raises:
        ValueError: if it is no such file, or an array is no numbers, larger than `MAX_BYTES` or cut off.
    """
    with _archive(path) as archive:
        return {
            info.filename.removesuffix(".npy"): _member_layout(archive, info, path)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }


def read_member(path: str | Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a `.npz` file, float32, whose shape is known.

    Raises:
        ValueError: as `archive_layout`, or if it has another shape or a wrong checksum.
    """
    with _archive(path) as archive:
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError as error:
            raise ValueError(f"{path} has no array {name!r}; expected one. Fetch the file again.") from error
        found, dtype = _member_layout(archive, info, path)
        if found != shape:
            raise ValueError(f"{path} has {name} of shape {list(found)}; expected {list(shape)}. Load the data anew.")
        size = math.prod(shape) * dtype.itemsize
        with archive.open(info) as file:
            read_header(file, f"{name} in {path}", scalars=True)
            content = file.read(size)  # no more, whatever the archive unpacks to
        if len(content) < size:
            raise ValueError(f"{path} ends within {name}; expected {list(shape)} numbers. Fetch or write it again.")
    return np.frombuffer(content, dtype).reshape(shape).astype(np.float32)


class _archive:
    """A `.npz` file that is open; whatever `zipfile` raises of a damaged one becomes a `ValueError` with its name."""

    def __init__(self, path: str | Path):
        self.path = path

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self.file = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{self.path} is no .npz file: {label(error)}. Write it with np.savez.") from error
        return self.file

    def __exit__(self, kind, error, trace) -> None:
        self.file.close()
        if isinstance(error, Exception) and not isinstance(error, ValueError):
            raise ValueError(f"{self.path} is damaged: {label(error)}. Fetch or write it again.") from error


def _member_layout(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | Path
) -> tuple[tuple[int, ...], np.dtype]:
    where = f"{info.filename.removesuffix('.npy')} in {path}"
    if info.file_size > MAX_BYTES:
        raise ValueError(f"{where} has {info.file_size} bytes; expected at most {MAX_BYTES}. Save fewer regions.")
    if info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # of which alone it reads no more than asked
        raise ValueError(f"{where} is compressed in another way than np.savez_compressed does; save it anew with that.")
    with archive.open(info) as file:
        shape, dtype = read_header(file, where, scalars=True)
        begins = file.tell()
    if info.file_size != begins + math.prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{where} has {info.file_size} bytes, and its header says {list(shape)} of {dtype}; expected as many as "
            "that. Save it anew with np.savez."
        )
    return shape, dtype
