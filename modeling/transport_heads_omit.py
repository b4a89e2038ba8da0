"""Heads that transport fragments onto words: full (section 1) and partial, with dustbins (section 2).

They say what is transported, rows and their mass; `transport_omit` does it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features_omit import OmitFeatures
from .sinkhorn_omit import LOG_ZERO, at_least_float32, sinkhorn
from .transport_omit import chosen_backend, row_similarity, transport_similarity

PLANS_IN_MEMORY = 10  # tensors of a plan's size alive at once in a forward pass of the reference


class OTMatching(nn.Module):
    """Full transport: ⟨P, S⟩ = 1 − CMD, the Cross-modal Mover's Distance (section 1)."""

    dustbins = False
    aligns = True

    def __init__(self, config):
        super().__init__()
        self.regularization = config.regularization
        self.num_iterations = config.num_iterations
        self.marginals = config.marginals
        self.backend = config.backend

    @property
    def options(self) -> dict:
        """Of `transport_similarity`."""
        return {
            "regularization": self.regularization,
            "num_iterations": self.num_iterations,
            "dustbins": self.dustbins,
        }

    def forward(self, image: OmitFeatures, text: OmitFeatures, product: str = "float32") -> Tensor:
        sides = self.sides(image, text)
        return transport_similarity(*sides, **self.options, backend=self.backend, product=product)

    def transport_plan(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """P, [B_i, B_t, K, L]; with dustbins P̃, [B_i, B_t, K+1, L+1], row and column 0 being theirs."""
        image_rows, image_mass, text_rows, text_mass = self.sides(image, text)
        similarity = row_similarity(image_rows, text_rows)
        return sinkhorn(similarity, image_mass, text_mass, self.regularization, self.num_iterations)

    def alignment(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """What the plan carries between fragments, dustbins left out, [B_i, B_t, K, L]."""
        return self.transport_plan(image, text)[..., self.dustbins :, self.dustbins :]

    def sides(self, image: OmitFeatures, text: OmitFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The rows of both sides and their mass, as `transport_similarity` takes them."""
        mu = fragment_marginals(self.marginals, image, text)
        nu = fragment_marginals(self.marginals, text, image).transpose(0, 1)
        return image.embeds, mu, text.embeds, nu

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        rows, columns = (side.embeds.shape[1] + self.dustbins for side in (image, text))
        with torch.no_grad():
            backend = chosen_backend(self.backend, self.sides(image, text), self.options)
        if backend == "reference":
            return PLANS_IN_MEMORY * rows * columns
        return 1 + (rows + columns if self.marginals == "cross_global" else 0)


class OmitMatching(OTMatching):
    """Partial transport: a dustbin a side takes the fragments without a counterpart (section 2).

    With `global` dustbins and `uniform` marginals this is [`partial_sinkhorn_similarity`]. `learned` replaces the
    global features by one trained vector a side, `scalar` every similarity to a dustbin by one trained number. The
    other marginals share out among the fragments what the dustbin leaves, K/(K+1).
    """

    dustbins = True

    def __init__(self, config):
        super().__init__(config)
        self.dustbin = config.dustbin
        if config.dustbin == "learned":
            self.image_dustbin = nn.Parameter(torch.empty(config.projection_dim))
            self.text_dustbin = nn.Parameter(torch.empty(config.projection_dim))
        elif config.dustbin == "scalar":
            self.dustbin_similarity = nn.Parameter(torch.empty(()))

    def sides(self, image: OmitFeatures, text: OmitFeatures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image_embeds, mu, text_embeds, nu = super().sides(image, text)
        mu = _with_dustbin_mass(mu, image.mask[:, None])
        nu = _with_dustbin_mass(nu.transpose(0, 1), text.mask[:, None]).transpose(0, 1)
        if self.dustbin == "global":
            image_dustbin, text_dustbin = image.pooled, text.pooled
        elif self.dustbin == "learned":
            image_dustbin = F.normalize(self.image_dustbin, dim=-1, eps=1e-6).expand_as(image.pooled)
            text_dustbin = F.normalize(self.text_dustbin, dim=-1, eps=1e-6).expand_as(text.pooled)
        else:
            # Two more dimensions in which each dustbin has the similarity σ to everything of the other side:
            # fragments (v, 1, 0) and (t, 0, 1), dustbins (0, 1, σ) and (0, σ, 0).
            one = torch.ones_like(image.pooled[:1, :1])
            zero, sigma = one * 0, one * self.dustbin_similarity.to(one.dtype)
            image_embeds, text_embeds = _widened(image_embeds, one, zero), _widened(text_embeds, zero, one)
            image_dustbin = _widened(image.pooled * 0, one, sigma)
            text_dustbin = _widened(text.pooled * 0, sigma, zero)
        return _prepend(image_dustbin, image_embeds), mu, _prepend(text_dustbin, text_embeds), nu


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
        backend: what computes it: `reference`, the readable implementation, `cpu`, `numba` (the same, compiled) and
            `triton` (both once `omit_hf.kernels` is imported), or `auto`, the fastest that can serve these inputs on
            their device.

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
    image = _checked("image", image_embeds, image_mask, image_pooled)
    text = _checked("text", text_embeds, text_mask, text_pooled)
    return transport_similarity(
        _prepend(image.pooled, image.embeds),
        _with_dustbin_mass(_uniform(image), image.mask)[:, None],
        _prepend(text.pooled, text.embeds),
        _with_dustbin_mass(_uniform(text), text.mask)[None, :],
        regularization=regularization,
        num_iterations=num_iterations,
        dustbins=True,
        backend=backend,
    )


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


def _prepend(pooled: Tensor, embeds: Tensor) -> Tensor:
    return torch.cat([pooled[:, None], embeds], dim=1)


def _widened(embeds: Tensor, *columns: Tensor) -> Tensor:
    """Further dimensions, one number each, behind those of [B, D] or [B, K, D]."""
    return torch.cat([embeds, *(column.expand(*embeds.shape[:-1], 1) for column in columns)], dim=-1)


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
