"""What is in the data, and all that is wrong with them: examples/inspect_data.py shows it, training checks it first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from omit_hf.data.pictures import unreadable_pictures
from omit_hf.data.schema import SPLITS, DataError
from omit_hf.data.words import count_words, word_spans

MAX_WORDS = 1000  # a caption of more is a document, or a file read wrongly; tokenizers cut at a tenth of it or less


@dataclass
class Spread:
    """Least, mean and greatest of a number."""

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
        images, captions: how many.
        captions_per_image: of every image.
        words: of every caption, as a word tokenizer takes them.
        vocabulary: different words.
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
    """Raise what `find_problems` finds.

    Raises:
        DataError: with every problem.
    """
    problems = find_problems(data, splits, read_images)
    if problems:
        raise DataError("The data", problems)


def find_problems(data: DatasetDict, splits: Sequence[str] = SPLITS, read_images: bool = False) -> list[str]:
    """Everything that would break training or evaluation, or make its numbers wrong.

    Args:
        data: in the schema of `omit_hf.data`.
        splits: that must be there.
        read_images: open every picture, or read all regions, as well.

    Returns:
        A line for each: a split or column that is missing, an image without id or with that of another one (in any
        split: that would be tested on what was trained on), without captions, with one that is empty or longer than
        `MAX_WORDS` words; a picture that cannot be read, regions that are not finite.
    """
    problems = [f"no split {split!r}" for split in splits if split not in data]
    seen: dict[str, str] = {}
    for split in [split for split in splits if split in data]:
        rows = data[split]
        missing = [name for name in ("captions", "image_id") if name not in rows.column_names]
        if not {"image", "region_features"} & set(rows.column_names):
            missing.insert(0, "image or region_features")
        if missing:
            problems += [f"{split}: no column {name}" for name in missing]
            continue
        if len(rows) == 0:
            problems.append(f"{split}: no image")
        ids = rows["image_id"]
        for number, (image_id, captions) in enumerate(zip(ids, rows["captions"], strict=True)):
            where = f"{split} image {number} ({image_id})"
            if not image_id:
                problems.append(f"{where}: no image_id")
            elif image_id in seen:
                problems.append(f"{where}: the image_id is that of {seen[image_id]} too")
            else:
                seen[image_id] = f"{split} image {number}"
            problems += [f"{where}: {problem}" for problem in _caption_problems(captions)]
        if read_images:
            problems += [f"{split} image {n} ({ids[n]}): {why}" for n, why in unreadable_images(rows).items()]
    return problems


def unreadable_images(split: Dataset) -> dict[int, str]:
    """The images of a split that cannot be used, by number, and why; every picture is opened, or all regions read."""
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
