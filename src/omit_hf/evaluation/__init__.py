"""Encodes a split, scores it and measures it."""

from omit_hf.evaluation.ensemble import check_similarity_file, ensemble, load_similarity, save_similarity
from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.evaluation.retrieval import mean_average_precision, metrics_table, precision_at_r, retrieval_metrics
from omit_hf.evaluation.scoring import (
    EncodedSplit,
    encode_split,
    evaluate_split,
    pairs_metrics,
    same_side_similarity,
    score_split,
    split_similarity,
)

__all__ = [
    "EncodedSplit",
    "SplitPairs",
    "check_similarity_file",
    "encode_split",
    "ensemble",
    "evaluate_split",
    "load_similarity",
    "mean_average_precision",
    "metrics_table",
    "pairs_metrics",
    "precision_at_r",
    "retrieval_metrics",
    "same_side_similarity",
    "save_similarity",
    "score_split",
    "split_similarity",
]
