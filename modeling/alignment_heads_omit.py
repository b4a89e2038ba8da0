"""Heads that look for each fragment's counterpart by itself, without marginals: late interaction, CHAN, SCAN.

The formulas are those of section 7. Scores are 0 for an image without a valid region or a caption without a valid word.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features_omit import OmitFeatures
from .packed_omit import packed_late_interaction
from .sinkhorn_omit import LOG_ZERO, at_least_float32
from .transport_omit import CPU_BACKENDS, check_product

CHAN_TEMPERATURE = 0.1
SCAN_SHARPNESS = 9  # factor on what the attention's softmax is taken of
SCAN_SLOPE = 0.1  # of the leaky ReLU
NORM_EPS = 1e-6


class MaxSimMatching(nn.Module):
    """Late interaction: for each word the best region, mean over the words (ColBERT).

        s(V, T) = 1/L Σ_l max_k ⟨v_k, t_l⟩

    The alignment gives each word's share of the score, 1/L, to its best region.
    """

    aligns = True
    temperature = None

    def __init__(self, config):
        super().__init__()
        self.backend = config.backend

    def forward(self, image: OmitFeatures, text: OmitFeatures, product: str = "float32") -> Tensor:
        if product != "float32":
            check_product(product, self.backend, (image.embeds, text.embeds))
        with torch.autocast(image.embeds.device.type, enabled=False):
            if self.packed(image):
                sides = (image.embeds, image.mask, text.embeds, text.mask)
                return packed_late_interaction(*sides, temperature=self.temperature, product=product)
            words = at_least_float32(text.embeds)[text.mask]  # of all captions one after the other, [N, D]
            if image.embeds.shape[1] == 0:  # no maximum
                return words.new_zeros(len(image.embeds), len(text.embeds))
            similarity = at_least_float32(image.embeds) @ words.T  # [B_i, K, N]
            best = similarity.masked_fill(~image.mask[..., None], LOG_ZERO).amax(dim=1)
            caption = text.mask.nonzero()[:, 0]
            score = self.over_words(best.masked_fill(~image.mask.any(dim=1, keepdim=True), 0), caption, len(text.mask))
            return score.masked_fill(~(image.mask.any(dim=1)[:, None] & text.mask.any(dim=1)), 0)

    def packed(self, image: OmitFeatures) -> bool:
        """Whether the CPU backend scores, tile by tile; otherwise plain torch does, on any device."""
        return image.embeds.device.type == "cpu" and self.backend in ("auto", *CPU_BACKENDS)

    def over_words(self, best: Tensor, caption: Tensor, captions: int) -> Tensor:
        """Pool the words' best similarities, [B_i, N], by the caption that each word is of, into [B_i, B_t]."""
        total = best.new_zeros(len(best), captions).index_add(1, caption, best)
        return total / caption.bincount(minlength=captions).clamp_min(1)

    def word_weights(self, best: Tensor, mask: Tensor) -> Tensor:
        """What share of the score each word has, [B_i, B_t, L], from its best similarity."""
        return (mask / mask.sum(dim=-1, keepdim=True).clamp_min(1)).to(best.dtype).expand_as(best)

    def alignment(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        with torch.autocast(image.embeds.device.type, enabled=False):
            similarity = torch.einsum("ikd,tld->itkl", at_least_float32(image.embeds), at_least_float32(text.embeds))
            if image.embeds.shape[1] == 0:
                return similarity
            best = similarity.masked_fill(~image.mask[:, None, :, None], LOG_ZERO).max(dim=2, keepdim=True)
            weights = self.word_weights(best.values.squeeze(2), text.mask) * image.mask.any(dim=1)[:, None, None]
            return torch.zeros_like(similarity).scatter(2, best.indices, weights[:, :, None])

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        if self.packed(image):
            return 1
        return 2 * image.embeds.shape[1] * text.embeds.shape[1]


class ChanMatching(MaxSimMatching):
    """Cross-modal hard aligning: for each word the best region, log-sum-exp over the words (Pan et al. 2023).

        s(V, T) = τ log Σ_l exp(max_k ⟨v_k, t_l⟩ / τ),  τ = 0.1

    The sum is not a mean: the score grows with the number of words, up to 1 + τ log L. The alignment gives each word's
    share in the gradient of the score, softmax_l(max_k ⟨v_k, t_l⟩ / τ), to its best region.
    """

    temperature = CHAN_TEMPERATURE

    def over_words(self, best: Tensor, caption: Tensor, captions: int) -> Tensor:
        total = best.new_zeros(len(best), captions).index_add(1, caption, (best / self.temperature).exp())
        return self.temperature * total.clamp_min(torch.finfo(total.dtype).tiny).log()

    def word_weights(self, best: Tensor, mask: Tensor) -> Tensor:
        return (best / self.temperature).masked_fill(~mask, LOG_ZERO).softmax(dim=-1) * mask


class ScanMatching(nn.Module):
    """Stacked cross attention: the mean cosine of each query and what it attends to (Lee et al. 2018).

    Queries q_j, [n], of one side attend over the keys k_i, [m], of the other:

        r_ij = LeakyReLU₀.₁ ⟨k_i, q_j⟩,  r̄_ij = r_ij / ‖r_i·‖,  α_ij = softmax_i(9 r̄_ij),  a_j = Σ_i α_ij k_i,
        s = 1/n Σ_j cos(q_j, a_j) = 1/n Σ_j Σ_i α_ij ⟨k_i, q_j⟩ / √(α_·jᵀ G α_·j)  with G_ii' = ⟨k_i, k_i'⟩.

    The second form spares the attended vectors, [B_i, B_t, n, D]. The alignment is α / n.
    """

    aligns = True

    def __init__(self, config):
        super().__init__()

    def attend(self, keys: OmitFeatures, queries: OmitFeatures) -> tuple[Tensor, Tensor]:
        """⟨k, q⟩ and α of all pairs, [B_k, m, B_q, n] each."""
        similarity = torch.einsum("kmd,qnd->kmqn", at_least_float32(keys.embeds), at_least_float32(queries.embeds))
        rectified = F.leaky_relu(similarity, SCAN_SLOPE)  # zero where masked, as the fragments are
        logits = SCAN_SHARPNESS * F.normalize(rectified, dim=-1, eps=NORM_EPS)
        valid = keys.mask[:, :, None, None]
        return similarity, logits.masked_fill(~valid, LOG_ZERO).softmax(dim=1) * valid

    def score(self, keys: OmitFeatures, queries: OmitFeatures) -> Tensor:
        """[B_k, B_q]."""
        with torch.autocast(keys.embeds.device.type, enabled=False):
            similarity, attention = self.attend(keys, queries)
            key_vectors = at_least_float32(keys.embeds)
            gram = key_vectors @ key_vectors.mT
            squared_norm = (attention * (gram @ attention.flatten(2)).view_as(attention)).sum(dim=1)
            cosine = (attention * similarity).sum(dim=1) / squared_norm.clamp_min(NORM_EPS**2).sqrt()
            return cosine.sum(dim=-1) / queries.mask.sum(dim=-1).clamp_min(1)

    def elements_per_pair(self, image: OmitFeatures, text: OmitFeatures) -> int:
        return 6 * image.embeds.shape[1] * text.embeds.shape[1]


class ScanT2IMatching(ScanMatching):
    """[`ScanMatching`] with the words as queries: each word attends over the regions."""

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return self.score(image, text)

    def alignment(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return _shares(self.attend(image, text)[1], text.mask).permute(0, 2, 1, 3)


class ScanI2TMatching(ScanMatching):
    """[`ScanMatching`] with the regions as queries: each region attends over the words."""

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return self.score(text, image).T

    def alignment(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        return _shares(self.attend(text, image)[1], image.mask).permute(2, 0, 3, 1)


def _shares(attention: Tensor, mask: Tensor) -> Tensor:
    """Attention of the valid queries [B_k, m, B_q, n], so that it sums to 1 over a pair."""
    return attention * mask / mask.sum(dim=-1).clamp_min(1)[:, None]
