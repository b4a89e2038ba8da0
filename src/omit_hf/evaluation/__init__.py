"""Encode a split, score it, measure it."""

from omit_hf.evaluation.alignment import alignment_table, evaluate_alignment
from omit_hf.evaluation.retrieval import mean_average_precision, metrics_table, retrieval_metrics
from omit_hf.evaluation.scoring import EncodedSplit, encode_split, evaluate_split, score_split

__all__ = [
    "EncodedSplit",
    "alignment_table",
    "encode_split",
    "evaluate_alignment",
    "evaluate_split",
    "mean_average_precision",
    "metrics_table",
    "retrieval_metrics",
    "score_split",
]
