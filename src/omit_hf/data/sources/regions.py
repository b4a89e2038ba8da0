"""Precomputed regions, the layout of SCAN and VSE∞ that most work on Flickr30K and COCO shares."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value

from omit_hf.data.schema import DataError, check_count, check_only, chosen_splits, tidy
from omit_hf.data.sources.npy import NpyRow, array_layout, read_row
from omit_hf.data.sources.region_layouts import Layout, find_layout, read_layout
from omit_hf.data.sources.stored_arrays import StoredArray
from omit_hf.parsing import text_lines

FEATURES = Features(
    {"region_features": NpyRow(), "captions": List(Value("string")), "image_id": Value("string")}
)  # region_features [K, width]
BOX_FEATURES = Features({"boxes": NpyRow()})  # [K, 4]: x0, y0, x1, y1 in pixels
FILES = ("caps.txt", "ids.txt")  # of a split, after its prefix; beside its regions
MAX_SIDE = 2**31 - 1  # pixels
SIZE_FEATURES = Features({"width": Value("int32"), "height": Value("int32")})


def load_regions(
    folder: str | Path,
    test: str = "test",
    captions_per_image: int = 5,
    validation_images: int | None = None,
    only: Sequence[str] | None = None,
) -> DatasetDict:
    """Load regions that a detector has found beforehand.

    For each of `train`, `dev` and the test split, or those of them that there are, the folder holds

    - `{split}_ims.npy`, numbers [N, K, width], usually [N, 36, 2048]: an image a row, or each image once a caption, in
      successive rows that are equal;
    - `{split}_caps.txt`, a caption a line, `captions_per_image` successive lines an image;
    - `{split}_ids.txt`, the image's id a line: once an image, or once a caption. Ids that differ from caption to
      caption throughout are the captions'; an image then has that of its first caption;
    - optionally `{split}_boxes.npy` [N, K, 4], x0, y0, x1, y1 in pixels, with as many rows as the regions, and
      `{split}_img_sizes.npy` [N, 2], width and height.

    Where images have different numbers of regions, one of these stands in the place of `{split}_ims.npy`:

    - flat arrays: `{split}_ims.npy` [all regions, width] beside `{split}_offsets.npy` [N + 1], from 0, the region that
      each image begins with and at last their number; `{split}_boxes.npy` is [all regions, 4];
    - a folder `{split}_ims` with a file an image, `ID.npy` [K, width] or `ID.npz` with `features` [K, width] and
      perhaps `boxes` [K, 4], `image_w` and `image_h`;
    - `{split}_ims.tsv`, as bottom-up attention has it: a line an image, in any order, with image_id, image_w, image_h,
      num_boxes, boxes and features, the last two float32 in base64. All of it is read once, when it is loaded.

    The number of captions decides: dev may hold more rows of regions than it has captions for, and those at the end are
    then not used. Nothing of an array but its header is read until a row is accessed (see `omit_hf.data.sources.npy`).
    Every region of an image is taken for one, also where a row of zeros stands for none.

    Args:
        folder: holds the files.
        test: the prefix of the test split; COCO has `test` (1K) and `testall` (5K).
        captions_per_image: captions of an image.
        validation_images: take the first so many of dev, as SCAN's and VSE∞'s code takes 1000. All by default.
        only: the splits to load; files of others are not looked at. By default those of which the folder has a file.

    Returns:
        `DatasetDict` with columns `region_features` (float32 [K, width]), `captions`, `image_id`, and `boxes` (float32
        [K, 4]), `width` and `height` where the folder has them.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if an option is out of range, or with every problem of the files: a truncated array, another shape,
            counts or ids that do not match, an empty caption.
    """
    folder = Path(os.path.abspath(folder))  # since rows are read later, perhaps from another working directory
    for name, value in {"captions_per_image": captions_per_image, "validation_images": validation_images}.items():
        if value is not None or name == "captions_per_image":
            check_count(name, value)
    check_only(only)
    data, problems = {}, []
    for split, prefix in {"train": "train", "validation": "dev", "test": test}.items():
        layout = find_layout(folder, prefix)
        absent = [name for name in FILES if not (folder / f"{prefix}_{name}").is_file()]
        absent = absent if layout is not None else ["ims.npy", *absent]
        # A prefix that is given is wanted, unless it is left out.
        wanted = (
            split in only if only is not None else len(absent) <= len(FILES) or prefix not in ("train", "dev", "test")
        )
        if not wanted:
            continue
        if absent:
            hint = " If you have none, number the images: a different number a line." if absent == ["ids.txt"] else ""
            raise FileNotFoundError(f"No {prefix}_{absent[0]} in {folder}; expected it for the {split} split.{hint}")
        columns, features, found = _columns(folder, prefix, captions_per_image, layout, may_have_more=prefix == "dev")
        problems += found
        if not problems:
            data[split] = Dataset.from_dict(columns, features=features, split=split)
    if problems:
        raise DataError(str(folder), problems)
    if validation_images is not None and "validation" in data:
        data["validation"] = data["validation"].select(range(min(validation_images, len(data["validation"]))))
    return DatasetDict({split: data[split] for split in chosen_splits(folder, data, only)})


def _columns(
    folder: Path, prefix: str, each: int, layout: Layout, may_have_more: bool
) -> tuple[dict, Features, list[str]]:
    """The columns of a split with `each` captions an image, their features, and what is wrong with its files."""
    try:
        captions, ids = (_lines(folder / f"{prefix}_{name}.txt") for name in ("caps", "ids"))
    except ValueError as error:
        return {}, Features(), [str(error)]
    problems = [f"{prefix}_caps.txt line {n + 1}: empty caption" for n, caption in enumerate(captions) if not caption]
    count, rest = divmod(len(captions), each)
    if rest or not captions:
        problems.append(
            f"{prefix}_caps.txt has {len(captions)} lines; expected {each} an image (captions_per_image), so a "
            f"multiple of {each}. Is a line missing?"
        )
        return {}, Features(), problems
    if layout != Layout.FIXED:
        try:
            image_ids = _image_ids(folder / f"{prefix}_ids.txt", ids, count, count, each)
            found, wrong = read_layout(layout, folder, prefix, image_ids, may_have_more)
        except ValueError as error:
            return {}, Features(), [*problems, str(error)]
        columns = {**found, "captions": [captions[n : n + each] for n in range(0, len(captions), each)]}
        known = {**FEATURES, **SIZE_FEATURES, "region_features": StoredArray(), "boxes": StoredArray()}
        columns["image_id"] = image_ids
        return columns, Features({name: known[name] for name in columns}), problems + wrong

    regions = folder / f"{prefix}_ims.npy"
    try:
        rows, repeat = _rows(regions, count, each, may_have_more)
        image_ids = _image_ids(folder / f"{prefix}_ids.txt", ids, rows, count, each)
    except ValueError as error:
        return {}, Features(), [*problems, str(error)]
    numbers = range(0, count * repeat, repeat)
    columns = {
        "region_features": [{"path": str(regions), "row": row} for row in numbers],
        "captions": [captions[start : start + each] for start in range(0, len(captions), each)],
        "image_id": image_ids,
    }
    features = FEATURES.copy()
    boxes, sizes = folder / f"{prefix}_boxes.npy", folder / f"{prefix}_img_sizes.npy"
    try:
        if boxes.is_file():
            _expect_shape(boxes, (rows, array_layout(regions)[0][1], 4))
            corners = np.load(boxes, mmap_mode="r", allow_pickle=False)[numbers.start : numbers.stop : numbers.step]
            _check_boxes(boxes, corners, numbers)
            columns["boxes"] = [{"path": str(boxes), "row": row} for row in numbers]
            features |= BOX_FEATURES
        if sizes.is_file():
            _expect_shape(sizes, (rows, 2))
            pixels = np.load(sizes, allow_pickle=False)[numbers.start : numbers.stop : numbers.step]
            _check_sizes(sizes, pixels, numbers)
            columns |= {"width": pixels[:, 0].astype(np.int32), "height": pixels[:, 1].astype(np.int32)}
            features |= SIZE_FEATURES
    except ValueError as error:
        problems.append(str(error))
    return columns, Features(features), problems


def _lines(file: Path) -> list[str]:
    return [tidy(line) for line in text_lines(file)]


def _check_boxes(file: Path, corners: np.ndarray, numbers: range) -> None:
    finite = np.isfinite(corners).all(-1)
    good = finite & (corners[..., :2] <= corners[..., 2:]).all(-1)
    if not good.all():
        image, box = np.argwhere(~good)[0]
        what = "a box that ends before it begins" if finite[image, box] else "a box that is not finite"
        raise ValueError(
            f"{file.name} row {numbers[image]} has {what}, {corners[image, box].tolist()}; expected x0, y0, x1, y1 in "
            "pixels."
        )


def _check_sizes(file: Path, pixels: np.ndarray, numbers: range) -> None:
    good = ((pixels >= 1) & (pixels <= MAX_SIDE) & (pixels == np.round(pixels))).all(-1)
    if not good.all():
        image = np.argmin(good)
        size = " x ".join(map(str, pixels[image].tolist()))
        raise ValueError(
            f"{file.name} has a size of {size} in row {numbers[image]}; expected widths and heights in pixels, whole "
            f"numbers from 1 to {MAX_SIDE}."
        )


def _rows(file: Path, count: int, each: int, may_have_more: bool) -> tuple[int, int]:
    """Rows of an array of regions for `count` images, and how many successive ones are an image's."""
    shape = array_layout(file)[0]
    if len(shape) != 3 or not all(shape):
        raise ValueError(f"{file.name} has shape {list(shape)}; expected [images, regions, width].")
    rows = shape[0]
    repeat = each if rows >= count * each else 1
    if rows != count * repeat and not (may_have_more and rows > count * repeat):
        raise ValueError(
            f"{file.name} has {rows} rows and the captions are of {count} images; expected {count} rows, or "
            f"{count * each} where each image is stored once a caption."
        )
    for first in (0, (count - 1) * repeat) if repeat > 1 else ():
        if not np.array_equal(read_row(file, first), read_row(file, first + repeat - 1), equal_nan=True):
            raise ValueError(
                f"{file.name} has a row a caption, but rows {first} and {first + repeat - 1} differ; expected {repeat} "
                f"equal ones an image (captions_per_image)."
            )
    return rows, repeat


def _image_ids(file: Path, ids: list[str], rows: int, count: int, each: int) -> list[str]:
    if not all(ids):
        raise ValueError(f"{file.name} line {ids.index('') + 1} is empty; expected an id.")
    if len(ids) not in (rows, count, count * each):
        raise ValueError(
            f"{file.name} has {len(ids)} lines; expected {count}, one an image, or {count * each}, one a caption."
        )
    if len(ids) < count * each or each == 1:
        return ids[:count]
    of_captions = len(set(ids)) == len(ids)
    for start in range(0, count * each, each):
        group = ids[start : start + each]
        if len(set(group)) > 1 and not of_captions:
            raise ValueError(
                f"{file.name} lines {start + 1} to {start + each} have the ids {', '.join(group)}; expected one and "
                "the same, for the captions of one image."
            )
    return ids[: count * each : each]


def _expect_shape(file: Path, shape: tuple[int, ...]) -> None:
    found = array_layout(file)[0]
    if found != shape:
        raise ValueError(f"{file.name} has shape {list(found)}; expected {list(shape)}, as the regions have.")
