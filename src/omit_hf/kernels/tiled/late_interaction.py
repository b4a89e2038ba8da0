"""Scores a tile of pairs by late interaction, and differentiates that: a word takes its best region."""

import torch
from torch import Tensor

from omit_hf.kernels.tiled.problem import Tile, TiledProblem
from omit_hf.modeling.transport_omit import Side


class TiledLateInteraction(TiledProblem):
    """Mean over the words of the best region's similarity; with a temperature τ, τ log Σ exp(best / τ) instead.

    Args:
        image, text: rows, and masks in the place of mass.
        temperature: τ, or None for the mean.
        matmul_dtype: as in `TransportOptions`.
    """

    def __init__(self, image: Side, text: Side, temperature: float | None, matmul_dtype: str):
        super().__init__(image, text, num_dustbins=0, factor=1.0, matmul_dtype=matmul_dtype)
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
