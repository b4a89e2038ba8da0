"""What encoders give and heads take: one side's fragments, their mask and the global feature."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

FEATURES = ("embeds", "mask", "pooled", "norms")  # what heads read
NORM_EPS = 1e-6  # padding is zero, and a smaller one gives it huge gradients


@dataclass
class OmitFeatures(BaseModelOutputWithPooling):
    """Features of B images with K fragments, or of B captions with K words.

    Args:
        last_hidden_state, hidden_states, attentions: of the backbone, in its own shapes; None for cached states.
        pooler_output: `pooled` under the name that transformers gives it.
        embeds: fragments, L2-normalised, [B, K, D]; zero where masked.
        mask: true where a fragment is valid, bool [B, K].
        pooled: global feature, L2-normalised, [B, D].
        norms: norms of the fragments before normalisation, float32 [B, K]; zero where masked.
    """

    embeds: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    norms: Tensor | None = None

    def select(self, items: slice) -> "OmitFeatures":
        """The features of some items, without the backbone's outputs."""
        return OmitFeatures(**{each: self[each][items] for each in FEATURES if self.get(each) is not None})


def check_floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            remedy = f"Cast it, as in {name}.float(), and multiply what is quantised by its scale"
            raise ValueError(f"{name} is of type {tensor.dtype}; expected floating-point numbers. {remedy}.")
