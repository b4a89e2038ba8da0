"""Encoders: from regions, pixels or words to fragments, their mask and a global feature.

An encoder ends in a projection to the common width D. The `states` that a frozen backbone gives can be cached and
passed in the place of its input. See ``docs/concepts/method.md#encoders``.
"""

import contextlib
import copy
import inspect
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput, ModelOutput

from .backbones_omit import (
    TEXT_TOWERS,
    BackboneEncoder,
    backbone_width,
    build_vision_backbone,
    cell_grid,
    check_input,
    most_tokens,
    without_pooler,
)
from .features_omit import NORM_EPS, OmitFeatures
from .sinkhorn_omit import at_least_float32


class Projection(nn.Linear):
    """Linear layer that `_init_weights` initialises in its own way."""


class RegionEncoder(nn.Module):
    """Image side: precomputed regions, projected by FC + MLP with batch norm; the global feature is their mean."""

    input_name = "region_features"
    input_names = (input_name,)

    def __init__(self, config):
        super().__init__()
        regions = config.vision_config
        self.feature_size, self.kept_share = regions.feature_size, regions.kept_share
        self.projection = Projection(regions.feature_size, config.projection_dim)
        self.mlp = nn.Sequential(
            Projection(regions.feature_size, regions.hidden_size),
            nn.BatchNorm1d(regions.hidden_size),
            nn.ReLU(),
            nn.Dropout(regions.dropout),
            Projection(regions.hidden_size, config.projection_dim),
        )

    def forward(self, region_features: Tensor, region_mask: Tensor | None = None, **kwargs):
        """Fragments [B, K, D], mask [B, K], global feature [B, D] and the regions that they were made of.

        The mask is true for regions, false for padding. In training K is what `kept_share` leaves.
        """
        shape = tuple(region_features.shape)
        if len(shape) != 3 or shape[-1] != self.feature_size:
            expected = f"[B, K, {self.feature_size}], as vision_config.feature_size has it"
            remedy = "Features of another detector need a model with their feature_size"
            raise ValueError(f"region_features has shape {shape}; expected {expected}. {remedy}.")
        if region_mask is not None and region_mask.shape != shape[:2]:
            raise ValueError(f"region_mask has shape {tuple(region_mask.shape)}; expected {shape[:2]}, one a region.")
        regions = region_features.to(self.projection.weight.dtype)
        if self.training and self.kept_share < 1:
            regions, region_mask = keep_regions(regions, region_mask, self.kept_share)
        mask = regions.new_ones(regions.shape[:2]).bool() if region_mask is None else region_mask.bool()
        alone = self.training or (regions.is_cpu and not torch.compiler.is_compiling())  # a GPU would wait
        if alone and region_mask is not None:  # keeps padding out of the batch norm's statistics, and saves its time
            valid = self._project(regions[mask])
            fragments = valid.new_zeros(*mask.shape, valid.shape[-1])
            fragments[mask] = valid
        else:
            fragments = self._project(regions.flatten(0, 1)).view(*regions.shape[:2], -1)
        return fragments, mask, masked_mean(fragments, mask), BaseModelOutput(last_hidden_state=regions)

    def _project(self, regions: Tensor) -> Tensor:
        return self.projection(regions) + self.mlp(regions)


def keep_regions(regions: Tensor, mask: Tensor | None, share: float) -> tuple[Tensor, Tensor | None]:
    """Keep a random choice of an image's regions, in their order: int(share · K) of K, but at least one.

    Of [B, K, width] it returns [B, int(share · K), width]; with a mask, an image keeps the share of its valid regions.
    """
    batch, most, width = regions.shape
    kept, chance = max(1, int(share * most)), torch.rand(batch, most, device=regions.device)
    if mask is None:
        index = chance.topk(kept).indices.sort().values
    else:
        count = (share * mask.sum(dim=1).double()).int().clamp_min(1)
        index = chance.masked_fill(~mask.bool(), -1).topk(kept).indices
        valid = (torch.arange(kept, device=mask.device) < count[:, None]) & mask.bool().gather(1, index)
        index = index.masked_fill(~valid, most).sort().values  # what is left over comes last
        mask, index = index < most, index.clamp_max(most - 1)
    return regions.gather(1, index[..., None].expand(-1, -1, width)), mask


class GridEncoder(BackboneEncoder):
    """Image side: the grid cells or patches of any vision backbone; CLS and registers are not fragments.

    The global feature is the projected CLS state of a backbone that has one, else the mean of the projected cells. With
    `vision_pooling_head` SigLIP's head makes it of all patches, and fragments of one each: both lie where texts do.
    """

    input_name = "pixel_values"
    input_names = (input_name, "image_states")

    def __init__(self, config, backbone: nn.Module | None = None):
        super().__init__()
        self.backbone = build_vision_backbone(config.vision_config) if backbone is None else backbone
        check_input(self.backbone, "vision", "pixel_values")
        self._no_split_modules = self.backbone._no_split_modules
        self.kind, self.pooling_head = config.vision_config.model_type, config.vision_pooling_head
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters
        learned = self.interpolates or most_tokens(self.backbone) is not None  # AIMv2 has a table, as texts do
        size = getattr(self.backbone.config, "image_size", None) if learned else None
        self.own_size = (size, size) if isinstance(size, int) else size and tuple(size)
        for layer in self.backbone.modules():
            if hasattr(layer, "set_shift_and_window_size"):
                layer.own_window = layer.window_size, layer.shift_size
                layer.register_forward_pre_hook(restore_window)
        if self.pooling_head and not isinstance(getattr(self.backbone, "head", None), nn.Module):
            found = f"vision_pooling_head is on, but {self.kind!r} has no attention pooling head"
            raise ValueError(f"{found}; expected a 'siglip_vision_model' with vision_use_head.")
        self.projection = Projection(backbone_width(self.backbone), config.projection_dim)

    def forward(self, pixel_values: Tensor | None = None, image_states: Tensor | None = None, **kwargs):
        """Fragments [B, K, D], mask [B, K], global feature [B, D] and the backbone's output (None for states).

        `image_states`, [B, 1 + K, width], is what `encode` made of the pixels [B, C, H, W] earlier.
        """
        states, output = (image_states, None) if pixel_values is None else self.encode(pixel_values, **kwargs)
        projected = self.projection(states.to(self.projection.weight.dtype))
        mask = torch.ones(projected[:, 1:].shape[:2], dtype=torch.bool, device=projected.device)
        return projected[:, 1:], mask, projected[:, 0], output

    def encode(self, pixel_values: Tensor, **kwargs):
        """States of the backbone, the global one first and then the cells, [B, 1 + K, width], and its whole output."""
        height, width = pixel_values.shape[-2:]
        if self.own_size not in (None, (height, width)):
            if not self.interpolates:
                expected = f"{self.own_size[1]} x {self.own_size[0]}, all that {self.kind!r} has positions for"
                found = f"pixel_values has pictures of {width} x {height} pixels; expected {expected}"
                raise ValueError(f"{found}. Resize them, or let the processor: do_resize=True.")
            kwargs["interpolate_pos_encoding"] = True
        try:
            output = self.backbone(pixel_values.to(self.backbone.dtype), **kwargs)
        except RuntimeError:  # of a convolution whose kernel is larger than the picture, or of anything else
            self._check_size(pixel_values, **kwargs)
            raise
        if "feature_maps" in output:  # of a stage before the last
            output["last_hidden_state"] = output.feature_maps[-1]
        cells, count = output.last_hidden_state, math.prod(self.grid((height, width), output.last_hidden_state))
        cells = cells.flatten(2).transpose(1, 2) if cells.ndim == 4 else cells  # [B, width, H, W]
        prefix = cells.shape[1] - count
        if self.kind == "clip_vision_model":  # CLIP normalises the CLS state alone, since it reads no other
            cells = self.backbone.post_layernorm(cells)
        if self.pooling_head:
            pooled = output.pooler_output[:, None]
            cells = self.backbone.head(cells.flatten(0, 1)[:, None]).view_as(cells)
        else:
            pooled = cells[:, :1] if prefix else cells.mean(dim=1, keepdim=True)  # projecting commutes with the mean
        return torch.cat([pooled, cells[:, prefix:]], dim=1), output

    @torch.no_grad()
    def _check_size(self, pixels: Tensor, **kwargs) -> None:
        """Refuse pictures smaller than the least square that the backbone takes, which only trying tells."""
        backbone = copy.deepcopy(self.backbone).eval()  # in training it would learn, and Swin remembers what it saw
        for side in range(1, 257):
            with contextlib.suppress(RuntimeError):
                backbone(pixels.new_zeros(1, pixels.shape[1], side, side, dtype=backbone.dtype), **kwargs)
                break
        if min(pixels.shape[-2:]) < side < 256:
            found = f"pixel_values has pictures of {pixels.shape[-1]} x {pixels.shape[-2]} pixels"
            expected = f"the vision backbone, {self.kind!r}, takes at least {side} x {side}"
            raise ValueError(f"{found}; {expected}. Enlarge them, or let the processor: do_resize=True.")

    def grid(self, pixels: tuple[int, int], states: Tensor) -> tuple[int, int]:
        """Rows and columns of an image's fragments, from its height and width and its `last_hidden_state`."""
        return cell_grid(self.backbone.config, pixels, states)


def restore_window(layer: nn.Module, args) -> None:
    """Undo what a small picture left, which Swin would keep for all later ones."""
    layer.window_size, layer.shift_size = layer.own_window


class TextEncoder(BackboneEncoder):
    """Text side: the words of a BiGRU or the sub-words of any transformer; special tokens are not fragments."""

    def __init__(self, config, backbone: nn.Module | None = None):
        super().__init__()
        self.special_token_ids, self.pooling = tuple(config.special_token_ids or ()), config.text_pooling
        text, kind = config.text_config, config.text_config.model_type
        self.backbone = build_text_backbone(text) if backbone is None else backbone
        self.most_tokens = most_tokens(self.backbone)
        if kind != "omit_bigru":
            check_input(self.backbone, "text", "input_ids")
            self._no_split_modules = self.backbone._no_split_modules
        self.fixed_length = None
        if kind == "siglip_text_model":  # trained without a mask, on captions that are all padded to one length
            self.fixed_length, self.padding = text.max_position_embeddings, text.pad_token_id
            self.backbone.head = nn.Identity()  # it would get no gradient: `forward` pools by itself
        as_it_is = kind == "omit_bigru" and text.hidden_size == config.projection_dim  # the paper's words
        self.projection = nn.Identity() if as_it_is else Projection(text.hidden_size, config.projection_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, states: Tensor | None = None, **kwargs):
        """Fragments [B, L, D], mask [B, L], global feature [B, D] and the backbone's output (None for states).

        `states`, [B, L, width], is the backbone's last hidden state of these tokens, computed earlier. SigLIP reads no
        mask; captions shorter than its one length are padded here.
        """
        length = input_ids.shape[1]
        if self.most_tokens is not None and length > self.most_tokens and kwargs.get("position_ids") is None:
            found = f"input_ids has {length} tokens a caption; the text encoder takes {self.most_tokens}"
            raise ValueError(f"{found}. Cut them with truncation=True, max_length={self.most_tokens}.")
        if self.fixed_length is not None:
            input_ids, attention_mask = F.pad(input_ids, (0, self.fixed_length - length), value=self.padding), None
        # On a CPU alone: reading the highest id would make a GPU wait.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel():
            highest, words = int(input_ids.max()), self.backbone.get_input_embeddings().num_embeddings
            if highest >= words:
                found = f"input_ids holds {highest}; expected ids below {words}, the text encoder's vocabulary"
                raise ValueError(f"{found}. The tokenizer is not the one of this checkpoint; load both together.")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs) if states is None else None
        states = states if output is None else output.last_hidden_state
        fragments = self.projection(states.to(next(self.backbone.parameters()).dtype))
        attended = mask = attention_mask.bool()
        for token in self.special_token_ids:
            mask = mask & (input_ids != token)
        if self.pooling == "mean" or input_ids.shape[1] == 0:
            pooled = masked_mean(fragments, mask)
        else:
            tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
            order = tokens.flip(0) if self.pooling == "cls" else tokens
            chosen = (attended * (order + 1)).argmax(1)  # of an empty caption, the first padding
            pooled = fragments.gather(1, chosen[:, None, None].expand(-1, -1, fragments.shape[-1])).squeeze(1)
        return fragments, mask, pooled, output


class GRU(nn.RNNBase):  # torch.compile does not look into an nn.GRU
    forward = nn.GRU.forward


def run_gru(gru: nn.Module, words: Tensor, attended: Tensor) -> Tensor:
    """Mean of both directions' states, [B, L, H]; zero after a caption's end."""
    if 0 in words.shape[:2]:  # the GRU takes no empty batch
        return words.new_zeros(*words.shape[:2], gru.hidden_size)
    if (attended[:, 1:] & ~attended[:, :-1]).any():
        raise ValueError("attention_mask has a token after padding; a BiGRU needs padding on the right alone.")
    # Packed, so that the backward direction does not start in the padding. An empty caption passes one word.
    lengths = attended.sum(dim=1).clamp_min(1).cpu()
    packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=words.shape[1])
    return states.unflatten(-1, (2, -1)).mean(dim=-2)


class BiGRU(nn.Module):
    """Word embeddings and a bidirectional GRU; the output is the mean of both directions."""

    run_compiled = staticmethod(run_gru)  # in the graphs of torch.compile; `omit_hf.operators` sets another

    def __init__(self, config):
        super().__init__()
        config.validate()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        sizes = config.embedding_size, config.hidden_size, config.num_hidden_layers
        self.gru = GRU("GRU", *sizes, batch_first=True, bidirectional=True)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        self.embeddings = embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool | None = None, **kwargs):
        asked = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        words = self.dropout(self.embeddings(input_ids))
        run = self.run_compiled if torch.compiler.is_compiling() else run_gru
        states = run(self.gru, words, attention_mask.bool())
        return BaseModelOutput(last_hidden_state=states, hidden_states=(words, states) if asked else None)


def build_text_backbone(config) -> nn.Module:
    if config.model_type == "omit_bigru":
        return BiGRU(config)
    if config.model_type in TEXT_TOWERS:
        return TEXT_TOWERS[config.model_type]._from_config(config)
    return AutoModel.from_config(config, **without_pooler(config))


def normalize_features(
    fragments: Tensor, mask: Tensor, pooled: Tensor, output: ModelOutput | None, dtype: torch.dtype
) -> OmitFeatures:
    """L2-normalise what an encoder gives, in float32 at least, into features of type `dtype`."""
    fragments = at_least_float32(fragments.masked_fill(~mask[..., None], 0))
    pooled = F.normalize(at_least_float32(pooled), dim=-1, eps=NORM_EPS).to(dtype)
    embeds, norms = F.normalize(fragments, dim=-1, eps=NORM_EPS).to(dtype), fragments.norm(dim=-1)
    kept = {name: (output or {}).get(name) for name in ("last_hidden_state", "hidden_states", "attentions")}
    return OmitFeatures(embeds=embeds, mask=mask, pooled=pooled, norms=norms, pooler_output=pooled, **kept)


def masked_mean(fragments: Tensor, mask: Tensor) -> Tensor:
    """Mean of the valid fragments, [B, D]; zero where there is none."""
    total = at_least_float32(fragments).masked_fill(~mask[..., None], 0).sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True).clamp_min(1)).to(fragments.dtype)
