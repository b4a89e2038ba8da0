"""Tiles of pairs, and the transport of one tile: the engine of the CPU backend.

Rows without mass are left out, and captions with the same number of words are packed together, so that there is no work
on padding. A tile stays in the cache; it is laid out as [captions, words, regions, images], so that one matrix product
makes it and every sum that follows runs over an outer dimension, with the images side by side in a vector. The
exponential is taken once; the iterations change two vectors, a and b, and never the plan diag(a)·E·diag(b).

E = exp(S/λ) is taken without subtracting a maximum, so it must fit the floating-point range. Unit vectors at λ ≥ 1/60
fit float32, at λ ≥ 1/320 float64. Should a sum come close to where float32 ends all the same, its tile is done again in
float64.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ENTRIES = 2**18  # of S; a megabyte, of which a few fit the cache of a core
IMAGES_PER_TILE = 32
PAIRS_ENTRIES = 2**21  # of the rows gathered for a tile of single pairs
MAX_EXPONENT = {torch.float32: 60, torch.float64: 320}  # of |S/λ|
# Sums within these bounds have lost nothing to underflow that matters, and nothing to overflow.
SUM_RANGE = {torch.float32: (2.0**-100, 2.0**120), torch.float64: (2.0**-1000, 2.0**1000)}


class Side:
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


class Block(NamedTuple):
    """I images of at most R regions.

    Args:
        images: their numbers, [1, 1, I].
        regions: numbers of the regions among the image's rows, [1, R, I].
        rows: rows of the regions, [R·I, D].
    """

    images: Tensor
    regions: Tensor
    rows: Tensor


class Tile(NamedTuple):
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


class Solution(NamedTuple):
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


class PackedProblem:
    """The arguments, packed; their tiles, and the transport of a tile."""

    def __init__(
        self,
        image_rows: Tensor,
        image_mass: Tensor,
        text_rows: Tensor,
        text_mass: Tensor,
        regularization: float,
        num_iterations: int,
        dustbins: bool,
        product: str = "float32",
    ):
        self.first = int(dustbins)
        self.images = Side(image_rows, (image_mass > 0).any(1), self.first)
        self.captions = Side(text_rows, (text_mass > 0).any(0), self.first)
        self.image_mass, self.text_mass = image_mass, text_mass
        self.regularization, self.num_iterations = regularization, num_iterations
        self.fragments = (slice(None), slice(self.first, None), slice(self.first, None))  # of a tile: no dustbins
        self.dtype = torch.float32
        for tensor in (image_rows, image_mass, text_rows, text_mass):
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.fits = largest_exponent(image_rows, text_rows, regularization) <= MAX_EXPONENT[self.dtype]
        self.memory: dict[tuple, Tensor] = {}
        self.product = product
        if product == "int8":  # one scale a side, so that a number is all that the product must be multiplied with
            self.scales = [127 / rows.abs().amax().clamp_min(1e-9).item() for rows in (image_rows, text_rows)]
            self.factor = 1 / (regularization * self.scales[0] * self.scales[1])
        else:
            self.factor = 1 / regularization

    @functools.cached_property
    def packed(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Captions by number of words: their numbers [N, 1, 1], those of the words [N, C, 1], the rows [N, C, D]."""
        lengths = self.captions.counts[self.captions.order]
        runs = self.captions.order.split(lengths.unique_consecutive(return_counts=True)[1].tolist())
        words = [self.captions.row_numbers(captions) for captions in runs]
        return [
            (captions[:, None, None], words[..., None], self.operand(1, self.captions.rows[captions[:, None], words]))
            for captions, words in zip(runs, words, strict=True)
        ]

    def operand(self, side: int, rows: Tensor) -> Tensor:
        """Rows in the type of the product; `side` is 0 for images, 1 for captions."""
        if self.product == "bfloat16":
            return rows.bfloat16()
        if self.product == "int8":
            return (rows.to(self.dtype) * self.scales[side]).round_().to(torch.int8)
        return rows.to(self.dtype)

    def image_blocks(self) -> Iterator[Block]:
        for images in self.images.order.split(IMAGES_PER_TILE):
            if len(images) and self.packed:
                regions = self.images.row_numbers(images).T[None]
                rows = self.operand(0, self.images.rows[images, regions[0]])  # [R, I, D]
                yield Block(images[None, None], regions, rows.flatten(0, 1))

    def tiles(self, block: Block) -> Iterator[Tile]:
        for captions, words, rows in self.packed:
            size = max(1, TILE_ENTRIES // (words.shape[1] * len(block.rows)))
            for caption, word, row in zip(captions.split(size), words.split(size), rows.split(size), strict=True):
                yield Tile(*block, caption, word, row.flatten(0, 1))

    def single_pairs(self, images: Tensor, captions: Tensor) -> Iterator[tuple[Tensor, Tile]]:
        """Tiles of the given pairs, and which of them; but for those in which a side has no mass."""
        have_mass = ((self.images.counts[images] > 0) & (self.captions.counts[captions] > 0)).nonzero().squeeze(1)
        order = have_mass[self.captions.counts[captions[have_mass]].argsort(stable=True)]
        rows_of_a_pair = self.images.rows.shape[1] + self.captions.rows.shape[1]
        for chosen in order.split(max(1, PAIRS_ENTRIES // (rows_of_a_pair * self.images.rows.shape[2]))):
            if len(chosen):
                i, t = images[chosen], captions[chosen]
                regions, words = self.images.row_numbers(i), self.captions.row_numbers(t)
                image = self.images.rows[i[:, None], regions].to(self.dtype)
                text = self.captions.rows[t[:, None], words].to(self.dtype)
                yield (
                    chosen,
                    Tile(i[:, None, None], regions[..., None], image, t[:, None, None], words[..., None], text),
                )

    def cosines(self, tile: Tile) -> Tensor:
        """S/λ, [T, C, R, I]; 1/λ multiplies the product, since folded into an operand it would cost accuracy."""
        similarity = self.room("similarity", tile, self.dtype)
        if tile.text.ndim == 3:
            out = similarity.squeeze(-1)
            torch.baddbmm(out, tile.text, tile.image.mT, beta=0, alpha=self.factor, out=out)
        elif self.product == "float32":
            out = similarity.view(len(tile.text), len(tile.image))
            torch.addmm(out, tile.text, tile.image.T, beta=0, alpha=self.factor, out=out)
        else:
            product = torch.mm if self.product == "bfloat16" else torch._int_mm
            similarity.copy_(product(tile.text, tile.image.T).view_as(similarity)).mul_(self.factor)
        return similarity

    def late_interaction(self, tile: Tile) -> Tensor:
        """Σ_l ν_l max(0, max_k S_kl) over the fragments of each of a tile's pairs, [T, I]."""
        mu, nu = self.mass(tile)
        best = self.cosines(tile).masked_fill_((mu == 0)[:, None], 0)[self.fragments].amax(2).clamp_min(0)
        return (best * nu[:, self.first :]).sum(1) * self.regularization

    def mass(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """μ, [1 or T, R, I], and ν, [T, C, 1 or I]."""
        mu = self.image_mass[tile.images, tile.captions if self.image_mass.shape[1] > 1 else 0, tile.regions]
        nu = self.text_mass[tile.images if self.text_mass.shape[0] > 1 else 0, tile.captions, tile.words]
        return mu, nu

    def solve(self, tile: Tile) -> Solution:
        """The n Sinkhorn iterations of a tile."""
        mu, nu = self.mass(tile)
        similarity = self.cosines(tile)
        solution = self.iterate(tile, similarity, mu, nu, self.dtype) if self.fits else None
        if solution is None:
            solution = self.iterate(tile, similarity.double(), mu, nu, torch.float64)
        if solution is None:
            raise FloatingPointError("A sum of the transport left the range of float64; use backend='reference'.")
        return solution

    def iterate(self, tile: Tile, similarity: Tensor, mu: Tensor, nu: Tensor, dtype: torch.dtype) -> Solution | None:
        """The same in one floating-point type; None if a sum is out of its range."""
        mu, nu = mu.to(dtype), nu.to(dtype)
        kernel = torch.exp(similarity, out=self.room("kernel", tile, dtype))
        room = self.room("room", tile, dtype)
        solution = Solution(similarity, kernel, room, [], [(nu > 0).to(dtype)], [], [])
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

    def score(self, tile: Tile) -> Tensor:
        """Σ P S over the fragments of each of a tile's pairs, [T, I]."""
        solution = self.solve(tile)
        products = solution.room[self.fragments].mul_(solution.similarity[self.fragments])
        scores = (products.sum(2) * solution.b[-1][:, self.first :]).sum(1)
        return (scores * self.regularization).to(self.dtype)

    def room(self, name: str, tile: Tile, dtype: torch.dtype) -> Tensor:
        """Memory of a tile's shape, the same for every tile: fresh pages would cost as much as the arithmetic."""
        size = len(tile.captions) * tile.words.shape[1] * tile.regions.shape[1] * tile.images.shape[2]
        if self.memory.get((name, dtype), torch.empty(0)).numel() < size:
            self.memory[name, dtype] = torch.empty(size, dtype=dtype, device=tile.text.device)
        return self.memory[name, dtype][:size].view(len(tile.captions), tile.words.shape[1], *tile.regions.shape[1:])


def largest_exponent(image_rows: Tensor, text_rows: Tensor, regularization: float) -> float:
    """A bound on |S/λ|."""
    largest = [
        torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=torch.promote_types(rows.dtype, torch.float32)).max()
        if rows.numel()
        else torch.zeros(())
        for rows in (image_rows, text_rows)
    ]
    return float(largest[0] * largest[1] / regularization)
