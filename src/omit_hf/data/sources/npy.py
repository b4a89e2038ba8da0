"""A column of `datasets` whose values are rows of `.npy` files, read when they are accessed.

Arrow holds the name of a file and the number of a row, so that selecting, pickling and worker processes cost nothing,
and a file of any size stays where it is. A row is read with one call of the operating system, not through a memory map:
the pages of a map count as resident memory of every process that touched them, 33 GB after an epoch of COCO's regions.
"""

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from datasets.table import array_cast

from omit_hf.parsing import label


@dataclass
class NpyRow:
    """The feature of such a column; a value is float32, whatever the file holds.

    Args:
        decode: give arrays; otherwise `{"path": …, "row": …}`.

    Example:
        >>> from datasets import Dataset, Features
        >>> rows = [{"array": {"path": "regions.npy", "row": 3}}]
        >>> Dataset.from_list(rows, features=Features({"array": NpyRow(decode=False)}))[0]
        {'array': {'path': 'regions.npy', 'row': 3}}
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "numpy.ndarray"
    pa_type: ClassVar[pa.DataType] = pa.struct({"path": pa.string(), "row": pa.int64()})
    _type: str = field(default="NpyRow", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return self.pa_type

    def cast_storage(self, storage: pa.StructArray) -> pa.StructArray:
        return array_cast(storage, self.pa_type)

    def encode_example(self, value: dict) -> dict:
        if not (isinstance(value, dict) and value.keys() == {"path", "row"}):
            raise TypeError(f"{value!r:.80} is no row of a .npy file; expected {{'path': …, 'row': …}}.")
        return {"path": str(value["path"]), "row": int(value["row"])}

    def decode_example(self, value: dict, token_per_repo_id=None) -> np.ndarray:
        return read_row(value["path"], value["row"])


with warnings.catch_warnings():  # that registering a feature is experimental, which is no news to a user
    warnings.simplefilter("ignore", UserWarning)
    register_feature(NpyRow, "NpyRow")


def read_row(path: str, row: int) -> np.ndarray:
    """Row number `row` of an array, float32, without reading the others.

    Raises:
        FileNotFoundError, ValueError: as `array_layout`, if the file has changed since the split was loaded.
    """
    shape, dtype, offset = array_layout(path)
    if not 0 <= row < shape[0]:
        raise ValueError(f"{path} has no row {row}; it has {shape[0]} rows.")
    size = int(np.prod(shape[1:], dtype=np.int64))
    values = np.fromfile(path, dtype, size, offset=offset + row * size * dtype.itemsize)
    return values.reshape(shape[1:]).astype(np.float32, copy=False)


def array_layout(path: str | Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and the offset of the first value of a `.npy` file, from its header; nothing else is read.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no `.npy` file of numbers in C order, its header has a negative count, or it is shorter
            than that says.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No array at {path}; expected a .npy file.")
    with path.open("rb") as file:
        shape, dtype = read_header(file, path)
        offset = file.tell()
    size = path.stat().st_size
    expected = offset + math.prod(shape) * dtype.itemsize  # Python's integers, which do not overflow
    if size < expected:
        raise ValueError(
            f"{path} is truncated: its header says {list(shape)} of {dtype}, {expected} bytes, and it has {size}. "
            "Fetch or copy it again."
        )
    return shape, dtype, offset


def read_header(file: BinaryIO, where: object, scalars: bool = False) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of a `.npy` file that is open at its beginning; it is then open at its first value.

    `scalars` lets an array without an axis pass.

    Raises:
        ValueError: as `array_layout`, which calls the file `where`.
    """
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, in_columns, dtype = read[version](file)
    except OSError:
        raise
    except Exception as error:  # numpy evaluates the header, which raises many kinds
        raise ValueError(f"{where} is no .npy file: {label(error)}.") from error
    if dtype.kind not in "fiu" or in_columns or not (shape or scalars):
        order = "column" if in_columns else "row"
        raise ValueError(
            f"{where} holds {dtype} {list(shape)} in {order} order; expected rows of numbers in row order. Save it "
            "anew: np.save(file, np.ascontiguousarray(array, dtype=np.float32))."
        )
    if min(shape, default=0) < 0:
        raise ValueError(
            f"{where} has the shape {list(shape)} in its header; expected counts from 0. Save it anew with np.save."
        )
    return shape, dtype
