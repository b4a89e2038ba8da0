"""Late interaction of a tile of pairs, and its gradient: each word takes its best region."""

import torch
from torch import Tensor

from .tiles_omit import PackedProblem, Tile


class PackedLateInteraction(PackedProblem):
    """Mean over the words of the best region's similarity; with a temperature τ, τ log Σ exp(best / τ) instead.

    Args:
        sides: rows and masks of both sides, as the rows and mass of [`PackedProblem`].
    """

    def __init__(self, *sides: Tensor, temperature: float | None, product: str = "float32"):
        super().__init__(*sides, product=product)
        self.temperature = temperature

    def best(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """S, [T, C, R, I], −∞ at regions that are none; its maximum, and which words are valid, [T, C, I or 1]."""
        similarity, valid_regions, valid_words = tile
        if not valid_regions.all():
            similarity.masked_fill_(~valid_regions[:, None], -torch.inf)
        return similarity, similarity.amax(2), valid_words

    def score(self, tile: Tile) -> Tensor:
        _, best, valid = self.best(tile)
        if self.temperature is None:
            return (best * valid).sum(1) / valid.sum(1)
        return (best / self.temperature).masked_fill(~valid, -torch.inf).logsumexp(1) * self.temperature

    def gradient(self, tile: Tile, incoming: Tensor, gradient: Tensor) -> None:
        similarity, best, valid = self.best(tile)
        if self.temperature is None:
            weight = valid / valid.sum(1, keepdim=True)
        else:
            weight = (best / self.temperature).masked_fill(~valid, -torch.inf).softmax(1)
        torch.eq(similarity, best[:, :, None], out=gradient)
        # regions that are equally good share alike, as in torch.amax
        gradient *= (weight * incoming[:, None] / gradient.sum(2))[:, :, None]


class PackedBound(PackedProblem):
    """Σ_l ν_l max(0, max_k S_kl) over fragments: what no transport exceeds."""

    def __init__(self, *sides: Tensor, dustbins: bool):
        super().__init__(*sides, first=int(dustbins))

    def score(self, tile: Tile) -> Tensor:
        best = tile.similarity.masked_fill_((tile.mu == 0)[:, None], 0)[self.fragments].amax(2).clamp_min(0)
        return (best * tile.nu[:, self.first :]).sum(1)
