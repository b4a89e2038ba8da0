"""The heads by name, and the k best matches under any of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from .alignment_heads_omit import ChanMatching, MaxSimMatching, ScanI2TMatching, ScanT2IMatching
from .features_omit import OmitFeatures
from .head_omit import Match, MatchingHead  # noqa: F401 (to be imported from here)
from .pooled_heads_omit import GPOMatching, MeanMatching, PEMMatching
from .transport_heads_omit import OmitMatching, OTMatching

MATCHING: dict[str, type[MatchingHead]] = {
    "omit": OmitMatching,
    "ot": OTMatching,
    "maxsim": MaxSimMatching,
    "chan": ChanMatching,
    "scan_t2i": ScanT2IMatching,
    "scan_i2t": ScanI2TMatching,
    "mean": MeanMatching,
    "gpo": GPOMatching,
    "pem": PEMMatching,
}
TOPK_BLOCK = 512, 4096  # queries and candidates that are scored at once


class TopK(NamedTuple):
    """Scores, the best first, float32 [N, k], and the numbers of their items, int64 [N, k]."""

    values: Tensor
    indices: Tensor


@torch.no_grad()
def topk_similarity(head: MatchingHead, image: OmitFeatures, text: OmitFeatures, k: int, dim: int = 1) -> TopK:
    """The k largest entries of the similarity's rows or columns: exact, block by block, without the whole matrix.

    Args:
        dim: 1 for the captions of every image, 0 for the images of every caption, as in `torch.topk`.

    Returns:
        `values` and `indices`, [B_i, k] or [B_t, k]. Of equal scores any may come first.

    Raises:
        ValueError: for another `dim`, or k below 1 or above the number of candidates.
    """
    if dim not in (0, 1):
        raise ValueError(f"dim is {dim!r}; expected 1, the captions of every image, or 0, the images of every caption.")
    queries, candidates = (image, text) if dim == 1 else (text, image)
    if not 1 <= k <= len(candidates.embeds):
        raise ValueError(f"k is {k}; expected 1 to {len(candidates.embeds)}, the number of candidates.")
    found = []
    for start in range(0, max(1, len(queries.embeds)), TOPK_BLOCK[0]):
        block = queries.select(slice(start, start + TOPK_BLOCK[0]))
        best = []
        for first in range(0, len(candidates.embeds), TOPK_BLOCK[1]):
            others = candidates.select(slice(first, first + TOPK_BLOCK[1]))
            scores = head.tiled_similarity(*((block, others) if dim == 1 else (others, block)))
            scores = scores if dim == 1 else scores.T
            values, places = scores.topk(min(k, scores.shape[1]))
            best.append((values, places + first))
        values, indices = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        values, places = values.topk(k)
        found.append(TopK(values, indices.gather(1, places)))
    return TopK(torch.cat([each.values for each in found]), torch.cat([each.indices for each in found]))
