"""Crisscrossed Captions: pairs of COCO's test split that people rated as alike, also within one modality."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from omit_hf.data.schema import DataError
from omit_hf.evaluation.protocols.coco_numbers import CocoNumbers, checked_shape, image_number
from omit_hf.evaluation.protocols.result import ProtocolResult
from omit_hf.evaluation.retrieval import best_ranks, recalls
from omit_hf.parsing import read_text, shown

TASKS = ("i2t", "t2i", "i2i", "t2t")
CXC = "Crisscrossed Captions on Karpathy's test split of COCO"
# Of each file: its first two columns, and the least score of a positive pair.
FILES = {
    "sits_test.csv": (("caption", "image"), 3.0),
    "sis_test.csv": (("image1", "image2"), 2.5),
    "sts_test.csv": (("caption1", "caption2"), 3.0),
}
FILE_OF = {"i2t": "sits_test.csv", "t2i": "sits_test.csv", "i2i": "sis_test.csv", "t2t": "sts_test.csv"}
MAX_SCORE = 5.0

Pairs = tuple[np.ndarray, np.ndarray]


def cxc(
    similarity, positives: dict[str, Pairs], numbers: CocoNumbers, image_similarity=None, text_similarity=None
) -> ProtocolResult:
    """Measure the recall of pairs that people rated as alike.

    A query counts if it has a positive; the candidates are all images or captions but the query itself. R@K is the
    share of queries with a positive among the best K.

    Args:
        similarity: similarity of images and captions, [N_i, N_t].
        positives: positive pairs by task, from `read_cxc`; these tasks are measured.
        numbers: COCO's numbers of the images and captions.
        image_similarity: similarity of images with images, queries × candidates, [N_i, N_i]; for `i2i`.
        text_similarity: similarity of captions with captions, [N_t, N_t]; for `t2t`.

    Returns:
        `i2t_r1`, `i2t_r5`, `i2t_r10`, `i2t_medr`, `i2t_meanr`, and the same for the other tasks.

    Raises:
        ValueError: if a matrix that a task needs is missing, has another shape or holds NaN.

    Source: Parekh et al., *Crisscrossed Captions* (arXiv 2004.15020, § 3), which takes pairs of a score of at least
    3 (STS, SITS) or 2.5 (SIS) as positives; the package `eccv_caption` has these of SITS too.
    """
    between = numbers.of_similarity(similarity)
    matrices = {"i2t": between, "t2i": between.T}
    if "i2i" in positives:
        size = len(numbers.images)
        matrices["i2i"] = checked_shape("image_similarity", image_similarity, (size, size))
    if "t2t" in positives:
        matrices["t2t"] = numbers.of_text_similarity(text_similarity)
    metrics = {}
    for task, pairs in positives.items():
        metrics |= recalls(task, best_ranks(matrices[task], *pairs, itself=task in ("i2i", "t2t")))
    return ProtocolResult("cxc", CXC, metrics)


def read_cxc(folder: str | Path, numbers: CocoNumbers, tasks: Sequence[str] = TASKS) -> dict[str, Pairs]:
    """Read the positive pairs of Crisscrossed Captions, as rows and columns of the similarity of every task.

    A pair is positive if its score reaches the file's threshold. If it was rated more than once, its highest score
    counts; pairs within a modality count both ways. COCO's own pairs (a caption with its image, two captions of one
    image) are positive if nobody rated them, and not if they were rated lower.

    Args:
        folder: folder of `sits_test.csv` (`i2t`, `t2i`), `sis_test.csv` (`i2i`) and `sts_test.csv` (`t2t`), published
            at https://github.com/google-research-datasets/Crisscrossed-Captions.
        numbers: COCO's numbers of the similarity's images and captions. Surplus captions are left out.
        tasks: some of `i2t`, `t2i`, `i2i`, `t2t`.

    Returns:
        By task: rows (queries) and columns (candidates), both int64 [number of pairs].

    Raises:
        FileNotFoundError: if a file that a task needs is missing.
        DataError: lists every line that names an unknown image or caption, or has no score from 0 to 5.
        ValueError: if a task is unknown, or a file has other columns.
    """
    check_files(folder, tasks)
    row = {number: place for place, number in enumerate(numbers.images.tolist())}
    column = {number: place for place, number in enumerate(numbers.captions.tolist())}

    def image(name: str) -> int:
        return row[image_number(name)]

    def caption(name: str) -> int | None:
        number = int(name.rsplit(":", 1)[-1])
        return None if number in numbers.surplus else column[number]

    own = list(zip(range(len(column)), numbers.caption_image_index.tolist(), strict=True))
    positives = {}
    if {"i2t", "t2i"} & set(tasks):
        of_caption, of_image = _read(Path(folder) / "sits_test.csv", (caption, image), own)
        positives |= {"i2t": (of_image, of_caption), "t2i": (of_caption, of_image)}
    if "i2i" in tasks:
        positives["i2i"] = _read(Path(folder) / "sis_test.csv", (image, image), [], both_ways=True)
    if "t2t" in tasks:
        starts = np.flatnonzero(np.diff(numbers.caption_image_index, prepend=-1))
        groups = np.split(np.arange(len(column)), starts[1:])
        together = [(int(a), int(b)) for group in groups for a in group for b in group if a != b]
        positives["t2t"] = _read(Path(folder) / "sts_test.csv", (caption, caption), together, both_ways=True)
    return {task: positives[task] for task in TASKS if task in tasks}


def check_files(folder: str | Path, tasks: Sequence[str]) -> None:
    """Check that a folder has the files of some tasks.

    Raises:
        FileNotFoundError: names every file that is missing.
        ValueError: if a task is unknown, or none is given.
    """
    if not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks is {list(tasks)}; expected some of {', '.join(TASKS)}.")
    missing = sorted({FILE_OF[task] for task in tasks if not (Path(folder) / FILE_OF[task]).is_file()})
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', '.join(missing)}; expected the files of Crisscrossed Captions' folder data."
        )


def _read(file: Path, places: tuple[Callable, Callable], own: list[tuple[int, int]], both_ways: bool = False) -> Pairs:
    """Read the positive pairs of a file, and add those of `own` that it does not rate."""
    columns, least = FILES[file.name]
    scores, problems = {}, []
    try:
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
        missing = {*columns, "agg_score"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{file} has no column {', '.join(sorted(missing))}; expected {', '.join(columns)}, agg_score and "
                "sampling_method."
            )
        for line in reader:
            names = [line[name] for name in columns]
            pair = []
            for name, place in zip(names, places, strict=True):
                try:
                    pair.append(place(name))
                except (KeyError, ValueError, TypeError, AttributeError):
                    problems.append(f"line {reader.line_num}: {shown(name)} is not in the data")
            try:
                score = float(line["agg_score"])
            except (TypeError, ValueError):
                score = math.nan
            if not 0 <= score <= MAX_SCORE:
                problems.append(
                    f"line {reader.line_num}: agg_score is {shown(line['agg_score'])}; expected 0 to {MAX_SCORE:g}"
                )
            if problems or None in pair or (both_ways and pair[0] == pair[1]):
                continue
            for each in [tuple(pair), tuple(pair[::-1])] if both_ways else [tuple(pair)]:
                scores[each] = max(score, scores.get(each, 0.0))
    except csv.Error as error:
        raise ValueError(f"{file} is no CSV: line {reader.line_num}: {error}.") from error
    if problems:
        raise DataError(str(file), problems)
    positive = [pair for pair, score in scores.items() if score >= least] + [p for p in own if p not in scores]
    if not positive:
        raise ValueError(f"{file} has no pair with a score of at least {least:g}.")
    rows, others = np.array(positive).T
    return rows, others
