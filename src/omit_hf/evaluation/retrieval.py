"""Retrieval metrics: functions of a similarity matrix (section 6)."""

import numpy as np

# Rows handled at once, so that no temporary is larger than a few hundred megabytes.
ELEMENTS_AT_ONCE = 2**25


def retrieval_metrics(similarity, caption_image_index) -> dict[str, float]:
    """Recall, ranks and RSUM of retrieval in both directions.

    A positive ranks below every negative that it ties with, so ties never flatter.

    Args:
        similarity: higher is closer, [N_i, N_t]; a numpy array, a tensor or nested lists.
        caption_image_index: the image (row) that each caption (column) belongs to, integers [N_t]. Any number of
            captions an image; an image without captions counts as a distractor of text→image alone.

    Returns:
        For image→text, where the best of the image's captions counts: `i2t_r1`, `i2t_r5`, `i2t_r10` (percent),
        `i2t_medr`, `i2t_meanr` (median and mean rank, from 1). The same for text→image as `t2i_…`. And `rsum`, the
        sum of the six recalls, at most 600.

    Raises:
        ValueError: if the similarity is not a matrix, is empty or holds NaN, or the index does not fit it.

    Example:
        >>> scores = retrieval_metrics([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], [0, 0, 1])
        >>> scores["i2t_r1"], round(scores["t2i_r1"], 1)  # caption 1 prefers image 1, and image 1 prefers caption 1
        (50.0, 66.7)
    """
    similarity, index = _checked(similarity, caption_image_index)
    image_ranks, text_ranks = _ranks(similarity, index)
    metrics = {}
    for direction, ranks in (("i2t", image_ranks), ("t2i", text_ranks)):
        for k in (1, 5, 10):
            metrics[f"{direction}_r{k}"] = 100 * float(np.mean(ranks <= k))
        metrics[f"{direction}_medr"] = float(np.median(ranks))
        metrics[f"{direction}_meanr"] = float(np.mean(ranks))
    metrics["rsum"] = sum(metrics[f"{direction}_r{k}"] for direction in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def mean_average_precision(similarity, relevant) -> dict[str, float]:
    """Mean average precision over all relevant pairs, annotated or not.

    Args:
        similarity: [N_i, N_t], as for `retrieval_metrics`; ties are broken against the relevant pair.
        relevant: true where a caption is true of an image, bool [N_i, N_t].

    Returns:
        `i2t_map` and `t2i_map` in percent, over the images (captions) that have a relevant caption (image).

    Raises:
        ValueError: as `retrieval_metrics`, or if `relevant` has another shape or is false everywhere.
    """
    similarity = _matrix(similarity)
    relevant = np.asarray(relevant, dtype=bool)
    if relevant.shape != similarity.shape:
        raise ValueError(f"relevant has shape {relevant.shape}; expected that of the similarity, {similarity.shape}.")
    if not relevant.any():
        raise ValueError("relevant is false everywhere; expected at least one relevant pair.")
    return {
        "i2t_map": 100 * float(np.mean(_average_precisions(similarity, relevant))),
        "t2i_map": 100 * float(np.mean(_average_precisions(similarity.T, relevant.T))),
    }


def metrics_table(metrics: dict[str, float]) -> str:
    """Metrics as a Markdown table, a row a direction, with the RSUM below."""
    lines = ["| direction | R@1 | R@5 | R@10 | median rank | mean rank | mAP |", "|---|---|---|---|---|---|---|"]
    for label, way in (("image → text", "i2t"), ("text → image", "t2i")):
        recalls = " | ".join(f"{metrics[f'{way}_r{k}']:.1f}" for k in (1, 5, 10))
        precision = f"{metrics[f'{way}_map']:.1f}" if f"{way}_map" in metrics else "–"
        lines.append(
            f"| {label} | {recalls} | {metrics[f'{way}_medr']:g} | {metrics[f'{way}_meanr']:.1f} | {precision} |"
        )
    return "\n".join([*lines, "", f"RSUM {metrics['rsum']:.1f}"])


def _ranks(similarity, index) -> tuple[np.ndarray, np.ndarray]:
    """Rank from 1 of each image's best caption (images with captions only), and of each caption's image."""
    num_images, num_texts = similarity.shape
    positive = similarity[index, np.arange(num_texts)]
    best = np.full(num_images, -np.inf, dtype=similarity.dtype)
    np.maximum.at(best, index, positive)
    own_as_good = np.bincount(index, weights=positive >= best[index], minlength=num_images).astype(int)
    image_ranks, text_ranks = np.empty(num_images, dtype=int), np.zeros(num_texts, dtype=int)
    for rows in _chunks(similarity):
        image_ranks[rows] = 1 + (similarity[rows] >= best[rows, None]).sum(axis=1) - own_as_good[rows]
        text_ranks += (similarity[rows] >= positive).sum(axis=0)  # counts the positive itself as well
    return image_ranks[np.bincount(index, minlength=num_images) > 0], text_ranks


def _average_precisions(similarity, relevant) -> np.ndarray:
    found = []
    for rows in _chunks(similarity):
        order = np.lexsort((relevant[rows], -similarity[rows]), axis=-1)  # among ties, the irrelevant first
        hits = np.take_along_axis(relevant[rows], order, axis=-1)
        precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
        count = hits.sum(axis=1)
        found.append((precision * hits).sum(axis=1)[count > 0] / count[count > 0])
    return np.concatenate(found)


def _chunks(similarity):
    step = max(1, ELEMENTS_AT_ONCE // similarity.shape[1])
    return [slice(start, start + step) for start in range(0, len(similarity), step)]


def _matrix(similarity) -> np.ndarray:
    if hasattr(similarity, "detach"):
        similarity = similarity.detach().cpu()
        similarity = similarity.float() if similarity.element_size() < 4 else similarity
    similarity = np.asarray(similarity)
    if similarity.dtype.kind not in "fiub":
        raise ValueError(f"similarity has type {similarity.dtype}; expected real numbers.")
    if similarity.dtype.kind != "f":  # which can be negated without wrapping
        similarity = similarity.astype(np.float64)
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise ValueError(f"similarity has shape {similarity.shape}; expected [images, captions], neither of them 0.")
    if np.isnan(similarity).any():
        row, column = np.argwhere(np.isnan(similarity))[0]
        raise ValueError(f"similarity is NaN at image {row}, caption {column}; a ranking needs numbers.")
    return similarity


def _checked(similarity, caption_image_index) -> tuple[np.ndarray, np.ndarray]:
    similarity, index = _matrix(similarity), np.asarray(caption_image_index)
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
