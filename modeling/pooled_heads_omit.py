"""Heads that score one pooled vector a side: they tell how alike an image and a caption are, not where.

Source: ``docs/concepts/method.md#heads``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoders_omit import run_gru
from .features_omit import NORM_EPS, OmitFeatures
from .head_omit import MatchingHead
from .sinkhorn_omit import LOG_ZERO, at_least_float32

POSITION_SIZE = 32  # of GPO's position codes, and of its GRU


class PooledMatching(MatchingHead):  # a pair costs one number
    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return 1


class MeanMatching(PooledMatching):
    """Cosine of the means of the fragments before normalisation: VSE++'s score, the baseline of one vector a side."""

    title = "mean-pooled vectors"
    summary = "it scores the cosine of the mean of an image's fragments and the mean of a caption's words"
    formula = "cos(Σ_k v_k, Σ_l t_l)"

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        with torch.autocast(image.embeds.device.type, enabled=False):
            return mean_vector(image) @ mean_vector(text).T


class GPOMatching(PooledMatching):
    """Cosine of the two vectors of generalised pooling: VSE∞ (Chen et al. 2021).

    A dimension is sorted by itself, v_(1) ≥ … ≥ v_(N), over the N valid fragments, and pooled as Σ_k θ_k v_(k). The
    weights θ, which sum to 1, come from a small BiGRU over the codes of the positions 1 … N, one a side. It can learn
    the mean, the maximum and what lies between.
    """

    title = "generalised pooling"
    summary = "it scores the cosine of two vectors, pooled with learned weights from ranked fragments and ranked words"
    formula = "cos(Σ_k θ_k v_(k), Σ_l θ_l t_(l))"
    exports = ()  # its GRU runs over as many steps as there are fragments

    def __init__(self, config):
        super().__init__(config)
        self.image_pooling, self.text_pooling = GeneralizedPooling(), GeneralizedPooling()

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        with torch.autocast(image.embeds.device.type, enabled=False):
            return self.image_pooling(image) @ self.text_pooling(text).T


class GeneralizedPooling(nn.Module):
    """Pools one side for [`GPOMatching`]."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(POSITION_SIZE, POSITION_SIZE, batch_first=True, bidirectional=True)
        self.weight = nn.Linear(POSITION_SIZE, 1, bias=False)

    def forward(self, side: OmitFeatures) -> Tensor:
        """Pooled vectors, L2-normalised, [B, D]; zero without a valid fragment."""
        fragments = unnormalized(side)
        ranked = fragments.masked_fill(~side.mask[..., None], -torch.inf).sort(dim=1, descending=True).values
        ranked = ranked.masked_fill(ranked == -torch.inf, 0)  # valid ones first, so these are the last
        sizes, item_size = side.mask.sum(dim=1).clamp_min(1).unique(return_inverse=True)
        theta = self.weights(sizes, ranked)[item_size]
        return F.normalize((theta[..., None] * ranked).sum(dim=1), dim=-1, eps=NORM_EPS)

    def weights(self, sizes: Tensor, like: Tensor) -> Tensor:
        """θ of items with so many fragments, [sizes, K]; zero beyond them."""
        codes = position_codes(like.shape[1], POSITION_SIZE).to(self.weight.weight).expand(len(sizes), -1, -1)
        beyond = torch.arange(like.shape[1], device=like.device) >= sizes[:, None]
        logits = self.weight(run_gru(self.gru, codes, ~beyond)).squeeze(-1)
        return logits.to(like.dtype).masked_fill(beyond, LOG_ZERO).softmax(dim=-1)


class PEMMatching(PooledMatching):
    """Minus the 2-Wasserstein distance of two Gaussians, one a side: probabilistic embedding.

    The mean μ is the mean-pooled vector, L2-normalised; the variance σ², diagonal, comes from self-attention over the
    fragments: a_k = softmax_k(wᵀ tanh(W v_k)), log σ² = U Σ_k a_k v_k + c. The distance of diagonal Gaussians is that
    of the points (μ, σ). The score is at most 0; an item without a valid fragment has μ = 0.
    """

    title = "Gaussians"
    summary = "it makes a Gaussian of an image's fragments and one of a caption's words, and scores how near they are"
    formula = "−√(‖μ_i − μ_t‖² + ‖σ_i − σ_t‖²)"
    exports = ("torch_export",)  # ONNX has no cdist

    def __init__(self, config):
        super().__init__(config)
        self.image_deviation, self.text_deviation = (AttentionDeviation(config.projection_dim) for _ in range(2))

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        with torch.autocast(image.embeds.device.type, enabled=False):
            images = torch.cat([mean_vector(image), self.image_deviation(image)], dim=-1)
            captions = torch.cat([mean_vector(text), self.text_deviation(text)], dim=-1)
            # By differences: the faster product cancels where points are near, and varies with the tile.
            return -torch.cdist(images, captions, compute_mode="donot_use_mm_for_euclid_dist")


class AttentionDeviation(nn.Module):
    """The standard deviation σ of one side's Gaussians, for [`PEMMatching`]."""

    def __init__(self, width: int):
        super().__init__()
        self.hidden = nn.Linear(width, width // 2, bias=False)
        self.attention = nn.Linear(width // 2, 1, bias=False)
        self.log_variance = nn.Linear(width, width)

    def forward(self, side: OmitFeatures) -> Tensor:
        fragments = unnormalized(side).to(self.hidden.weight.dtype)
        logits = at_least_float32(self.attention(self.hidden(fragments).tanh()).squeeze(-1))
        weights = logits.masked_fill(~side.mask, LOG_ZERO).softmax(dim=-1) * side.mask
        attended = (weights[..., None] * fragments).sum(dim=1).to(fragments.dtype)
        return (0.5 * at_least_float32(self.log_variance(attended))).exp()


def unnormalized(side: OmitFeatures) -> Tensor:
    """Fragments as they were before normalisation, [B, K, D]; zero where masked."""
    return at_least_float32(side.embeds) * side.norms[..., None]


def mean_vector(side: OmitFeatures) -> Tensor:
    """Mean of the valid fragments before normalisation, L2-normalised, [B, D]; zero without one."""
    return F.normalize(unnormalized(side).sum(dim=1), dim=-1, eps=NORM_EPS)


def position_codes(positions: int, size: int) -> Tensor:
    """Sines and cosines of the positions 1 … N at frequencies from 1 to 1/10000, [N, size] (Vaswani et al. 2017)."""
    angles = torch.arange(1, positions + 1)[:, None] * torch.exp(torch.arange(0, size, 2) * (-math.log(10000) / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
