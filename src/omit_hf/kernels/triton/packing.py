"""Packs the items of a side into tiles of 128 rows, on the device: nothing here waits for it.

Items are sorted by their number of rows with mass, and a tile holds items of one number, each in a *slot* of as many
rows, so that a product of tiles multiplies hardly any padding. Nobody copies a row; tables name them.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 128  # what makes good use of the tensor cores
TILE = tl.constexpr(TILE_ROWS)


class Packed(NamedTuple):
    """The B items of one side, of R rows, and where their rows with mass are.

    Args:
        flat: all rows, [B · R, D].
        places: numbers of an item's rows with mass within the item, int32 [B, R]; what follows them means nothing.
        order: items by their number of rows with mass, int64 [B].
        firsts: place in `order` of the first item of n rows, or more, int32 [R + 2].
        ends: number of tiles up to those of n rows, int32 [R + 1]; items without mass are in none.
        mass: float32 [B, 1 or number of items of the other side, R], items in `order`, rows with mass in front.
        dustbins: how many of an item's rows with mass are dustbins, int32 [B], items in `order`.
        align: slots are of a multiple of so many rows.
    """

    flat: Tensor
    places: Tensor
    order: Tensor
    firsts: Tensor
    ends: Tensor
    mass: Tensor
    dustbins: Tensor
    align: int

    @property
    def rows_per_item(self) -> int:
        return self.places.shape[1]


def pack(rows: Tensor, mass: Tensor, num_dustbins: int, align: int) -> Packed:
    """Pack rows, [B, R, D], of mass [B, 1 or number of items of the other side, R]."""
    items, others, size = mass.shape
    flat = rows.flatten(0, 1)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    has_mass = mass[:, 0] > 0 if others == 1 else (mass > 0).any(1)
    int32 = {"dtype": torch.int32, "device": rows.device}
    places, counts = torch.empty(items, size, **int32), torch.empty(items, **int32)
    block = triton.next_power_of_2(size)
    place_kernel[(items,)](places, counts, has_mass, *has_mass.stride(), size, block)
    order = counts.argsort(stable=True)
    firsts, ends = torch.empty(size + 2, **int32), torch.empty(size + 1, **int32)
    tile_kernel[(1,)](firsts, ends, counts, items, size, align, triton.next_power_of_2(size + 2))
    packed_mass, dustbins = torch.empty(items, others, size, device=rows.device), torch.empty(items, **int32)
    mass_kernel[(items, others)](
        packed_mass, dustbins, mass, *mass.stride(), places, counts, order, size, num_dustbins, block
    )
    return Packed(flat, places, order, firsts, ends, packed_mass, dustbins, align)


def row_table(packed: Packed, tiles: int, size: int) -> Tensor:
    """Which row of the flat tensor each row of so many tiles of a size is; −1 for none, [tiles · size]."""
    device = packed.flat.device
    tile, row = torch.arange(tiles, device=device), torch.arange(size, device=device)
    count = torch.searchsorted(packed.ends, tile, right=True)
    slot = (count + packed.align - 1) // packed.align * packed.align
    in_tile = (TILE_ROWS // slot).clamp_min(1)
    first = packed.firsts[count] + (tile - packed.ends[count - 1]) * in_tile
    items = torch.minimum(in_tile, packed.firsts[count + 1] - first)
    item, place = row // slot[:, None], row % slot[:, None]
    there = (item < items[:, None]) & (place < count[:, None])
    number = packed.order[torch.where(there, first[:, None] + item, 0)]
    at = number * packed.rows_per_item + packed.places[number, torch.where(there, place, 0)]
    return torch.where(there, at, -1).flatten()


@triton.jit(do_not_specialize=("item_stride", "row_stride", "size"))
def place_kernel(places_ptr, counts_ptr, has_mass_ptr, item_stride, row_stride, size, BLOCK: tl.constexpr):
    """The rows with mass of one item, in front, and their number."""
    item = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, BLOCK)
    there = tl.load(has_mass_ptr + item * item_stride + row * row_stride, mask=row < size, other=0).to(tl.int32)
    place = tl.cumsum(there, 0) - 1
    tl.store(places_ptr + item * size + place, row, mask=there > 0)
    tl.store(counts_ptr + item, tl.sum(there, 0))


@triton.jit(do_not_specialize=("items", "size", "align"))
def tile_kernel(firsts_ptr, ends_ptr, counts_ptr, items, size, align, BLOCK: tl.constexpr):
    """Where the items and the tiles of each number of rows begin and end."""
    rows = tl.arange(0, BLOCK)
    number = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, items, BLOCK):
        at = start + tl.arange(0, BLOCK)
        counts = tl.load(counts_ptr + at, mask=at < items, other=BLOCK - 1)  # more than any item has
        number += tl.histogram(counts, BLOCK)
    number = tl.where(rows <= size, number, 0)
    last = tl.cumsum(number, 0)
    tl.store(firsts_ptr + rows, last - number, mask=rows <= size + 1)
    in_tile = tl.maximum(_tile_over(tl.maximum(tl.cdiv(rows, align) * align, 1)), 1)
    tiles = tl.where(rows > 0, tl.cdiv(number, in_tile), 0)
    tl.store(ends_ptr + rows, tl.cumsum(tiles, 0), mask=rows <= size)


@triton.jit(do_not_specialize=("item_stride", "other_stride", "row_stride", "size", "num_dustbins"))
def mass_kernel(
    packed_ptr, dustbins_ptr, mass_ptr, item_stride, other_stride, row_stride, places_ptr, counts_ptr, order_ptr,
    size, num_dustbins, BLOCK: tl.constexpr,
):  # fmt: skip
    """The mass of one item of the order, as towards one item of the other side, and how many dustbins have any."""
    number, other = tl.program_id(0).to(tl.int64), tl.program_id(1)
    item = tl.load(order_ptr + number)
    row = tl.arange(0, BLOCK)
    there = row < tl.load(counts_ptr + item)
    place = tl.load(places_ptr + item * size + row, mask=there, other=size)
    mass = tl.load(mass_ptr + item * item_stride + other * other_stride + place * row_stride, mask=there, other=0.0)
    tl.store(packed_ptr + (number * tl.num_programs(1) + other) * size + row, mass, mask=row < size)
    tl.store(dustbins_ptr + number, tl.sum((there & (place < num_dustbins)).to(tl.int32), 0))


@triton.jit
def find_tile(tile, ends_ptr, firsts_ptr, size, align, LENGTHS: tl.constexpr):
    """What is in a tile: the rows of its items and of their slots, its first item in the order, and their number."""
    numbers = tl.arange(0, LENGTHS)
    ends = tl.load(ends_ptr + numbers, mask=numbers <= size, other=2147483647)
    count = tl.sum((ends <= tile).to(tl.int32), 0)
    slot = tl.cdiv(count, align) * align
    in_tile = tl.maximum(_tile_over(slot), 1)
    first = tl.load(firsts_ptr + count) + (tile - tl.load(ends_ptr + count - 1)) * in_tile
    return count, slot, first, tl.minimum(in_tile, tl.load(firsts_ptr + count + 1) - first)


@triton.jit
def _tile_over(slot):
    return (slot * 0 + TILE) // slot  # a constant in front would swallow the tensor in the interpreter
