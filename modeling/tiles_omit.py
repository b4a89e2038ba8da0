"""Tiles of pairs, and the similarity of a tile: what every score of the CPU backend shares.

Rows without mass are left out, and captions with the same number of words are packed together, so that there is no work
on padding. A tile stays in the cache; it is laid out as [captions, words, regions, images], so that one matrix product
makes it and every sum or maximum that follows runs over an outer dimension, with the images side by side in a vector.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ENTRIES = 2**18  # of S; a megabyte, of which a few fit the cache of a core
IMAGES_PER_TILE = 32
PAIRS_ENTRIES = 2**21  # of the rows gathered for a tile of single pairs


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


class PackedProblem:
    """The rows of both sides, packed; their tiles, and the similarity of a tile.

    A score derives from it: `score` makes of a tile one number a pair, `gradient` what reaches the similarity.

    Args:
        image_rows, image_mass, text_rows, text_mass, product: as in `transport_similarity`. Of the mass it only matters
            here which rows have some.
        factor: what the cosines are multiplied with.
        first: how many rows in front are dustbins.
    """

    def __init__(
        self,
        image_rows: Tensor,
        image_mass: Tensor,
        text_rows: Tensor,
        text_mass: Tensor,
        *,
        factor: float = 1.0,
        first: int = 0,
        product: str = "float32",
    ):
        self.first = first
        self.images = Side(image_rows, (image_mass > 0).any(1), first)
        self.captions = Side(text_rows, (text_mass > 0).any(0), first)
        self.image_mass, self.text_mass = image_mass, text_mass
        self.fragments = (slice(None), slice(first, None), slice(first, None))  # of a tile: no dustbins
        self.dtype = torch.float32
        for tensor in (image_rows, image_mass, text_rows, text_mass):
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.memory: dict[tuple, Tensor] = {}
        self.product, self.factor = product, factor
        if product == "int8":  # one scale a side, so that a number is all that the product must be multiplied with
            self.scales = [127 / rows.abs().amax().clamp_min(1e-9).item() for rows in (image_rows, text_rows)]
            self.factor /= self.scales[0] * self.scales[1]

    def score(self, tile: Tile) -> Tensor:
        """The score of each of a tile's pairs, [T, I]."""
        raise NotImplementedError

    def gradient(self, tile: Tile, incoming: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What reaches S, [T, C, R, I], and the masses μ, [T, R, I], and ν, [T, C, I], of a score that has them.

        Args:
            incoming: of each of the tile's pairs, [T, I].
        """
        raise NotImplementedError

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
        entries_of_a_pair = self.images.rows[0].numel() + self.captions.rows[0].numel()
        for chosen in order.split(max(1, PAIRS_ENTRIES // max(1, entries_of_a_pair))):
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
        """S times the factor, [T, C, R, I]; folded into an operand, a factor would cost accuracy."""
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

    def mass(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """μ, [1 or T, R, I], and ν, [T, C, 1 or I]."""
        mu = self.image_mass[tile.images, tile.captions if self.image_mass.shape[1] > 1 else 0, tile.regions]
        nu = self.text_mass[tile.images if self.text_mass.shape[0] > 1 else 0, tile.captions, tile.words]
        return mu, nu

    def room(self, name: str, tile: Tile, dtype: torch.dtype) -> Tensor:
        """Memory of a tile's shape, the same for every tile: fresh pages would cost as much as the arithmetic."""
        size = len(tile.captions) * tile.words.shape[1] * tile.regions.shape[1] * tile.images.shape[2]
        if self.memory.get((name, dtype), torch.empty(0)).numel() < size:
            self.memory[name, dtype] = torch.empty(size, dtype=dtype, device=tile.text.device)
        return self.memory[name, dtype][:size].view(len(tile.captions), tile.words.shape[1], *tile.regions.shape[1:])
