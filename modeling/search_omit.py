"""The k best captions of every image, or images of every caption: exact, in bounded memory, most pairs never scored.

The bound. Let P be the plan of a pair. After its last pass the columns hold ν exactly, Σ_k P_kl = ν_l, and P ≥ 0, so

    Σ_kl P_kl S_kl ≤ Σ_l ν_l max(0, max_k S_kl),

whether a dustbin takes part of a column or not. And with Q of d orthonormal rows, v = QᵀQ v + v⊥, the Cauchy–Schwarz
inequality gives

    S_kl = ⟨Q v_k, Q t_l⟩ + ⟨v⊥_k, t⊥_l⟩ ≤ ⟨(Q v_k, ‖v⊥_k‖), (Q t_l, ‖t⊥_l‖)⟩,

a product in d + 1 dimensions in the place of D. Any Q is right; the leading principal directions of both sides' rows
leave little for the norms.
"""

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .features_omit import OmitFeatures
from .matching_omit import DEFAULT_MEMORY_BUDGET, tiled_similarity
from .packed_omit import packed_bound, packed_limit, packed_pair_similarity
from .sinkhorn_omit import at_least_float32

DIRECTIONS = 64  # d, at the most
SAMPLE = 4096  # rows that the principal directions are taken from
QUERIES = 256  # at a time
# Share of promising pairs above which scoring all of a block is faster: a pair on its own costs 13 times one of a block
WHOLE_BLOCK = 1 / 16
ROUNDING = 1e-5  # of a score, in units of 1 / λ: what the bound is raised by

logger = logging.getLogger(__name__)


class TopK(NamedTuple):
    """Scores, the best first, float32 [N, k], and the numbers of the items that have them, int64 [N, k]."""

    values: Tensor
    indices: Tensor


@torch.no_grad()
def topk_similarity(
    head: nn.Module,
    image: OmitFeatures,
    text: OmitFeatures,
    k: int,
    dim: int = 1,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> TopK:
    """The k largest entries of each row or column of the similarity, without the whole of it.

    A head that transports scores the pairs alone whose bound (see above) reaches what the k best so far have; the
    share that was skipped is logged at level DEBUG. Another head scores all pairs.

    Args:
        head: one of `MATCHING`.
        image, text: features of B_i images and B_t captions.
        k: how many to find.
        dim: 1 for the captions of every image, 0 for the images of every caption, as in `torch.topk`.
        memory_budget: bytes for the intermediate results of a tile.

    Returns:
        [`TopK`], [B_i, k] or [B_t, k]. Of equal scores any may come first.

    Raises:
        ValueError: for another `dim`, or k below 1 or above the number of candidates.
    """
    if dim not in (0, 1):
        raise ValueError(f"dim is {dim!r}; expected 1, the captions of every image, or 0, the images of every caption.")
    queries, candidates = (image, text) if dim == 1 else (text, image)
    if not 1 <= k <= len(candidates.embeds):
        raise ValueError(f"k is {k}; expected 1 to {len(candidates.embeds)}, the number of candidates.")
    search = _BoundedSearch.of(head, image, text)
    found, scored = [], 0
    for start in range(0, len(queries.embeds), QUERIES):
        stop = min(start + QUERIES, len(queries.embeds))
        scores = search.scores(slice(start, stop), k, dim) if search is not None else None
        if scores is None:
            block = queries.rows(start, stop)
            scores = tiled_similarity(head, *((block, text) if dim == 1 else (image, block)), memory_budget)
            scores = scores if dim == 1 else scores.T
        scored += int((scores > -torch.inf).sum())
        best = scores.topk(k)
        found.append(TopK(best.values, best.indices))
    pairs = max(1, len(image.embeds) * len(text.embeds))
    logger.debug("Scored %d of %d pairs (%.1f %%).", scored, pairs, 100 * scored / pairs)
    if not found:
        return TopK(image.embeds.new_zeros(0, k).float(), image.mask.new_zeros(0, k).long())
    return TopK(torch.cat([each.values for each in found]), torch.cat([each.indices for each in found]))


class _BoundedSearch:
    """Scores the promising pairs of a block of queries.

    Where most pairs are promising it costs more than it saves; then it lets a few blocks pass, each time more.
    """

    def __init__(self, head: nn.Module, sides: tuple[Tensor, Tensor, Tensor, Tensor], directions: Tensor):
        self.sides, self.options = sides, head.options
        self.compressed = [_compressed(rows, directions) for rows in (sides[0], sides[2])]
        self.passing = self.to_pass = 0

    @classmethod
    def of(cls, head: nn.Module, image: OmitFeatures, text: OmitFeatures) -> "_BoundedSearch | None":
        """None for a head that does not transport, or transports what the bound does not serve."""
        if not hasattr(head, "sides") or head.marginals == "cross_global":  # whose mass of all pairs is no small matrix
            return None
        sides = head.sides(image, text)
        if packed_limit(*sides, regularization=head.regularization) is not None:
            return None
        return cls(head, sides, _principal_directions(image, text))

    def scores(self, queries: slice, k: int, dim: int) -> Tensor | None:
        """[queries, candidates], −∞ where the bound is below the k-th best; None if all had better be scored."""
        if self.to_pass > 0:
            self.to_pass -= 1
            return None
        images, captions = (queries, slice(None)) if dim == 1 else (slice(None), queries)
        image_rows, image_mass, text_rows, text_mass = self.sides
        block = (image_rows[images], image_mass[images], text_rows[captions], text_mass[:, captions])
        compressed = (self.compressed[0][images], block[1], self.compressed[1][captions], block[3])
        bound = packed_bound(*compressed, dustbins=self.options["dustbins"]) + ROUNDING / self.options["regularization"]
        bound = bound if dim == 1 else bound.T
        scores = torch.full_like(bound, -torch.inf)

        def score(chosen: Tensor) -> None:
            query, candidate = chosen.nonzero(as_tuple=True)
            pairs = (query, candidate) if dim == 1 else (candidate, query)
            scores[query, candidate] = packed_pair_similarity(*block, *pairs, **self.options)

        first = torch.zeros_like(bound, dtype=torch.bool).scatter_(1, bound.topk(k).indices, True)
        score(first)
        promising = (bound >= scores.topk(k).values[:, -1:]) & ~first
        if promising.sum() > WHOLE_BLOCK * bound.numel():
            self.passing = self.to_pass = 2 * self.passing + 1
            return None
        self.passing = 0
        score(promising)
        return scores


def _principal_directions(*sides: OmitFeatures) -> Tensor:
    """The leading directions of the valid fragments of both sides, orthonormal, [d, D]."""
    samples = []
    for side in sides:
        valid = side.mask.nonzero()
        chosen = valid[:: max(1, len(valid) // SAMPLE)]
        samples.append(at_least_float32(side.embeds[chosen[:, 0], chosen[:, 1]]))
    width = samples[0].shape[-1]
    second_moments = sum(rows.T @ rows / max(1, len(rows)) for rows in samples)
    return torch.linalg.eigh(second_moments).eigenvectors.T[-min(DIRECTIONS, width) :]


def _compressed(rows: Tensor, directions: Tensor) -> Tensor:
    """(Q v, ‖v⊥‖) of every row, [B, R, d + 1]; dimensions that a head has added to those of Q are kept as they are."""
    rows = at_least_float32(rows)
    rows, added = rows.split([directions.shape[1], rows.shape[-1] - directions.shape[1]], dim=-1)
    inside = rows @ directions.T
    outside = rows - inside @ directions
    return torch.cat([inside, outside.norm(dim=-1, keepdim=True), added], dim=-1)
