"""Layouts of regions whose number differs from image to image: flat arrays, a file an image, and a TSV in base64."""

import enum
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from omit_hf.data.schema import listed
from omit_hf.data.sources.npy import array_layout
from omit_hf.data.sources.picture_files import file_within
from omit_hf.data.sources.stored_arrays import (
    MAX_REGIONS,
    archive_layout,
    base64_length,
    decoded,
    place,
    read_member,
    read_place,
)
from omit_hf.parsing import shown

MAX_SIDE = 2**31 - 1  # pixels
MAX_LINE = 2**27  # bytes of a TSV, ten thousand regions of 2048 numbers
# What others call the arrays of a .npz file.
FEATURE_NAMES, BOX_NAMES = ("features", "x", "feat"), ("boxes", "bbox")
FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class Layout(enum.Enum):
    """Where the regions of a split are; all but `FIXED` have any number of them."""

    FIXED = "{}_ims.npy"
    FLAT = "{}_offsets.npy"
    FOLDER = "{}_ims"
    TSV = "{}_ims.tsv"


def find_layout(folder: Path, prefix: str) -> Layout | None:
    """The layout of a split, None if there is none.

    Raises:
        ValueError: if there are several.
    """
    found = [each for each in Layout if (folder / each.value.format(prefix)).exists()]
    if Layout.FLAT in found and Layout.FIXED in found:
        found.remove(Layout.FIXED)
    if len(found) > 1:
        names = " and ".join(each.value.format(prefix) for each in found)
        raise ValueError(f"{folder} has {names}, the same regions in several layouts; expected one. Move the others.")
    return found[0] if found else None


def read_layout(
    layout: Layout, folder: Path, prefix: str, image_ids: Sequence[str], may_have_more: bool
) -> tuple[dict[str, list], list[str]]:
    """Columns of a split, and what is wrong with its files.

    Args:
        image_ids: of all images, in order; the columns have a value for each.
        may_have_more: the files may have more images than these.

    Returns:
        `region_features` and perhaps `boxes`, as places of a `StoredArray`; perhaps `width` and `height` in pixels.
    """
    return READERS[layout](folder, prefix, image_ids, may_have_more)


def _flat(folder: Path, prefix: str, image_ids: Sequence[str], may_have_more: bool) -> tuple[dict, list[str]]:
    regions, offsets = folder / f"{prefix}_ims.npy", folder / f"{prefix}_offsets.npy"
    shape, dtype, start = array_layout(regions)
    if len(shape) != 2 or not all(shape):
        raise ValueError(
            f"{regions.name} has shape {list(shape)}; expected [all regions, width] beside {offsets.name}."
        )
    ends = _offsets(offsets, shape[0], len(image_ids), may_have_more)
    spans = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    columns = {"region_features": _spans(regions, spans, shape[1], dtype, start)}
    boxes, sizes = folder / f"{prefix}_boxes.npy", folder / f"{prefix}_img_sizes.npy"
    if boxes.is_file():
        found, dtype, start = array_layout(boxes)
        if found != (shape[0], 4):
            raise ValueError(f"{boxes.name} has shape {list(found)}; expected {[shape[0], 4]}, a box a region.")
        check_boxes(boxes.name, np.load(boxes, mmap_mode="r", allow_pickle=False)[: ends[-1]])
        columns["boxes"] = _spans(boxes, spans, 4, dtype, start)
    if sizes.is_file():
        found, dtype, start = array_layout(sizes)
        if len(found) != 2 or found[1] != 2 or found[0] < len(image_ids):
            raise ValueError(f"{sizes.name} has shape {list(found)}; expected {[len(image_ids), 2]}, a row an image.")
        pixels = np.load(sizes, mmap_mode="r", allow_pickle=False)[: len(image_ids)].tolist()
        pairs = [_size(f"{sizes.name} row {row}", *pair) for row, pair in enumerate(pixels)]
        columns |= {"width": [width for width, _ in pairs], "height": [height for _, height in pairs]}
    return columns, []


def _offsets(file: Path, total: int, count: int, may_have_more: bool) -> np.ndarray:
    """Where the regions of each of `count` images begin, and those of the last end, int64 [count + 1]."""
    shape, dtype, _ = array_layout(file)
    if len(shape) != 1 or dtype.kind not in "iu":
        raise ValueError(f"{file.name} holds {dtype} {list(shape)}; expected integers [images + 1].")
    if shape[0] != count + 1 and not (may_have_more and shape[0] > count + 1):
        raise ValueError(
            f"{file.name} has {shape[0]} offsets and the captions are of {count} images; expected {count + 1}, where "
            "each image's regions begin and, at last, how many there are."
        )
    ends = np.load(file, allow_pickle=False)
    if ends[0] != 0 or ends[-1] != total:
        raise ValueError(f"{file.name} goes from {ends[0]} to {ends[-1]}; expected from 0 to {total}, all regions.")
    wrong = np.flatnonzero(ends[1:] <= ends[:-1])
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{file.name} row {row + 1} is {ends[row + 1]} after {ends[row]}; expected more, since every image has at "
            "least one region. Leave out images without."
        )
    return ends[: count + 1].astype(np.int64)


def _spans(file: Path, spans: list[tuple[int, int]], width: int, dtype: np.dtype, start: int) -> list[dict]:
    step = width * dtype.itemsize
    return [place(file, (end - first, width), dtype, offset=start + first * step) for first, end in spans]


def _folder(folder: Path, prefix: str, image_ids: Sequence[str], may_have_more: bool) -> tuple[dict, list[str]]:
    rows, problems = [], []
    for row, image_id in enumerate(image_ids):
        try:
            rows.append(_file_row(folder / f"{prefix}_ims", image_id))
        except (ValueError, OSError) as error:
            problems.append(f"{prefix}_ids.txt image {row}: {error}")
    return _as_columns(f"{prefix}_ims", rows, image_ids, problems)


def _file_row(folder: Path, image_id: str) -> dict:
    """The values of an image, of its own file in a folder."""
    array = archive = None
    try:
        array = file_within(folder, f"{image_id}.npy")
    except ValueError:
        try:
            archive = file_within(folder, f"{image_id}.npz")
        except ValueError as error:
            raise ValueError(f"{error}, and so is the same with .npy; expected one of both in {folder}") from error
    if array is not None:
        shape, dtype, start = array_layout(array)
        return {"region_features": place(array, _regions_shape(array, shape), dtype, offset=start)}
    found = archive_layout(archive)
    name = next((name for name in FEATURE_NAMES if name in found), None)
    if name is None:
        raise ValueError(f"{archive} holds {listed(found) or 'nothing'}; expected the array {FEATURE_NAMES[0]}.")
    shape = _regions_shape(archive, found[name][0])
    values = {"region_features": place(archive, shape, found[name][1], coding=f"npz:{name}")}
    boxes = next((name for name in BOX_NAMES if name in found), None)
    if boxes is not None:
        if found[boxes][0] != (shape[0], 4):
            raise ValueError(f"{archive} has boxes of shape {list(found[boxes][0])}; expected {[shape[0], 4]}.")
        values["boxes"] = place(archive, (shape[0], 4), found[boxes][1], coding=f"npz:{boxes}")
        check_boxes(str(archive), read_place(**values["boxes"]))
    if "image_w" in found and "image_h" in found:
        if any(found[side][0] not in ((), (1,)) for side in ("image_w", "image_h")):
            raise ValueError(f"{archive} has image_w of shape {list(found['image_w'][0])}; expected one number.")
        pixels = (read_member(archive, side, found[side][0]).item() for side in ("image_w", "image_h"))
        values["width"], values["height"] = _size(str(archive), *pixels)
    return values


def _regions_shape(file: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 2 or not all(shape) or shape[0] > MAX_REGIONS:
        expected = f"[K, width] with K from 1 to {MAX_REGIONS}"
        raise ValueError(f"{file} has regions of shape {list(shape)}; expected {expected}. Leave out such an image.")
    return shape


def _tsv(folder: Path, prefix: str, image_ids: Sequence[str], may_have_more: bool) -> tuple[dict, list[str]]:
    file = folder / f"{prefix}_ims.tsv"
    wanted, rows, problems, seen = set(image_ids), {}, [], {}
    with file.open("rb") as lines:
        number, offset = 0, 0
        while line := lines.readline(MAX_LINE + 1):
            number += 1
            where = f"{file.name} line {number}"
            if len(line) > MAX_LINE:
                raise ValueError(f"{where} has more than {MAX_LINE} bytes; expected a line an image. Write line ends.")
            try:
                image_id, values = _tsv_row(file, line, offset, number, wanted)
                if image_id in seen:
                    raise ValueError(f"{image_id} is there already, in line {seen[image_id]}; leave out either")
                seen[image_id] = number
                rows[image_id] = values
            except ValueError as error:
                problems.append(f"{where}: {error}")
            offset += len(line)
    missing = [image_id for image_id in image_ids if image_id not in seen]
    if missing and not problems:
        problems.append(
            f"{file.name} has no line of {listed(missing)}, which {prefix}_ids.txt has; expected all of it."
        )
    kept = [rows[image_id] for image_id in image_ids] if not problems else []
    return _as_columns(file.name, kept, image_ids, problems)


def _tsv_row(file: Path, line: bytes, offset: int, number: int, wanted: set[str]) -> tuple[str, dict | None]:
    """Id and values of an image; no values of one that is not wanted."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(FIELDS):
        raise ValueError(f"{len(fields)} fields; expected {len(FIELDS)} between tabs: {', '.join(FIELDS)}")
    image_id = fields[0].decode("utf-8").strip()
    if image_id not in wanted:
        return image_id, None
    width, height, count = (_whole(name, each) for name, each in zip(FIELDS[1:4], fields[1:4], strict=True))
    if not 1 <= count <= MAX_REGIONS:
        raise ValueError(f"num_boxes is {count}; expected 1 to {MAX_REGIONS}. Leave out an image without regions")
    boxes, features = fields[4:]
    size = len(features) // 4 * 3 - features[-2:].count(b"=")
    if len(features) != base64_length(size) or size == 0 or size % (4 * count):
        raise ValueError(
            f"features has {len(features)} characters; expected base64 of {count} (num_boxes) rows of float32 numbers. "
            "Fetch the file again"
        )
    start = offset + len(line.rstrip(b"\r\n")) - len(features)
    corners = np.frombuffer(decoded(boxes, 16 * count, "boxes"), "<f4").reshape(count, 4)
    check_boxes("boxes", corners)
    pixels = _size("image_w, image_h", width, height)
    return image_id, {
        "region_features": place(file, (count, size // (4 * count)), coding="base64", offset=start, line=number),
        "boxes": place(file, (count, 4), coding="base64", offset=start - len(boxes) - 1, line=number),
        "width": pixels[0],
        "height": pixels[1],
    }


def _whole(name: str, field: bytes) -> int:
    if not (field.isdigit() and len(field) < 11):
        raise ValueError(f"{name} is {shown(field.decode('utf-8', 'replace'))}; expected a whole number")
    return int(field)


def _as_columns(
    what: str, rows: list[dict], image_ids: Sequence[str], problems: list[str]
) -> tuple[dict[str, list], list[str]]:
    """Rows as columns, if every image has the same ones, and regions of one width."""
    if problems:
        return {}, problems
    widths = [row["region_features"]["width"] for row in rows]
    for image_id, row, width in zip(image_ids, rows, widths, strict=True):
        if width != widths[0]:
            expected = f"{widths[0]}, as the first image, {image_ids[0]}, has; take all from one detector"
            return {}, [f"{what}: the regions of {image_id} are {width} numbers wide; expected {expected}."]
        if row.keys() != rows[0].keys():
            name = min(row.keys() ^ rows[0].keys())
            one, other = (image_ids[0], image_id) if name in rows[0] else (image_id, image_ids[0])
            return {}, [f"{what}: {one} has {name}, and {other} has none; expected it of all images or of none."]
    return {name: [row[name] for row in rows] for name in rows[0]}, []


def check_boxes(where: str, corners: np.ndarray) -> None:
    """Raise a ValueError for the first of the boxes [K, 4] that is none."""
    finite = np.isfinite(corners).all(-1)
    good = finite & (corners[:, :2] <= corners[:, 2:]).all(-1)
    if not good.all():
        box = int(np.argmin(good))
        what = "a box that ends before it begins" if finite[box] else "a box that is not finite"
        raise ValueError(f"{where} row {box} has {what}, {corners[box].tolist()}; expected x0, y0, x1, y1 in pixels.")


def _size(where: str, width: float, height: float) -> tuple[int, int]:
    if not all(1 <= side <= MAX_SIDE and side == round(side) for side in (width, height)):
        raise ValueError(
            f"{where} has a size of {width} x {height}; expected whole numbers of pixels from 1 to {MAX_SIDE}."
        )
    return int(width), int(height)


READERS: dict[Layout, Callable] = {Layout.FLAT: _flat, Layout.FOLDER: _folder, Layout.TSV: _tsv}
