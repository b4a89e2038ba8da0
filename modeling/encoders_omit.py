"""Encoders: from pixels or words to fragments, their mask and a global feature (section 3).

Each is a backbone and a projection to the common width D. What a frozen backbone gives, its `states`, can be cached and
passed in the place of its input.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import MODEL_MAPPING, AutoBackbone, AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from .sinkhorn_omit import at_least_float32


class Projection(nn.Linear):
    """From a backbone's width to D; a class of its own so that it gets an initialisation of its own."""


class GridEncoder(nn.Module):
    """Image side: the grid cells or patches of any vision backbone.

    The global feature is the projected CLS state of a backbone that has one, else the mean of the projected cells.
    """

    def __init__(self, config, backbone: nn.Module | None = None):
        super().__init__()
        self.backbone = build_vision_backbone(config.vision_config) if backbone is None else backbone
        check_input(self.backbone, "vision", "pixel_values")
        self.projection = Projection(backbone_width(self.backbone), config.projection_dim)

    def forward(self, pixel_values: Tensor | None, states: Tensor | None = None, **kwargs):
        """
        Args:
            pixel_values: [B, C, H, W]; ignored where `states` are given.
            states: what `encode` made of the pixels earlier, [B, 1 + K, width].

        Returns:
            Fragments [B, K, D], mask [B, K], global feature [B, D] and the backbone's output (None for states).
        """
        output = None
        if states is None:
            states, output = self.encode(pixel_values, **kwargs)
        projected = self.projection(states.to(self.projection.weight.dtype))
        fragments = projected[:, 1:]
        mask = torch.ones(fragments.shape[:2], dtype=torch.bool, device=fragments.device)
        return fragments, mask, projected[:, 0], output

    def encode(self, pixel_values: Tensor, **kwargs):
        """States of the backbone, the global one first and then the cells, [B, 1 + K, width], and its whole output."""
        output = self.backbone(pixel_values.to(self.backbone.dtype), **kwargs)
        cells = output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state
        if cells.ndim == 4:  # [B, width, H, W]
            cells = cells.flatten(2).transpose(1, 2)
            prefix = 0
        else:
            prefix = cells.shape[1] - number_of_patches(self.backbone.config, pixel_values, cells.shape[1])
        pooled = cells[:, :1] if prefix else cells.mean(dim=1, keepdim=True)  # projecting commutes with the mean
        return torch.cat([pooled, cells[:, prefix:]], dim=1), output

    def train(self, mode: bool = True):
        return train_unfrozen(self, mode)


class TextEncoder(nn.Module):
    """Text side: the words of a BiGRU or the sub-words of any transformer; special tokens are no fragments."""

    def __init__(self, config, backbone: nn.Module | None = None):
        super().__init__()
        self.special_token_ids = tuple(config.special_token_ids or ())
        self.pooling = config.text_pooling
        if backbone is None:
            backbone = build_text_backbone(config.text_config)
        if config.text_config.model_type != "omit_bigru":
            check_input(backbone, "text", "input_ids")
        self.backbone = backbone
        width = config.text_config.hidden_size
        if config.text_config.model_type == "omit_bigru" and width == config.projection_dim:
            self.projection = nn.Identity()  # the paper's words are the GRU's states as they are
        else:
            self.projection = Projection(width, config.projection_dim)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, states: Tensor | None = None, **kwargs):
        """
        Args:
            input_ids: [B, L].
            attention_mask: 1 for tokens, 0 for padding, [B, L]; None for no padding.
            states: the backbone's last hidden state of these tokens, computed earlier, [B, L, width].

        Returns:
            Fragments [B, L, D], mask [B, L], global feature [B, D] and the backbone's output (None for states).
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        output = None
        if states is None:
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            states = output.last_hidden_state
        fragments = self.projection(states.to(next(self.backbone.parameters()).dtype))
        attended = attention_mask.bool()
        mask = attended.clone()
        for token in self.special_token_ids:
            mask &= input_ids != token
        if self.pooling == "mean":
            pooled = masked_mean(fragments, mask)
        else:
            tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
            first, last = tokens.numel() - (attended * (tokens.numel() - tokens)).amax(1), (attended * tokens).amax(1)
            chosen = first if self.pooling == "cls" else last
            pooled = fragments[torch.arange(len(fragments), device=fragments.device), chosen]
        return fragments, mask, pooled, output

    def train(self, mode: bool = True):
        return train_unfrozen(self, mode)


class BiGRU(nn.Module):
    """Word embeddings and a bidirectional GRU; the output is the mean of both directions."""

    def __init__(self, config):
        super().__init__()
        config.validate()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(
            config.embedding_size, config.hidden_size, config.num_hidden_layers, batch_first=True, bidirectional=True
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, embeddings: nn.Module) -> None:
        self.embeddings = embeddings

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False, **kwargs
    ) -> BaseModelOutput:
        attended = attention_mask.bool()
        if (attended[:, 1:] & ~attended[:, :-1]).any():
            raise ValueError("attention_mask has a token after padding; a BiGRU needs padding on the right alone.")
        batch, length = input_ids.shape
        words = self.dropout(self.embeddings(input_ids))
        if batch == 0 or length == 0:
            states = words.new_zeros(batch, length, self.config.hidden_size)
            return BaseModelOutput(
                last_hidden_state=states, hidden_states=(words, states) if output_hidden_states else None
            )
        # Packed, so that the backward direction does not start in the padding. An empty caption passes one word.
        lengths = attended.sum(dim=1).clamp_min(1).cpu()
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=length)
        states = states.unflatten(-1, (2, -1)).mean(dim=-2)
        return BaseModelOutput(
            last_hidden_state=states, hidden_states=(words, states) if output_hidden_states else None
        )


def build_vision_backbone(config) -> nn.Module:
    """An untrained vision backbone. `AutoBackbone` where the configuration asks for another stage than the last."""
    stages = getattr(config, "stage_names", None)
    if type(config) in MODEL_MAPPING and (stages is None or list(config.out_features) == [stages[-1]]):
        return AutoModel.from_config(config, **without_pooler(config))
    return AutoBackbone.from_config(config)


def build_text_backbone(config) -> nn.Module:
    """An untrained text backbone."""
    if config.model_type == "omit_bigru":
        return BiGRU(config)
    return AutoModel.from_config(config, **without_pooler(config))


def pretrained_backbone(name_or_path: str, part: str, dtype: torch.dtype) -> nn.Module:
    """A pretrained backbone; of a model with several towers, such as CLIP, the one whose configuration is `part`."""
    config = AutoConfig.from_pretrained(name_or_path)
    config = getattr(config, part, config)
    return align_memory(AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype, **without_pooler(config)))


def align_memory(model: nn.Module) -> nn.Module:
    """Copy the weights that a file is mapped to, so that they lie in memory as those of any other model.

    A mapped tensor begins anywhere, and products of unaligned ones round differently; transport makes that visible.
    After this a loaded model scores as the saved one did, to the bit.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


def pretrained_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a text model.

    Raises:
        OSError: if there is none. (`AutoTokenizer` alone may make an empty one up from the model's configuration.)
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError(f"There is no tokenizer beside the text model {name_or_path}; save its tokenizer there.")
    return tokenizer


def text_settings(tokenizer) -> dict:
    """What a tokenizer decides of an [`OmitConfig`].

    Returns:
        `special_token_ids`, the ids that it adds to a text or pads with (an unknown word is a word); `text_pooling`,
        `cls` where it has a CLS token, else `last` where it has an EOS token, else `mean`.
    """
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    pooling = "cls" if tokenizer.cls_token_id is not None else "last" if tokenizer.eos_token_id is not None else "mean"
    ids = {getattr(tokenizer, name) for name in names} - {None}
    return {"special_token_ids": sorted(ids), "text_pooling": pooling}


def without_pooler(config) -> dict:
    """Arguments that build a backbone without the pooler that nobody reads, where its class has such an argument.

    Parameters that never get a gradient break distributed training.
    """
    if type(config) not in MODEL_MAPPING:
        raise ValueError(
            f"AutoModel has no model for a configuration of type {config.model_type!r}; choose another backbone."
        )
    model_class = MODEL_MAPPING[type(config)]
    accepts = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if accepts else {}


def backbone_width(backbone: nn.Module) -> int:
    """Width of a vision backbone's last states."""
    if hasattr(backbone, "channels"):
        return backbone.channels[-1]
    config = backbone.config
    # In this order: MobileViT has hidden_sizes as well as the neck after them.
    for name in ("hidden_size", "neck_hidden_sizes", "hidden_sizes", "hidden_dim", "last_hidden_size"):
        width = getattr(config, name, None)
        if width is not None:
            return width if isinstance(width, int) else width[-1]
    raise ValueError(
        f"The configuration of {type(backbone).__name__} does not tell the width of its last states; expected an "
        "attribute hidden_size, hidden_sizes or hidden_dim. Set vision_config.hidden_size to that width."
    )


def number_of_patches(config, pixel_values: Tensor, tokens: int) -> int:
    """How many of a backbone's output tokens are patches; those before them are CLS and registers."""
    if hasattr(config, "depths"):  # hierarchical transformers (Swin and its kin) have no CLS
        return tokens
    sizes = config.patch_size if isinstance(config.patch_size, list | tuple) else (config.patch_size,) * 2
    patches = (pixel_values.shape[-2] // sizes[0]) * (pixel_values.shape[-1] // sizes[1])
    if not 0 < patches <= tokens:
        raise ValueError(
            f"{config.model_type} gave {tokens} tokens for an image of {tuple(pixel_values.shape[-2:])} pixels; "
            f"expected at least {patches}, one for each {sizes[0]} x {sizes[1]} patch."
        )
    return patches


def masked_mean(fragments: Tensor, mask: Tensor) -> Tensor:
    """Mean of the valid fragments, [B, D]; zero where there is none."""
    total = at_least_float32(fragments).masked_fill(~mask[..., None], 0).sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True).clamp_min(1)).to(fragments.dtype)


def train_unfrozen(encoder: nn.Module, mode: bool) -> nn.Module:
    """`Module.train` that leaves a frozen backbone in evaluation mode: no dropout, fixed batch-norm statistics."""
    nn.Module.train(encoder, mode)
    if not any(parameter.requires_grad for parameter in encoder.backbone.parameters()):
        encoder.backbone.eval()
    return encoder


def check_input(backbone: nn.Module, side: str, expected: str) -> None:
    """See that a backbone is an encoder of that side: that it reads `pixel_values`, or `input_ids` alone.

    Raises:
        ValueError: if it is not.
    """
    kind = backbone.config.model_type
    if backbone.main_input_name != expected:
        raise ValueError(
            f"The {side} backbone is a {kind!r} model, which reads {backbone.main_input_name}; expected a {side} "
            f"encoder, which reads {expected}."
        )
    if side == "text" and backbone.config.is_encoder_decoder:
        raise ValueError(
            f"The text backbone is a {kind!r} model, an encoder and a decoder; expected an encoder, such as BERT."
        )
