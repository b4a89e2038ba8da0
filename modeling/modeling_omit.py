"""OmitModel: encode, match, loss."""

import math
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils import can_return_tuple

from .backbones_omit import align_memory, fit_tokenizer, pretrained_backbone, pretrained_tokenizer, text_settings
from .configuration_omit import MAX_LOGIT_SCALE, OmitConfig, check_fields
from .encoders_omit import BiGRU, GridEncoder, Projection, RegionEncoder, TextEncoder
from .features_omit import OmitFeatures
from .losses_omit import gather_with_gradient, info_nce_loss, triplet_loss
from .matching_omit import DEFAULT_MEMORY_BUDGET, MATCHING, tiled_similarity
from .search_omit import TopK, topk_similarity
from .sinkhorn_omit import at_least_float32
from .transport_heads_omit import OmitMatching, OTMatching

PROBLEMS_SHOWN = 10
NORM_EPS = 1e-6  # padding is zero, and a smaller one gives it huge gradients


@dataclass
class OmitOutput(ModelOutput):
    """What [`OmitModel`] gives for B_i images with K fragments and B_t captions with L words.

    Args:
        loss: scalar, with `return_loss=True`.
        logits_per_image: logit scale · similarity, [B_i, B_t].
        logits_per_text: its transpose, [B_t, B_i].
        similarity: the head's similarity, [B_i, B_t], float32.
        transport_plan: with `output_transport=True`, [B_i, B_t, K+1, L+1], dustbins first; [B_i, B_t, K, L] for `ot`;
            None for a head that does not transport.
        alignment: with `output_transport=True`, [B_i, B_t, K, L], which fragments matched: the plan between fragments,
            or the choice or attention of another head; not negative, at most 1 in all.
        image_embeds: image fragments, L2-normalised, [B_i, K, D].
        image_mask: true where an image fragment is valid, [B_i, K].
        image_pooled: global feature of each image, L2-normalised, [B_i, D].
        text_embeds, text_mask, text_pooled: the same of the captions, [B_t, L, D], [B_t, L], [B_t, D].
        vision_model_output, text_model_output: [`OmitFeatures`] with the outputs of the backbones.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    similarity: Tensor | None = None
    transport_plan: Tensor | None = None
    alignment: Tensor | None = None
    image_embeds: Tensor | None = None
    image_mask: Tensor | None = None
    image_pooled: Tensor | None = None
    text_embeds: Tensor | None = None
    text_mask: Tensor | None = None
    text_pooled: Tensor | None = None
    vision_model_output: OmitFeatures | None = None
    text_model_output: OmitFeatures | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class OmitPreTrainedModel(PreTrainedModel):
    config: OmitConfig
    base_model_prefix = "omit"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Projection):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, BiGRU):
            init.uniform_(module.embeddings.weight, -0.1, 0.1)
            if module.embeddings.padding_idx is not None:
                init.zeros_(module.embeddings.weight[module.embeddings.padding_idx])
        elif isinstance(module, nn.GRU):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, OmitMatching):
            for name, parameter in module.named_parameters(recurse=False):
                if name == "dustbin_similarity":
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=1 / math.sqrt(parameter.numel()))
        elif isinstance(module, OmitModel):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

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


class OmitModel(OmitPreTrainedModel):
    """Image-text matching by partial optimal transport between fragments.

    Example:
        >>> from omit_hf import OmitConfig, OmitModel
        >>> vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        >>> text = {"model_type": "omit_bigru", "vocab_size": 10, "embedding_size": 8, "hidden_size": 16}
        >>> model = OmitModel(OmitConfig(vision_config=vision, text_config=text, projection_dim=16)).eval()
        >>> pixels, words = torch.rand(2, 3, 64, 64), torch.tensor([[1, 2, 3]])
        >>> out = model(input_ids=words, pixel_values=pixels, output_transport=True)
        >>> out.similarity.shape, out.transport_plan.shape  # 2 images, 1 caption; 8 x 8 cells, 3 words, dustbins
        (torch.Size([2, 1]), torch.Size([2, 1, 65, 4]))
    """

    def __init__(
        self, config: OmitConfig, vision_backbone: nn.Module | None = None, text_backbone: nn.Module | None = None
    ):
        """
        Args:
            config: the configuration.
            vision_backbone, text_backbone: models that are loaded already, to use in the place of untrained ones.
                `config` must hold copies of their configurations, since it takes hold of what it is given.

        Raises:
            StrictDataclassError: if the configuration is not valid, which setting its fields one by one does not tell.
            ValueError: if a backbone is not for its side.
        """
        config.validate()
        super().__init__(config)
        if config.vision_config.model_type == "omit_region":
            self.vision_encoder = RegionEncoder(config)
        else:
            self.vision_encoder = GridEncoder(config, vision_backbone)
        self.text_encoder = TextEncoder(config, text_backbone)
        self.matching = MATCHING[config.matching](config)
        # Without gradient where no loss reads it, or distributed training would wait for one.
        self.logit_scale = nn.Parameter(torch.empty(()), requires_grad=config.loss == "infonce")
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embeddings of the words."""
        return self.text_encoder.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.backbone.set_input_embeddings(value)

    def _set_gradient_checkpointing(self, *args, **kwargs):
        if not any(hasattr(module, "gradient_checkpointing") for module in self.modules()):
            raise ValueError(
                f"Neither the vision backbone {self.config.vision_config.model_type!r} nor the text backbone "
                f"{self.config.text_config.model_type!r} has gradient checkpointing; expected one that has, such as "
                "'vit' or 'bert'."
            )
        super()._set_gradient_checkpointing(*args, **kwargs)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_states: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        **kwargs,
    ) -> OmitFeatures:
        """Fragments, mask and global feature of images, given in exactly one of three forms.

        Args:
            pixel_values: [B, 3, H, W].
            image_states: what `model.vision_encoder.encode` gave for the pixels, [B, 1 + K, width], in their place.
            region_features: precomputed regions, [B, K, feature_size], of a model whose vision_config is `omit_region`.
            region_mask: true for regions, false for padding, [B, K]; None for no padding.
            kwargs: for the backbone, such as `output_hidden_states`.

        Returns:
            [`OmitFeatures`]: `embeds` [B, K, D], `mask` [B, K], `pooled` [B, D], `norms` [B, K] and the backbone's
            outputs.

        Raises:
            ValueError: if there is none of the forms, more than one, or one that the image encoder does not take.
        """
        forms = {"pixel_values": pixel_values, "region_features": region_features, "image_states": image_states}
        given = [name for name, value in forms.items() if value is not None]
        taken, kind = self.vision_encoder.input_name, self.config.vision_config.model_type
        if taken == "region_features":
            allowed, source = (taken,), "OmitProcessor(regions=…)"
        else:
            allowed, source = (taken, "image_states"), "OmitProcessor(images=…)"
        if len(given) != 1 or given[0] not in allowed:
            raise ValueError(
                f"{'No image' if not given else ' and '.join(given)} given; expected {' or '.join(allowed)}, and that "
                f"alone, since the image encoder is {kind!r}; {source} makes {taken}."
            )
        if region_mask is not None and taken != "region_features":
            raise ValueError(f"region_mask given; expected none, since the image encoder {kind!r} takes {taken}.")
        if taken == "region_features":
            return self._features(*self.vision_encoder(region_features, region_mask, **kwargs))
        return self._features(*self.vision_encoder(pixel_values, image_states, **kwargs))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_states: Tensor | None = None,
        **kwargs,
    ) -> OmitFeatures:
        """Fragments, mask and global feature of captions.

        Args:
            input_ids: [B, L].
            attention_mask: 1 for tokens, 0 for padding, [B, L].
            text_states: the text backbone's last hidden state for `input_ids`, [B, L, width], to save running it.
            kwargs: for the backbone, such as `token_type_ids` or `output_hidden_states`.

        Returns:
            [`OmitFeatures`]: `embeds` [B, L, D], `mask` [B, L], `pooled` [B, D], `norms` [B, L] and the backbone's
            outputs.

        Raises:
            ValueError: if no caption is given, or shapes do not fit.
        """
        if input_ids is None:
            raise ValueError("No text given; expected input_ids (from OmitProcessor(text=…)).")
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected [B, L], captions and words.")
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; expected that of input_ids, "
                f"{tuple(input_ids.shape)}."
            )
        if text_states is not None and (text_states.ndim != 3 or text_states.shape[:2] != input_ids.shape):
            raise ValueError(
                f"text_states has shape {tuple(text_states.shape)}; expected {[*input_ids.shape, 'width']}, a state "
                "for each of input_ids."
            )
        return self._features(*self.text_encoder(input_ids, attention_mask, text_states, **kwargs))

    def _features(self, fragments: Tensor, mask: Tensor, pooled: Tensor, output: ModelOutput | None) -> OmitFeatures:
        fragments = at_least_float32(fragments.masked_fill(~mask[..., None], 0))
        pooled = F.normalize(at_least_float32(pooled), dim=-1, eps=NORM_EPS).to(self.dtype)
        output = BaseModelOutputWithPooling() if output is None else output
        return OmitFeatures(
            last_hidden_state=output.get("last_hidden_state"),
            pooler_output=pooled,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
            embeds=F.normalize(fragments, dim=-1, eps=NORM_EPS).to(self.dtype),
            mask=mask,
            pooled=pooled,
            norms=fragments.norm(dim=-1),
        )

    def similarity(
        self,
        image: OmitFeatures,
        text: OmitFeatures,
        memory_budget: int = DEFAULT_MEMORY_BUDGET,
        product: str = "float32",
    ) -> Tensor:
        """Similarity of every image and every caption, [B_i, B_t], in tiles of bounded memory; differentiable.

        Args:
            image: from `get_image_features`, B_i images.
            text: from `get_text_features`, B_t captions.
            memory_budget: bytes for the intermediate results of a tile.
            product: `bfloat16` or `int8` to multiply the cosines out faster and more coarsely, on a CPU and without
                gradient (`omit`, `ot`).
        """
        return tiled_similarity(self.matching, image, text, memory_budget, product)

    def topk(self, image: OmitFeatures, text: OmitFeatures, k: int, dim: int = 1) -> TopK:
        """The k best captions of every image (`dim=1`), or images of every caption (`dim=0`): the same as
        `similarity(image, text).topk(k, dim)`, up to the order of equals, but without the whole matrix and without
        scoring pairs that an upper bound rules out.

        Args:
            image: from `get_image_features`, B_i images.
            text: from `get_text_features`, B_t captions.
            k: how many, from 1 to the number of candidates.
            dim: of the candidates, as in `torch.topk`.

        Returns:
            `values` and `indices`, [B_i, k] for `dim=1` and, an item a row here too, [B_t, k] for `dim=0`.
        """
        return topk_similarity(self.matching, image, text, k, dim)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_states: Tensor | None = None,
        text_states: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        return_loss: bool = False,
        output_transport: bool = False,
        negatives: str = "hardest",
        gather_negatives: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> OmitOutput:
        """Score every image against every caption.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: captions, [B_t, L].
            pixel_values: images, [B_i, 3, H, W].
            region_features, region_mask: images as precomputed regions, [B_i, K, feature_size] and [B_i, K].
            image_states, text_states: cached states of the backbones; see `get_image_features`, `get_text_features`.
            image_ids: for the loss, which image each pair shows, int64 [B]: pairs of one image are no negatives of
                each other. By default every pair shows its own.
            return_loss: compute the loss, with caption number n as the positive of image number n.
            output_transport: return the alignment of every pair, and the transport plan of heads that have one.
            negatives: of the triplet loss, `hardest` or `all`.
            gather_negatives: take the negatives of all processes of `torch.distributed`; all must call.
            output_attentions, output_hidden_states: asked of both backbones.

        Raises:
            ValueError: if a side is missing, shapes do not fit, images and captions of the loss are not as many, or an
                alignment is asked of a head that pools.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: value for name, value in asked.items() if value is not None}
        positions = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        positions = {name: value for name, value in positions.items() if value is not None}
        image = self.get_image_features(
            pixel_values, image_states, region_features, region_mask, return_dict=True, **asked
        )
        text = self.get_text_features(input_ids, attention_mask, text_states, return_dict=True, **positions, **asked)

        loss = None
        if return_loss:
            similarity, loss = self._similarity_and_loss(image, text, image_ids, negatives, gather_negatives)
        else:
            similarity = self.similarity(image, text)
        logits = similarity * self._scale()
        plan, alignment = self._alignment(image, text) if output_transport else (None, None)
        return OmitOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            similarity=similarity,
            transport_plan=plan,
            alignment=alignment,
            image_embeds=image.embeds,
            image_mask=image.mask,
            image_pooled=image.pooled,
            text_embeds=text.embeds,
            text_mask=text.mask,
            text_pooled=text.pooled,
            vision_model_output=image,
            text_model_output=text,
        )

    def _similarity_and_loss(self, image, text, image_ids, negatives, gather_negatives) -> tuple[Tensor, Tensor]:
        """Similarity of the process's own pairs, and the mean loss of its own anchors, both directions added."""
        if negatives not in ("hardest", "all"):  # whatever the loss
            raise ValueError(f"negatives is {negatives!r}; expected 'hardest' or 'all'.")
        pairs, captions = len(image.embeds), len(text.embeds)
        if pairs != captions:
            raise ValueError(
                f"The loss got {pairs} images and {captions} captions; expected as many, caption n with image n."
            )
        own = torch.arange(pairs, device=image.embeds.device)
        all_ids = image_ids = own if image_ids is None else image_ids
        if image_ids.shape != own.shape:
            raise ValueError(f"image_ids has shape {tuple(image_ids.shape)}; expected {tuple(own.shape)}, one a pair.")
        if image_ids.dtype.is_floating_point or image_ids.dtype.is_complex or image_ids.dtype == torch.bool:
            raise ValueError(f"image_ids is of type {image_ids.dtype}; expected integers, such as torch.int64.")
        if gather_negatives and dist.is_initialized() and dist.get_world_size() > 1:
            own = own + dist.get_rank() * pairs
            all_ids = gather_with_gradient(image_ids)
            per_image = self.similarity(image, _gather(text))
            per_text = self.similarity(_gather(image), text).T
        else:
            per_image = self.similarity(image, text)
            per_text = per_image.T
        same_image = image_ids[:, None] == all_ids
        if self.config.loss == "triplet":
            margin = self.config.margin
            loss = sum(triplet_loss(scores, own, same_image, margin, negatives) for scores in (per_image, per_text))
        else:
            scale = self._scale()
            loss = sum(info_nce_loss(scale * scores, own, same_image) for scores in (per_image, per_text)) / 2
        return per_image[:, own], loss

    def _scale(self) -> Tensor:
        if self.training and self.logit_scale.requires_grad:
            with torch.no_grad():  # clamped in place, so that its gradient survives at the bound
                self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
            return self.logit_scale.exp()
        return self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()

    def _alignment(self, image: OmitFeatures, text: OmitFeatures) -> tuple[Tensor | None, Tensor]:
        """The plan of a head that transports, and the alignment."""
        if not self.matching.aligns:
            raise ValueError(
                f"output_transport=True, but matching={self.config.matching!r} pools each side and aligns nothing; "
                "'omit', 'ot', 'maxsim', 'chan', 'scan_t2i' and 'scan_i2t' do."
            )
        if not isinstance(self.matching, OTMatching):
            return None, self.matching.alignment(image, text)
        plan = self.matching.transport_plan(image, text)
        return plan, plan[..., self.matching.dustbins :, self.matching.dustbins :]

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model_name_or_path: str,
        text_model_name_or_path: str,
        *,
        dtype: torch.dtype = torch.float32,
        **config_kwargs,
    ) -> "OmitModel":
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
        check_fields("config_kwargs", config_kwargs, (each.name for each in fields(OmitConfig)))
        vision_backbone = pretrained_backbone(vision_model_name_or_path, "vision_config", dtype)
        text_backbone = pretrained_backbone(text_model_name_or_path, "text_config", dtype)
        if not {"special_token_ids", "text_pooling"} <= config_kwargs.keys():
            tokenizer = pretrained_tokenizer(text_model_name_or_path)
            fit_tokenizer(text_backbone.config, tokenizer)
            config_kwargs = text_settings(tokenizer) | config_kwargs
        parts = {"vision_config": vision_backbone.config.to_dict(), "text_config": text_backbone.config.to_dict()}
        config = OmitConfig(**parts, **config_kwargs)
        return cls(config, vision_backbone, text_backbone).to(dtype)

    @classmethod
    def from_clip(cls, name_or_path: str, *, dtype: torch.dtype = torch.float32, **config_kwargs) -> "OmitModel":
        """A model that starts from a CLIP or SigLIP checkpoint and keeps its projections, so that it matches untrained.

        The global features are CLIP's: the cosine of `image_pooled` and `text_pooled` is the checkpoint's own. The
        fragments lie in the same space: CLIP's last norm and projection applied to every patch and every token, not to
        CLS and EOS alone; of SigLIP, whose image is pooled by an attention head, what that head gives for each patch
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
        check_fields("config_kwargs", config_kwargs, (each.name for each in fields(OmitConfig)))
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
        fit_tokenizer(clip.config.text_config, tokenizer)
        settings = {
            **text_settings(tokenizer),
            "projection_dim": width,
            "logit_scale_init_value": min(clip.logit_scale.item(), MAX_LOGIT_SCALE),
            "vision_pooling_head": kind == "siglip",
        }
        parts = {"vision_config": clip.config.vision_config.to_dict(), "text_config": clip.config.text_config.to_dict()}
        model = cls(OmitConfig(**parts, **(settings | config_kwargs)), clip.vision_model, clip.text_model).to(dtype)
        with torch.no_grad():
            if kind == "clip":
                model.vision_encoder.projection.weight.copy_(clip.visual_projection.weight)
            else:  # the head has projected
                torch.nn.init.eye_(model.vision_encoder.projection.weight)
            model.vision_encoder.projection.bias.zero_()
            model.text_encoder.projection.weight.copy_(text_projection.weight)
            if text_projection.bias is None:
                model.text_encoder.projection.bias.zero_()
            else:
                model.text_encoder.projection.bias.copy_(text_projection.bias)
        return model


def _gather(features: OmitFeatures) -> OmitFeatures:
    return OmitFeatures(
        embeds=gather_with_gradient(features.embeds),
        mask=gather_with_gradient(features.mask),
        pooled=gather_with_gradient(features.pooled),
        norms=gather_with_gradient(features.norms),
    )


OmitModel.register_for_auto_class()  # so that its code is saved with it

__all__ = ["OmitModel", "OmitPreTrainedModel"]
