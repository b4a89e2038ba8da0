"""Load, save and start models: whole checkpoints, two pretrained backbones, or a CLIP or SigLIP."""

from dataclasses import fields

import torch
from transformers import AutoConfig, AutoModel

from .backbones_omit import align_memory, fit_tokenizer, load, pretrained_backbone, pretrained_tokenizer, text_settings
from .configuration_omit import MAX_LOGIT_SCALE, OmitConfig, check_fields

PROBLEMS_SHOWN = 10
FIELDS = {field.name for field in fields(OmitConfig)}


class PretrainedMixin:
    """What `OmitModel` inherits beside `PreTrainedModel`."""

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, ignore_mismatched_sizes: bool = False, **kwargs):
        """`PreTrainedModel.from_pretrained`, but of a whole checkpoint.

        Raises:
            ValueError: if a file of the checkpoint is broken; if parameters are missing or have another shape there, as
                for a changed configuration: with `ignore_mismatched_sizes=True` they are initialised instead.
        """
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **kwargs}
        model, info = load(super().from_pretrained, *args, **options)
        wrong = [f"{name} is missing" for name in info["missing_keys"]]
        for name, found, ours in info["mismatched_keys"]:
            wrong.append(f"{name} has shape {list(found)}; expected {list(ours)}")
        if wrong and not ignore_mismatched_sizes:
            listed = "\n  ".join(sorted(wrong)[:PROBLEMS_SHOWN]) + ("\n  …" if len(wrong) > PROBLEMS_SHOWN else "")
            found = f"{len(wrong)} parameters of the model are not those of the checkpoint:\n  {listed}\n"
            remedy = "Load it with the configuration that it was saved with, or pass ignore_mismatched_sizes=True"
            raise ValueError(f"{found}{remedy} to begin these anew.")
        align_memory(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """`PreTrainedModel.save_pretrained`, and with it the code of this folder, for whoever lacks the package."""
        code = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        models = dict.fromkeys(("AutoModel", "AutoModelForZeroShotImageClassification"), code)
        self.config.auto_map = {**models, "AutoProcessor": "processing_omit.OmitProcessor"}
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
            vision_model_name_or_path, text_model_name_or_path: Hub id or folder of a vision model and of a text
                encoder, or of a model such as CLIP that has one.
            config_kwargs: fields of [`OmitConfig`], such as `matching`. The tokenizer beside the text model decides
                `special_token_ids` and `text_pooling` where they are left out.

        Raises:
            OSError: if a model is not found, or the tokenizer is needed and not there.
            ValueError: for an unknown field, a model that is not for its side, or a tokenizer of another text model.
        """
        check_fields("config_kwargs", config_kwargs, FIELDS)
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

        The global features are the checkpoint's: so is the cosine of `image_pooled` and `text_pooled`. The fragments
        lie in the same space: CLIP's last norm and projection apply to every patch and token, not to CLS and EOS alone;
        SigLIP's attention head, which pools an image, to one patch at a time. SigLIP's logit bias, which no ranking
        depends on, is left out.

        Args:
            name_or_path: Hub id or folder of the checkpoint, with its tokenizer.
            config_kwargs: fields of [`OmitConfig`], such as `matching`. Left out, `projection_dim` and
                `logit_scale_init_value` are the checkpoint's (its scale at most 100), and `special_token_ids` and
                `text_pooling` what the tokenizer says.

        Raises:
            OSError: if the checkpoint is not found, or has no tokenizer.
            ValueError: for an unknown field, another kind of checkpoint, or a `projection_dim` or tokenizer of another.
        """
        check_fields("config_kwargs", config_kwargs, FIELDS)
        kind = load(AutoConfig.from_pretrained, name_or_path).model_type
        if kind not in ("clip", "siglip"):
            other = "OmitModel.from_vision_text_pretrained takes two other backbones"
            raise ValueError(f"{name_or_path} is a {kind!r} model; expected 'clip' or 'siglip'. {other}.")
        clip = align_memory(load(AutoModel.from_pretrained, name_or_path, dtype=dtype))
        text_projection = clip.text_projection if kind == "clip" else clip.text_model.head
        width = text_projection.out_features
        if (asked := config_kwargs.get("projection_dim", width)) != width:
            raise ValueError(f"projection_dim is {asked}; expected {width}, as wide as {name_or_path} is.")
        tokenizer = pretrained_tokenizer(name_or_path)
        fit_tokenizer(clip.text_model, tokenizer)
        scale = min(clip.logit_scale.item(), MAX_LOGIT_SCALE)
        settings = {"projection_dim": width, "logit_scale_init_value": scale, "vision_pooling_head": kind == "siglip"}
        settings = text_settings(tokenizer) | settings | config_kwargs
        parts = {"vision_config": clip.config.vision_config.to_dict(), "text_config": clip.config.text_config.to_dict()}
        model = cls(OmitConfig(**parts, **settings), clip.vision_model, clip.text_model).to(dtype)
        # SigLIP's pooling head has projected the image already. CLIP's projections have no bias.
        visual = clip.visual_projection.weight if kind == "clip" else torch.eye(width)
        no_bias = {"bias": torch.zeros(width)}
        model.vision_encoder.projection.load_state_dict({"weight": visual, **no_bias})
        model.text_encoder.projection.load_state_dict({**no_bias, **text_projection.state_dict()})
        return model
