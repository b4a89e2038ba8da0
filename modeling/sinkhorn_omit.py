r"""OMIT on one page: partial optimal transport between the fragments of an image and the words of a caption.

Not every fragment has a counterpart. So each side gets a *dustbin*, its global feature, as one more fragment in front:

    Ṽ = {v̄, v_1 … v_K}    T̃ = {t̄, t_1 … t_L}           rows: the dustbin, then the fragments
    S̃ = Ṽ T̃ᵀ                                            cosines, [K+1, L+1]
    μ̃ = 1 / (K+1)          ν̃ = 1 / (L+1)                marginals: every row holds the same mass, a dustbin too
    P̃ = argmax ⟨P, S̃⟩ + λ·H(P)                          over P ≥ 0 with P·1 = μ̃ and Pᵀ·1 = ν̃
    similarity = Σ_{k≥1, l≥1} P̃_kl S̃_kl                  over pairs of fragments; what dustbins take is left out

Regions compete for t̄ (column 0), which takes 1 / (L+1): those that resemble the caption as a whole more than its words
fill it. A word that resembles the image as a whole receives its mass from v̄ (row 0). A few Sinkhorn iterations make P̃.

`add_dustbin` makes rows, `fragment_marginals` their mass, `sinkhorn` the plan, `reference_score` the score. With the
cost C = 1 − S the kernel is exp(−C/λ) = exp(S/λ) · constant; scaling absorbs the constant, so similarities serve as
they are. The mathematics: ``docs/concepts/method.md#partial-matching``.
"""

import torch
from torch import Tensor

from .features_omit import OmitFeatures, check_floating

# Stands for log 0. Finite, so that a softmax over padding alone is still a number and no gradient is NaN.
LOG_ZERO = -1e30
# Every fourth Sinkhorn pass is made in the log domain, or every one where min μ · min ν is below EVEN.
LOG_PASS_EVERY = 4
EVEN = 2.0**-20


def sinkhorn(
    similarity: Tensor, row_marginals: Tensor, column_marginals: Tensor, regularization: float, num_iterations: int
) -> Tensor:
    r"""Transport plan of entropic optimal transport after n Sinkhorn iterations.

    Approaches the P ≥ 0 with P·1 = μ and Pᵀ·1 = ν that maximises ⟨P, S⟩ + λ·H(P). An iteration scales the rows to μ,
    then the columns to ν: the columns hold ν exactly, the rows hold μ in the limit.

    At λ = 0.02 the kernel spans e^−100, too much for float32. So the first pass is two log-softmaxes, which no λ
    upsets. After it no row or column can vanish, and cheaper passes rescale the plan by two vectors. An entry that
    float32 has rounded to zero could matter again only by growing, at most by 1 / (min μ · min ν) a pass; long before,
    every fourth pass is made in the log domain. Where marginals are too unequal for that, all passes are.

    Args:
        similarity: S, [..., K, L], finite. Batch dimensions broadcast with those of the marginals.
        row_marginals: μ, [..., K], not negative. A zero marks padding: its row of the plan is zero.
        column_marginals: ν, [..., L], likewise, with the same sum as μ.
        regularization: λ > 0, in units of the similarity.
        num_iterations: n ≥ 1.

    Returns:
        P, [..., K, L], in float32 (float64 if an input is float64). All zero where a side has no mass at all.

    Raises:
        ValueError: for λ ≤ 0, n < 1, marginals that do not fit the similarity, or tensors that are not floating-point.

    Source: ``docs/concepts/method.md#full-matching``.

    Example:
        >>> similarity = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> half = torch.tensor([0.5, 0.5])
        >>> sinkhorn(similarity, half, half, regularization=0.2, num_iterations=3)
        tensor([[0.4967, 0.0033],
                [0.0033, 0.4967]])
    """
    check_transport(regularization, num_iterations)
    for name, marginals, side in (("row_marginals", row_marginals, -2), ("column_marginals", column_marginals, -1)):
        if marginals.shape[-1] != similarity.shape[side]:
            found = f"{name} has {marginals.shape[-1]} entries; expected {similarity.shape[side]}"
            raise ValueError(f"{found}, to fit a similarity of shape {tuple(similarity.shape)}.")
    check_floating(similarity=similarity, row_marginals=row_marginals, column_marginals=column_marginals)
    dtype = torch.promote_types(torch.promote_types(row_marginals.dtype, column_marginals.dtype), torch.float32)
    dtype = torch.promote_types(dtype, similarity.dtype)
    mu, nu = row_marginals.to(dtype), column_marginals.to(dtype)
    has_row = (mu > 0) & (nu > 0).any(-1, keepdim=True)
    has_column = (nu > 0) & (mu > 0).any(-1, keepdim=True)
    # Padding takes part as log 0, and as a harmless 1 wherever something is divided by it.
    mu, nu = torch.where(has_row, mu, 1), torch.where(has_column, nu, 1)
    log_mu, log_nu = torch.where(has_row, mu.log(), LOG_ZERO), torch.where(has_column, nu.log(), LOG_ZERO)
    # A graph that is traced cannot ask how even the masses are.
    even = not torch.compiler.is_compiling() and bool(mu.numel() == 0 or nu.numel() == 0 or mu.min() * nu.min() >= EVEN)
    log_pass_every = LOG_PASS_EVERY if even else 1

    with torch.autocast(similarity.device.type, enabled=False):
        log_plan = (similarity.to(dtype) / regularization).masked_fill(~has_column.unsqueeze(-2), LOG_ZERO)
        for done in range(0, num_iterations, log_pass_every):
            # a pass in the log domain: rows to μ, then columns to ν
            log_plan = log_plan.log_softmax(-1) + log_mu.unsqueeze(-1)
            log_plan = log_plan.log_softmax(-2) + log_nu.unsqueeze(-2)
            plan = log_plan.exp()
            # passes that scale it to diag(a) · plan · diag(b)
            a, b = plan.new_ones(plan.shape[:-1]), plan.new_ones(*plan.shape[:-2], plan.shape[-1])
            for _ in range(min(log_pass_every, num_iterations - done) - 1):
                a = mu / torch.where(has_row, (plan @ b.unsqueeze(-1)).squeeze(-1), 1)
                b = nu / torch.where(has_column, (a.unsqueeze(-2) @ plan).squeeze(-2), 1)
            if log_pass_every > 1 and done + log_pass_every < num_iterations:
                log_plan = log_plan + a.log().unsqueeze(-1) + b.log().unsqueeze(-2)
        plan = plan * a.unsqueeze(-1) * b.unsqueeze(-2)
        return plan.masked_fill(~(has_row.unsqueeze(-1) & has_column.unsqueeze(-2)), 0)


def fragment_marginals(kind: str, side: OmitFeatures, other: OmitFeatures) -> Tensor:
    """How the mass of one side is shared out among its valid fragments.

    Args:
        kind: `uniform`; `norm`, proportional to the norm before normalisation (Word Rotator's Distance);
            `self_global` or `cross_global`, the softmax of the similarity to the global feature of the same or of the
            other side.
        side, other: features of B items with K fragments, and of the C items of the other side.

    Returns:
        [B, K], or [B, C, K] for `cross_global`; the last dimension sums to 1, or is zero without a valid fragment.

    Source: ``docs/concepts/method.md#variants-worth-having``.
    """
    check_floating(embeds=side.embeds)
    if kind == "uniform":
        return at_least_float32(side.mask.to(side.embeds.dtype)) / side.mask.sum(-1, keepdim=True).clamp_min(1)
    if kind == "norm":
        total = side.norms.sum(-1, keepdim=True)
        return side.norms / torch.where(total > 0, total, 1)
    with torch.autocast(side.embeds.device.type, enabled=False):
        fragments = at_least_float32(side.embeds)
        if kind == "self_global":
            closeness, mask = torch.einsum("bkd,bd->bk", fragments, at_least_float32(side.pooled)), side.mask
        else:
            closeness, mask = torch.einsum("bkd,cd->bck", fragments, at_least_float32(other.pooled)), side.mask[:, None]
    return closeness.masked_fill(~mask, LOG_ZERO).softmax(-1) * mask


def add_dustbin(fragments: Tensor, mask: Tensor, marginals: Tensor, dustbin: Tensor) -> tuple[Tensor, Tensor]:
    """Put a side's dustbin in front of its fragments, with the mass of one of them: 1 / (K_valid + 1).

    Args:
        fragments: [B, K, D].
        mask: true where a fragment is valid, [B, K].
        marginals: how the fragments share their mass, [B, K], or [B, C, K] where it depends on the C items of the
            other side; the last dimension sums to 1. What the dustbin leaves, K/(K+1), is shared out like this.
        dustbin: v̄ or t̄, [B, D].

    Returns:
        Rows, [B, K+1, D], and their mass, [B, K+1] or [B, C, K+1], which sums to 1.
    """
    check_floating(pooled=dustbin)
    share = 1 / (mask.sum(-1, keepdim=True) + 1).to(marginals.dtype)
    share = share.unsqueeze(1) if marginals.ndim == 3 else share
    mass = torch.cat([share.expand(*marginals.shape[:-1], 1), marginals * (1 - share)], dim=-1)
    return torch.cat([dustbin.unsqueeze(1), fragments], dim=1), mass


def row_similarity(image_rows: Tensor, text_rows: Tensor) -> Tensor:
    """S = ⟨v, t⟩ of all rows of all pairs, [B_i, B_t, R, C], from [B_i, R, D] and [B_t, C, D]; at least float32."""
    with torch.autocast(image_rows.device.type, enabled=False):
        return torch.einsum("ird,tcd->itrc", at_least_float32(image_rows), at_least_float32(text_rows))


def reference_score(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    regularization: float,
    num_iterations: int,
    num_dustbins: int,
) -> Tensor:
    """Σ P S over pairs of fragments, [B_i, B_t]: the definition, against which every faster backend is measured.

    Args:
        image_rows, text_rows: [B_i, R, D] and [B_t, C, D]; the first `num_dustbins` rows of a side are dustbins.
        image_mass, text_mass: μ, [B_i, 1 or B_t, R], and ν, [1 or B_i, B_t, C].
        regularization, num_iterations, num_dustbins: λ, n, and 1 for partial transport or 0 for full transport.
    """
    similarity = row_similarity(image_rows, text_rows)
    plan = sinkhorn(similarity, image_mass, text_mass, regularization, num_iterations)
    return (plan * similarity)[..., num_dustbins:, num_dustbins:].sum((-2, -1))


def check_transport(regularization: float, num_iterations: int) -> None:
    if not regularization > 0:
        raise ValueError(f"regularization is {regularization}; expected a number greater than 0 (the paper uses 0.02).")
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; expected at least 1 (the paper uses 3).")


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor fit for transport: 1/λ amplifies every rounding, so half precision will not do."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
