"""Entropic optimal transport between fragments: the one idea of OMIT, as pure functions of tensors.

Symbols follow the paper: image fragments V [B_i, K, D], text fragments T [B_t, L, D], their global features v̄ and t̄,
fragment similarity S [B_i, B_t, K, L], entropic regularisation λ. With the cost C = 1 − S the kernel is
exp(−C/λ) = exp(S/λ) · constant; the scaling vectors absorb the constant, so similarities serve as they are.
"""

import torch
from torch import Tensor

# Stands for log 0. Finite, so that a softmax over padding alone is still a number and no gradient is NaN.
LOG_ZERO = -1e30
# One Sinkhorn pass in so many is made in the log domain; see `sinkhorn`.
LOG_PASS_EVERY = 4


def sinkhorn(
    similarity: Tensor,
    row_marginals: Tensor,
    column_marginals: Tensor,
    regularization: float,
    num_iterations: int,
) -> Tensor:
    r"""Transport plan of entropic optimal transport after a given number of Sinkhorn iterations (section 1).

    Approaches the P ≥ 0 with P·1 = μ and Pᵀ·1 = ν that maximises ⟨P, S⟩ + λ·H(P). An iteration scales the rows to μ,
    then the columns to ν: the columns hold ν exactly, the rows hold μ in the limit.

    At λ = 0.02 the kernel spans e^−100, too much for float32. So the first pass is two log-softmaxes, which no λ
    upsets. After it no row or column can vanish, and the passes that follow rescale that plan by two vectors, which is
    cheap. An entry that float32 has rounded to zero could matter again only by growing, at most by
    1 / (min μ · min ν) a pass; every fourth pass is made in the log domain, long before.

    Args:
        similarity: S, [..., K, L], finite. Batch dimensions broadcast with those of the marginals.
        row_marginals: μ, [..., K], not negative. A zero marks padding: its row of the plan is zero.
        column_marginals: ν, [..., L], likewise, with the same sum as μ.
        regularization: λ > 0, in units of the similarity.
        num_iterations: n ≥ 1.

    Returns:
        P, [..., K, L], in float32 (float64 if an input is float64). All zero where a side has no mass at all.

    Raises:
        ValueError: for λ ≤ 0, n < 1, or marginals that do not fit the similarity.

    Example:
        >>> similarity = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> half = torch.tensor([0.5, 0.5])
        >>> sinkhorn(similarity, half, half, regularization=0.2, num_iterations=3)
        tensor([[0.4967, 0.0033],
                [0.0033, 0.4967]])
    """
    if not regularization > 0:
        raise ValueError(f"regularization is {regularization}; expected a number greater than 0 (the paper uses 0.02).")
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; expected at least 1 (the paper uses 3).")
    for name, marginals, side in (("row_marginals", row_marginals, -2), ("column_marginals", column_marginals, -1)):
        if marginals.shape[-1] != similarity.shape[side]:
            raise ValueError(
                f"{name} has {marginals.shape[-1]} entries; expected {similarity.shape[side]}, to fit a similarity of "
                f"shape {tuple(similarity.shape)}."
            )
    dtype = torch.float32
    for tensor in (similarity, row_marginals, column_marginals):
        dtype = torch.promote_types(dtype, tensor.dtype)
    mu, nu = row_marginals.to(dtype), column_marginals.to(dtype)
    has_row = (mu > 0) & (nu > 0).any(-1, keepdim=True)
    has_column = (nu > 0) & (mu > 0).any(-1, keepdim=True)
    # Padding takes part as log 0, and as a harmless 1 wherever something is divided by it.
    mu, nu = torch.where(has_row, mu, 1), torch.where(has_column, nu, 1)
    log_mu, log_nu = torch.where(has_row, mu.log(), LOG_ZERO), torch.where(has_column, nu.log(), LOG_ZERO)

    with torch.autocast(similarity.device.type, enabled=False):
        log_plan = (similarity.to(dtype) / regularization).masked_fill(~has_column.unsqueeze(-2), LOG_ZERO)
        for done in range(0, num_iterations, LOG_PASS_EVERY):
            # a pass in the log domain: rows to μ, then columns to ν
            log_plan = log_plan.log_softmax(-1) + log_mu.unsqueeze(-1)
            log_plan = log_plan.log_softmax(-2) + log_nu.unsqueeze(-2)
            plan = log_plan.exp()
            # passes that scale it to diag(a) · plan · diag(b)
            a, b = plan.new_ones(plan.shape[:-1]), plan.new_ones(*plan.shape[:-2], plan.shape[-1])
            for _ in range(min(LOG_PASS_EVERY, num_iterations - done) - 1):
                a = mu / torch.where(has_row, (plan @ b.unsqueeze(-1)).squeeze(-1), 1)
                b = nu / torch.where(has_column, (a.unsqueeze(-2) @ plan).squeeze(-2), 1)
            if done + LOG_PASS_EVERY < num_iterations:
                log_plan = log_plan + a.log().unsqueeze(-1) + b.log().unsqueeze(-2)
        plan = plan * a.unsqueeze(-1) * b.unsqueeze(-2)
        return plan.masked_fill(~(has_row.unsqueeze(-1) & has_column.unsqueeze(-2)), 0)


def at_least_float32(tensor: Tensor) -> Tensor:
    """A tensor fit for transport: 1/λ amplifies every rounding, so half precision will not do."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
