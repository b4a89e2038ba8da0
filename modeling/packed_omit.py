"""The CPU backend of `transport_similarity`: the score of every pair, and its gradient, without a plan in memory.

Both passes go over tiles of pairs (see `tiles_omit`). The backward pass computes a tile anew, and visits no pair whose
incoming gradient is zero.
"""

import torch
from torch import Tensor

from .tiles_omit import MAX_EXPONENT, Block, PackedProblem, Tile, largest_exponent

SPARSE = 1 / 8  # share of pairs with a gradient up to which they are visited one by one


def packed_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    *,
    regularization: float,
    num_iterations: int,
    dustbins: bool,
    product: str = "float32",
) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    Memory beyond arguments and result: a packed copy of the rows, their gradients, and a few tiles.
    """
    arguments = (image_rows, image_mass, text_rows, text_mass)
    return _PackedSimilarity.apply(*arguments, regularization, num_iterations, dustbins, product)


@torch.no_grad()
def packed_pair_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    images: Tensor,
    captions: Tensor,
    *,
    regularization: float,
    num_iterations: int,
    dustbins: bool,
) -> Tensor:
    """The same of single pairs, image images[p] with caption captions[p]; [P], without gradient."""
    options = (regularization, num_iterations, dustbins)
    problem = PackedProblem(image_rows, image_mass, text_rows, text_mass, *options)
    score = torch.zeros(len(images), dtype=problem.dtype, device=image_rows.device)
    for pairs, tile in problem.single_pairs(images, captions):
        score[pairs] = problem.score(tile).squeeze(1)
    return score


@torch.no_grad()
def packed_bound(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, *, dustbins: bool
) -> Tensor:
    """Σ_l ν_l max(0, max_k S_kl) over fragments, [B_i, B_t]: late interaction, which no transport exceeds."""
    problem = PackedProblem(image_rows, image_mass, text_rows, text_mass, 1.0, 1, dustbins)
    bound = torch.zeros(image_rows.shape[0], text_rows.shape[0], dtype=problem.dtype, device=image_rows.device)
    for block in problem.image_blocks():
        of_block = [problem.late_interaction(tile) for tile in problem.tiles(block)]
        bound[block.images[0].T, problem.captions.order] = torch.cat(of_block).T
    return bound


def packed_limit(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, *, regularization: float, **_
) -> str | None:
    """Why `packed_similarity` cannot serve these arguments; None if it can."""
    exponent = largest_exponent(image_rows, text_rows, regularization)
    if not exponent <= MAX_EXPONENT[torch.float64]:
        return f"similarity / regularization may reach {exponent:.0f}, and it takes {MAX_EXPONENT[torch.float64]}."
    for mass in (image_mass, text_mass.transpose(0, 1)):
        has_mass = (mass > 0).any(-1)
        if (has_mass != has_mass[:, :1]).any():
            return "an item has mass in some of its pairs and none in others."
    return None


class _PackedSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_rows, image_mass, text_rows, text_mass, *options):
        ctx.save_for_backward(image_rows, image_mass, text_rows, text_mass)
        ctx.options = options
        problem = PackedProblem(image_rows, image_mass, text_rows, text_mass, *options)
        score = torch.zeros(len(image_rows), len(text_rows), dtype=problem.dtype, device=image_rows.device)
        for block in problem.image_blocks():
            of_block = torch.cat([problem.score(tile) for tile in problem.tiles(block)])
            score[block.images[0].T, problem.captions.order] = of_block.T
        return score

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming):
        problem = PackedProblem(*ctx.saved_tensors, *ctx.options)
        total = _Gradients(problem, ctx.needs_input_grad)
        if incoming.count_nonzero() <= SPARSE * incoming.numel():
            for _, tile in problem.single_pairs(*incoming.nonzero(as_tuple=True)):
                total.add_single_pairs(tile, total.of_tile(tile, incoming))
        else:
            for block in problem.image_blocks():
                of_block = torch.zeros_like(block.rows)
                for tile in problem.tiles(block):
                    total.add_tile(tile, total.of_tile(tile, incoming), of_block)
                total.add_block(block, of_block)
        return total.image_rows, total.image_mass, total.text_rows, total.text_mass, *[None] * len(ctx.options)


class _Gradients:
    """Gradients of the inputs, those of the n iterations and not of their limit, added up over tiles."""

    def __init__(self, problem: PackedProblem, needed: tuple[bool, ...]):
        self.problem = problem
        inputs = (problem.images.rows, problem.image_mass, problem.captions.rows, problem.text_mass)
        self.image_rows, self.image_mass, self.text_rows, self.text_mass = (
            torch.zeros(each.shape, dtype=problem.dtype, device=each.device) if need else None
            for each, need in zip(inputs, needed[:4], strict=True)
        )

    def of_tile(self, tile: Tile, incoming: Tensor) -> Tensor:
        """∂ score / ∂ S times what comes in, [T, C, R, I]; the gradients of the masses are added at once.

        With the sums r = E b and c = Eᵀ a, a = μ/r and b = ν/c, what reaches E on the way back through the iterations
        is a sum of outer products, Σ a c̄ᵀ + r̄ bᵀ.
        """
        problem, first, fragments = self.problem, self.problem.first, self.problem.fragments
        solution = problem.solve(tile)
        kernel, room, a, b = solution.kernel, solution.room, solution.a, solution.b
        gradient = problem.room("gradient", tile, kernel.dtype)
        weight = (incoming[tile.pairs] * problem.regularization).to(kernel.dtype)[:, None]  # [T, 1, I]

        # score = λ Σ a E b (S/λ)
        products = torch.mul(kernel[fragments], solution.similarity[fragments], out=room[fragments])
        grad_a, grad_b = torch.zeros_like(a[-1]), torch.zeros_like(b[-1])
        scratch = gradient[fragments]
        torch.mul(products, b[-1][:, first:, None], out=scratch)
        grad_a[:, first:] = weight * scratch.sum(1)
        torch.mul(products, a[-1][:, None, first:], out=scratch)
        grad_b[:, first:] = weight * scratch.sum(2)
        gradient.zero_()
        torch.add(solution.similarity[fragments], 1, out=scratch)
        scratch *= a[-1][:, None, first:]
        scratch *= (weight * b[-1])[:, first:, None]

        grad_mu, grad_nu = torch.zeros_like(grad_a), torch.zeros_like(grad_b)
        for step in reversed(range(problem.num_iterations)):
            # b = ν / c, c = Eᵀ a
            grad_nu += grad_b / solution.column_sums[step]
            grad_sums = -grad_b * b[step + 1] / solution.column_sums[step]
            gradient.addcmul_(a[step][:, None], grad_sums[:, :, None])
            grad_a += torch.mul(kernel, grad_sums[:, :, None], out=room).sum(1)
            # a = μ / r, r = E b
            grad_mu += grad_a / solution.row_sums[step]
            grad_sums = -grad_a * a[step] / solution.row_sums[step]
            gradient.addcmul_(grad_sums[:, None], b[step][:, :, None])
            if step > 0:
                grad_b = torch.mul(kernel, grad_sums[:, None], out=room).sum(2)
                grad_a = torch.zeros_like(grad_a)
        self._add_masses(tile, grad_mu, grad_nu)
        return gradient.mul_(kernel).to(problem.dtype).div_(problem.regularization)

    def _add_masses(self, tile: Tile, grad_mu: Tensor, grad_nu: Tensor) -> None:
        """Rows without mass are no part of the problem, so their mass has no gradient."""
        if self.image_mass is not None:
            place = (tile.images, tile.captions if self.image_mass.shape[1] > 1 else tile.captions * 0, tile.regions)
            grad_mu = grad_mu.masked_fill(self.problem.image_mass[place] == 0, 0).to(self.problem.dtype)
            self.image_mass.index_put_(place, grad_mu, accumulate=True)
        if self.text_mass is not None:
            place = (tile.images if self.text_mass.shape[0] > 1 else tile.images * 0, tile.captions, tile.words)
            grad_nu = grad_nu.masked_fill(self.problem.text_mass[place] == 0, 0).to(self.problem.dtype)
            self.text_mass.index_put_(place, grad_nu, accumulate=True)

    def add_tile(self, tile: Tile, gradient: Tensor, of_block: Tensor) -> None:
        """Add what a tile of all pairs of its sides gives the captions, and its images' block."""
        gradient = gradient.view(len(tile.text), len(tile.image))
        if self.image_rows is not None:
            of_block.addmm_(gradient.T, tile.text)
        if self.text_rows is not None:
            captions, words = tile.captions[..., 0], tile.words[..., 0]
            self.text_rows[captions, words] += (gradient @ tile.image).view(*words.shape, -1)

    def add_block(self, block: Block, of_block: Tensor) -> None:
        if self.image_rows is not None:
            place = (block.images[0], block.regions[0])
            self.image_rows[place] = of_block.view(*block.regions.shape[1:], -1)

    def add_single_pairs(self, tile: Tile, gradient: Tensor) -> None:
        gradient = gradient.squeeze(-1)  # [T, C, R]
        if self.image_rows is not None:
            place = (tile.images[..., 0], tile.regions[..., 0])
            self.image_rows.index_put_(place, torch.bmm(gradient.mT, tile.text), accumulate=True)
        if self.text_rows is not None:
            place = (tile.captions[..., 0], tile.words[..., 0])
            self.text_rows.index_put_(place, torch.bmm(gradient, tile.image), accumulate=True)
