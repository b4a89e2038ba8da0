"""Transports a tile of pairs, and differentiates that: the engine of the CPU backend.

The exponential is taken once; the iterations change two vectors, a and b, and never the plan diag(a)·E·diag(b).

E = exp(S/λ) is taken without subtracting a maximum, so it must fit the floating-point range. Unit vectors at λ ≥ 1/60
fit float32, at λ ≥ 1/320 float64. Should a sum come close to where float32 ends all the same, or a tiny mass bring a
and b there, the tile is done again in float64; and where that ends too, in the log domain.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from omit_hf.kernels.tiled.problem import Tile, TiledProblem
from omit_hf.modeling.sinkhorn_omit import sinkhorn
from omit_hf.modeling.transport_omit import Side, TransportOptions

MAX_EXPONENT = {torch.float32: 60, torch.float64: 320}  # of |S/λ|
# Sums within these bounds have lost nothing to underflow that matters, and nothing to overflow.
SUM_RANGE = {torch.float32: (2.0**-100, 2.0**120), torch.float64: (2.0**-1000, 2.0**1000)}


class Solution(NamedTuple):
    """What the iterations made of a tile, of which S/λ and E = exp(S/λ) lie in memory that the next tile takes over.

    Args:
        similarity, kernel: S/λ and E, [T, C, R, I].
        scaled: scratch of the same shape; E·a of the last iteration.
        a: a_1 … a_n, [T, R, I] each.
        b: b_0 … b_n, [T, C, I] each; b_0 is 1 where there is mass.
        row_sums, column_sums: E b and Eᵀ a of each iteration.
    """

    similarity: Tensor
    kernel: Tensor
    scaled: Tensor
    a: list[Tensor]
    b: list[Tensor]
    row_sums: list[Tensor]
    column_sums: list[Tensor]


class TiledTransport(TiledProblem):
    """Σ P S of every pair.

    Args:
        image, text, options: as in `transport_similarity`.
        exponent: `largest_exponent` of the sides.
    """

    def __init__(self, image: Side, text: Side, options: TransportOptions, exponent: float):
        super().__init__(image, text, options.num_dustbins, 1 / options.regularization, options.matmul_dtype)
        self.regularization, self.num_iterations = options.regularization, options.num_iterations
        self.fits = exponent <= MAX_EXPONENT[self.dtype]
        self.least_mass = 1.0
        for mass in (image.mass, text.mass):
            if mass.numel():
                self.least_mass = min(self.least_mass, torch.where(mass > 0, mass, 1).min().item())

    def solve(self, tile: Tile) -> Solution | None:
        """The n Sinkhorn iterations of a tile; None if a sum is out of the range of float64."""
        solution = self.iterate(tile, self.dtype) if self.fits else None
        return self.iterate(tile, torch.float64) if solution is None else solution

    def iterate(self, tile: Tile, dtype: torch.dtype) -> Solution | None:
        """The same in one floating-point type; None if a sum is out of its range."""
        similarity, mu, nu = tile.similarity.to(dtype), tile.mu.to(dtype), tile.nu.to(dtype)
        kernel = torch.exp(similarity, out=self.buffer("kernel", similarity.shape, dtype))
        scaled = self.buffer("scaled", similarity.shape, dtype)
        solution = Solution(similarity, kernel, scaled, [], [(nu > 0).to(dtype)], [], [])
        smallest, largest = SUM_RANGE[dtype]
        # a and b are a mass by a sum: beyond this sum the smallest mass would leave them fewer digits, or none.
        largest = min(largest, self.least_mass / torch.finfo(dtype).tiny)
        everywhere = bool((nu > 0).all())
        for done in range(self.num_iterations):
            # rows to μ: a = μ / E b
            b = solution.b[-1][:, :, None]
            row_sums = (kernel if done == 0 and everywhere else torch.mul(kernel, b, out=scaled)).sum(1)
            solution.a.append(mu / row_sums)
            # columns to ν: b = ν / Eᵀ a
            column_sums = torch.mul(kernel, solution.a[-1][:, None], out=scaled).sum(2)
            solution.b.append(nu / column_sums)
            for sums, made in ((row_sums, solution.row_sums), (column_sums, solution.column_sums)):
                made.append(sums)
                low, high = sums.aminmax()
                if not smallest <= low.item() <= high.item() <= largest:
                    return None
        return solution

    def score(self, tile: Tile) -> Tensor:
        """Σ P S over the fragments of each of a tile's pairs, [T, I]."""
        solution = self.solve(tile)
        if solution is None:
            return torch.cat([score.to(self.dtype) for score, *_ in self.solve_in_log_domain(tile)])
        products = solution.scaled[self.fragments].mul_(solution.similarity[self.fragments])
        scores = (products.sum(2) * solution.b[-1][:, self.num_dustbins :]).sum(1)
        return (scores * self.regularization).to(self.dtype)

    def gradient(self, tile: Tile, incoming: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Of the n iterations, and not of their limit.

        With the sums r = E b and c = Eᵀ a, a = μ/r and b = ν/c, what reaches E on the way back through the iterations
        is a sum of outer products, Σ a c̄ᵀ + r̄ bᵀ.
        """
        fragments, solution = self.fragments, self.solve(tile)
        if solution is None:
            return self.gradient_in_log_domain(tile, incoming, gradient)
        kernel, scaled, a, b = solution.kernel, solution.scaled, solution.a, solution.b
        result, gradient = gradient, gradient if gradient.dtype == kernel.dtype else gradient.double()
        weight = (incoming * self.regularization).to(kernel.dtype)[:, None]  # [T, 1, I]

        # score = λ Σ a E b (S/λ) with b = ν / Eᵀ a: by a that is Σ E b (S − s), with s the mean of S over a column.
        # Where S is nearly s no iteration contracts what rounding makes of the difference, so s is made twice.
        no_row, no_column = tile.mu == 0, tile.nu == 0  # whose E may be of any size, and which play no part
        gradient.zero_()
        gradient[fragments] = solution.similarity[fragments]
        mean = torch.zeros_like(b[-1])
        for _ in range(2):
            rest = torch.mul(kernel, gradient, out=scaled).mul_(a[-1][:, None]).sum(2) / solution.column_sums[-1]
            mean += rest.masked_fill_(no_column, 0)
            gradient -= rest[:, :, None]
        grad_mu, grad_nu = torch.zeros_like(a[-1]), weight * mean
        grad_a = weight * torch.mul(kernel, gradient, out=scaled).mul_(b[-1][:, :, None]).sum(1)
        gradient[fragments] += 1
        gradient *= a[-1][:, None]
        gradient *= (weight * b[-1])[:, :, None]

        for step in reversed(range(self.num_iterations)):
            # a = μ / r, r = E b
            share = grad_a.masked_fill_(no_row, 0) / solution.row_sums[step]
            # A larger a leaves the score as it is, so that Σ μ·share is 0; n iterations would add up what it is not.
            share -= (tile.mu * share).sum(1, keepdim=True) / tile.mu.sum(1, keepdim=True)
            grad_mu += share
            grad_sums = -share * a[step]
            gradient.addcmul_(grad_sums[:, None], b[step][:, :, None])
            if step > 0:
                # b = ν / c, c = Eᵀ a
                grad_b = torch.mul(kernel, grad_sums[:, None], out=scaled).sum(2).masked_fill_(no_column, 0)
                share = grad_b / solution.column_sums[step - 1]
                grad_nu += share
                grad_sums = -share * b[step]
                gradient.addcmul_(a[step - 1][:, None], grad_sums[:, :, None])
                grad_a = torch.mul(kernel, grad_sums[:, :, None], out=scaled).sum(1)
        result.copy_(gradient.mul_(kernel)).div_(self.regularization)
        return grad_mu.to(self.dtype), grad_nu.to(self.dtype)

    def solve_in_log_domain(self, tile: Tile) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """By the definition in float64: the scores of each caption, [1, I], and S, μ and ν, of which they are made."""
        shape = tile.similarity.shape
        mu, nu = tile.mu.expand(shape[0], -1, -1), tile.nu.expand(-1, -1, shape[3])
        for similarity, *masses in zip(tile.similarity.split(1), mu.split(1), nu.split(1), strict=True):
            inputs = similarity.double() * self.regularization, *(each.double() for each in masses)
            inputs = [each.detach().requires_grad_(torch.is_grad_enabled()) for each in inputs]
            similarity, mu, nu = (each.mT if each.ndim == 3 else each.permute(0, 3, 2, 1) for each in inputs)
            plan = sinkhorn(similarity, mu, nu, self.regularization, self.num_iterations)
            yield (plan * similarity)[..., self.num_dustbins :, self.num_dustbins :].sum((-2, -1)), *inputs

    def gradient_in_log_domain(self, tile: Tile, incoming: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """As `gradient`."""
        of_mass = []
        with torch.enable_grad():
            for (score, *inputs), of_score, result in zip(
                self.solve_in_log_domain(tile), incoming.split(1), gradient.split(1), strict=True
            ):
                of_similarity, *found = torch.autograd.grad(score, inputs, of_score.double())
                result.copy_(of_similarity)
                of_mass.append([each.to(self.dtype) for each in found])
        return tuple(map(torch.cat, zip(*of_mass, strict=True)))
