"""Encodes a split once, scores all of its pairs in tiles, and measures retrieval."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from omit_hf.data.inputs import ImageTextInputs
from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.evaluation.retrieval import mean_average_precision, precision_at_r, retrieval_metrics
from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.backbones_omit import fit_tokenizer


@dataclass
class EncodedSplit:
    """Features of a split, in batches.

    Args:
        images: features of this process's images, in order.
        captions: features of all captions, in the order of `caption_order`.
        caption_order: the captions' numbers in the split, sorted by length to save padding, int64 [N_t].
    """

    images: list[OmitFeatures]
    captions: list[OmitFeatures]
    caption_order: torch.Tensor


def evaluate_split(model, processor, split: Dataset, **options) -> tuple[dict[str, float], np.ndarray]:
    """Measure retrieval with a model on a split.

    Several processes of Accelerate share the images: every process encodes and scores some. All get the same result.

    Args:
        model: `OmitModel`; in evaluation mode for the duration of the call.
        processor: `OmitProcessor`.
        split: split in the schema of `omit_hf.data`. If it lists all `relevant_captions`, mean average precision, mAP@R
            and R-precision over them are measured as well.
        options: `batch_size`, `memory_budget`, `progress` and `seconds` of [`split_similarity`].

    Returns:
        The metrics of `pairs_metrics`, and the similarity, float32 [N_i, N_t].

    Raises:
        ValueError: if `batch_size` or `memory_budget` is below 1, the processor's tokenizer has more tokens than the
            model, a picture cannot be read, or a score is NaN.
    """
    similarity = split_similarity(model, processor, split, **options)
    return pairs_metrics(similarity, SplitPairs.of(split)), similarity


def split_similarity(
    model,
    processor,
    split: Dataset,
    *,
    batch_size: int = 128,
    memory_budget: int = 2**26,
    progress: bool = True,
    seconds: dict[str, float] | None = None,
) -> np.ndarray:
    """Compute the similarity of a split's images and captions, float32 [N_i, N_t].

    Args:
        model, processor, split: as in `evaluate_split`.
        batch_size: images or captions encoded at once.
        memory_budget: bytes for the intermediate results of scoring a tile of pairs.
        progress: show progress bars (on the main process).
        seconds: a dict that receives the seconds spent on `encoding` and `scoring`.

    Raises:
        ValueError: as `evaluate_split`.
    """
    inputs = _checked_inputs(model, processor, split, batch_size, memory_budget)
    with _evaluating(model):
        started = time.perf_counter()
        encoded = encode_split(model, inputs, batch_size, progress)
        if model.device.type == "cuda":
            torch.cuda.synchronize()  # finishes the encoding before scoring is timed
        between = time.perf_counter()
        similarity = score_split(model, encoded, memory_budget, progress)
    if seconds is not None:
        seconds |= {"encoding": between - started, "scoring": time.perf_counter() - between}
    return similarity


def pairs_metrics(similarity, pairs: SplitPairs) -> dict[str, float]:
    """Measure `retrieval_metrics` and, if all true pairs are known, `mean_average_precision` and `precision_at_r`."""
    metrics = retrieval_metrics(similarity, pairs.caption_image_index)
    if pairs.relevant is not None:
        metrics |= mean_average_precision(similarity, pairs.relevant) | precision_at_r(similarity, pairs.relevant)
    return metrics


def same_side_similarity(
    model,
    processor,
    split: Dataset,
    side: str,
    *,
    batch_size: int = 128,
    memory_budget: int = 2**26,
    progress: bool = True,
) -> np.ndarray:
    """Compute the similarity of a split's images with images, or of its captions with captions.

    A head compares an image with a caption. Here both items come from one side: they are scored in both roles, and the
    two scores are averaged, so the result is symmetric.

    Args:
        model, processor, split, batch_size, memory_budget, progress: as in `evaluate_split`.
        side: `image` or `text`.

    Returns:
        float32 [N_i, N_i] or [N_t, N_t], symmetric.

    Raises:
        ValueError: if `side` is neither; and as `evaluate_split`.
    """
    if side not in ("image", "text"):
        raise ValueError(f"side is {side!r}; expected 'image' or 'text'.")
    inputs = _checked_inputs(model, processor, split, batch_size, memory_budget)
    with _evaluating(model):
        if side == "image":
            order = np.arange(inputs.num_images)
            features = _encode(model, order, inputs.images, model.get_image_features, batch_size, progress)
        else:
            order = _by_length(inputs)
            features = _encode(model, order, inputs.texts, model.get_text_features, batch_size, progress)
        state = PartialState()
        own = np.array_split(np.arange(len(features)), state.num_processes)[state.process_index]
        encoded = EncodedSplit([features[batch] for batch in own], features, torch.from_numpy(order))
        rows = score_split(model, encoded, memory_budget, progress)
    similarity = np.empty_like(rows)
    similarity[order] = rows
    del rows  # 2.5 GB for 25 000 captions
    similarity += similarity.T
    similarity /= 2
    return similarity


def encode_split(model, inputs: ImageTextInputs, batch_size: int, progress: bool = True) -> EncodedSplit:
    """Encode all captions, and this process's share of the images.

    Raises:
        ValueError: if a picture cannot be read.
    """
    state = PartialState()
    share = np.array_split(np.arange(inputs.num_images), state.num_processes)[state.process_index]
    order = _by_length(inputs)
    images = _encode(model, share, inputs.images, model.get_image_features, batch_size, progress)
    captions = _encode(model, order, inputs.texts, model.get_text_features, batch_size, progress)
    return EncodedSplit(images, captions, torch.from_numpy(order))


def score_split(model, encoded: EncodedSplit, memory_budget: int, progress: bool = True) -> np.ndarray:
    """Score all images (of all processes) against all captions, float32 [N_i, N_t]."""
    state = PartialState()
    hidden = not (progress and state.is_main_process)
    rows = []
    for images in tqdm(encoded.images, desc="Scoring", disable=hidden, leave=False):
        scores = [model.similarity(images, captions, memory_budget).cpu() for captions in encoded.captions]
        rows.append(torch.empty(len(images.embeds), len(encoded.caption_order)))
        rows[-1][:, encoded.caption_order] = torch.cat(scores, dim=1).float()
    similarity = torch.cat(rows).numpy() if rows else np.empty((0, len(encoded.caption_order)), np.float32)
    return np.concatenate(gather_object([similarity])) if state.num_processes > 1 else similarity


def _encode(
    model, numbers: Sequence[int], inputs_of: Callable, features_of: Callable, batch_size: int, progress: bool
) -> list[OmitFeatures]:
    """Encode some images or captions, in batches."""
    hidden = not (progress and PartialState().is_main_process)
    batches = []
    with tqdm(total=len(numbers), desc="Encoding", disable=hidden, leave=False) as bar:
        for start in range(0, len(numbers), batch_size):
            batch = inputs_of(numbers[start : start + batch_size])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            batches.append(features_of(**batch).select(slice(batch_size)))
            bar.update(len(batches[-1].embeds))
    return batches


def _by_length(inputs: ImageTextInputs) -> np.ndarray:
    """Sort the captions' numbers, the shortest caption first."""
    lengths = [len(ids) for ids in inputs.processor.tokenizer(inputs.captions, truncation=True)["input_ids"]]
    return np.argsort(lengths, kind="stable")


def _checked_inputs(model, processor, split: Dataset, batch_size: int, memory_budget: int) -> ImageTextInputs:
    for name, value in (("batch_size", batch_size), ("memory_budget", memory_budget)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
    return ImageTextInputs(split, processor)


@contextmanager
def _evaluating(model) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and afterwards back to the former mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
