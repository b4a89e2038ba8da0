"""What stands between a search and the pictures: a protocol of two methods, and the exact store in memory."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from omit_hf.modeling import OmitFeatures

PICTURES_AT_ONCE = 2048  # whose cosines with all words are in memory at once


class Candidates(NamedTuple):
    """What the first stage found.

    Args:
        ids: items of the store, C of them or fewer, those with the largest bounds first.
        bounds: their late interaction with the words, float32 [C].
        rest: the largest bound of an item that was left out; -inf if none was, None if the store cannot tell, since its
            index is approximate.
    """

    ids: list
    bounds: Tensor
    rest: float | None


class Store(Protocol):
    """Where fragments are kept. A search needs these two methods and no more, so that a cluster can stand here."""

    def candidates(self, words: Tensor, weights: Tensor, where, count: int) -> Candidates:
        """The items with the largest late interaction Σ_l w_l max(0, max_k ⟨v_k, t_l⟩).

        Args:
            words: t, the fragments of the query, L2-normalised, float32 [L, D].
            weights: w, not negative, float32 [L].
            where: which items to search, in the store's own language; None for all.
            count: C ≥ 1.
        """

    def fragments(self, ids: Sequence) -> OmitFeatures:
        """Features of some items, float32, in the order of their ids."""


def late_interaction(words: Tensor, weights: Tensor, items: OmitFeatures) -> Tensor:
    """Σ_l w_l max(0, max_k ⟨v_k, t_l⟩) of N items, [N].

    With the mass of the words as weights it bounds a transport's score from above: a word's column of the plan holds
    its mass exactly, and no entry earns more than the word's best cosine.
    """
    found = []
    for start in range(0, len(items.embeds), PICTURES_AT_ONCE):
        block = items.select(slice(start, start + PICTURES_AT_ONCE))
        cosines = torch.einsum("nkd,ld->nkl", block.embeds.float(), words)
        best = cosines.masked_fill(~block.mask[..., None], 0).clamp_min(0)
        found.append(best.amax(1) @ weights if best.shape[1] else best.new_zeros(len(best)))
    return torch.cat(found) if found else words.new_zeros(0)


class MemoryStore:
    """Features in memory, compared one by one: exact, and what other stores are measured against.

    Args:
        features: of N items; an item's id is its number.
        rows: what `where`, a function of a row, is asked about; N of them.
    """

    def __init__(self, features: OmitFeatures, rows: Sequence | None = None):
        self.features, self.rows = features, rows

    def candidates(self, words: Tensor, weights: Tensor, where: Callable | None, count: int) -> Candidates:
        ids = torch.arange(len(self.features.embeds))
        if where is not None:
            if self.rows is None:
                raise ValueError("where is given, and the store has no rows; expected MemoryStore(features, rows).")
            ids = torch.tensor([number for number in ids.tolist() if where(self.rows[number])], dtype=torch.long)
        bounds, places = late_interaction(words, weights, take(self.features, ids)).sort(descending=True, stable=True)
        rest = float(bounds[count]) if len(bounds) > count else -torch.inf
        return Candidates(ids[places[:count]].tolist(), bounds[:count], rest)

    def fragments(self, ids: Sequence) -> OmitFeatures:
        return take(self.features, torch.as_tensor(ids, dtype=torch.long))


def take(features: OmitFeatures, items: Tensor) -> OmitFeatures:
    """The features of some items, int64 [C]."""
    norms = None if features.norms is None else features.norms[items]
    return OmitFeatures(
        embeds=features.embeds[items], mask=features.mask[items], pooled=features.pooled[items], norms=norms
    )


def joined(blocks: Sequence[OmitFeatures]) -> OmitFeatures:
    """Features of several blocks of items in one, padded to the most fragments that an item has."""
    most = max((block.embeds.shape[1] for block in blocks), default=0)

    def padded(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(len(tensor), most - tensor.shape[1], *tensor.shape[2:])], dim=1)

    columns = {name: [padded(getattr(block, name)) for block in blocks] for name in ("embeds", "mask", "norms")}
    columns["pooled"] = [block.pooled for block in blocks]
    return OmitFeatures(**{name: torch.cat(tensors) for name, tensors in columns.items()})
