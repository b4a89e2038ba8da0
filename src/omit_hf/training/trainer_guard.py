"""Keeps the Trainer of transformers from losing weights of nested backbones when it loads a checkpoint."""

import copy

from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedModel, TrainerCallback

SHOWN = 5


class TrainerGuard(TrainerCallback):
    """A callback that lets the `Trainer` of transformers load all weights of its checkpoints.

    `save_pretrained` writes the weights of some backbones (ViT, for one) under the names that the Hub has, and
    `from_pretrained` turns them back. `Trainer` reads its checkpoints without that: when it resumes, and when it loads
    the best model at the end, it leaves out the weights whose names differ, logs that they are missing, and goes on
    (transformers#43701, transformers#48805). With this callback the model turns the names back, and a weight that is
    missing nevertheless ends in an error.

    Example:
        >>> from transformers import Trainer
        >>> from omit_hf.training import TrainerGuard
        >>> trainer = Trainer(model, arguments, callbacks=[TrainerGuard()])  # doctest: +SKIP

    Raises:
        ValueError: when a checkpoint lacks weights of the model, or has them in other shapes.
        RuntimeError: when a run is resumed whose `model_init` made a new model, which this callback sees too late.
    """

    def on_init_end(self, args, state, control, model=None, **kwargs):
        guard_loading(model)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if guard_loading(model) and state.global_step:
            raise RuntimeError(
                f"The run is resumed at step {state.global_step} with a model that model_init made after the Trainer, "
                "and weights of its backbones may be lost; expected Trainer(model=…) for a run that is resumed."
            )


def guard_loading(model: Module) -> bool:
    """Let `model.load_state_dict` turn names of a checkpoint into the model's, and refuse what lacks weights.

    Args:
        model: adapters of peft are left alone, since their own loading keeps all names.

    Returns:
        Whether the model had no guard and has one now.
    """
    if not isinstance(model, PreTrainedModel) or getattr(model, "_loading_is_guarded", False):
        return False
    model.register_load_state_dict_pre_hook(_convert_names)
    model.register_load_state_dict_post_hook(_refuse_missing)
    model._loading_is_guarded = True
    return True


def _convert_names(model: PreTrainedModel, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Convert in place, as `from_pretrained` does, into a second model, which is then let go."""
    if prefix or state_dict.keys() == model.state_dict().keys():
        return
    found = (
        type(model)
        .from_pretrained(None, config=copy.deepcopy(model.config), state_dict=dict(state_dict), dtype=model.dtype)
        .state_dict()
    )
    state_dict.clear()
    state_dict.update(found)


def _refuse_missing(model: PreTrainedModel, keys) -> None:
    missing = keys.missing_keys
    if missing:
        listed = ", ".join(missing[:SHOWN]) + (", …" if len(missing) > SHOWN else "")
        raise ValueError(f"The checkpoint lacks {len(missing)} weights of the model: {listed}; expected all of them.")
