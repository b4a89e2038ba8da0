"""Checks and reads the columns `boxes` and `phrases` of the schema: which boxes the phrases of captions name."""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from omit_hf.data.schema import DataError

NO_BOX = -1  # as a phrase's object: it names something without a box
COLUMNS = ("captions", "image_id", "width", "height", "boxes", "phrases")


@dataclass
class Phrase:
    """A phrase of a caption.

    Args:
        start, end: its first character and the one after its last.
        boxes: boxes of what it names, float64 [N, 4]; N is 0 if there is no box.
    """

    start: int
    end: int
    boxes: np.ndarray


def phrases_of(row: dict, caption: int) -> list[Phrase]:
    """List the phrases of a caption, in order. Entries with one span make one phrase, with all of their boxes."""
    boxes = np.asarray(row["boxes"], dtype=np.float64).reshape(-1, 4)
    objects: dict[tuple[int, int], set[int]] = {}
    for phrase in row["phrases"]:
        if phrase["caption"] == caption:
            objects.setdefault((phrase["start"], phrase["end"]), set()).add(phrase["object"])
    return [Phrase(*span, boxes[sorted(found - {NO_BOX})]) for span, found in sorted(objects.items())]


def check_phrases(split: Dataset) -> None:
    """Check that a split says which boxes its phrases name, and that they fit its captions and pictures.

    Raises:
        ValueError: if a column is missing.
        DataError: lists every phrase that lies outside its caption or names a missing caption or box, and every box
            that is malformed or outside its picture.
    """
    missing = [name for name in COLUMNS if name not in split.column_names]
    if missing:
        raise ValueError(
            f"The split has no column {', '.join(missing)}; expected boxes, and the phrases that name them. Scenes "
            "have them, and load_entities gives them to Flickr30K."
        )
    problems = []
    for row in split.select_columns(list(COLUMNS)).with_format(None):
        problems += [f"{row['image_id']}: {problem}" for problem in _problems(row)]
    if problems:
        raise DataError("The boxes and phrases", problems)


def _problems(row: dict) -> list[str]:
    width, height, captions = row["width"], row["height"], row["captions"]
    if width is None or height is None or row["boxes"] is None or row["phrases"] is None:
        return ["width, height, boxes or phrases is null"]
    problems = []
    for number, box in enumerate(row["boxes"]):
        shown = f"boxes[{number}] is {[round(float(value), 2) for value in box]}"
        if not np.isfinite(box).all():
            problems.append(f"{shown}, which holds NaN or infinity")
        elif not (box[0] < box[2] and box[1] < box[3]):
            problems.append(f"{shown}, which ends before it begins; expected x0, y0, x1, y1")
        elif min(box) < 0 or box[2] > width or box[3] > height:
            problems.append(f"{shown}, outside the picture of {width} x {height} pixels")
    for number, phrase in enumerate(row["phrases"]):
        if not 0 <= phrase["caption"] < len(captions):
            problems.append(f"phrases[{number}] is of caption {phrase['caption']}, and there are {len(captions)}")
            continue
        length = len(captions[phrase["caption"]])
        if not 0 <= phrase["start"] < phrase["end"] <= length:
            span = f"{phrase['start']} to {phrase['end']}"
            problems.append(
                f"phrases[{number}] has the characters {span}, and caption {phrase['caption']} has {length}"
            )
        if not NO_BOX <= phrase["object"] < len(row["boxes"]):
            problems.append(f"phrases[{number}] names box {phrase['object']}, and there are {len(row['boxes'])}")
    return problems
