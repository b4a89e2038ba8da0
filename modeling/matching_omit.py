"""Similarity heads: how the fragments of an image and of a caption become one score (sections 1, 2 and 7).

A head scores all pairs of two batches of features. `MATCHING` lists the heads by name; `tiled_similarity` keeps the
memory of any of them bounded.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .sinkhorn_omit import LOG_ZERO, at_least_float32, sinkhorn

BACKENDS = ("auto", "reference")
DEFAULT_MEMORY_BUDGET = 2**28  # bytes
PLANS_IN_MEMORY = 10  # tensors of a plan's size alive at once in a head's forward pass


@dataclass
class OmitFeatures(BaseModelOutputWithPooling):
    """One side's features: B images with K fragments each, or B captions with K words each.

    Args:
        last_hidden_state: output of the backbone, in its own shape; None for cached states.
        pooler_output: `pooled` under the name that transformers gives it.
        hidden_states, attentions: of the backbone, when asked for.
        embeds: fragments, L2-normalised, [B, K, D]; zero where masked.
        mask: true where a fragment is valid, bool [B, K].
        pooled: global feature, L2-normalised, [B, D].
        norms: norms of the fragments before normalisation, float32 [B, K]; zero where masked.
    """

    embeds: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    norms: Tensor | None = None

    def rows(self, start: int, stop: int) -> "OmitFeatures":
        """The features of items `start` to before `stop`, without the backbone's outputs."""
        names = ("embeds", "mask", "pooled", "norms")
        return OmitFeatures(**{name: self[name][start:stop] for name in names})


class MeanMatching(nn.Module):
    """Cosine of the two mean-pooled vectors: VSE++'s score, the baseline of one vector a side (section 7).

    The mean runs over the fragments as they were before normalisation.
    """

    def __init__(self, config):
        super().__init__()

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return self._mean(image) @ self._mean(text).T

    @staticmethod
    def _mean(side: OmitFeatures) -> Tensor:
        return F.normalize((at_least_float32(side.embeds) * side.norms[..., None]).sum(dim=1), dim=-1, eps=1e-6)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return 1


class OTMatching(nn.Module):
    """Full transport: ⟨P, S⟩ = 1 − CMD, the Cross-modal Mover's Distance (section 1)."""

    def __init__(self, config):
        super().__init__()
        self.regularization = config.regularization
        self.num_iterations = config.num_iterations
        self.marginals = config.marginals

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        similarity = self.fragment_similarity(image, text)
        return (self._transport(similarity, image, text) * similarity).sum((-2, -1))

    def transport_plan(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """P, [B_i, B_t, K, L]."""
        return self._transport(self.fragment_similarity(image, text), image, text)

    def fragment_similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """S, [B_i, B_t, K, L]."""
        return _cosines(image.embeds, text.embeds)

    def _transport(self, similarity, image, text):
        mu = fragment_marginals(self.marginals, image, text)
        nu = fragment_marginals(self.marginals, text, image).transpose(0, 1)
        return sinkhorn(similarity, mu, nu, self.regularization, self.num_iterations)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return PLANS_IN_MEMORY * image.embeds.shape[1] * text.embeds.shape[1]


class OmitMatching(nn.Module):
    """Partial transport: a dustbin a side takes the fragments without a counterpart (section 2).

    With `global` dustbins and `uniform` marginals this is [`partial_sinkhorn_similarity`]. `learned` replaces the
    global features by one trained vector a side, `scalar` every similarity to a dustbin by one trained number. The
    other marginals share out among the fragments what the dustbin leaves, K/(K+1).
    """

    def __init__(self, config):
        super().__init__()
        self.regularization = config.regularization
        self.num_iterations = config.num_iterations
        self.marginals = config.marginals
        self.dustbin = config.dustbin
        if config.dustbin == "learned":
            self.image_dustbin = nn.Parameter(torch.empty(config.projection_dim))
            self.text_dustbin = nn.Parameter(torch.empty(config.projection_dim))
        elif config.dustbin == "scalar":
            self.dustbin_similarity = nn.Parameter(torch.empty(()))

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        similarity = self.fragment_similarity(image, text)
        return _matched(self._transport(similarity, image, text), similarity)

    def transport_plan(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """P̃, [B_i, B_t, K+1, L+1]; row and column 0 are the dustbins."""
        return self._transport(self.fragment_similarity(image, text), image, text)

    def fragment_similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """S̃, [B_i, B_t, K+1, L+1]; row and column 0 are the dustbins."""
        if self.dustbin == "scalar":
            similarity = F.pad(_cosines(image.embeds, text.embeds), (1, 0, 1, 0))
            border = torch.ones_like(similarity[0, 0])
            border[1:, 1:] = 0
            return similarity + border * self.dustbin_similarity.to(similarity.dtype)
        if self.dustbin == "learned":
            image_dustbin = F.normalize(self.image_dustbin, dim=-1, eps=1e-6).expand_as(image.pooled)
            text_dustbin = F.normalize(self.text_dustbin, dim=-1, eps=1e-6).expand_as(text.pooled)
        else:
            image_dustbin, text_dustbin = image.pooled, text.pooled
        return _cosines(_prepend(image_dustbin, image.embeds), _prepend(text_dustbin, text.embeds))

    def _transport(self, similarity, image, text):
        mu = _with_dustbin_mass(fragment_marginals(self.marginals, image, text), image.mask[:, None])
        nu = _with_dustbin_mass(fragment_marginals(self.marginals, text, image), text.mask[:, None]).transpose(0, 1)
        return sinkhorn(similarity, mu, nu, self.regularization, self.num_iterations)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return PLANS_IN_MEMORY * (image.embeds.shape[1] + 1) * (text.embeds.shape[1] + 1)


MATCHING = {"omit": OmitMatching, "ot": OTMatching, "mean": MeanMatching}


def partial_sinkhorn_similarity(
    image_embeds: Tensor,
    image_mask: Tensor | None,
    image_pooled: Tensor,
    text_embeds: Tensor,
    text_mask: Tensor | None,
    text_pooled: Tensor,
    *,
    regularization: float = 0.02,
    num_iterations: int = 3,
    backend: str = "auto",
) -> Tensor:
    """OMIT's similarity of every image and every caption (section 2).

    Each side gets a dustbin, its global feature, with the mass of one fragment. The similarity is what the plan
    carries between fragments; mass that goes to or comes from a dustbin is left out.

    Args:
        image_embeds: V, [B_i, K, D], L2-normalised. Padding may hold anything.
        image_mask: true where an image fragment is valid, [B_i, K]; None for all.
        image_pooled: v̄, [B_i, D], L2-normalised.
        text_embeds, text_mask, text_pooled: T [B_t, L, D], its mask [B_t, L] and t̄ [B_t, D], likewise.
        regularization: λ > 0.
        num_iterations: n ≥ 1.
        backend: `reference`, the readable implementation, or `auto`, the best at hand (so far the same).

    Returns:
        [B_i, B_t], float32 (float64 for float64 inputs), in [−1, 1]. An image without a valid fragment or a caption
        without a valid word has similarity 0 to everything: all of its mass lies in dustbins.

    Raises:
        ValueError: for shapes that do not fit, λ ≤ 0, n < 1 or an unknown backend.

    Example:
        >>> regions, words = torch.eye(2)[None], torch.eye(2)[None, :1]  # two regions; one word, like the first
        >>> image_pooled, text_pooled = torch.ones(1, 2) / 2**0.5, words[:, 0]
        >>> partial_sinkhorn_similarity(regions, None, image_pooled, words, None, text_pooled, regularization=0.1)
        tensor([[0.1667]])

        The word and its dustbin look alike, so the first region's third of the mass goes to each of them by half.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(map(repr, BACKENDS))}.")
    image = _checked("image", image_embeds, image_mask, image_pooled)
    text = _checked("text", text_embeds, text_mask, text_pooled)
    if image.embeds.shape[-1] != text.embeds.shape[-1]:
        raise ValueError(
            f"image_embeds are {image.embeds.shape[-1]} wide, text_embeds {text.embeds.shape[-1]}; expected the same."
        )
    similarity = _cosines(_prepend(image.pooled, image.embeds), _prepend(text.pooled, text.embeds))
    mu = _with_dustbin_mass(_uniform(image), image.mask)[:, None]
    nu = _with_dustbin_mass(_uniform(text), text.mask)[None, :]
    return _matched(sinkhorn(similarity, mu, nu, regularization, num_iterations), similarity)


def fragment_marginals(kind: str, side: OmitFeatures, other: OmitFeatures) -> Tensor:
    """How the mass of one side is shared out among its valid fragments.

    Args:
        kind: `uniform`; `norm`, proportional to the norm before normalisation (Word Rotator's Distance);
            `self_global` or `cross_global`, the softmax of the similarity to the global feature of the same or of the
            other side.
        side: features of B items with K fragments.
        other: features of the other side, C items.

    Returns:
        [B, 1, K], or [B, C, K] for `cross_global`; each sums to 1, or is all zero without a valid fragment.
    """
    if kind == "uniform":
        return _uniform(side)[:, None]
    if kind == "norm":
        return _shares(side.norms)[:, None]
    with torch.autocast(side.embeds.device.type, enabled=False):
        if kind == "self_global":
            closeness = torch.einsum("bkd,bd->bk", at_least_float32(side.embeds), at_least_float32(side.pooled))[
                :, None
            ]
        else:
            closeness = torch.einsum("bkd,cd->bck", at_least_float32(side.embeds), at_least_float32(other.pooled))
    mask = side.mask[:, None]
    return closeness.masked_fill(~mask, LOG_ZERO).softmax(-1) * mask


def tiled_similarity(
    head: nn.Module, image: OmitFeatures, text: OmitFeatures, memory_budget: int = DEFAULT_MEMORY_BUDGET
) -> Tensor:
    """A head's similarity for any number of images and captions, tile by tile.

    Tiles are independent, so the values do not depend on them. Where gradients are wanted and one tile does not hold
    all pairs, each tile is computed again in the backward pass, which bounds the memory of training as well.

    Args:
        head: one of `MATCHING`.
        image, text: features of B_i images and B_t captions.
        memory_budget: bytes for the intermediate results of a tile; one pair at least is scored at a time.

    Returns:
        [B_i, B_t].
    """
    pairs = max(1, memory_budget // (4 * head.elements_per_pair(image, text)))
    num_images, num_texts = len(image.embeds), len(text.embeds)
    if num_images * num_texts <= pairs:
        return head(image, text)
    texts = min(num_texts, max(1, math.isqrt(pairs)))
    images = max(1, pairs // texts)

    def tile(i, t):
        return head(image.rows(i, i + images), text.rows(t, t + texts))

    if torch.is_grad_enabled():
        tile = functools.partial(checkpoint, tile, use_reentrant=False, preserve_rng_state=False)
    return torch.cat(
        [torch.cat([tile(i, t) for t in range(0, num_texts, texts)], dim=1) for i in range(0, num_images, images)]
    )


def _cosines(image: Tensor, text: Tensor) -> Tensor:
    """⟨v, t⟩ of all fragments of all pairs, [B_i, B_t, K, L]."""
    with torch.autocast(image.device.type, enabled=False):
        return torch.einsum("ikd,tld->itkl", at_least_float32(image), at_least_float32(text))


def _prepend(pooled: Tensor, embeds: Tensor) -> Tensor:
    return torch.cat([pooled[:, None], embeds], dim=1)


def _uniform(side: OmitFeatures) -> Tensor:
    """Equal shares of the valid fragments, [B, K]."""
    return _shares(side.mask.to(at_least_float32(side.embeds).dtype))


def _shares(weights: Tensor) -> Tensor:
    """Weights [B, K] as shares of their sum; zero where there is none."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def _with_dustbin_mass(shares: Tensor, mask: Tensor) -> Tensor:
    """Marginals of K_valid fragments and a dustbin before them, which has 1 / (K_valid + 1) of the mass."""
    dustbin = 1 / (mask.sum(-1, keepdim=True) + 1).to(shares.dtype)
    return torch.cat([dustbin.expand(*shares.shape[:-1], 1), shares * (1 - dustbin)], dim=-1)


def _matched(plan: Tensor, similarity: Tensor) -> Tensor:
    """Σ P̃ S̃ over the local-to-local block."""
    return (plan * similarity)[..., 1:, 1:].sum((-2, -1))


def _checked(side: str, embeds: Tensor, mask: Tensor | None, pooled: Tensor) -> OmitFeatures:
    if embeds.ndim != 3:
        raise ValueError(f"{side}_embeds has shape {tuple(embeds.shape)}; expected [batch, fragments, width].")
    if mask is None:
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.bool)
    if mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"{side}_mask has shape {tuple(mask.shape)}; expected {tuple(embeds.shape[:2])}, one entry for each "
            f"fragment of {side}_embeds."
        )
    if pooled.shape != (embeds.shape[0], embeds.shape[2]):
        raise ValueError(
            f"{side}_pooled has shape {tuple(pooled.shape)}; expected {(embeds.shape[0], embeds.shape[2])}, one "
            f"global feature for each row of {side}_embeds."
        )
    mask = mask.bool()
    return OmitFeatures(embeds=embeds.masked_fill(~mask[..., None], 0), mask=mask, pooled=pooled)
