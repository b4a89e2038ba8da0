"""Score all pairs of images and captions tile by tile, so that memory does not grow with their number."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MEMORY_BUDGET = 2**28  # bytes


def score_in_tiles(
    score: Callable[[slice, slice], Tensor],
    num_images: int,
    num_captions: int,
    elements_per_pair: int,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """Score every image and caption, [B_i, B_t]. The values do not depend on the tiles.

    With gradients, the backward pass computes a tile again, so that training too has bounded memory. `score` takes the
    images and captions of a tile as slices; a pair needs `elements_per_pair` numbers of 4 bytes meanwhile, and a tile
    holds as many as fit `memory_budget` bytes, one at least.
    """
    pairs = max(1, memory_budget // (4 * max(1, elements_per_pair)))
    if torch.compiler.is_exporting() or num_images * num_captions <= pairs:  # an exported graph has no sizes to divide
        return score(slice(None), slice(None))
    captions = min(num_captions, max(1, math.isqrt(pairs)))
    images = max(1, pairs // captions)
    if torch.is_grad_enabled():
        score = functools.partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    rows = []
    for i in range(0, num_images, images):
        tiles = [score(slice(i, i + images), slice(t, t + captions)) for t in range(0, num_captions, captions)]
        rows.append(torch.cat(tiles, dim=1))
    return torch.cat(rows)
