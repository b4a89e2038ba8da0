"""Describes data, and finds all that is wrong with them; for `omit-hf inspect` and the start of training."""

import hashlib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, Image
from tqdm.auto import tqdm

from omit_hf.data.pictures import stored_pictures, unreadable_pictures
from omit_hf.data.schema import SPLITS, DataError
from omit_hf.data.sources.npy import NpyRow
from omit_hf.data.sources.picture_files import file_identity
from omit_hf.data.sources.stored_arrays import StoredArray
from omit_hf.data.words import count_words, word_spans

MAX_WORDS = 1000  # more is a document, or a file read wrongly; tokenizers cut at a tenth of it or less


@dataclass
class Spread:
    """Least, mean and greatest value of a number."""

    least: int
    mean: float
    greatest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> "Spread":
        return cls(int(np.min(values)), float(np.mean(values)), int(np.max(values))) if len(values) else cls(0, 0.0, 0)

    def __str__(self) -> str:
        return f"{self.least} / {self.mean:.1f} / {self.greatest}"


@dataclass
class SplitDescription:
    """Numbers of a split.

    Args:
        images, captions: numbers of images and captions.
        captions_per_image: spread of the number of captions per image.
        words: spread of the number of words per caption, by a word tokenizer.
        vocabulary: number of different words.
    """

    images: int
    captions: int
    captions_per_image: Spread
    words: Spread
    vocabulary: int


def describe_split(split: Dataset) -> SplitDescription:
    """Count the images, captions and words of a split."""
    captions = [caption for captions in split["captions"] for caption in captions]
    return SplitDescription(
        images=len(split),
        captions=len(captions),
        captions_per_image=Spread.of([len(captions) for captions in split["captions"]]),
        words=Spread.of([len(word_spans(caption)) for caption in captions]),
        vocabulary=len(count_words(captions)),
    )


def check_data(data: DatasetDict, splits: Sequence[str] = SPLITS, read_images: bool = False) -> None:
    """Raise an error if `find_problems` finds any.

    Raises:
        DataError: lists every problem.
    """
    problems = find_problems(data, splits, read_images)
    if problems:
        raise DataError("The data", problems)


def find_problems(data: DatasetDict, splits: Sequence[str] = SPLITS, read_images: bool = False) -> list[str]:
    """Find everything that would break training or evaluation, or make its numbers wrong.

    Args:
        data: data in the schema of `omit_hf.data`.
        splits: the splits to check; all must exist. Others are ignored.
        read_images: open every picture, or read all regions, as well.

    Returns:
        A line per problem:

        - a split or column is missing;
        - an image has no id, or the id of another one in any split (the test would contain training images);
        - an image has the file or the row of regions of another one, under whatever name;
        - an image has no captions, or a caption that is empty or longer than `MAX_WORDS` words;
        - a picture cannot be read, or regions are not finite.
    """
    problems = [f"no split {split!r}" for split in splits if split not in data]
    seen: dict[str, str] = {}
    files: dict[tuple, str] = {}
    for split in [split for split in splits if split in data]:
        rows = data[split]
        if not isinstance(rows, Dataset):
            problems.append(
                f"{split}: a stream, whose rows are not known; load it without streaming, or with max_images"
            )
            continue
        missing = [name for name in ("captions", "image_id") if name not in rows.column_names]
        if not {"image", "region_features"} & set(rows.column_names):
            missing.insert(0, "image or region_features")
        if missing:
            problems += [f"{split}: no column {name}" for name in missing]
            continue
        if len(rows) == 0:
            problems.append(f"{split}: no image")
        ids, places = rows["image_id"], _places(rows)
        for number, (image_id, captions) in enumerate(zip(ids, rows["captions"], strict=True)):
            where = f"{split} image {number} ({image_id})"
            name = posixpath.normpath(image_id) if image_id else image_id  # ./0.png is another spelling of 0.png
            if not image_id:
                problems.append(f"{where}: no image_id")
            elif name in seen:
                problems.append(f"{where}: the image_id is that of {seen[name]} too")
            elif places[number] in files:
                problems.append(f"{where}: its file is that of {files[places[number]]} too, under another name")
            if image_id:
                seen.setdefault(name, f"{split} image {number}")
            if places[number] is not None:
                files.setdefault(places[number], f"{split} image {number}")
            problems += [f"{where}: {problem}" for problem in _caption_problems(captions)]
        if read_images:
            problems += [f"{split} image {n} ({ids[n]}): {why}" for n, why in unreadable_images(rows).items()]
    return problems


def find_duplicates(data: DatasetDict) -> list[str]:
    """Find images of the same content under two names, within or across splits; a line per image.

    Reads every picture as it is stored, without decoding it, or all regions.
    """
    problems, seen = [], {}
    for split, rows in data.items():
        source = "image" if "image" in rows.column_names else "region_features"
        ids = rows["image_id"]
        rows = stored_pictures(rows) if source == "image" else rows.select_columns(source)
        for number, row in enumerate(tqdm(rows, desc=f"Comparing images of {split}", leave=False)):
            where = f"{split} image {number} ({ids[number]})"
            try:
                digest = _digest(row[source])
            except OSError as error:
                problems.append(f"{where}: cannot be read: {error}")
                continue
            if digest in seen:
                what, of = ("its picture is", "that of") if source == "image" else ("its regions are", "those of")
                problems.append(f"{where}: {what} byte for byte {of} {seen[digest]}")
            seen.setdefault(digest, where)
    return problems


def _digest(stored) -> bytes:
    if not isinstance(stored, dict):
        array = np.ascontiguousarray(stored)
        return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).digest()
    content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
    return hashlib.sha256(content).digest()


def _places(rows: Dataset) -> list[tuple | None]:
    """Locate every row's picture (its file) or regions (their file and row); None for what is in no file."""
    feature = rows.features.get("image")
    if isinstance(feature, Image):
        flat = stored_pictures(rows).flatten()  # so that no bytes are read
        num_files = flat.data.column("image.bytes").null_count
        if num_files == 0:
            return [None] * len(rows)
        paths = flat["image.path"]
        if num_files < flat.data.num_rows:  # for a picture in the table the path is only a name
            held = [content is not None for content in flat["image.bytes"]]
            paths = [None if inside else path for path, inside in zip(paths, held, strict=True)]
        return [_identity(path) for path in paths]
    feature = rows.features.get("region_features")
    if isinstance(feature, NpyRow | StoredArray):
        stored = rows.select_columns("region_features").cast_column("region_features", type(feature)(decode=False))
        place = "row" if isinstance(feature, NpyRow) else "offset"
        found = [(each["path"], each[place]) for each in stored["region_features"]]
        identities = {path: _identity(path) for path, _ in set(found)}
        return [None if identities[path] is None else (*identities[path], row) for path, row in found]
    return [None] * len(rows)


def _identity(path: str | None) -> tuple | None:
    try:
        return None if path is None else file_identity(path)
    except (OSError, ValueError):  # not there; opening it will tell
        return None


def unreadable_images(split: Dataset) -> dict[int, str]:
    """Find the images of a split that cannot be used: number → reason. Opens every picture, or reads all regions."""
    if "image" in split.column_names:
        return {n: f"cannot be read: {why}" for n, why in unreadable_pictures(split).items()}
    regions = split.select_columns("region_features")
    numbers = tqdm(range(len(split)), desc="Reading regions", leave=False)
    infinite = [n for n in numbers if not np.isfinite(regions[n]["region_features"]).all()]
    return dict.fromkeys(infinite, "its regions have values that are not finite")


def _caption_problems(captions: list[str] | None) -> list[str]:
    if not captions:
        return ["no caption"]
    problems = []
    for number, caption in enumerate(captions):
        words = len((caption or "").split())
        if words == 0:
            problems.append(f"caption {number} is empty")
        elif words > MAX_WORDS:
            problems.append(f"caption {number} has {words} words; expected at most {MAX_WORDS}")
    return problems
