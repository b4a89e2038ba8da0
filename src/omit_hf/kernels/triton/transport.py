"""The Triton backend of `transport_similarity`: the autograd function, and what is launched for single pairs.

1. Most batches go to `dense.py`, forward and backward.
2. Where few pairs have a gradient, as with hardest negatives, and for items that the chip does not hold, this file
   sorts items by their number of rows with mass into buckets of 16, 32, 64, … rows; tables name the rows of each item.
3. The backward pass visits the tiles that hold a pair with a gradient, a bounded number at a time: `transport_kernel`
   leaves ∂/∂S in a workspace, `gradient_kernel` multiplies it by the rows of the other side.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from omit_hf.kernels.triton.dense import dense_gradients, is_packable, launch, pack_sides, product_settings
from omit_hf.kernels.triton.fused import gradient_kernel, transport_kernel
from omit_hf.modeling.transport_omit import CannotServe, Side, TransportOptions

INTERPRETED = triton.knobs.runtime.interpret
BLOCKS = (16, 32, 64, 128, 256)  # rows of an item that a tile holds
MAX_CAPTION_ROWS = BLOCKS[-1]  # an image may have more: it passes through the chip in blocks
MAX_IMAGE_ROWS = 4096
IMAGE_BLOCK = 64  # rows of an image at once in `transport_kernel`
GRADIENT_BLOCK = 64, 32, 128  # rows of this side, rows of the other, and components of each in `gradient_kernel`
TILE_ROWS = 128  # of each side: what makes good use of the tensor cores
WIDE_TILE = 2**12  # entries of S from which a program has 8 warps
WORKSPACE = 2**27  # bytes
SPARSE = 1 / 8  # share of pairs with a gradient up to which they are visited one by one
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def find_limit(image: Side, text: Side) -> str | None:
    """Why `score_transport` cannot serve these sides; None if it can."""
    device = image.rows.device
    if not INTERPRETED and (device.type != "cuda" or torch.version.hip):
        return f"the tensors are on {device}, and it takes an NVIDIA GPU (or TRITON_INTERPRET=1 for tests)."
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0."
    if image.rows.dtype not in DTYPES:
        return f"the rows are {image.rows.dtype}, and it takes {', '.join(map(str, DTYPES))}."
    if text.rows.shape[1] > MAX_CAPTION_ROWS:
        return f"a caption has {text.rows.shape[1]} rows, and it takes {MAX_CAPTION_ROWS}."
    if image.rows.shape[1] > MAX_IMAGE_ROWS:
        return f"an image has {image.rows.shape[1]} rows, and it takes {MAX_IMAGE_ROWS}."
    return None


@torch.compiler.disable
def score_transport(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """Σ P S over fragments for every image and caption; arguments and result are those of `transport_similarity`.

    Memory beyond arguments and result: tables of the rows and a workspace (of 26 MB on an H100, with up to 64 regions),
    and for the backward pass one of 256 MB.
    """
    limit = find_limit(image, text)
    if limit is not None:
        raise CannotServe(limit)
    settings = 1 / options.regularization, options.num_iterations, options.num_dustbins
    return _TransportSimilarity.apply(image.rows, image.mass.float(), text.rows, text.mass.float(), settings)


class _TransportSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, image_rows, image_mass, text_rows, text_mass, settings):
        ctx.save_for_backward(image_rows, image_mass, text_rows, text_mass)
        ctx.options = settings
        scores = torch.zeros(len(image_rows), len(text_rows), device=image_rows.device)
        with torch.cuda.device_of(scores):
            if is_packable(image_rows, text_rows):
                launch(scores, *pack_sides(image_rows, image_mass, text_rows, text_mass, settings[2]), settings)
                return scores
            for images, captions in _bucket_pairs(image_rows, image_mass, text_rows, text_mass):
                _add_scores(scores, images, captions, ctx.options)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        inputs = ctx.saved_tensors
        # Those of the rows are sums over pairs, so they too are made in float32.
        targets = [
            torch.zeros(each.shape, device=each.device) if needed else None
            for each, needed in zip(inputs, ctx.needs_input_grad[:4], strict=True)
        ]
        gradient = gradient.contiguous()
        sparse = int((gradient != 0).sum()) <= SPARSE * gradient.numel()
        with torch.cuda.device_of(gradient):
            if is_packable(inputs[0], inputs[2]) and not sparse:
                return *dense_gradients(gradient, inputs, ctx.needs_input_grad[:4], ctx.options), None
            for images, captions in _bucket_pairs(*inputs):
                _add_gradients(targets, gradient, images, captions, ctx.options, sparse)
        pairs = zip(targets, inputs, strict=True)
        return *(None if target is None else target.to(each.dtype) for target, each in pairs), None


class Bucket(NamedTuple):
    """Items of one side that fit the same block, and where their rows with mass are."""

    flat: Tensor  # rows of all items of the side, [items · rows, D]
    rows_per_item: int
    mass: Tensor  # [B_i, B_t, rows], of stride 0 where it is the same for all items of the other side
    items: Tensor  # int32 [N], the items of the bucket; −1 fills it up to whole tiles
    rows: Tensor  # int32 [N, block], their rows with mass as numbers in `flat`; −1 for none
    size: int  # number of items in the bucket

    @property
    def block(self) -> int:
        return self.rows.shape[1]

    def in_tile(self) -> int:
        """Number of items of this side in a tile."""
        return max(1, min(TILE_ROWS // self.block, triton.next_power_of_2(self.size)))


def _bucket_pairs(image_rows, image_mass, text_rows, text_mass) -> Iterator[tuple[Bucket, Bucket]]:
    pairs = len(image_rows), len(text_rows)
    images = _buckets(image_rows, image_mass.contiguous().expand(*pairs, -1), (image_mass > 0).any(1))
    captions = _buckets(text_rows, text_mass.contiguous().expand(*pairs, -1), (text_mass > 0).any(0))
    return itertools.product(images, captions)


def _buckets(rows: Tensor, mass: Tensor, has_mass: Tensor) -> list[Bucket]:
    """The items of a side, sorted by their number of rows with mass; `has_mass` is [items, rows]."""
    num_items, num_rows = has_mass.shape
    flat = rows.flatten(0, 1)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    blocks = [block for block in BLOCKS if block < num_rows]
    last = next((block for block in BLOCKS if block >= num_rows), triton.cdiv(num_rows, IMAGE_BLOCK) * IMAGE_BLOCK)
    counts, items = has_mass.sum(1).sort(stable=True)
    bounds = [0, *torch.searchsorted(counts, counts.new_tensor(blocks), right=True).tolist(), num_items]
    place = torch.arange(num_rows, device=counts.device)
    with_mass_first = has_mass[items].byte().argsort(dim=1, descending=True, stable=True)
    table = torch.where(place < counts[:, None], items[:, None] * num_rows + with_mass_first, -1).int()
    buckets = []
    for block, start, stop in zip([*blocks, last], bounds[:-1], bounds[1:], strict=True):
        if start < stop:
            fill = -(stop - start) % (TILE_ROWS // BLOCKS[0])
            in_block = F.pad(table[start:stop, :block], (0, max(block - num_rows, 0), 0, fill), value=-1)
            of_bucket = F.pad(items[start:stop].int(), (0, fill), value=-1)
            buckets.append(Bucket(flat, num_rows, mass, of_bucket, in_block, stop - start))
    return buckets


def _add_scores(scores: Tensor, images: Bucket, captions: Bucket, options: tuple) -> None:
    """Write the scores of all pairs of two buckets into [B_i, B_t]."""
    num_tiles = images.size * triton.cdiv(captions.size, captions.in_tile())
    workspace = _workspace(images, captions, captions.in_tile(), num_tiles, passes=1)
    _transport(workspace, None, num_tiles, scores, images, captions, options)


def _add_gradients(
    targets: list[Tensor | None], gradient: Tensor, images: Bucket, captions: Bucket, options: tuple, sparse: bool
) -> None:
    """Add to each target that is not None the part that the pairs of two buckets have in it.

    Args:
        targets: gradients of image_rows, image_mass, text_rows and text_mass.
        gradient: that of the scores, [B_i, B_t].
        sparse: whether to visit pairs one by one.
    """
    group = 1 if sparse else captions.in_tile()
    # [images, groups of captions]; the padding of the bucket has no gradient
    items = captions.items[: triton.cdiv(captions.size, group) * group]
    has_gradient = (gradient != 0)[images.items[: images.size]][:, items] & (items >= 0)
    has_gradient = has_gradient.unflatten(1, (-1, group)).any(-1)
    tiles = has_gradient.flatten().nonzero().flatten().int()
    if not len(tiles):
        return
    workspace = _workspace(images, captions, group, len(tiles), passes=options[1])
    text_rows = captions.rows.view(-1, group * captions.block)
    mass_grads = (targets[1], 1), (targets[3], 0)  # with the dimension of the other side
    per_pair = [mass if mass is not None and mass.shape[other] > 1 else None for mass, other in mass_grads]
    shared = [mass if mass is not None and mass.shape[other] == 1 else None for mass, other in mass_grads]
    for some in tiles.split(len(workspace.similarity)):
        _transport(workspace, some, len(some), gradient, images, captions, options, per_pair)
        image_tiles, text_tiles = some // workspace.text_tiles, some % workspace.text_tiles
        grads = workspace.similarity_grad
        _multiply(
            *(targets[0], shared[0], images.rows, image_tiles, captions.flat, text_rows, text_tiles),
            *(grads.mT, workspace.mu_grad),
        )
        _multiply(
            *(targets[2], shared[1], text_rows, text_tiles, images.flat, images.rows, image_tiles),
            *(grads, workspace.nu_grad),
        )


class Workspace(NamedTuple):
    """What `transport_kernel` keeps of each tile, float32; one tile a program at a time."""

    captions: int  # in a tile
    text_tiles: int  # into which the bucket of captions falls
    similarity: Tensor  # S, [programs, words, regions]
    similarity_grad: Tensor  # S̄, likewise
    f: Tensor  # log a of every pass, [programs, passes, captions, regions]
    g: Tensor  # log b, [programs, passes, 1, words]
    mu_grad: Tensor  # Σ f̄, then μ̄, [programs, captions, regions]
    nu_grad: Tensor  # ν̄, [programs, 1, words]


def _workspace(images: Bucket, captions: Bucket, in_tile: int, num_tiles: int, passes: int) -> Workspace:
    """For as many programs as there are tiles, or as fit `WORKSPACE`; `passes` is n, or 1 to keep the last alone."""
    words, regions = in_tile * captions.block, images.block
    shapes = [(words, regions), (words, regions), (passes, in_tile, regions), (passes, 1, words)]
    shapes += [(in_tile, regions), (1, words)]
    programs = min(num_tiles, max(1, WORKSPACE // (4 * sum(map(math.prod, shapes)))))
    tensors = [torch.empty(programs, *shape, device=images.flat.device) for shape in shapes]
    return Workspace(in_tile, triton.cdiv(captions.size, in_tile), *tensors)


def _transport(
    workspace: Workspace,
    tiles: Tensor | None,
    num_tiles: int,
    scores: Tensor,
    images: Bucket,
    captions: Bucket,
    options: tuple,
    mass_grads: Sequence[Tensor | None] = (None, None),
) -> None:
    """Write the scores of all tiles, or (`scores` being their gradient) S̄ of the given ones into the workspace."""
    block = min(images.block, IMAGE_BLOCK)
    transport_kernel[(min(num_tiles, len(workspace.similarity)),)](
        *(scores, scores.stride(0), num_tiles, workspace.text_tiles),
        *_arguments(images, captions, options),
        tiles,
        *workspace[2:],
        *mass_grads,
        *(tiles is not None, *(each is not None for each in mass_grads)),
        *(workspace.captions, captions.block, block, images.block // block),
        *product_settings(images.flat.dtype),
        num_warps=8 if workspace.similarity.shape[1] * block > WIDE_TILE else 4,
    )


def _arguments(images: Bucket, captions: Bucket, options: tuple) -> tuple:
    """What the two kernels of transport have in common."""
    return (
        *(images.flat, images.flat.stride(0), images.rows, images.items, images.rows_per_item),
        *(captions.flat, captions.flat.stride(0), captions.rows, captions.items, captions.rows_per_item),
        *(images.mass, *images.mass.stride(), captions.mass, *captions.mass.stride()),
        *(images.flat.shape[1], *options),
    )


def _multiply(
    rows_grad: Tensor | None,
    mass_grad: Tensor | None,
    own_rows: Tensor,
    own_tiles: Tensor,
    other: Tensor,
    other_rows: Tensor,
    other_tiles: Tensor,
    grads: Tensor,
    tile_mass_grad: Tensor,
) -> None:
    """Add S̄ times the rows of the other side to the gradient of this side's rows, and that of their mass to its own.

    Args:
        rows_grad, mass_grad: what to add to, or None.
        own_rows: rows of each tile of this side, [N, own].
        own_tiles: which tile of this side each tile of pairs belongs to, [tiles].
        other: rows of the other side, [items · rows, D].
        other_rows, other_tiles: likewise, [M, inner] and [tiles].
        grads: S̄, [programs, own, inner].
        tile_mass_grad: [programs, parts, own].
    """
    if rows_grad is None and mass_grad is None:
        return
    num_units, own_size = own_rows.shape
    order = own_tiles.argsort(stable=True)
    units = torch.arange(num_units + 1, device=order.device, dtype=own_tiles.dtype)
    bounds = torch.searchsorted(own_tiles[order], units)
    own, inner, chunk = GRADIENT_BLOCK
    own, inner, width = min(own, own_size), min(inner, other_rows.shape[1]), other.shape[1]
    blocks, chunks = own_size // own, triton.cdiv(width, chunk) if rows_grad is not None else 1
    bfloat16 = other.dtype == torch.bfloat16
    gradient_kernel[(num_units * blocks * chunks,)](
        *(rows_grad, mass_grad, own_rows, own_size, other, other.stride(0), other_rows, other_rows.shape[1]),
        *(order, bounds, other_tiles, grads, *grads.stride(), tile_mass_grad, width, chunks, blocks),
        *(tile_mass_grad.shape[1], own, inner, chunk, bfloat16),
        "ieee" if INTERPRETED else "half" if bfloat16 else "tf32x3",
        *(rows_grad is not None, mass_grad is not None),
        num_warps=4,
    )
