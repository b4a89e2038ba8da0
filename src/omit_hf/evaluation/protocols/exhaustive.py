"""Retrieval on data of which every true pair is known, such as Scenes."""

import numpy as np

from omit_hf.evaluation.protocols.result import ProtocolResult
from omit_hf.evaluation.retrieval import (
    best_ranks,
    checked_relevance,
    mean_average_precision,
    precision_at_r,
    recalls,
)

ALL_PAIRS = "all true pairs, annotated or not"


def exhaustive(similarity, relevant, source: str = "") -> ProtocolResult:
    """Measure mAP@R, R-precision, mAP and recall, with every true pair as a positive.

    Args:
        similarity: [N_i, N_t].
        relevant: true where a caption is true of an image, bool [N_i, N_t].
        source: name of the data.

    Raises:
        ValueError: as `precision_at_r`.
    """
    similarity, relevant = checked_relevance(similarity, relevant)
    metrics = precision_at_r(similarity, relevant) | mean_average_precision(similarity, relevant)
    images, captions = np.nonzero(relevant)
    metrics |= recalls("i2t", best_ranks(similarity, images, captions))
    metrics |= recalls("t2i", best_ranks(similarity.T, captions, images))
    return ProtocolResult("exhaustive", ", ".join([source] * bool(source) + [ALL_PAIRS]), metrics)
