"""Encodes pictures or captions in batches: files are read and prepared in threads, while the model works."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch.nn.utils.rnn import pad_sequence

from omit_hf.library.columns import as_stored

SHAPES = 4


@dataclass
class Item:
    """One item on its way into a library.

    Args:
        metadata: columns of its row.
        inputs: the model's, of this item alone, [1, …] each; None for what is not encoded.
        problem: why it cannot be read.
        same_as: the row, as the library has it, that holds the same content.
        changes: of the metadata of that row.
        name: what a list of problems calls it, a path where there is one.
        lasting: whether a problem is kept, of what has a name that lasts.
    """

    metadata: dict
    inputs: dict | None = None
    problem: str | None = None
    same_as: dict | None = None
    changes: dict = field(default_factory=dict)
    name: str | None = None
    lasting: bool = True


def encode(model, of: str, items: Iterable[Callable[[], Item]], batch_size: int) -> Iterator[list[Item]]:
    """Yield the items as they are done, in groups: those that are not encoded, and encoded batches.

    Args:
        model: `OmitModel` in evaluation mode.
        of: `pictures` or `captions`.
        items: what makes an item, called in a thread.
        batch_size: items whose inputs have the same shape, but for the number of regions, are encoded together.
            Of many shapes, no more than this number of times `SHAPES` wait for others of theirs.
    """
    waiting: dict[tuple, list[Item]] = collections.defaultdict(list)
    for item in _ahead(items, 2 * batch_size):
        if item.inputs is None:
            yield [item]
            continue
        # Regions of any number are padded; other inputs have to fit as they are.
        shapes = tuple(
            (name, tuple(tensor.shape[2 if name.startswith("region_") else 1 :]))
            for name, tensor in sorted(item.inputs.items())
        )
        waiting[shapes].append(item)
        if len(waiting[shapes]) == batch_size:
            yield _encoded(model, of, waiting.pop(shapes))
        elif sum(map(len, waiting.values())) > SHAPES * batch_size:
            yield _encoded(model, of, waiting.pop(max(waiting, key=lambda each: len(waiting[each]))))
    for batch in waiting.values():
        yield _encoded(model, of, batch)


@torch.inference_mode()
def _encoded(model, of: str, batch: list[Item]) -> list[Item]:
    together = {name: [item.inputs[name][0] for item in batch] for name in batch[0].inputs}
    inputs = {name: pad_sequence(each, batch_first=True).to(model.device) for name, each in together.items()}
    for item in batch:
        item.inputs = None
    try:
        features = model.get_image_features(**inputs) if of == "pictures" else model.get_text_features(**inputs)
    except ValueError as error:  # such as of pictures that are too small for the model
        for item in batch:
            item.problem = str(error)
        return batch
    grid = None
    if "pixel_values" in inputs:
        shown = tuple(inputs["pixel_values"].shape[-2:])
        grid = list(model.vision_encoder.grid(shown, features.last_hidden_state))
    finite = features.embeds.isfinite().all(-1).all(-1) & features.pooled.isfinite().all(-1)
    for item, stored, is_finite in zip(batch, as_stored(features), finite.tolist(), strict=True):
        if not is_finite:
            item.problem = "the model gives NaN or infinity for it"
            continue
        item.metadata |= stored if grid is None else {**stored, "grid": grid}
    return batch


def _ahead(calls: Iterable[Callable[[], Item]], most: int) -> Iterator[Item]:
    """The results of calls in their order, of which threads make some ahead."""
    pending: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            for call in calls:
                pending.append(threads.submit(call))
                if len(pending) > most:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()
