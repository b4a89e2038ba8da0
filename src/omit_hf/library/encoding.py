"""Encodes pictures or captions in batches: files are read and prepared in threads, while the model works."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from omit_hf.library.lance import as_stored


@dataclass
class Item:
    """One item on its way into a library.

    Args:
        metadata: columns of its row.
        inputs: the model's, of this item alone, [1, …] each; None for what is not encoded.
        problem: why it cannot be read.
        same_as: the row, as the library has it, that holds the same content.
    """

    metadata: dict
    inputs: dict | None = None
    problem: str | None = None
    same_as: dict | None = None


def encode(model, of: str, items: Iterable[Callable[[], Item]], batch_size: int) -> Iterator[list[Item]]:
    """Yield the items as they are done, in groups: those that are not encoded, and encoded batches.

    Args:
        model: `OmitModel` in evaluation mode.
        of: `pictures` or `captions`.
        items: what makes an item, called in a thread.
        batch_size: items whose inputs have the same shape are encoded together.
    """
    waiting: dict[tuple, list[Item]] = collections.defaultdict(list)
    for item in _ahead(items, 2 * batch_size):
        if item.inputs is None:
            yield [item]
            continue
        shapes = tuple((name, tuple(tensor.shape[1:])) for name, tensor in sorted(item.inputs.items()))
        waiting[shapes].append(item)
        if len(waiting[shapes]) == batch_size:
            yield _encoded(model, of, waiting.pop(shapes))
    for batch in waiting.values():
        yield _encoded(model, of, batch)


@torch.inference_mode()
def _encoded(model, of: str, batch: list[Item]) -> list[Item]:
    inputs = {name: torch.cat([item.inputs[name] for item in batch]).to(model.device) for name in batch[0].inputs}
    features = model.get_image_features(**inputs) if of == "pictures" else model.get_text_features(**inputs)
    grid = None
    if "pixel_values" in inputs:
        shown = tuple(inputs["pixel_values"].shape[-2:])
        grid = list(model.vision_encoder.grid(shown, features.last_hidden_state))
    for item, stored in zip(batch, as_stored(features), strict=True):
        item.inputs = None
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
