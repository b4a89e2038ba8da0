"""Heads that transport fragments onto words: full transport, and OMIT's partial one with dustbins.

They say what `transport_omit` transports, rows and their mass. Source: ``docs/concepts/method.md#partial-matching``.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .features_omit import OmitFeatures
from .head_omit import Match, MatchingHead
from .sinkhorn_omit import add_dustbin, fragment_marginals, row_similarity, sinkhorn
from .tiling_omit import MEMORY_BUDGET
from .transport_omit import MATMUL_DTYPES, Side, TransportOptions, check_sides, make_sides, transport_similarity


class OTMatching(MatchingHead):
    """Full transport, 1 − the Cross-modal Mover's Distance. Source: ``docs/concepts/method.md#full-matching``."""

    title = "full transport"
    summary = "it moves all fragments of an image onto a caption's words by optimal transport, and scores likeness"
    formula = "⟨P, S⟩"
    fields = ("regularization", "num_iterations", "marginals", "global_weight")
    aligns = transports = True
    matmul_dtypes = MATMUL_DTYPES

    def __init__(self, config):
        super().__init__(config)
        self.marginals, self.global_weight = config.marginals, config.global_weight
        self.options = TransportOptions(config.regularization, config.num_iterations, self.num_dustbins, config.backend)

    def similarity(self, image: OmitFeatures, text: OmitFeatures, **options) -> Tensor:
        """(1 − w) ⟨P, S⟩ + w ⟨v̄, t̄⟩; `options` are those of `TransportOptions` that are not the configuration's."""
        score = transport_similarity(*self.sides(image, text), replace(self.options, **options))
        if self.global_weight == 0 and self.options.num_dustbins == self.num_dustbins:
            return score
        valid = image.mask.any(dim=1)[:, None] & text.mask.any(dim=1)
        likeness = row_similarity(image.pooled[:, None], text.pooled[:, None])[..., 0, 0]
        return score.lerp(likeness, self.global_weight) * valid

    def match(self, image: OmitFeatures, text: OmitFeatures) -> Match:
        (image_rows, mu), (text_rows, nu) = self.sides(image, text)
        similarity = row_similarity(image_rows, text_rows)
        plan = sinkhorn(similarity, mu, nu, self.options.regularization, self.options.num_iterations)
        if self.num_dustbins == 0:
            return Match(plan, plan, row_marginals=mu, column_marginals=nu)
        return Match(plan, plan[..., 1:, 1:], plan[..., 1:, 0], plan[..., 0, 1:], mu, nu)

    def tiled_similarity(
        self, image: OmitFeatures, text: OmitFeatures, memory_budget: int = MEMORY_BUDGET, matmul_dtype: str = "float32"
    ) -> Tensor:
        score = partial(self.similarity, memory_budget=memory_budget, matmul_dtype=matmul_dtype)
        pairwise = self.marginals == "cross_global"
        return self.score_in_tiles(score, image, text, memory_budget) if pairwise else score(image, text)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return image.embeds.shape[1] + text.embeds.shape[1] + 2 * self.num_dustbins  # their mass, of `cross_global`

    def sides(self, image: OmitFeatures, text: OmitFeatures) -> tuple[Side, Side]:
        """What is transported: rows and mass of images and captions."""
        check_sides(image.embeds, text.embeds)
        mu, nu = fragment_marginals(self.marginals, image, text), fragment_marginals(self.marginals, text, image)
        return make_sides(image.embeds, mu, text.embeds, nu)


class OmitMatching(OTMatching):
    """OMIT, partial transport: a dustbin a side takes the fragments without a counterpart.

    With `global` dustbins and `uniform` marginals this is [`partial_sinkhorn_similarity`]. `learned` replaces the
    global features by one trained vector a side, `scalar` every similarity to a dustbin by one trained number. Other
    marginals share out among the fragments what the dustbin leaves, K/(K+1).
    """

    title = "partial transport"
    summary = "it moves the fragments of an image onto the words of a caption by partial optimal transport, scores "
    summary += "what is matched, and leaves the rest to dustbins"
    formula = "Σ_{k≥1, l≥1} P̃_kl S̃_kl"
    fields = ("regularization", "num_iterations", "dustbin", "marginals", "score", "global_weight")
    num_dustbins = 1
    baseline = False

    def __init__(self, config):
        super().__init__(config)
        self.dustbin = config.dustbin
        self.options = replace(self.options, num_dustbins=int(config.score == "local"))  # those that are left out
        if config.dustbin == "learned":
            self.image_dustbin, self.text_dustbin = (nn.Parameter(torch.empty(config.projection_dim)) for _ in range(2))
        elif config.dustbin == "scalar":
            self.dustbin_similarity = nn.Parameter(torch.empty(()))

    def init_weights(self) -> None:
        if self.dustbin == "learned":
            for vector in (self.image_dustbin, self.text_dustbin):
                init.normal_(vector, std=vector.numel() ** -0.5)
        elif self.dustbin == "scalar":
            init.zeros_(self.dustbin_similarity)

    def sides(self, image: OmitFeatures, text: OmitFeatures) -> tuple[Side, Side]:
        check_sides(image.embeds, text.embeds)  # a dustbin would hide it
        mu, nu = fragment_marginals(self.marginals, image, text), fragment_marginals(self.marginals, text, image)
        image_embeds, text_embeds = image.embeds, text.embeds
        if self.dustbin == "global":
            image_dustbin, text_dustbin = image.pooled, text.pooled
        elif self.dustbin == "learned":
            image_dustbin = F.normalize(self.image_dustbin, dim=-1, eps=1e-6).expand_as(image.pooled)
            text_dustbin = F.normalize(self.text_dustbin, dim=-1, eps=1e-6).expand_as(text.pooled)
        else:
            # Two more dimensions in which each dustbin has the similarity σ to everything of the other side:
            # fragments (v, 1, 0) and (t, 0, 1), dustbins (0, 1, σ) and (0, σ, 0).
            one = image.pooled.new_ones(1, 1)
            zero, sigma = one * 0, one * self.dustbin_similarity.to(one.dtype)
            image_embeds, text_embeds = _widened(image_embeds, one, zero), _widened(text_embeds, zero, one)
            image_dustbin = _widened(image.pooled * 0, one, sigma)
            text_dustbin = _widened(text.pooled * 0, sigma, zero)
        image_rows, mu = add_dustbin(image_embeds, image.mask, mu, image_dustbin)
        text_rows, nu = add_dustbin(text_embeds, text.mask, nu, text_dustbin)
        return make_sides(image_rows, mu, text_rows, nu)


def _widened(embeds: Tensor, *columns: Tensor) -> Tensor:
    """Further dimensions, one number each, behind those of [B, D] or [B, K, D]."""
    return torch.cat([embeds, *(column.expand(*embeds.shape[:-1], 1) for column in columns)], dim=-1)
