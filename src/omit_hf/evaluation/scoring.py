"""Encode a split once, score all of its pairs in tiles, and measure retrieval."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from omit_hf.data.inputs import ImageTextInputs
from omit_hf.evaluation.retrieval import mean_average_precision, retrieval_metrics
from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.backbones_omit import fit_tokenizer


@dataclass
class EncodedSplit:
    """Features of a split, in batches.

    Args:
        images: features of this process's images, in order.
        captions: features of all captions, in order of `caption_order`: by length, so that a batch has little padding.
        caption_order: the captions' numbers in the split, int64 [N_t].
    """

    images: list[OmitFeatures]
    captions: list[OmitFeatures]
    caption_order: torch.Tensor


def evaluate_split(
    model,
    processor,
    split: Dataset,
    *,
    batch_size: int = 128,
    memory_budget: int = 2**26,
    progress: bool = True,
    seconds: dict[str, float] | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Retrieval metrics of a model on a split.

    Under several processes of Accelerate each encodes and scores a share of the images; all get the same result.

    Args:
        model: `OmitModel`; put into evaluation mode meanwhile.
        processor: `OmitProcessor`.
        split: in the schema of `omit_hf.data`. Where it lists all `relevant_captions`, mean average precision over
            them is measured as well.
        batch_size: images or captions encoded at once.
        memory_budget: bytes for the intermediate results of scoring a tile of pairs.
        progress: show progress bars (on the main process).
        seconds: takes the time that `encoding` and `scoring` took, under these names.

    Returns:
        Metrics, as `retrieval_metrics` and `mean_average_precision` name them, and the similarity, float32 [N_i, N_t].

    Raises:
        ValueError: if `batch_size` or `memory_budget` is below 1, the processor's tokenizer has more tokens than the
            model, a picture cannot be read, or a score is NaN.
    """
    for name, value in (("batch_size", batch_size), ("memory_budget", memory_budget)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    fit_tokenizer(model.config.text_config, processor.tokenizer)
    inputs = ImageTextInputs(split, processor)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            started = time.perf_counter()
            encoded = encode_split(model, inputs, batch_size, progress)
            if model.device.type == "cuda":
                torch.cuda.synchronize()  # so that no encoding is left to be done while scores are timed
            between = time.perf_counter()
            similarity = score_split(model, encoded, memory_budget, progress)
            if seconds is not None:
                seconds |= {"encoding": between - started, "scoring": time.perf_counter() - between}
    finally:
        model.train(was_training)
    metrics = retrieval_metrics(similarity, inputs.caption_image_index)
    if "relevant_captions" in split.column_names and split[0]["relevant_captions"] is not None:
        relevant = np.zeros(similarity.shape, dtype=bool)
        for image, captions in enumerate(split["relevant_captions"]):
            relevant[image, captions] = True
        metrics |= mean_average_precision(similarity, relevant)
    return metrics, similarity


def encode_split(model, inputs: ImageTextInputs, batch_size: int, progress: bool = True) -> EncodedSplit:
    """Features of all captions, and of this process's share of the images.

    Raises:
        ValueError: if a picture cannot be read.
    """
    state = PartialState()
    hidden = not (progress and state.is_main_process)
    share = np.array_split(np.arange(inputs.num_images), state.num_processes)[state.process_index]
    lengths = [len(ids) for ids in inputs.processor.tokenizer(inputs.captions, truncation=True)["input_ids"]]
    order = np.argsort(lengths, kind="stable")
    with tqdm(total=len(share) + len(order), desc="Encoding", disable=hidden, leave=False) as bar:

        def encode(numbers, inputs_of, features_of):
            batches = []
            for start in range(0, len(numbers), batch_size):
                batch = inputs_of(numbers[start : start + batch_size])
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                batches.append(features_of(**batch).rows(0, batch_size))
                bar.update(len(batches[-1].embeds))
            return batches

        images = encode(share, inputs.images, model.get_image_features)
        captions = encode(order, inputs.texts, model.get_text_features)
    return EncodedSplit(images, captions, torch.from_numpy(order))


def score_split(model, encoded: EncodedSplit, memory_budget: int, progress: bool = True) -> np.ndarray:
    """Similarity of all images (of all processes) and all captions, float32 [N_i, N_t]."""
    state = PartialState()
    hidden = not (progress and state.is_main_process)
    rows = []
    for images in tqdm(encoded.images, desc="Scoring", disable=hidden, leave=False):
        scores = [model.similarity(images, captions, memory_budget).cpu() for captions in encoded.captions]
        rows.append(torch.empty(len(images.embeds), len(encoded.caption_order)))
        rows[-1][:, encoded.caption_order] = torch.cat(scores, dim=1).float()
    similarity = torch.cat(rows).numpy() if rows else np.empty((0, len(encoded.caption_order)), np.float32)
    return np.concatenate(gather_object([similarity])) if state.num_processes > 1 else similarity
