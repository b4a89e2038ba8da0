"""What stands for a vector in mteb: items whose product is the model's own score."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.features_omit import FEATURES

TILE = 256  # items of either side that are gathered at once

# They move items, or say how many there are, and never look into one.
LAYOUT = {
    Tensor.view, Tensor.reshape, Tensor.unbind, Tensor.t, Tensor.transpose, Tensor.__getitem__, Tensor.detach,
    Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point, torch.is_floating_point,
    Tensor.T.__get__, Tensor.shape.__get__, Tensor.ndim.__get__, Tensor.dtype.__get__, Tensor.device.__get__,
    Tensor.layout.__get__, Tensor.is_sparse.__get__, Tensor.requires_grad.__get__,
}  # fmt: skip
PRODUCTS = {Tensor.matmul, Tensor.__matmul__, torch.matmul, Tensor.mm, torch.mm}
NORMS = {Tensor.norm, torch.norm}
QUOTIENTS = {Tensor.div, Tensor.__truediv__, torch.div}


@dataclass(frozen=True)
class EncodedItems:
    """Images or captions that a model has encoded.

    Args:
        model: `OmitModel` that encoded them.
        side: `image` or `text`.
        batches: features in order, as many items in each as in the first, the last one aside.
    """

    model: Any
    side: str
    batches: list[OmitFeatures]

    def gather(self, numbers: list[int]) -> OmitFeatures:
        """The features of some items, in one batch on the model's device."""
        size = len(self.batches[0].embeds)
        items = [self.batches[number // size].select(slice(number % size, number % size + 1)) for number in numbers]
        fields = [name for name in FEATURES if getattr(items[0], name) is not None]
        columns = {name: [getattr(item, name)[0] for item in items] for name in fields}
        return OmitFeatures(
            **{name: pad_sequence(each, batch_first=True).to(self.model.device) for name, each in columns.items()}
        )


def items_similarity(model, side: str, first: OmitFeatures, other_side: str, second: OmitFeatures) -> Tensor:
    """Scores two lists of items, float32 [N, M].

    A head compares an image with a caption. Items of one side are scored in both roles and averaged, as in
    [`same_side_similarity`][omit_hf.evaluation.same_side_similarity].

    Raises:
        ValueError: for a score that is NaN.
    """
    if side == other_side:
        scores = (model.similarity(first, second) + model.similarity(second, first).T) / 2
    elif side == "image":
        scores = model.similarity(first, second)
    else:
        scores = model.similarity(second, first).T
    if scores.isnan().any():
        raise ValueError("A score is NaN; expected numbers: the weights, or an image, are not finite.")
    return scores.float()


class FragmentEmbeddings(Tensor):
    """Items in the place of vectors: the numbers of items, float32 [..., 1], whose products are the model's scores.

    mteb multiplies the vectors of its compositional and zero-shot tasks itself, and asks no model for a similarity.
    A score by transport is no product of two vectors. So `encode` gives these in their place. Normalising changes
    nothing, since fragments are normalised; views and transposes move items; the product of images and captions is
    `model.similarity`. Everything else raises
    `NotImplementedError`, so that no score is ever one of the numbers here.
    """

    items: EncodedItems

    @classmethod
    def of(cls, items: EncodedItems) -> "FragmentEmbeddings":
        count = sum(len(batch.embeds) for batch in items.batches)
        return cls._wrap(torch.arange(count, dtype=torch.float32)[:, None], items)

    @classmethod
    def _wrap(cls, numbers, items: EncodedItems):
        if isinstance(numbers, tuple | list):
            return type(numbers)(cls._wrap(each, items) for each in numbers)
        if not isinstance(numbers, Tensor):
            return numbers  # a size, a type
        wrapped = numbers.as_subclass(cls)
        wrapped.items = items
        return wrapped

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            own = args[0] if args and isinstance(args[0], cls) else None
            if function is F.normalize and own is not None:
                return own
            if function in NORMS and own is not None:
                return torch.ones(own.shape)
            if function in QUOTIENTS and own is not None and not isinstance(args[1], cls) and _is_one(args[1]):
                return own
            if function in PRODUCTS and own is not None and isinstance(args[1], cls):
                return _product(own, args[1])
            if function in LAYOUT and own is not None:
                return cls._wrap(function(_plain(own), *args[1:], **kwargs), own.items)
        name = getattr(function, "__name__", str(function))
        raise NotImplementedError(
            f"{name} is asked of {cls.__name__}; expected products of images and captions. OMIT's score is no "
            "function of two vectors, so this task of mteb, which computes with vectors, cannot evaluate it."
        )

    def __array__(self, *_, **__):
        return self.numpy()  # which raises, and says why

    def __repr__(self, **_) -> str:
        return f"{type(self).__name__}({self.items.side}, {list(self.shape)})"


def _plain(items: FragmentEmbeddings) -> Tensor:
    return items.as_subclass(Tensor)


def _is_one(divisor) -> bool:
    return bool((torch.as_tensor(divisor) == 1).all())


@torch.inference_mode()
def _product(first: FragmentEmbeddings, second: FragmentEmbeddings) -> Tensor:
    """The scores of N items [N, 1] and M items [1, M], float32 [N, M], tile by tile."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != 1 or second.shape[0] != 1:
        found = f"{list(first.shape)} and {list(second.shape)}"
        raise NotImplementedError(f"A product of items of shapes {found}; expected [N, 1] and [1, M].")
    rows, columns = (_plain(each).flatten().long().tolist() for each in (first, second))
    one, other = first.items, second.items
    scores = torch.empty(len(rows), len(columns))
    for i in range(0, len(rows), TILE):
        batch = one.gather(rows[i : i + TILE])
        for j in range(0, len(columns), TILE):
            found = items_similarity(one.model, one.side, batch, other.side, other.gather(columns[j : j + TILE]))
            scores[i : i + TILE, j : j + TILE] = found.cpu()
    return scores
