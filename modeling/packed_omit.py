"""The CPU backend of `transport_similarity`: the score of every pair, and its gradient, without a plan in memory.

What makes it fast, in the order in which it happens:

1. Rows without mass are left out, and captions with the same number of words are packed together: no work on padding.
2. Pairs are scored in tiles that stay in the cache, laid out as [captions, words, regions, images]: one matrix product
   makes a tile, and every sum that follows runs over an outer dimension, with the images side by side in a vector.
3. The exponential is taken once. The iterations then change two vectors, a and b, never the plan diag(a)·E·diag(b).
4. The backward pass computes a tile anew, and visits no pair whose incoming gradient is zero.

E = exp(S/λ) is taken without subtracting a maximum, so it must fit the floating-point range. Unit vectors at λ ≥ 1/60
fit float32, at λ ≥ 1/320 float64; beyond, `packed_limit` says no. Should a sum come close to where float32 ends all the
same, its tile is done again in float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ENTRIES = 2**18  # of S; a megabyte, of which a few fit the cache of a core
IMAGES_PER_TILE = 32
PAIRS_ENTRIES = 2**21  # of the rows gathered for a tile of single pairs
SPARSE = 1 / 8  # share of pairs with a gradient up to which they are visited one by one
MAX_EXPONENT = {torch.float32: 60, torch.float64: 320}  # of |S/λ|
# Sums within these bounds have lost nothing to underflow that matters, and nothing to overflow.
SUM_RANGE = {torch.float32: (2.0**-100, 2.0**120), torch.float64: (2.0**-1000, 2.0**1000)}


def packed_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    *,
    regularization: float,
    num_iterations: int,
    dustbins: bool,
) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    Memory beyond arguments and result: a packed copy of the rows, their gradients, and a few tiles.
    """
    arguments = (image_rows, image_mass, text_rows, text_mass)
    return _PackedSimilarity.apply(*arguments, regularization, num_iterations, dustbins)


def packed_limit(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, *, regularization: float, **_
) -> str | None:
    """Why `packed_similarity` cannot serve these arguments; None if it can."""
    exponent = _largest_exponent(image_rows, text_rows, regularization)
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
        problem = _Problem(image_rows, image_mass, text_rows, text_mass, *options)
        score = torch.zeros(len(image_rows), len(text_rows), dtype=problem.dtype, device=image_rows.device)
        for block in problem.image_blocks():
            of_block = torch.cat([problem.score(tile) for tile in problem.tiles(block)])
            score[block.images[0].T, problem.captions.order] = of_block.T
        return score

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, incoming):
        problem = _Problem(*ctx.saved_tensors, *ctx.options)
        total = _Gradients(problem, ctx.needs_input_grad)
        if incoming.count_nonzero() <= SPARSE * incoming.numel():
            for tile in problem.single_pairs(*incoming.nonzero(as_tuple=True)):
                total.add_single_pairs(tile, total.of_tile(tile, incoming))
        else:
            for block in problem.image_blocks():
                of_block = torch.zeros_like(block.rows)
                for tile in problem.tiles(block):
                    total.add_tile(tile, total.of_tile(tile, incoming), of_block)
                total.add_block(block, of_block)
        return total.image_rows, total.image_mass, total.text_rows, total.text_mass, None, None, None


class _Side:
    """Which rows of a side's items have mass, and the items by how many have.

    Args:
        rows: [N, R, D].
        has_mass: [N, R].
        first: how many rows are dustbins, which stay in front whether they have mass or not.
    """

    def __init__(self, rows: Tensor, has_mass: Tensor, first: int):
        self.rows = rows
        has_mass[:, :first] = has_mass.any(-1, keepdim=True)
        self.counts = has_mass.sum(-1)
        self.order = self.counts.argsort(stable=True)[int((self.counts == 0).sum()) :]
        self.filled_first = has_mass.to(torch.int8).argsort(dim=-1, descending=True, stable=True)

    def row_numbers(self, items: Tensor) -> Tensor:
        """Numbers of the rows with mass of some items, [len(items), most of them]; filled up with rows without."""
        return self.filled_first[items, : int(self.counts[items].max())]


class _Block(NamedTuple):
    """I images of at most R regions.

    Args:
        images: their numbers, [1, 1, I].
        regions: numbers of the regions among the image's rows, [1, R, I].
        rows: rows of the regions, [R·I, D].
    """

    images: Tensor
    regions: Tensor
    rows: Tensor


class _Tile(NamedTuple):
    """All pairs of T captions and I images; or T single pairs, where I is 1 and `images` and `regions` have T entries.

    Args:
        images: numbers of the images, [1 or T, 1, I].
        regions: numbers of the regions among the image's rows, [1 or T, R, I].
        image: rows of the regions, [R·I, D] or [T, R, D].
        captions: numbers of the captions, [T, 1, 1].
        words: numbers of the words among the caption's rows, [T, C, 1].
        text: rows of the words, [T·C, D] or [T, C, D].
    """

    images: Tensor
    regions: Tensor
    image: Tensor
    captions: Tensor
    words: Tensor
    text: Tensor

    @property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """Index of the tile's pairs, [T, I], in a matrix of images and captions."""
        return self.images[:, 0], self.captions[:, 0]


class _Solution(NamedTuple):
    """What the iterations made of a tile, of which S/λ and E = exp(S/λ) lie in memory that the next tile takes over.

    Args:
        similarity, kernel: S/λ and E, [T, C, R, I].
        room: scratch of the same shape; E·a of the last iteration.
        a: a_1 … a_n, [T, R, I] each.
        b: b_0 … b_n, [T, C, I] each; b_0 is 1 where there is mass.
        row_sums, column_sums: E b and Eᵀ a of each iteration.
    """

    similarity: Tensor
    kernel: Tensor
    room: Tensor
    a: list[Tensor]
    b: list[Tensor]
    row_sums: list[Tensor]
    column_sums: list[Tensor]


class _Problem:
    """The arguments, packed; their tiles, and the transport of a tile."""

    def __init__(self, image_rows, image_mass, text_rows, text_mass, regularization, num_iterations, dustbins):
        self.first = int(dustbins)
        self.images = _Side(image_rows, (image_mass > 0).any(1), self.first)
        self.captions = _Side(text_rows, (text_mass > 0).any(0), self.first)
        self.image_mass, self.text_mass = image_mass, text_mass
        self.regularization, self.num_iterations = regularization, num_iterations
        self.fragments = (slice(None), slice(self.first, None), slice(self.first, None))  # of a tile: no dustbins
        self.dtype = torch.float32
        for tensor in (image_rows, image_mass, text_rows, text_mass):
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.fits = _largest_exponent(image_rows, text_rows, regularization) <= MAX_EXPONENT[self.dtype]
        self.memory: dict[tuple, Tensor] = {}
        lengths = self.captions.counts[self.captions.order]
        runs = self.captions.order.split(lengths.unique_consecutive(return_counts=True)[1].tolist())
        words = [self.captions.row_numbers(captions) for captions in runs]
        self.packed = [
            (captions[:, None, None], words[..., None], text_rows[captions[:, None], words].to(self.dtype))
            for captions, words in zip(runs, words, strict=True)
        ]

    def image_blocks(self) -> Iterator[_Block]:
        for images in self.images.order.split(IMAGES_PER_TILE):
            if len(images) and self.packed:
                regions = self.images.row_numbers(images).T[None]
                rows = self.images.rows[images, regions[0]].to(self.dtype)  # [R, I, D]
                yield _Block(images[None, None], regions, rows.flatten(0, 1))

    def tiles(self, block: _Block) -> Iterator[_Tile]:
        for captions, words, rows in self.packed:
            size = max(1, TILE_ENTRIES // (words.shape[1] * len(block.rows)))
            for caption, word, row in zip(captions.split(size), words.split(size), rows.split(size), strict=True):
                yield _Tile(*block, caption, word, row.flatten(0, 1))

    def single_pairs(self, images: Tensor, captions: Tensor) -> Iterator[_Tile]:
        """Tiles of the given pairs, but for those in which a side has no mass."""
        have_mass = (self.images.counts[images] > 0) & (self.captions.counts[captions] > 0)
        images, captions = images[have_mass], captions[have_mass]
        order = self.captions.counts[captions].argsort(stable=True)
        rows_of_a_pair = self.images.rows.shape[1] + self.captions.rows.shape[1]
        for chosen in order.split(max(1, PAIRS_ENTRIES // (rows_of_a_pair * self.images.rows.shape[2]))):
            if len(chosen):
                i, t = images[chosen], captions[chosen]
                regions, words = self.images.row_numbers(i), self.captions.row_numbers(t)
                image = self.images.rows[i[:, None], regions].to(self.dtype)
                text = self.captions.rows[t[:, None], words].to(self.dtype)
                yield _Tile(i[:, None, None], regions[..., None], image, t[:, None, None], words[..., None], text)

    def solve(self, tile: _Tile) -> _Solution:
        """The n Sinkhorn iterations of a tile."""
        mu = self.image_mass[tile.images, tile.captions if self.image_mass.shape[1] > 1 else 0, tile.regions]
        nu = self.text_mass[tile.images if self.text_mass.shape[0] > 1 else 0, tile.captions, tile.words]
        similarity = self.room("similarity", tile, self.dtype)
        # 1/λ as a factor of the product: folded into an operand, its rounding would cost accuracy
        product, shape = (
            (torch.addmm, (-1, len(tile.image))) if tile.text.ndim == 2 else (torch.baddbmm, similarity.shape[:3])
        )
        out = similarity.view(shape)
        product(out, tile.text, tile.image.mT, beta=0, alpha=1 / self.regularization, out=out)
        solution = self.iterate(tile, similarity, mu, nu, self.dtype) if self.fits else None
        if solution is None:
            solution = self.iterate(tile, similarity.double(), mu, nu, torch.float64)
        if solution is None:
            raise FloatingPointError("A sum of the transport left the range of float64; use backend='reference'.")
        return solution

    def iterate(self, tile: _Tile, similarity: Tensor, mu: Tensor, nu: Tensor, dtype: torch.dtype) -> _Solution | None:
        """The same in one floating-point type; None if a sum is out of its range."""
        mu, nu = mu.to(dtype), nu.to(dtype)
        kernel = torch.exp(similarity, out=self.room("kernel", tile, dtype))
        room = self.room("room", tile, dtype)
        solution = _Solution(similarity, kernel, room, [], [(nu > 0).to(dtype)], [], [])
        smallest, largest = SUM_RANGE[dtype]
        everywhere = bool((nu > 0).all())
        for done in range(self.num_iterations):
            # rows to μ: a = μ / E b
            b = solution.b[-1][:, :, None]
            row_sums = (kernel if done == 0 and everywhere else torch.mul(kernel, b, out=room)).sum(1)
            solution.a.append(mu / row_sums)
            # columns to ν: b = ν / Eᵀ a
            column_sums = torch.mul(kernel, solution.a[-1][:, None], out=room).sum(2)
            solution.b.append(nu / column_sums)
            for sums, made in ((row_sums, solution.row_sums), (column_sums, solution.column_sums)):
                made.append(sums)
                low, high = sums.aminmax()
                if not smallest <= low.item() <= high.item() <= largest:
                    return None
        return solution

    def score(self, tile: _Tile) -> Tensor:
        """Σ P S over the fragments of each of a tile's pairs, [T, I]."""
        solution = self.solve(tile)
        products = solution.room[self.fragments].mul_(solution.similarity[self.fragments])
        scores = (products.sum(2) * solution.b[-1][:, self.first :]).sum(1)
        return (scores * self.regularization).to(self.dtype)

    def room(self, name: str, tile: _Tile, dtype: torch.dtype) -> Tensor:
        """Memory of a tile's shape, the same for every tile: fresh pages would cost as much as the arithmetic."""
        size = len(tile.captions) * tile.words.shape[1] * tile.regions.shape[1] * tile.images.shape[2]
        if self.memory.get((name, dtype), torch.empty(0)).numel() < size:
            self.memory[name, dtype] = torch.empty(size, dtype=dtype, device=tile.text.device)
        return self.memory[name, dtype][:size].view(len(tile.captions), tile.words.shape[1], *tile.regions.shape[1:])


class _Gradients:
    """Gradients of the inputs, those of the n iterations and not of their limit, added up over tiles."""

    def __init__(self, problem: _Problem, needed: tuple[bool, ...]):
        self.problem = problem
        inputs = (problem.images.rows, problem.image_mass, problem.captions.rows, problem.text_mass)
        self.image_rows, self.image_mass, self.text_rows, self.text_mass = (
            torch.zeros(each.shape, dtype=problem.dtype, device=each.device) if need else None
            for each, need in zip(inputs, needed[:4], strict=True)
        )

    def of_tile(self, tile: _Tile, incoming: Tensor) -> Tensor:
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

    def _add_masses(self, tile: _Tile, grad_mu: Tensor, grad_nu: Tensor) -> None:
        """Rows without mass are no part of the problem, so their mass has no gradient."""
        if self.image_mass is not None:
            place = (tile.images, tile.captions if self.image_mass.shape[1] > 1 else tile.captions * 0, tile.regions)
            grad_mu = grad_mu.masked_fill(self.problem.image_mass[place] == 0, 0).to(self.problem.dtype)
            self.image_mass.index_put_(place, grad_mu, accumulate=True)
        if self.text_mass is not None:
            place = (tile.images if self.text_mass.shape[0] > 1 else tile.images * 0, tile.captions, tile.words)
            grad_nu = grad_nu.masked_fill(self.problem.text_mass[place] == 0, 0).to(self.problem.dtype)
            self.text_mass.index_put_(place, grad_nu, accumulate=True)

    def add_tile(self, tile: _Tile, gradient: Tensor, of_block: Tensor) -> None:
        """Add what a tile of all pairs of its sides gives the captions, and its images' block."""
        gradient = gradient.view(len(tile.text), len(tile.image))
        if self.image_rows is not None:
            of_block.addmm_(gradient.T, tile.text)
        if self.text_rows is not None:
            captions, words = tile.captions[..., 0], tile.words[..., 0]
            self.text_rows[captions, words] += (gradient @ tile.image).view(*words.shape, -1)

    def add_block(self, block: _Block, of_block: Tensor) -> None:
        if self.image_rows is not None:
            place = (block.images[0], block.regions[0])
            self.image_rows[place] = of_block.view(*block.regions.shape[1:], -1)

    def add_single_pairs(self, tile: _Tile, gradient: Tensor) -> None:
        gradient = gradient.squeeze(-1)  # [T, C, R]
        if self.image_rows is not None:
            place = (tile.images[..., 0], tile.regions[..., 0])
            self.image_rows.index_put_(place, torch.bmm(gradient.mT, tile.text), accumulate=True)
        if self.text_rows is not None:
            place = (tile.captions[..., 0], tile.words[..., 0])
            self.text_rows.index_put_(place, torch.bmm(gradient, tile.image), accumulate=True)


def _largest_exponent(image_rows: Tensor, text_rows: Tensor, regularization: float) -> float:
    """A bound on |S/λ|."""
    largest = [
        torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32)).max()
        if rows.numel()
        else torch.zeros(())
        for rows in (image_rows, text_rows)
    ]
    return float(largest[0] * largest[1] / regularization)
