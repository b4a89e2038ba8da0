"""Similarity heads: how the fragments of an image and of a caption become one score (sections 1, 2 and 7).

A head scores all pairs of two batches of features. `MATCHING` lists the heads by name; `tiled_similarity` keeps the
memory of any of them bounded. A head that `aligns` tells as well which fragments matched: `head.alignment(image, text)`
is [B_i, B_t, K, L], not negative, zero at padding.
"""

import functools
import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .alignment_heads_omit import ChanMatching, MaxSimMatching, ScanI2TMatching, ScanT2IMatching
from .features_omit import OmitFeatures
from .pooled_heads_omit import GPOMatching, MeanMatching, PEMMatching
from .transport_heads_omit import OmitMatching, OTMatching

DEFAULT_MEMORY_BUDGET = 2**28  # bytes

MATCHING = {
    "omit": OmitMatching,
    "ot": OTMatching,
    "maxsim": MaxSimMatching,
    "chan": ChanMatching,
    "scan_t2i": ScanT2IMatching,
    "scan_i2t": ScanI2TMatching,
    "mean": MeanMatching,
    "gpo": GPOMatching,
    "pem": PEMMatching,
}


def tiled_similarity(
    head: nn.Module,
    image: OmitFeatures,
    text: OmitFeatures,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    product: str = "float32",
) -> Tensor:
    """A head's similarity for any number of images and captions, tile by tile.

    Tiles are independent, so the values do not depend on them. Where gradients are wanted and one tile does not hold
    all pairs, each tile is computed again in the backward pass, which bounds the memory of training as well.

    Args:
        head: one of `MATCHING`.
        image, text: features of B_i images and B_t captions.
        memory_budget: bytes for the intermediate results of a tile; one pair at least is scored at a time.
        product: type of the product of a head that transports or of late interaction; see `transport_similarity`.

    Returns:
        [B_i, B_t].
    """
    pairs = max(1, memory_budget // (4 * max(1, head.elements_per_pair(image, text))))
    num_images, num_texts = len(image.embeds), len(text.embeds)
    if product != "float32":
        if not isinstance(head, (OTMatching, MaxSimMatching)):
            raise ValueError(
                f"product is {product!r}, which heads that transport and late interaction take; "
                f"{type(head).__name__} does not."
            )
        head = functools.partial(head, product=product)
    if num_images * num_texts <= pairs:
        return head(image, text)
    texts = min(num_texts, max(1, math.isqrt(pairs)))
    images = max(1, pairs // texts)

    def tile(i, t):
        return head(image.rows(i, i + images), text.rows(t, t + texts))

    if torch.is_grad_enabled():
        tile = functools.partial(checkpoint, tile, use_reentrant=False, preserve_rng_state=False)
    return torch.cat(
        [torch.cat([tile(i, t) for t in range(0, num_texts, texts)], dim=1) for i in range(0, num_images, images)]
    )
