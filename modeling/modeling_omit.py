"""OmitModel: encode, match, loss."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_omit import MAX_LOGIT_SCALE, OmitConfig
from .encoders_omit import BiGRU, GridEncoder, Projection, RegionEncoder, TextEncoder, normalize_features
from .features_omit import OmitFeatures
from .losses_omit import gather_features, gather_with_gradient, info_nce_loss, triplet_loss
from .matching_omit import MATCHING, Match, TopK, topk_similarity
from .pretrained_omit import PretrainedMixin
from .tiling_omit import MEMORY_BUDGET


@dataclass
class OmitOutput(ModelOutput):
    """What [`OmitModel`] gives for B_i images with K fragments and B_t captions with L words.

    Args:
        loss: scalar, with `return_loss=True`.
        logits_per_image, logits_per_text: logit scale · similarity, [B_i, B_t], and its transpose.
        similarity: the head's similarity, [B_i, B_t], float32.
        transport_plan: with `output_transport=True`, [B_i, B_t, K+1, L+1], dustbins first; [B_i, B_t, K, L] for `ot`;
            None for a head that does not transport.
        alignment: with `output_transport=True`, which fragments matched, [B_i, B_t, K, L]; see [`Match`].
        image_embeds, image_mask, image_pooled: fragments, L2-normalised, [B_i, K, D]; which of them are valid,
            [B_i, K]; global features, L2-normalised, [B_i, D].
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


class OmitPreTrainedModel(PretrainedMixin, PreTrainedModel):
    config: OmitConfig
    base_model_prefix = "omit"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = _supports_sdpa = _supports_flash_attn = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Projection):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, BiGRU):
            init.uniform_(module.embeddings.weight, -0.1, 0.1)
            if module.embeddings.padding_idx is not None:
                init.zeros_(module.embeddings.weight[module.embeddings.padding_idx])
        elif isinstance(module, nn.RNNBase):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif module is self.matching:
            module.init_weights()
        elif module is self:
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            self.config.fragment_boxes = None  # of other weights


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

    measure_spans = None  # of omit_hf, which sets it

    def __init__(
        self, config: OmitConfig, vision_backbone: nn.Module | None = None, text_backbone: nn.Module | None = None
    ):
        """
        Args:
            config: `StrictDataclassError` if it is not valid.
            vision_backbone, text_backbone: loaded models, used in the place of untrained ones; `ValueError` if one is
                not for its side. `config` must hold copies of their configurations, since the model changes them.
        """
        config.validate()  # setting single fields does not
        super().__init__(config)
        regions = config.vision_config.model_type == "omit_region"
        self.vision_encoder = RegionEncoder(config) if regions else GridEncoder(config, vision_backbone)
        self.text_encoder = TextEncoder(config, text_backbone)
        self.matching = MATCHING[config.matching](config)
        # Without gradient where no loss reads it, or distributed training would wait for one.
        self.logit_scale = nn.Parameter(torch.empty(1), requires_grad=config.loss == "infonce")
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_encoder.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_encoder.backbone.set_input_embeddings(value)

    def _set_gradient_checkpointing(self, *args, **kwargs):
        if not any(hasattr(module, "gradient_checkpointing") for module in self.modules()):
            kinds = f"{self.config.vision_config.model_type!r} nor {self.config.text_config.model_type!r}"
            raise ValueError(f"Neither {kinds} has gradient checkpointing; expected one that has, as 'vit' or 'bert'.")
        super()._set_gradient_checkpointing(*args, **kwargs)

    def train(self, mode: bool = True):
        self.config.fragment_boxes = None if mode else self.config.fragment_boxes  # they move with the weights
        return super().train(mode)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        image_states: Tensor | None = None,
        region_features: Tensor | None = None,
        region_mask: Tensor | None = None,
        **kwargs,
    ) -> OmitFeatures:
        """Encode images, given in exactly one of three forms, into fragments, their mask and a global feature.

        Args:
            pixel_values: [B, 3, H, W].
            image_states: what `model.vision_encoder.encode` gave for the pixels, [B, 1 + K, width], in their place.
            region_features: precomputed regions, [B, K, feature_size], of a model whose vision_config is `omit_region`.
            region_mask: true for regions, false for padding, [B, K]; None for no padding.
            kwargs: for the backbone, such as `output_hidden_states`.

        Raises:
            ValueError: for no form, several, or one that the image encoder does not take.
        """
        forms = {"pixel_values": pixel_values, "image_states": image_states, "region_features": region_features}
        given, taken = drop_none(forms), self.vision_encoder.input_names
        kind = self.config.vision_config.model_type
        if len(given) != 1 or not given.keys() <= set(taken):
            found, wanted = " and ".join(given) or "No image", " or ".join(taken)
            source = f"OmitProcessor({'regions' if 'region_features' in taken else 'images'}=…) makes {taken[0]}"
            raise ValueError(f"{found} given; expected {wanted}, and that alone; the encoder is {kind!r}; {source}.")
        if region_mask is not None:
            given["region_mask"] = region_mask
            if "region_features" not in taken:
                raise ValueError(f"region_mask given; expected none, since the image encoder is {kind!r}.")
        return normalize_features(*self.vision_encoder(**given, **kwargs), self.dtype)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        text_states: Tensor | None = None,
        **kwargs,
    ) -> OmitFeatures:
        """Encode captions into fragments, their mask and a global feature.

        Args:
            input_ids, attention_mask: [B, L]; 1 for tokens, 0 for padding; None for no padding.
            text_states: the text backbone's last hidden state for `input_ids`, [B, L, width], to save running it.
            kwargs: for the backbone, such as `token_type_ids` or `output_hidden_states`.

        Raises:
            ValueError: if no caption is given, or shapes do not fit.
        """
        if input_ids is None:
            raise ValueError("No text given; expected input_ids (from OmitProcessor(text=…)).")
        shape = tuple(input_ids.shape)
        if len(shape) != 2:
            raise ValueError(f"input_ids has shape {shape}; expected [B, L], captions and words.")
        if attention_mask is not None and attention_mask.shape != shape:
            found = tuple(attention_mask.shape)
            raise ValueError(f"attention_mask has shape {found}; expected that of input_ids, {shape}.")
        if text_states is not None and (text_states.ndim != 3 or text_states.shape[:2] != shape):
            found, wanted = tuple(text_states.shape), [*shape, "width"]
            raise ValueError(f"text_states has shape {found}; expected {wanted}, a state for each of input_ids.")
        return normalize_features(*self.text_encoder(input_ids, attention_mask, text_states, **kwargs), self.dtype)

    def fragment_boxes(self, height: int, width: int) -> Tensor:
        """Where the fragments of images look: x0, y0, x1, y1 in pixels of `pixel_values`, float64 [K, 4].

        `omit_hf.alignment.receptive_fields` measures it, once a size, and the checkpoint keeps it. `ImportError` for
        another size without the package; `ValueError` for regions, which have boxes of their own.
        """
        known, size = self.config.fragment_boxes or {}, f"{height} x {width}"
        if size not in known:
            if self.measure_spans is None:
                raise ImportError(f"The checkpoint keeps no boxes for {size} pixels; `import omit_hf` to measure them.")
            self.config.fragment_boxes = known = {**known, size: self.measure_spans(self.vision_encoder, height, width)}
        rows, columns = known[size]
        return torch.tensor([[x0, y0, x1, y1] for y0, y1 in rows for x0, x1 in columns], dtype=torch.float64)

    def similarity(
        self, image: OmitFeatures, text: OmitFeatures, memory_budget: int = MEMORY_BUDGET, matmul_dtype: str = "float32"
    ) -> Tensor:
        """Similarity of every image and every caption, [B_i, B_t], in bounded memory; differentiable.

        Args:
            image, text: from `get_image_features` and `get_text_features`, B_i images and B_t captions.
            memory_budget: bytes for intermediate results.
            matmul_dtype: `bfloat16` or `int8` multiply cosines out faster and more coarsely; see `TransportOptions`.
        """
        return self.matching.tiled_similarity(image, text, memory_budget, matmul_dtype)

    def topk(self, image: OmitFeatures, text: OmitFeatures, k: int, dim: int = 1) -> TopK:
        """The k best captions of every image (`dim=1`) or images of every caption (`dim=0`); see `topk_similarity`."""
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
            image_ids: for the loss, the image of a pair, int64 [B]: pairs of one image are no negatives of each other.
            return_loss: compute the loss, with caption number n as the positive of image number n.
            output_transport: return the alignment of every pair, and the transport plan of heads that have one.
            negatives: of the triplet loss, `hardest` or `all`.
            gather_negatives: take the negatives of all processes of `torch.distributed`; all must call.
            output_attentions, output_hidden_states: asked of both backbones.

        Raises:
            ValueError: for a missing side, shapes or numbers that do not fit, or an alignment of a head that pools.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = drop_none(asked) | {"return_dict": True}
        positions = drop_none({"token_type_ids": token_type_ids, "position_ids": position_ids})
        image = self.get_image_features(pixel_values, image_states, region_features, region_mask, **asked)
        text = self.get_text_features(input_ids, attention_mask, text_states, **positions, **asked)
        if return_loss:
            similarity, loss = self.similarity_and_loss(image, text, image_ids, negatives, gather_negatives)
        else:
            similarity, loss = self.similarity(image, text), None
        logits = similarity * self._scale()
        match = self.matching.match(image, text) if output_transport else Match(None, None)
        sides, names = {"image": image, "text": text}, ("embeds", "mask", "pooled")
        return OmitOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.T,
            similarity=similarity,
            transport_plan=match.plan,
            alignment=match.alignment,
            **{f"{side}_{name}": sides[side][name] for side in sides for name in names},
            vision_model_output=image,
            text_model_output=text,
        )

    def similarity_and_loss(self, image, text, image_ids, negatives, gather_negatives) -> tuple[Tensor, Tensor]:
        """Similarity of the process's own pairs, and the mean loss of its own anchors, both directions added."""
        if negatives not in ("hardest", "all"):  # whatever the loss
            raise ValueError(f"negatives is {negatives!r}; expected 'hardest' or 'all'.")
        pairs, captions = len(image.embeds), len(text.embeds)
        if pairs != captions:
            raise ValueError(f"The loss got {pairs} images and {captions} captions; expected as many, n with n.")
        own = torch.arange(pairs, device=image.embeds.device)
        all_ids = image_ids = own if image_ids is None else image_ids
        if image_ids.shape != own.shape:
            raise ValueError(f"image_ids has shape {tuple(image_ids.shape)}; expected {tuple(own.shape)}, one a pair.")
        if image_ids.dtype.is_floating_point or image_ids.dtype.is_complex or image_ids.dtype == torch.bool:
            raise ValueError(f"image_ids is of type {image_ids.dtype}; expected integers, such as torch.int64.")
        if gather_negatives and dist.is_initialized() and dist.get_world_size() > 1:
            own, all_ids = own + dist.get_rank() * pairs, gather_with_gradient(image_ids)
            per_image = self.similarity(image, gather_features(text))
            per_text = self.similarity(gather_features(image), text).T
        else:
            per_image = self.similarity(image, text)
            per_text = per_image.T
        same_image = image_ids[:, None] == all_ids
        both, margin = (per_image, per_text), self.config.margin
        if self.config.loss == "triplet":
            loss = sum(triplet_loss(scores, own, same_image, margin, negatives) for scores in both)
        else:
            loss = sum(info_nce_loss(self._scale() * scores, own, same_image) for scores in both) / 2
        return per_image[:, own], loss

    def _scale(self) -> Tensor:
        if self.training and self.logit_scale.requires_grad and not torch.compiler.is_compiling():
            self.logit_scale.data.clamp_(max=MAX_LOGIT_SCALE)
        value = self.logit_scale.detach()  # so that the gradient survives the bound
        return (value.clamp(max=MAX_LOGIT_SCALE) + (self.logit_scale - value)).exp()


def drop_none(arguments: dict) -> dict:
    """The arguments that are given; backbones take different ones."""
    return {name: value for name, value in arguments.items() if value is not None}


OmitModel.register_for_auto_class()  # so that its code is saved with it
