"""Sharded training: FSDP2, by the configuration of Accelerate, in which no process holds the whole model."""

import copy

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from omit_hf.modeling import OmitModel
from omit_hf.training.recipe import Recipe


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def check_sharding(accelerator: Accelerator, recipe: Recipe) -> None:
    """Check that a recipe can be trained as the processes share the model.

    Raises:
        ValueError: for FSDP's first version, or a field that needs the whole model in each process.
    """
    if not is_sharded(accelerator):
        return
    if accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("Accelerate is configured for FSDP 1; expected fsdp_version: 2 in its configuration.")
    for name in ("lora", "unfreeze_epochs"):
        if getattr(recipe, name):
            raise ValueError(
                f"{name} is given, and FSDP shards the parameters; expected processes that hold the whole model. "
                f"Leave {name} out, or launch without FSDP."
            )


def whole_model(accelerator: Accelerator, model: nn.Module) -> OmitModel:
    """The model itself, without wrapper, or a copy with all the weights, if they are sharded; all processes call."""
    raw = accelerator.unwrap_model(model)
    if not is_sharded(accelerator):
        return raw
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    whole = OmitModel(copy.deepcopy(raw.config)).to(accelerator.device)
    whole.load_state_dict(state)
    return whole
