"""Loads, saves and starts models: whole checkpoints, two pretrained backbones, or a CLIP or SigLIP."""

from dataclasses import fields

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from .backbones_omit import align_memory, fit_tokenizer, pretrained_backbone, pretrained_tokenizer, text_settings
from .configuration_omit import MAX_LOGIT_SCALE, OmitConfig, check_fields

PROBLEMS_SHOWN = 10


class PretrainedMixin:
    """What `OmitModel` inherits beside `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs):
        """`PreTrainedModel.from_pretrained`, which takes any part of a checkpoint; this wants all of it.

        Raises:
            ValueError: if parameters of the model are missing in the checkpoint or have another shape there, as after a
                change of the configuration. With `ignore_mismatched_sizes=True` they are initialised instead.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        wrong = [
            f"{name} has shape {list(found)}; expected {list(ours)}" for name, found, ours in info["mismatched_keys"]
        ]
        wrong += [f"{name} is missing" for name in info["missing_keys"]]
        if wrong and not ignore_mismatched_sizes:
            listed = "\n  ".join(sorted(wrong)[:PROBLEMS_SHOWN]) + ("\n  …" if len(wrong) > PROBLEMS_SHOWN else "")
            raise ValueError(
                f"{len(wrong)} parameters of the model are not those of the checkpoint:\n  {listed}\nLoad it with the "
                "configuration that it was saved with, or pass ignore_mismatched_sizes=True to begin these anew."
            )
        align_memory(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, and with it the code of this folder, for whoever lacks the package."""
        code = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        self.config.auto_map = {
            "AutoModel": code,
            "AutoModelForZeroShotImageClassification": code,
            "AutoProcessor": "processing_omit.OmitProcessor",
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model_name_or_path: str,
        text_model_name_or_path: str,
        *,
        dtype: torch.dtype = torch.float32,
        **config_kwargs,
    ):
        """A model from two pretrained backbones; projections (and a learned dustbin) are new and need training.

        Args:
            vision_model_name_or_path: Hub id or folder of a vision model, or of a model such as CLIP that has one.
            text_model_name_or_path: Hub id or folder of a text encoder, or of a model such as CLIP that has one.
            dtype: of the parameters.
            config_kwargs: fields of [`OmitConfig`], such as `matching`. Left out, `special_token_ids` and
                `text_pooling` are what the tokenizer beside the text model says; see `text_settings`.

        Raises:
            OSError: if a model is not found, or there is no tokenizer beside the text model and one of the two fields
                that it decides is not given.
            ValueError: for a field that `OmitConfig` does not have, a model that is not for its side, or a tokenizer
                with more tokens than the text model.

        Example:
            ```python
            model = OmitModel.from_vision_text_pretrained("facebook/dinov2-base", "google-bert/bert-base-uncased")
            ```
        """
        _check_fields(config_kwargs)
        vision_backbone = pretrained_backbone(vision_model_name_or_path, "vision_config", dtype)
        text_backbone = pretrained_backbone(text_model_name_or_path, "text_config", dtype)
        if not {"special_token_ids", "text_pooling"} <= config_kwargs.keys():
            tokenizer = pretrained_tokenizer(text_model_name_or_path)
            fit_tokenizer(text_backbone, tokenizer)
            config_kwargs = text_settings(tokenizer) | config_kwargs
        parts = {"vision_config": vision_backbone.config.to_dict(), "text_config": text_backbone.config.to_dict()}
        return cls(OmitConfig(**parts, **config_kwargs), vision_backbone, text_backbone).to(dtype)

    @classmethod
    def from_clip(cls, name_or_path: str, *, dtype: torch.dtype = torch.float32, **config_kwargs):
        """A model that starts from a CLIP or SigLIP checkpoint and keeps its projections, so that it matches untrained.

        The global features are CLIP's: the cosine of `image_pooled` and `text_pooled` is the checkpoint's own. The
        fragments lie in the same space: CLIP's last norm and projection applied to every patch and every token, not to
        CLS and EOS alone; of SigLIP, whose image is pooled by an attention head, what that head gives for one patch
        alone. SigLIP's logit bias, which no ranking depends on, is left out.

        Args:
            name_or_path: Hub id or folder of the checkpoint, with its tokenizer.
            dtype: of the parameters.
            config_kwargs: fields of [`OmitConfig`], such as `matching`. Left out, `projection_dim` and
                `logit_scale_init_value` are the checkpoint's (its scale at most 100), and `special_token_ids` and
                `text_pooling` what the tokenizer says.

        Raises:
            ValueError: for a field that `OmitConfig` does not have, another kind of checkpoint, a `projection_dim` that
                is not the checkpoint's, or a tokenizer that does not fit it.
            OSError: if it is not found, or has no tokenizer.

        Example:
            ```python
            model = OmitModel.from_clip("openai/clip-vit-base-patch32")
            ```
        """
        _check_fields(config_kwargs)
        kind = AutoConfig.from_pretrained(name_or_path).model_type
        if kind not in ("clip", "siglip"):
            raise ValueError(
                f"{name_or_path} is a {kind!r} model; expected 'clip' or 'siglip'. For two other backbones there is "
                "OmitModel.from_vision_text_pretrained."
            )
        clip = align_memory(AutoModel.from_pretrained(name_or_path, dtype=dtype))
        text_projection = clip.text_projection if kind == "clip" else clip.text_model.head
        width = text_projection.out_features
        if config_kwargs.get("projection_dim", width) != width:
            raise ValueError(
                f"projection_dim is {config_kwargs['projection_dim']}; expected {width}, the width of the projections "
                f"of {name_or_path}, which are kept."
            )
        tokenizer = pretrained_tokenizer(name_or_path)
        fit_tokenizer(clip.text_model, tokenizer)
        settings = {
            **text_settings(tokenizer),
            "projection_dim": width,
            "logit_scale_init_value": min(clip.logit_scale.item(), MAX_LOGIT_SCALE),
            "vision_pooling_head": kind == "siglip",
        }
        parts = {"vision_config": clip.config.vision_config.to_dict(), "text_config": clip.config.text_config.to_dict()}
        model = cls(OmitConfig(**parts, **(settings | config_kwargs)), clip.vision_model, clip.text_model).to(dtype)
        # SigLIP's pooling head has projected already, so there is nothing left for ours to do.
        visual = clip.visual_projection.weight if kind == "clip" else torch.eye(width, dtype=dtype)
        _copy_linear(model.vision_encoder.projection, visual, None)
        _copy_linear(model.text_encoder.projection, text_projection.weight, text_projection.bias)
        return model


@torch.no_grad()
def _copy_linear(projection: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    projection.weight.copy_(weight)
    projection.bias.copy_(torch.zeros_like(projection.bias) if bias is None else bias)


def _check_fields(config_kwargs: dict) -> None:
    check_fields("config_kwargs", config_kwargs, (field.name for field in fields(OmitConfig)))
