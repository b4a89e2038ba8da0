"""Random features of both sides, and heads with random parameters."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from tiny import tiny_config
from torch import nn

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.matching_omit import MATCHING, MatchingHead

WIDTH = 16
# What `features` takes of both sides, for hypothesis: items with few fragments, some with none.
SIDES = {
    "seed": st.integers(0, 2**31),
    "image_counts": st.lists(st.integers(0, 6), min_size=1, max_size=3),
    "text_counts": st.lists(st.integers(0, 5), min_size=1, max_size=3),
}


def features(seed, counts, padding=0, dtype=torch.float64, width=WIDTH) -> OmitFeatures:
    """Items with so many valid fragments each, at random places among padding."""
    generator = torch.Generator().manual_seed(seed)
    slots = max(counts) + padding
    embeds = torch.randn(len(counts), slots, width, generator=generator, dtype=torch.float64)
    pooled = torch.randn(len(counts), width, generator=generator, dtype=torch.float64)
    mask = torch.zeros(len(counts), slots, dtype=torch.bool)
    for row, count in zip(mask, counts, strict=True):
        row[torch.randperm(slots, generator=generator)[:count]] = True
    embeds = embeds.masked_fill(~mask[..., None], 0)
    return OmitFeatures(
        embeds=F.normalize(embeds, dim=-1).to(dtype),
        mask=mask,
        pooled=F.normalize(pooled, dim=-1).to(dtype),
        norms=embeds.norm(dim=-1).to(torch.promote_types(dtype, torch.float32)),
    )


def reordered(side: OmitFeatures, order: torch.Tensor) -> OmitFeatures:
    """The same items with their fragments in another order."""
    parts = {name: side[name][:, order] for name in ("embeds", "mask", "norms")}
    return OmitFeatures(pooled=side.pooled, **parts)


def item(side: OmitFeatures, number: int) -> dict:
    """One item for the oracle: what of it is valid, as float64 arrays."""
    mask = side.mask[number]
    return {
        "embeds": side.embeds[number][mask].double().numpy(),
        "norms": side.norms[number][mask].double().numpy(),
        "pooled": side.pooled[number].double().numpy(),
    }


def head_of(name, **options) -> MatchingHead:
    head = MATCHING[name](tiny_config(matching=name, **options)).double()
    generator = torch.Generator().manual_seed(7)
    for parameter in head.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    return head


TRANSPORTING = [
    *[("omit", {"dustbin": dustbin}) for dustbin in ("global", "learned", "scalar")],
    *[("omit", {"marginals": marginals}) for marginals in ("norm", "self_global", "cross_global")],
    *[("omit", {"score": "augmented", "dustbin": dustbin}) for dustbin in ("global", "learned", "scalar")],
    ("omit", {"score": "augmented", "global_weight": 0.3, "marginals": "cross_global"}),
    *[("omit", {"global_weight": weight}) for weight in (0.2, 1)],
    *[("ot", {"marginals": marginals}) for marginals in ("uniform", "norm", "self_global", "cross_global")],
    ("ot", {"global_weight": 0.2}),
]
ALIGNING = [*TRANSPORTING, *[(name, {}) for name in ("maxsim", "chan", "scan_t2i", "scan_i2t")]]
POOLING = [(name, {}) for name in ("mean", "gpo", "pem")]
