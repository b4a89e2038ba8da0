"""Low-rank adaptation: pretrained backbones stay as they are, and small matrices beside their layers are trained.

Source: Hu et al. 2022, *LoRA: Low-Rank Adaptation of Large Language Models*; the adapters are those of peft. A model is
saved with its adapters merged into the layers, so that it needs no peft and costs nothing more.
"""

import copy
import importlib.util
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from omit_hf.modeling import OmitModel
from omit_hf.modeling.configuration_omit import check_fields
from omit_hf.parsing import shown

SIDES = {"vision": ("vision_encoder",), "text": ("text_encoder",), "both": ("vision_encoder", "text_encoder")}
SHOWN = 8  # names of layers in a message


@dataclass(frozen=True)
class LowRank:
    """What a recipe's `lora` holds.

    Args:
        side: whose backbone is adapted: `vision`, `text` or `both`.
        r: rank of the matrices, from 1.
        alpha: their product is scaled by alpha / r; above 0. By default 2 r.
        target_modules: layers to adapt, by the last parts of their names, such as `q_proj`; by default every linear
            layer of the backbone.
        dropout: share of a layer's inputs that its adapter does not see in training.
    """

    side: str = "both"
    r: int = 8
    alpha: float | int | None = None
    target_modules: list[str] | None = None
    dropout: float | int = 0.0

    @classmethod
    def of(cls, given: dict) -> "LowRank":
        """Check what a recipe holds.

        Raises:
            ValueError: names the field, its value and what was expected.
        """
        check_fields("lora", given, [field.name for field in fields(cls)])
        found = cls(**given)
        names = found.target_modules
        texts = names is None or (isinstance(names, list) and names and all(isinstance(each, str) for each in names))
        for name, fits, expected in (
            ("side", found.side in tuple(SIDES), "vision, text or both"),
            ("r", _is_whole(found.r) and found.r >= 1, "a whole number from 1"),
            ("alpha", found.alpha is None or (_is_number(found.alpha) and found.alpha > 0), "a number greater than 0"),
            ("target_modules", texts, "a list of names of layers"),
            ("dropout", _is_number(found.dropout) and 0 <= found.dropout < 1, "a share from 0 to below 1"),
        ):
            if not fits:
                raise ValueError(f"lora has {name} {shown(getattr(found, name))}; expected {expected}.")
        return found

    def adapts(self, side: str) -> bool:
        return self.side in (side, "both")


def add_adapters(model: OmitModel, lora: LowRank) -> None:
    """Freeze the backbones of a model's adapted sides, and put adapters beside their layers.

    They change nothing yet: the second matrix of each is zero.

    Raises:
        ImportError: without peft.
        ValueError: if a side has no backbone, or none of its layers has one of the names.
    """
    if importlib.util.find_spec("peft") is None:
        raise ImportError("lora needs peft, which is not installed: pip install 'omit-hf[lora]'.")
    from peft import LoraConfig, inject_adapter_in_model

    for name in SIDES[lora.side]:
        backbone = getattr(getattr(model, name), "backbone", None)
        if backbone is None:
            raise ValueError(f"lora adapts {name}, which has no backbone; expected side: text for regions.")
        linear = [path for path, part in backbone.named_modules() if isinstance(part, nn.Linear)]
        wanted = lora.target_modules
        chosen = [path for path in linear if wanted is None or any(f".{path}".endswith(f".{each}") for each in wanted)]
        if not chosen:
            ends = sorted({path.split(".")[-1] for path in linear})
            listed = ", ".join(ends[:SHOWN]) + (" …" if len(ends) > SHOWN else "")
            raise ValueError(
                f"lora has target_modules {shown(wanted)}, and no linear layer of {name}.backbone is called so; "
                f"expected some of {listed or 'its linear layers, of which it has none'}."
            )
        backbone.requires_grad_(False)
        alpha = 2 * lora.r if lora.alpha is None else lora.alpha
        config = LoraConfig(r=lora.r, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=chosen)
        inject_adapter_in_model(config, backbone)
    model.train(model.training)  # the adapters too


def merge_adapters(model: OmitModel) -> OmitModel:
    """A copy of a model whose adapters are part of the layers; the model itself if it has none."""
    if not any(name.endswith("base_layer") for name, _ in model.named_modules()):
        return model
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "base_layer"):
            layer.merge(safe_merge=True)  # which checks for NaN
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    return model


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
