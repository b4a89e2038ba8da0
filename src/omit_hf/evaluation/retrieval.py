"""Retrieval metrics: functions of a similarity matrix. See ``docs/concepts/method.md#evaluation-protocol``."""

import math
from collections.abc import Iterator

import numpy as np

# Rows handled at once; keeps temporaries below a few hundred megabytes.
ELEMENTS_AT_ONCE = 2**25
DIRECTIONS = {"i2t": "image → text", "t2i": "text → image", "i2i": "image → image", "t2t": "text → text"}
# What `metrics_table` shows of a metric: its heading, and the form of the number.
COLUMNS = {
    "r1": ("R@1", ".1f"),
    "r5": ("R@5", ".1f"),
    "r10": ("R@10", ".1f"),
    "medr": ("median rank", "g"),
    "meanr": ("mean rank", ".1f"),
    "map": ("mAP", ".1f"),
    "map_at_r": ("mAP@R", ".1f"),
    "r_precision": ("R-precision", ".1f"),
}


def retrieval_metrics(similarity, caption_image_index) -> dict[str, float]:
    """Measure recall, ranks and RSUM of retrieval in both directions.

    A positive ranks below every negative that it ties with, so ties never flatter.

    Args:
        similarity: higher is closer, [N_i, N_t]; a numpy array, a tensor or nested lists.
        caption_image_index: the image (row) that every caption (column) belongs to, integers [N_t]. An image may have
            any number of captions; one without captions is a distractor for text→image only.

    Returns:
        For image→text: `i2t_r1`, `i2t_r5`, `i2t_r10` (percent), `i2t_medr`, `i2t_meanr` (median and mean rank, from 1);
        the best of an image's captions counts. The same for text→image as `t2i_…`. And `rsum`, the sum of the six
        recalls, at most 600.

    Raises:
        ValueError: if the similarity is not a matrix, is empty or holds NaN, or the index does not fit it.

    Example:
        >>> scores = retrieval_metrics([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], [0, 0, 1])
        >>> scores["i2t_r1"], round(scores["t2i_r1"], 1)  # caption 1 prefers image 1, and image 1 prefers caption 1
        (50.0, 66.7)
    """
    similarity, index = _checked(similarity, caption_image_index)
    captions = np.arange(len(index))
    metrics = recalls("i2t", best_ranks(similarity, index, captions))
    metrics |= recalls("t2i", best_ranks(similarity.T, captions, index))
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"] for direction in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def mean_average_precision(similarity, relevant) -> dict[str, float]:
    """Measure mean average precision over all relevant pairs, annotated or not.

    Args:
        similarity: [N_i, N_t], as for `retrieval_metrics`; ties are broken against the relevant pair.
        relevant: true where a caption is true of an image, bool [N_i, N_t].

    Returns:
        `i2t_map` and `t2i_map` in percent, over the images (captions) that have a relevant caption (image).

    Raises:
        ValueError: as `retrieval_metrics`, or if `relevant` has another shape or is false everywhere.
    """
    similarity, relevant = checked_relevance(similarity, relevant)
    ways = {"i2t_map": (similarity, relevant), "t2i_map": (similarity.T, relevant.T)}
    return {name: 100 * _mean([_mean(found / ranks) for found, ranks in _found(*way)]) for name, way in ways.items()}


def precision_at_r(similarity, relevant) -> dict[str, float]:
    """Measure mAP@R and R-precision over all relevant pairs, both ways.

    For a query with R relevant candidates, only the best R candidates count. R-precision is the share of relevant ones
    among them. mAP@R is the mean over queries of 1/R · Σ_{k≤R} P@k. P@k is the precision of the best k, and counts as 0
    if candidate k is not relevant (Musgrave et al., *A Metric Learning Reality Check*, arXiv 2003.08505; Chun et al.,
    *ECCV Caption*, arXiv 2204.03359).

    Args:
        similarity: [N_i, N_t], as for `retrieval_metrics`; ties are broken against the relevant pair.
        relevant: true where a caption is true of an image, bool [N_i, N_t].

    Returns:
        `i2t_map_at_r`, `i2t_r_precision`, `t2i_map_at_r` and `t2i_r_precision` in percent, over the images (captions)
        that have a relevant caption (image).

    Raises:
        ValueError: as `mean_average_precision`.

    Example:
        >>> precision_at_r([[0.9, 0.8, 0.7]], [[True, False, True]])["i2t_map_at_r"]  # (1/1 + 0) / 2
        50.0
    """
    similarity, relevant = checked_relevance(similarity, relevant)
    return rows_precision_at_r("i2t", similarity, relevant) | rows_precision_at_r("t2i", similarity.T, relevant.T)


def rows_precision_at_r(direction: str, similarity: np.ndarray, relevant: np.ndarray) -> dict[str, float]:
    """Measure mAP@R and R-precision of one direction, with the rows as queries; see `precision_at_r`."""
    average, precision = [], []
    for found, ranks in _found(similarity, relevant):
        within = ranks <= len(ranks)
        average.append(_mean(within * found / ranks))
        precision.append(float(np.mean(within)))
    return {f"{direction}_map_at_r": 100 * _mean(average), f"{direction}_r_precision": 100 * _mean(precision)}


def best_ranks(similarity: np.ndarray, rows, columns, itself: bool = False) -> np.ndarray:
    """Rank the best positive of every row that has one, from 1. It ranks below every negative that it ties with.

    Args:
        similarity: [N, M].
        rows, columns: the positive pairs without repeats, integers [number of pairs].
        itself: rows and columns are the same items; an item is neither a candidate nor a positive for itself.
    """
    positive = similarity[rows, columns]
    best = np.full(len(similarity), -np.inf, dtype=similarity.dtype)
    np.maximum.at(best, rows, positive)
    as_good = np.bincount(rows, weights=positive >= best[rows], minlength=len(best)).astype(int)
    ranks = 1 - as_good
    for part in _chunks(similarity):
        ranks[part] += (similarity[part] >= best[part, None]).sum(axis=1)
    if itself:
        ranks -= similarity.diagonal() >= best
    return ranks[np.bincount(rows, minlength=len(best)) > 0]


def recalls(direction: str, ranks: np.ndarray) -> dict[str, float]:
    """Compute recalls (percent), median and mean of some ranks."""
    metrics = {f"{direction}_r{k}": 100 * float(np.mean(ranks <= k)) for k in (1, 5, 10)}
    return metrics | {f"{direction}_medr": float(np.median(ranks)), f"{direction}_meanr": float(np.mean(ranks))}


def metrics_table(metrics: dict[str, float]) -> str:
    """Format metrics as a Markdown table: a row per direction, a column per metric, and the RSUM below."""
    ways = [way for way in DIRECTIONS if any(name.startswith(f"{way}_") for name in metrics)]
    columns = [name for name in COLUMNS if any(f"{way}_{name}" in metrics for way in ways)]
    lines = [" | ".join(["| direction", *(COLUMNS[name][0] for name in columns)]) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for way in ways:
        values = {name: metrics.get(f"{way}_{name}") for name in columns}
        cells = ["–" if value is None else format(value, COLUMNS[name][1]) for name, value in values.items()]
        lines.append(" | ".join([f"| {DIRECTIONS[way]}", *cells]) + " |")
    return "\n".join(lines + (["", f"RSUM {metrics['rsum']:.1f}"] if "rsum" in metrics else []))


def _found(similarity, relevant) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for every row with relevant candidates, the counts 1, 2 … and the ranks (from 1) at which that many
    relevant ones are found.

    Among ties the irrelevant come first.
    """
    for scores, true in zip(similarity, relevant, strict=True):
        positive = np.sort(scores[true])[::-1]
        if len(positive):
            negative = np.sort(scores[~true])
            found = np.arange(1, len(positive) + 1)
            yield found, found + len(negative) - np.searchsorted(negative, positive)


def _mean(values) -> float:
    """Compute the mean from an exact sum, so that the order does not matter."""
    return math.fsum(values) / len(values)


def _chunks(similarity):
    step = max(1, ELEMENTS_AT_ONCE // similarity.shape[1])
    return [slice(start, start + step) for start in range(0, len(similarity), step)]


def checked_matrix(similarity, name: str = "similarity") -> np.ndarray:
    """Convert a similarity to a numpy array of floats.

    Raises:
        ValueError: if it is not a matrix of real numbers, is empty or holds NaN.
    """
    if hasattr(similarity, "detach"):
        similarity = similarity.detach().cpu()
        # NumPy has neither bfloat16 nor complex numbers of half precision.
        similarity = similarity.float() if similarity.element_size() < 4 else similarity
        similarity = similarity.cfloat() if similarity.is_complex() else similarity
    similarity = np.asarray(similarity)
    if similarity.dtype.kind not in "fiub":
        raise ValueError(f"{name} has type {similarity.dtype}; expected real numbers.")
    if similarity.dtype.kind != "f":  # floats can be negated without wrapping
        similarity = similarity.astype(np.float64)
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"{name} has shape {similarity.shape}; expected [images, captions], neither of them 0.")
    if np.isnan(similarity).any():
        row, column = np.argwhere(np.isnan(similarity))[0]
        raise ValueError(f"{name} is NaN at row {row}, column {column}; a ranking needs numbers.")
    return similarity


def checked_relevance(similarity, relevant) -> tuple[np.ndarray, np.ndarray]:
    """Convert a similarity and its relevant pairs to numpy arrays of one shape.

    Raises:
        ValueError: as `mean_average_precision`.
    """
    similarity, relevant = checked_matrix(similarity), np.asarray(relevant, dtype=bool)
    if relevant.shape != similarity.shape:
        raise ValueError(f"relevant has shape {relevant.shape}; expected that of the similarity, {similarity.shape}.")
    if not relevant.any():
        raise ValueError("relevant is false everywhere; expected at least one relevant pair.")
    return similarity, relevant


def _checked(similarity, caption_image_index) -> tuple[np.ndarray, np.ndarray]:
    similarity, index = checked_matrix(similarity), np.asarray(caption_image_index)
    if index.shape != (similarity.shape[1],) or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(
            f"caption_image_index has shape {index.shape} and type {index.dtype}; expected {similarity.shape[1]} "
            "integers, one a caption."
        )
    wrong = np.flatnonzero((index < 0) | (index >= similarity.shape[0]))
    if wrong.size:
        raise ValueError(
            f"caption_image_index[{wrong[0]}] is {index[wrong[0]]}; expected an image from 0 to "
            f"{similarity.shape[0] - 1}."
        )
    return similarity, index
