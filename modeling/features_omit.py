"""What the encoders give and the heads take: one side's fragments, their mask and the global feature."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


@dataclass
class OmitFeatures(BaseModelOutputWithPooling):
    """One side's features: B images with K fragments each, or B captions with K words each.

    Args:
        last_hidden_state: output of the backbone, in its own shape; None for cached states.
        pooler_output: `pooled` under the name that transformers gives it.
        hidden_states, attentions: of the backbone, when asked for.
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
        return OmitFeatures(
            embeds=self.embeds[items],
            mask=self.mask[items],
            pooled=None if self.pooled is None else self.pooled[items],
            norms=None if self.norms is None else self.norms[items],
        )


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} is of type {tensor.dtype}; expected floating-point numbers. Cast it, as in {name}.float(), and "
            f"multiply what is quantised by its scale."
        )


def check_sides(image_embeds: Tensor, text_embeds: Tensor) -> None:
    """Raise `ValueError` unless both are floating-point numbers of one type, width and device."""
    check_floating("image_embeds", image_embeds)
    check_floating("text_embeds", text_embeds)
    if image_embeds.shape[-1] != text_embeds.shape[-1]:
        raise ValueError(
            f"image_embeds are {image_embeds.shape[-1]} wide, text_embeds {text_embeds.shape[-1]}; expected the same."
        )
    if image_embeds.dtype != text_embeds.dtype or image_embeds.device != text_embeds.device:
        raise ValueError(
            f"The images are {image_embeds.dtype} on {image_embeds.device}, the captions {text_embeds.dtype} on "
            f"{text_embeds.device}; expected the same. Cast one side, as in text.embeds.to(image.embeds.dtype)."
        )
