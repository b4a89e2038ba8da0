"""Large batches in little memory: gradients of a whole batch, of which the encoders see some pairs at a time.

The loss compares every image with every caption of the batch, so a batch cannot be cut like that of a classifier. But
it depends on the encoders through their features alone, which are small. So they are made in chunks without a graph;
the loss and its gradient by the features follow over the whole batch; and each chunk is encoded once more, with a
graph, into which the gradient of its features goes. Every step costs one more forward pass of the encoders.

Source: Gao et al. 2021, *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup* (GradCache).
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.features_omit import FEATURES

IMAGE_INPUTS = ("pixel_values", "image_states", "region_features", "region_mask")
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_chunks(accelerator: Accelerator, model: nn.Module) -> None:
    """Check that a model, in training mode, can be trained on chunks of a batch.

    Raises:
        ValueError: if it normalises by batch statistics, which a chunk does not have; if its parameters are sharded.
    """
    if accelerator.distributed_type in SHARDED:
        raise ValueError(
            f"mini_batch_size is given, and {accelerator.distributed_type.value} shards the parameters; expected "
            "processes that hold the whole model. Leave mini_batch_size out."
        )
    wrong = [name for name, part in model.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if wrong:
        raise ValueError(
            f"mini_batch_size is given, and {len(wrong)} layers, such as {wrong[0]}, normalise by the statistics of a "
            "whole batch. Set freeze_batch_norm: true if they are the vision backbone's, choose a backbone with layer "
            "norm, or leave mini_batch_size out."
        )


def backward_in_chunks(
    accelerator: Accelerator, model: nn.Module, batch: dict[str, Tensor], chunk: int, negatives: str
) -> Tensor:
    """Add the gradients of a batch's loss to the parameters, as `accelerator.backward` of the plain loss does.

    Dropout and the like draw the same numbers in both passes over a chunk.

    Args:
        accelerator: its processes take part with batches of equal size, and exchange gradients where they are due.
        model: `OmitModel` as `accelerator.prepare` made it, in training mode; see `check_chunks`.
        batch: inputs of its B pairs, [B, …] each, with `image_ids`.
        chunk: pairs that are encoded at once, with a graph.
        negatives: of the triplet loss, as in `OmitModel.forward`.

    Returns:
        The loss, a scalar without gradient.
    """
    raw = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    inputs = {name: value for name, value in batch.items() if name != "image_ids"}
    starts = range(0, len(inputs["input_ids"]), chunk)
    chunks = [{name: value[start : start + chunk] for name, value in inputs.items()} for start in starts]
    draws = []
    with torch.no_grad(), accelerator.autocast():
        features = []
        for each in chunks:
            draws.append(_random_state(accelerator.device))
            features.append(_encode(raw, each))
    sides = [_whole(side) for side in zip(*features, strict=True)]
    with accelerator.no_sync(model):  # the wrapper did not see a forward pass
        with accelerator.autocast():
            _, loss = raw.similarity_and_loss(*sides, batch.get("image_ids"), negatives, gather_negatives=True)
        accelerator.backward(loss)  # to the features, and to what belongs to the head
        for number, each in enumerate(chunks):
            items = slice(number * chunk, (number + 1) * chunk)
            with _drawing(draws[number], accelerator.device), accelerator.autocast():
                made = _encode(raw, each)
            pairs = [
                (getattr(again, name), getattr(side, name).grad[items])
                for side, again in zip(sides, made, strict=True)
                for name in FEATURES
                if getattr(again, name).requires_grad and getattr(side, name).grad is not None
            ]
            torch.autograd.backward(*zip(*pairs, strict=True))
    if accelerator.sync_gradients and accelerator.num_processes > 1:
        _average_gradients(raw, accelerator.num_processes)
    return loss.detach()


def _encode(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[OmitFeatures, OmitFeatures]:
    image = {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
    text = {name: value for name, value in inputs.items() if name not in image}
    return model.get_image_features(**image), model.get_text_features(**text)


def _whole(parts: list[OmitFeatures]) -> OmitFeatures:
    """The features of a batch, of those of its chunks; they gather the loss's gradient."""
    whole = {name: torch.cat([getattr(part, name) for part in parts]) for name in FEATURES}
    return OmitFeatures(**{name: each.requires_grad_(each.is_floating_point()) for name, each in whole.items()})


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


@contextlib.contextmanager
def _drawing(states: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw the random numbers of an earlier state; afterwards go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], device)
        yield


def _average_gradients(model: nn.Module, processes: int) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(parameter.grad)
            parameter.grad /= processes
