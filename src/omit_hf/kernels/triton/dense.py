"""Scores of all pairs, and their gradient, by `packed_kernel`: what most batches need.

Forward, nothing waits for the device, so that a CUDA graph can hold it. Backward, the kernel writes S̄ = ∂/∂S of a
bounded number of tiles, which two matrix products turn into the gradients of the rows.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from omit_hf.kernels.triton.packed import packed_kernel
from omit_hf.kernels.triton.packing import TILE_ROWS, Packed, pack, row_table

INTERPRETED = triton.knobs.runtime.interpret
MOST_REGIONS, MOST_WORDS, MOST_ENTRIES = 256, 128, 2**14  # of a pair, in powers of 2, that the chip holds
LEAST_REGIONS, LEAST_WORDS = 64, 16  # for less, no kernel of its own is compiled


class Settings(NamedTuple):
    """How `packed_kernel` uses a multiprocessor; see examples/benchmarks/NOTES.md for what was tried."""

    entries: int  # of S that a thread holds at once
    warps: int  # of a program
    programs: int  # a multiprocessor
    stages: int  # of the product's pipeline
    registers: int  # of a thread, at most


FORWARD = Settings(16, 8, 2, 3, 128)
BACKWARD = Settings(32, 4, 2, 3, 255)
BACKWARD_OF_MASSES = Settings(16, 4, 2, 3, 255)
FLOAT32 = Settings(16, 8, 1, 3, 255)  # whose product takes three times the registers
IMAGE_ALIGN = 4  # rows of a slot, so that four numbers are read at once
WORKSPACE = 2**28  # bytes of S̄ at once


def is_packable(image_rows: Tensor, text_rows: Tensor) -> bool:
    """Whether there are pairs, and `packed_kernel` holds the largest."""
    regions, words = (triton.next_power_of_2(max(1, each.shape[1])) for each in (image_rows, text_rows))
    fits = regions <= MOST_REGIONS and words <= MOST_WORDS and regions * words <= MOST_ENTRIES
    return fits and image_rows.numel() > 0 and text_rows.numel() > 0


def pack_sides(
    image_rows: Tensor, image_mass: Tensor, text_rows: Tensor, text_mass: Tensor, num_dustbins: int
) -> tuple[Packed, Packed]:
    images = pack(image_rows, image_mass, num_dustbins, IMAGE_ALIGN)
    return images, pack(text_rows, text_mass.transpose(0, 1), num_dustbins, 1)


class Backward(NamedTuple):
    """What a backward pass writes, for tiles of captions from the first up to the last.

    Args:
        grads: S̄, a row of text tiles by a column of image tiles; of bfloat16 in two parts, one below the other.
        tiles: numbers of the first text tile and of the one behind the last.
        mass_grads: of μ and of ν: None, or like the masses of all pairs, or like S̄, where a pair has a row of μ̄ and a
            column of ν̄.
        kinds: which of it: "", "pair" or "item".
    """

    grads: Tensor
    tiles: tuple[int, int]
    mass_grads: list[Tensor | None]
    kinds: list[str]


def launch(scores: Tensor, images: Packed, captions: Packed, options: tuple, backward: Backward | None = None) -> None:
    """Write the scores of all pairs into [B_i, B_t]; or, `scores` being their gradient, what [`Backward`] says."""
    device = scores.device
    settings = _settings(images.flat.dtype, backward)
    processors = 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
    programs = min(scores.numel(), settings.programs * processors)
    columns, blocks = _columns(images), _blocks(images.rows_per_item, LEAST_REGIONS)
    similarity = torch.zeros(programs, TILE_ROWS, columns + blocks[-1][1], device=device)
    f = g = grads = None
    tiles, mass_grads, kinds, stride = (0, 0), (None, None), ("", ""), 0
    if backward is not None:
        grads, tiles, mass_grads, kinds = backward
        stride = grads.stride(0)
    for least_regions, regions in blocks:
        for least_words, words in _blocks(captions.rows_per_item, LEAST_WORDS):
            inner_regions = min(regions, 32)
            outer_words = min(words, max(1, settings.entries // 4 * inner_regions // regions))
            warps = 8 if words * regions > MOST_ENTRIES // 2 else settings.warps
            pairs = max(1, 32 * settings.entries * warps // (words * regions))
            if backward is not None:
                f = torch.empty(programs, options[1], pairs, regions, device=device)
                g = torch.empty(programs, options[1], pairs, words, device=device)
            packed_kernel[(programs,)](
                *(scores, scores.stride(0)),
                *_arguments(images),
                *_arguments(captions),
                *(images.flat.shape[1], *options[:2], similarity, f, g),
                *(grads, stride, columns, *tiles, *mass_grads),
                *(backward is not None, images.flat.dtype == torch.bfloat16, *kinds),
                *(triton.next_power_of_2(side.rows_per_item + 1) for side in (images, captions)),
                *(least_regions, least_words),
                *(pairs, words, words // outer_words, regions, inner_regions),
                *product_settings(images.flat.dtype),
                num_warps=warps,
                num_stages=settings.stages,
                maxnreg=settings.registers,
            )


def _settings(dtype: torch.dtype, backward: Backward | None) -> Settings:
    """Those with which the compiler keeps everything in registers."""
    if dtype == torch.float32:
        return FLOAT32
    if backward is None:
        return FORWARD
    return BACKWARD_OF_MASSES if any(backward.kinds) else BACKWARD


def _arguments(side: Packed) -> tuple:
    """What `packed_kernel` is told of a side."""
    masses = side.mass, side.mass.stride(0), side.mass.stride(1) if side.mass.shape[1] > 1 else 0, side.dustbins
    tables = side.places, side.order, side.firsts, side.ends
    return side.flat, side.flat.stride(0), *tables, side.rows_per_item, *masses


def dense_gradients(gradient: Tensor, inputs: tuple[Tensor, ...], needed: tuple[bool, ...], options: tuple) -> list:
    """Gradients of rows and masses, in the order of `_TransportSimilarity`; None of what is not needed.

    Their sums are made in one order, so that they are the same in every run.
    """
    sides = images, captions = pack_sides(*inputs, options[2])
    image_tiles, text_tiles = torch.stack([images.ends[-1], captions.ends[-1]]).tolist()
    width = image_tiles * _columns(images)
    tables = row_table(images, image_tiles, _columns(images)), row_table(captions, text_tiles, TILE_ROWS)
    in_two = inputs[0].dtype == torch.bfloat16
    dtype = torch.bfloat16 if in_two else torch.float32
    rows = [side.flat[table.clamp_min(0)].to(dtype) for side, table in zip(sides, tables, strict=True)]

    masses = [(inputs[1], needed[1], 1), (inputs[3], needed[3], 0)]  # with the dimension of the other side
    kinds = [("pair" if mass.shape[other] > 1 else "item") if need else "" for mass, need, other in masses]
    of_pairs = zip(kinds, sides, strict=True)
    pair_grads = [torch.zeros_like(side.mass) if kind == "pair" else None for kind, side in of_pairs]
    at_once = max(1, WORKSPACE // max(1, 4 * TILE_ROWS * width * (1 + kinds.count("item"))))
    of_images = gradient.new_zeros(width, inputs[0].shape[2])
    of_captions, of_mu, of_nu = [of_images[:0]], gradient.new_zeros(width), [gradient.new_zeros(0)]
    for first in range(0, text_tiles, at_once):
        last = min(first + at_once, text_tiles)
        height = (last - first) * TILE_ROWS
        grads = gradient.new_zeros((1 + in_two) * height, width, dtype=dtype)
        mass_grads = [
            gradient.new_zeros(height, width) if kind == "item" else of_pairs
            for kind, of_pairs in zip(kinds, pair_grads, strict=True)
        ]
        launch(gradient, images, captions, options, Backward(grads, (first, last), mass_grads, kinds))
        some = rows[1][first * TILE_ROWS : last * TILE_ROWS]
        if needed[0]:
            of_images += _product(grads.T, some.repeat(1 + in_two, 1))
        if needed[2]:
            of_captions.append(_product(grads, rows[0]).view(1 + in_two, height, -1).sum(0))
        if kinds[0] == "item":
            of_mu += mass_grads[0].sum(0)
        if kinds[1] == "item":
            of_nu.append(mass_grads[1].sum(1))
    packed = of_images, of_mu, torch.cat(of_captions), torch.cat(of_nu)
    results = []
    for number, (part, like) in enumerate(zip(packed, inputs, strict=True)):
        side, is_mass = divmod(number, 2)
        if not needed[number]:
            results.append(None)
        elif is_mass and kinds[side] == "pair":
            of_pairs = _of_pairs(pair_grads[side], sides[side])
            results.append(of_pairs.transpose(0, 1) if side else of_pairs)
        else:
            results.append(_unpacked(part, tables[side], sides[side]).view_as(like).to(like.dtype))
    return results


def _unpacked(part: Tensor, table: Tensor, side: Packed) -> Tensor:
    """Rows of tiles where they belong, [B · R, …]; zero for a row without mass."""
    rows = len(side.flat)
    total = part.new_zeros(rows + 1, *part.shape[1:])
    total[torch.where(table < 0, rows, table)] = part
    return total[:-1]


def _of_pairs(packed: Tensor, side: Packed) -> Tensor:
    """Gradients of masses where they belong, [B, items of the other side, R], from those in the order of `side`."""
    counts = torch.searchsorted(side.firsts, torch.arange(len(packed), device=packed.device), right=True) - 1
    place = torch.arange(side.rows_per_item, device=packed.device)
    there = (place < counts[:, None])[:, None]
    to = torch.where(there[:, 0], side.places[side.order], side.rows_per_item)[:, None].long()
    total = packed.new_zeros(*packed.shape[:2], side.rows_per_item + 1)
    return torch.empty_like(packed).index_copy_(
        0, side.order, total.scatter_(2, to.expand_as(packed), packed)[..., :-1]
    )


def product_settings(dtype: torch.dtype) -> tuple[int, str]:
    """Depth of a step of the matrix product, and its precision."""
    # To the interpreter's `dot` bf16 is but a number of 16 bits.
    precision = "ieee" if INTERPRETED else "tf32x3" if dtype == torch.float32 else "half"
    return 128 // dtype.itemsize, precision


def _blocks(rows: int, least: int) -> list[tuple[int, int]]:
    """Powers of 2 from `least`, up to what holds so many rows, each with the one before it, or 0."""
    most = max(16, triton.next_power_of_2(rows))
    blocks = [block for block in (16, 32, 64, 128, 256) if least <= block < most] + [most]
    return list(zip([0, *blocks[:-1]], blocks, strict=True))


def _columns(images: Packed) -> int:
    """Of a tile of images: it holds the largest one."""
    return max(TILE_ROWS, triton.next_power_of_2(images.rows_per_item))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in float32."""
    if a.is_cuda and a.dtype != torch.float32 and torch.__version__ >= (2, 8):  # which is when `out_dtype` came
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
