"""Heads that look for a fragment's counterpart by itself, without marginals: late interaction, CHAN, SCAN.

Scores are 0 where a side has no valid fragment. Source: ``docs/concepts/method.md#heads``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .features_omit import NORM_EPS, OmitFeatures
from .head_omit import Match, MatchingHead
from .sinkhorn_omit import LOG_ZERO, at_least_float32, row_similarity
from .tiling_omit import MEMORY_BUDGET
from .transport_omit import BACKENDS, MATMUL_DTYPES, Side, candidate_backends, check_matmul, check_sides

SCAN_SHARPNESS = 9  # factor on the attention's logits
SCAN_SLOPE = 0.1  # of the leaky ReLU


class MaxSimMatching(MatchingHead):
    """Late interaction: for each word the best region, mean over the words (ColBERT).

    The alignment gives a word's share of the score, 1/L, to its best region.
    """

    title = "late interaction"
    summary = "it finds for every word the most similar fragment of an image, and scores the mean (late interaction)"
    formula = "1/L Σ_l max_k ⟨v_k, t_l⟩"
    aligns = True
    matmul_dtypes = MATMUL_DTYPES
    temperature: float | None = None

    def __init__(self, config):
        super().__init__(config)
        self.backend = config.backend

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return self.tiled_similarity(image, text)

    def score(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        """The similarity in plain torch, on any device."""
        similarity = row_similarity(image.embeds, text.embeds)
        if 0 in similarity.shape[2:]:  # no maximum
            return similarity.sum((2, 3))
        best = similarity.masked_fill(~image.mask[:, None, :, None], LOG_ZERO).amax(dim=2)
        score = self.pool_words(best, text.mask)
        return score.masked_fill(~(image.mask.any(dim=1)[:, None] & text.mask.any(dim=1)), 0)

    def tiled_similarity(
        self, image: OmitFeatures, text: OmitFeatures, memory_budget: int = MEMORY_BUDGET, matmul_dtype: str = "float32"
    ) -> Tensor:
        check_sides(image.embeds, text.embeds)
        if matmul_dtype != "float32":
            check_matmul(image.embeds, text.embeds, self.backend, matmul_dtype)
        device = image.embeds.device.type
        for name in candidate_backends(self.backend, device, image.mask.numel() * text.mask.numel(), matmul_dtype):
            if BACKENDS[name].late_interaction is not None:
                sides = Side(image.embeds, image.mask[:, None]), Side(text.embeds, text.mask[None])
                with torch.autocast(device, enabled=False):
                    return BACKENDS[name].late_interaction(*sides, self.temperature, matmul_dtype)
        return self.score_in_tiles(self.score, image, text, memory_budget)

    def pool_words(self, best: Tensor, mask: Tensor) -> Tensor:
        """Pool the words' best similarities, [B_i, B_t, L], into scores, [B_i, B_t]."""
        return best.masked_fill(~mask, 0).sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)

    def weigh_words(self, best: Tensor, mask: Tensor) -> Tensor:
        """A word's share of the score, [B_i, B_t, L], from its best similarity."""
        return (mask / mask.sum(dim=-1, keepdim=True).clamp_min(1)).to(best.dtype).expand_as(best)

    def match(self, image: OmitFeatures, text: OmitFeatures) -> Match:
        check_sides(image.embeds, text.embeds)
        similarity = row_similarity(image.embeds, text.embeds)
        if image.embeds.shape[1] == 0:
            return Match(None, similarity)
        best = similarity.masked_fill(~image.mask[:, None, :, None], LOG_ZERO).max(dim=2, keepdim=True)
        weights = self.weigh_words(best.values.squeeze(2), text.mask) * image.mask.any(dim=1)[:, None, None]
        return Match(None, torch.zeros_like(similarity).scatter(2, best.indices, weights[:, :, None]))


class ChanMatching(MaxSimMatching):
    """Cross-modal hard aligning: for each word the best region, log-sum-exp over the words (Pan et al. 2023).

    The score grows with the number of words, up to 1 + τ log L: the sum is not a mean. The alignment gives a word's
    share in the gradient, softmax_l(max_k ⟨v_k, t_l⟩ / τ), to its best region. The temperature τ is 0.1.
    """

    title = "CHAN"
    summary = "it finds for each word of a caption the most similar fragment of an image, and scores their log-sum-exp"
    formula = "τ log Σ_l exp(max_k ⟨v_k, t_l⟩ / τ)"
    temperature = 0.1

    def pool_words(self, best: Tensor, mask: Tensor) -> Tensor:
        return self.temperature * (best / self.temperature).masked_fill(~mask, LOG_ZERO).logsumexp(dim=-1)

    def weigh_words(self, best: Tensor, mask: Tensor) -> Tensor:
        return (best / self.temperature).masked_fill(~mask, LOG_ZERO).softmax(dim=-1) * mask


class ScanT2IMatching(MatchingHead):
    """Stacked cross attention: the mean cosine of a query and what it attends to (Lee et al. 2018).

    Queries q_j, [n], are the words; they attend over the keys k_i, [m], the regions:

        r_ij = LeakyReLU₀.₁ ⟨k_i, q_j⟩,  r̄_ij = r_ij / ‖r_i·‖,  α_ij = softmax_i(9 r̄_ij),  a_j = Σ_i α_ij k_i,
        s = 1/n Σ_j cos(q_j, a_j) = 1/n Σ_j Σ_i α_ij ⟨k_i, q_j⟩ / √(α_·jᵀ G α_·j)  with G_ii' = ⟨k_i, k_i'⟩.

    The second form, computed here, needs no attended vectors, [B_i, B_t, n, D]. The alignment is α / n.
    """

    title = "SCAN, words attend over regions"
    summary = "each word of a caption attends over the fragments of an image, and is compared to what it attends to"
    formula = "1/L Σ_l cos(t_l, Σ_k α_kl v_k)"
    aligns = True

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return compare_attended(image, text)

    def match(self, image: OmitFeatures, text: OmitFeatures) -> Match:
        return Match(None, attention_shares(image, text).permute(0, 2, 1, 3))


class ScanI2TMatching(ScanT2IMatching):
    """[`ScanT2IMatching`] with the regions as queries, which attend over the words."""

    title = "SCAN, regions attend over words"
    summary = "each fragment of an image attends over the words of a caption, and is compared to what it attends to"
    formula = "1/K Σ_k cos(v_k, Σ_l α_kl t_l)"

    def similarity(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return compare_attended(text, image).T

    def match(self, image: OmitFeatures, text: OmitFeatures) -> Match:
        return Match(None, attention_shares(text, image).permute(2, 0, 3, 1))


def attend(keys: OmitFeatures, queries: OmitFeatures) -> tuple[Tensor, Tensor]:
    """⟨k, q⟩ and α of all pairs, [B_k, m, B_q, n] each."""
    check_sides(keys.embeds, queries.embeds)
    similarity = torch.einsum("kmd,qnd->kmqn", at_least_float32(keys.embeds), at_least_float32(queries.embeds))
    rectified = F.leaky_relu(similarity, SCAN_SLOPE)  # zero where masked, as the fragments are
    logits = SCAN_SHARPNESS * F.normalize(rectified, dim=-1, eps=NORM_EPS)
    valid = keys.mask[:, :, None, None]
    return similarity, logits.masked_fill(~valid, LOG_ZERO).softmax(dim=1) * valid


def compare_attended(keys: OmitFeatures, queries: OmitFeatures) -> Tensor:
    """Mean cosine of the queries and what they attend to, [B_k, B_q]."""
    with torch.autocast(keys.embeds.device.type, enabled=False):
        similarity, attention = attend(keys, queries)
        key_vectors = at_least_float32(keys.embeds)
        squared_norm = (attention * (key_vectors @ key_vectors.mT @ attention.flatten(2)).view_as(attention)).sum(dim=1)
        cosine = (attention * similarity).sum(dim=1) / squared_norm.clamp_min(NORM_EPS**2).sqrt()
        return cosine.sum(dim=-1) / queries.mask.sum(dim=-1).clamp_min(1)


def attention_shares(keys: OmitFeatures, queries: OmitFeatures) -> Tensor:
    """Attention of the valid queries, [B_k, m, B_q, n], so that it sums to 1 over a pair."""
    with torch.autocast(keys.embeds.device.type, enabled=False):
        attention = attend(keys, queries)[1]
    return attention * queries.mask / queries.mask.sum(dim=-1).clamp_min(1)[:, None]
