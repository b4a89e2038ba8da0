"""Packs the rows of both sides, and multiplies out the cosines of a block of pairs.

Rows without mass are left out, and captions are packed one after the other by their number of words, so that there is
no work on padding. One matrix product makes S of many captions and a block of images, laid out as [words, regions,
images]: every sum or maximum runs over an outer dimension, with the images side by side in a vector. What follows goes
tile by tile: captions with the same number of words, few enough to stay in the cache.
"""

import bisect
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from omit_hf.modeling.transport_omit import Side

IMAGES_PER_BLOCK = 32
PRODUCT_ENTRIES = 2**20  # of S; so many that one matrix product costs an entry no more than a large one
TILE_ENTRIES = 2**18  # of S; a megabyte, of which a few fit the cache of a core
GATHERED_ENTRIES = 2**21  # of the rows gathered for single pairs


class PackedSide:
    """Packs one side: rows with mass first, items sorted by how many they have.

    Args:
        rows: [N, R, D].
        has_mass: [N, R].
        num_dustbins: how many rows are dustbins, which stay in front whether they have mass or not.
    """

    def __init__(self, rows: Tensor, has_mass: Tensor, num_dustbins: int):
        self.rows = rows
        has_mass[:, :num_dustbins] = has_mass.any(-1, keepdim=True)
        self.counts = has_mass.sum(-1)
        self.order = self.counts.argsort(stable=True)[int((self.counts == 0).sum()) :]
        self.filled_first = has_mass.to(torch.int8).argsort(dim=-1, descending=True, stable=True)

    def row_numbers(self, items: Tensor) -> Tensor:
        """Numbers of the rows with mass of some items, [len(items), most of them]; filled up with rows without."""
        return self.filled_first[items, : int(self.counts[items].max())]


class Tile(NamedTuple):
    """T captions of C words, and I images of at most R regions each.

    Args:
        similarity: S times the factor, [T, C, R, I]; in memory that may be written to.
        mu, nu: the masses, [1 or T, R, I] and [T, C, 1 or I].
    """

    similarity: Tensor
    mu: Tensor
    nu: Tensor


class Pairs(NamedTuple):
    """All pairs of T captions, W words in all, and I images; or T single pairs, where I is 1.

    Args:
        images: numbers of the images, [1 or T, 1, I].
        captions: numbers of the captions, [T, 1, 1].
        regions: numbers of the regions among the image's rows, [1 or T, R, I].
        word_images, word_captions, words: of each word the numbers of its images, of its caption, and its own among the
            caption's rows, [1 or W, I], [W, 1] and [W, 1].
        starts: where each caption's words begin, and the last one's end; T + 1 of them.
        image: rows of the regions, [R·I, D] or [T, R, D].
        text: rows of the words, [W, D] or [T, W / T, D].
        mu, nu: the masses, [1 or T, R, I] and [W, 1 or I].
        similarity: S times the factor, [W, R, I]; in memory that the next pairs take over.
    """

    images: Tensor
    captions: Tensor
    regions: Tensor
    word_images: Tensor
    word_captions: Tensor
    words: Tensor
    starts: list[int]
    image: Tensor
    text: Tensor
    mu: Tensor
    nu: Tensor
    similarity: Tensor

    def tiles(self) -> Iterator[tuple[slice, slice, Tile]]:
        """Tiles in their order, and which captions and words they are."""
        starts, first = self.starts, 0
        while first < len(self.captions):
            length = starts[first + 1] - starts[first]
            last, most = first + 1, max(1, TILE_ENTRIES // (length * self.similarity[0].numel()))
            while last < len(self.captions) and last < first + most and starts[last + 1] - starts[last] == length:
                last += 1
            captions, words = slice(first, last), slice(starts[first], starts[last])
            similarity = self.similarity[words].unflatten(0, (-1, length))
            mu = self.mu if len(self.mu) == 1 else self.mu[captions]
            yield captions, words, Tile(similarity, mu, self.nu[words].unflatten(0, (-1, length)))
            first = last


class Block(NamedTuple):
    """I images of at most R regions: their numbers, [1, 1, I], those of the regions, [1, R, I], the rows, [R·I, D]."""

    images: Tensor
    regions: Tensor
    rows: Tensor


class PackedCaptions(NamedTuple):
    """N captions by their number of words, and their words one after the other.

    Args:
        captions: their numbers, [N].
        starts: where each one's words begin, and the last one's end; N + 1 of them.
        word_captions, words: of each word the numbers of its caption, and its own among the caption's rows, [W, 1].
        rows: [W, D].
    """

    captions: Tensor
    starts: list[int]
    word_captions: Tensor
    words: Tensor
    rows: Tensor


class TiledProblem(ABC):
    """The rows of both sides, packed, and what every score makes of them.

    A score derives from it: `score` makes one number a pair of a tile, `gradient` what reaches the similarity. One that
    need not go tile by tile overrides `score_pairs` and `differentiate_pairs`.

    Args:
        image, text: the sides, as `transport_similarity` has them.
        num_dustbins: how many rows in front are dustbins.
        factor: what the cosines are multiplied with.
        matmul_dtype: as in `TransportOptions`.
    """

    def __init__(self, image: Side, text: Side, num_dustbins: int, factor: float, matmul_dtype: str):
        self.num_dustbins = num_dustbins
        self.images = PackedSide(image.rows, (image.mass > 0).any(1), num_dustbins)
        self.captions = PackedSide(text.rows, (text.mass > 0).any(0), num_dustbins)
        self.image_mass, self.text_mass = image.mass, text.mass
        self.fragments = (slice(None), slice(num_dustbins, None), slice(num_dustbins, None))  # of a tile
        self.dtype = torch.float32
        for tensor in (*image, *text):
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self.buffers: dict[tuple, Tensor] = {}
        self.matmul_dtype, self.factor = matmul_dtype, factor
        if matmul_dtype == "int8":  # one scale a side, so that the product need only be multiplied with a number
            self.scales = [127 / rows.abs().amax().clamp_min(1e-9).item() for rows in (image.rows, text.rows)]
            self.factor /= self.scales[0] * self.scales[1]

    @abstractmethod
    def score(self, tile: Tile) -> Tensor:
        """The score of a tile's pairs, [T, I]."""

    @abstractmethod
    def gradient(self, tile: Tile, incoming: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """Write the gradient of S, [T, C, R, I]; return those of μ, [T, R, I], and ν, [T, C, I], if the score has them.

        Args:
            incoming: of the tile's pairs, [T, I].
            gradient: where to write.
        """

    def score_pairs(self, pairs: Pairs) -> Tensor:
        """The scores of all tiles, [T, I]."""
        scores = pairs.mu.new_empty(len(pairs.captions), pairs.images.shape[2], dtype=self.dtype)
        for captions, _, tile in pairs.tiles():
            scores[captions] = self.score(tile)
        return scores

    def differentiate_pairs(self, pairs: Pairs, incoming: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """As `gradient`, of all tiles: [W, R, I] is written; μ, [T, R, I], and ν, [W, I]."""
        of_mass = []
        for captions, words, tile in pairs.tiles():
            found = self.gradient(tile, incoming[captions], gradient[words].view_as(tile.similarity))
            if found is not None:
                of_mass.append((found[0], found[1].flatten(0, 1)))
        return tuple(map(torch.cat, zip(*of_mass, strict=True))) if of_mass else None

    @functools.cached_property
    def packed(self) -> PackedCaptions:
        captions = self.captions.order
        counts = self.captions.counts[captions]
        filled = torch.arange(self.captions.rows.shape[1], device=counts.device) < counts[:, None]
        words = self.captions.filled_first[captions][filled]
        word_captions = captions.repeat_interleave(counts)
        rows = self.operand(1, self.captions.rows[word_captions, words])
        return PackedCaptions(captions, [0, *counts.cumsum(0).tolist()], word_captions[:, None], words[:, None], rows)

    def operand(self, side: int, rows: Tensor) -> Tensor:
        """Rows in the type of the product; `side` is 0 for images, 1 for captions."""
        if self.matmul_dtype == "bfloat16":
            return rows.bfloat16()
        if self.matmul_dtype == "int8":
            return (rows.to(self.dtype) * self.scales[side]).round_().to(torch.int8)
        return rows.to(self.dtype)

    def image_blocks(self) -> Iterator[Block]:
        for images in self.images.order.split(IMAGES_PER_BLOCK):
            if len(images) and len(self.packed.captions):
                regions = self.images.row_numbers(images).T[None]
                rows = self.operand(0, self.images.rows[images, regions[0]])  # [R, I, D]
                yield Block(images[None, None], regions, rows.flatten(0, 1))

    def pairs(self, block: Block) -> Iterator[Pairs]:
        """All pairs of a block of images, in the order of the packed captions."""
        packed = self.packed
        most = PRODUCT_ENTRIES // len(block.rows)
        first = 0
        while first < len(packed.captions):
            last = max(first + 1, bisect.bisect(packed.starts, packed.starts[first] + most) - 1)
            begin, end = packed.starts[first], packed.starts[last]
            text = packed.rows[begin:end]
            yield self.with_mass(
                images=block.images,
                captions=packed.captions[first:last, None, None],
                regions=block.regions,
                word_images=block.images[0],
                word_captions=packed.word_captions[begin:end],
                words=packed.words[begin:end],
                starts=[start - begin for start in packed.starts[first : last + 1]],
                image=block.rows,
                text=text,
                similarity=self.multiply(text, block.rows).view(len(text), *block.regions.shape[1:]),
            )
            first = last

    def single_pairs(self, images: Tensor, captions: Tensor) -> Iterator[tuple[Tensor, Pairs]]:
        """The given pairs, and which of them; but for those in which a side has no mass."""
        have_mass = ((self.images.counts[images] > 0) & (self.captions.counts[captions] > 0)).nonzero().squeeze(1)
        order = have_mass[self.captions.counts[captions[have_mass]].argsort(stable=True)]
        entries_of_a_pair = self.images.rows.shape[1:].numel() + self.captions.rows.shape[1:].numel()
        for chosen in order.split(max(1, GATHERED_ENTRIES // max(1, entries_of_a_pair))):
            if len(chosen):
                i, t = images[chosen], captions[chosen]
                regions, words = self.images.row_numbers(i), self.captions.row_numbers(t)
                image = self.images.rows[i[:, None], regions].to(self.dtype)
                text = self.captions.rows[t[:, None], words].to(self.dtype)
                length = words.shape[1]
                pairs = self.with_mass(
                    images=i[:, None, None],
                    captions=t[:, None, None],
                    regions=regions[..., None],
                    word_images=i.repeat_interleave(length)[:, None],
                    word_captions=t.repeat_interleave(length)[:, None],
                    words=words.reshape(-1, 1),
                    starts=list(range(0, words.numel() + 1, length)),
                    image=image,
                    text=text,
                    similarity=self.multiply(text, image).view(words.numel(), -1, 1),
                )
                yield chosen, pairs

    def with_mass(self, **fields) -> Pairs:
        """Pairs, and their masses."""
        image_captions = fields["captions"] if self.image_mass.shape[1] > 1 else 0
        mu = self.image_mass[fields["images"], image_captions, fields["regions"]]
        text_images = fields["word_images"] if self.text_mass.shape[0] > 1 else 0
        nu = self.text_mass[text_images, fields["word_captions"], fields["words"]]
        return Pairs(**fields, mu=mu, nu=nu)

    def multiply(self, text: Tensor, image: Tensor) -> Tensor:
        """Products of rows times the factor, [W, R·I] or [T, C, R]; folded into an operand, it would cost accuracy."""
        similarity = self.buffer("similarity", (*text.shape[:-1], image.shape[-2]), self.dtype)
        if text.ndim == 3:
            torch.baddbmm(similarity, text, image.mT, beta=0, alpha=self.factor, out=similarity)
        elif self.matmul_dtype == "float32":
            torch.addmm(similarity, text, image.T, beta=0, alpha=self.factor, out=similarity)
        else:
            product = torch.mm if self.matmul_dtype == "bfloat16" else torch._int_mm
            similarity.copy_(product(text, image.T)).mul_(self.factor)
        return similarity

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that is the same in every call: fresh pages would cost as much as the arithmetic."""
        size = math.prod(shape)
        if self.buffers.get((name, dtype), torch.empty(0)).numel() < size:
            self.buffers[name, dtype] = torch.empty(size, dtype=dtype, device=self.images.rows.device)
        return self.buffers[name, dtype][:size].view(shape)
