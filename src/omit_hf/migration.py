"""Loads what earlier versions saved: there `logit_scale` is a scalar, which sharded training (FSDP2) refuses."""

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter

from omit_hf.modeling import OmitConfig

SCALE = "logit_scale"


class ShapeOfModel(ConversionOps):
    """Gives a number the shape that it has in the model: [1], or [] in the code that an older checkpoint brings."""

    def convert(self, input_dict: dict, *, full_layer_name: str, model: Module | None = None, **_) -> dict:
        [value] = input_dict.values()
        [value] = value if isinstance(value, list) else [value]
        return {full_layer_name: value if model is None else as_in(model.get_parameter(full_layer_name), value)}

    @property
    def reverse_op(self) -> ConversionOps:
        return self  # saved as the model has it


def as_in(parameter: Tensor, value: Tensor) -> Tensor:
    return value.reshape(parameter.shape) if value.numel() == parameter.numel() == 1 else value


def register_migration() -> None:
    """Let `from_pretrained` load checkpoints of earlier versions."""
    mapping = [WeightConverter(SCALE, SCALE, [ShapeOfModel()])]
    register_checkpoint_conversion_mapping(OmitConfig.model_type, mapping, overwrite=True)


def migrate_when_loaded(model: Module, optimizer: Optimizer) -> None:
    """Let a model and its optimizer, both maybe wrapped, load the state of a run that an earlier version began."""
    for module in model.modules():
        if SCALE in module._parameters:
            module.register_load_state_dict_pre_hook(_reshape_scale)
    optimizer.register_load_state_dict_post_hook(_reshape_moments)


def _reshape_scale(module: Module, state_dict: dict, prefix: str, *_) -> None:
    name = prefix + SCALE
    if name in state_dict:
        state_dict[name] = as_in(module.get_parameter(SCALE), state_dict[name])


def _reshape_moments(optimizer: Optimizer) -> None:
    """Of a parameter with one number; `step` is a scalar whatever the parameter is."""
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name] = as_in(parameter, state[name])
