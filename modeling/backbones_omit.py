"""Building and loading backbones of transformers, and what their configurations and tokenizers say about them."""

import inspect

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    SiglipTextModel,
)

# Towers that AutoModel does not find by their configuration.
TEXT_TOWERS = {"siglip_text_model": SiglipTextModel}


def build_vision_backbone(config) -> nn.Module:
    """An untrained vision backbone. `AutoBackbone` where the configuration asks for another stage than the last."""
    stages = getattr(config, "stage_names", None)
    if type(config) in MODEL_MAPPING and (stages is None or list(config.out_features) == [stages[-1]]):
        return AutoModel.from_config(config, **without_pooler(config))
    return AutoBackbone.from_config(config)


def pretrained_backbone(name_or_path: str, part: str, dtype: torch.dtype) -> nn.Module:
    """A pretrained backbone; of a model with several towers, such as CLIP, the one whose configuration is `part`."""
    config = AutoConfig.from_pretrained(name_or_path)
    config = getattr(config, part, config)
    if config.model_type in TEXT_TOWERS:
        backbone = TEXT_TOWERS[config.model_type].from_pretrained(name_or_path, config=config, dtype=dtype)
    else:
        backbone = AutoModel.from_pretrained(name_or_path, config=config, dtype=dtype, **without_pooler(config))
    return align_memory(backbone)


def align_memory(model: nn.Module) -> nn.Module:
    """Copy weights that are mapped from a file, so that they are aligned in memory like those of any other model.

    A mapped tensor may begin at any address, and products of unaligned tensors round differently, which transport
    amplifies. After this a loaded model scores as the saved one did, to the bit.
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
    """The fields of an [`OmitConfig`] that follow from a tokenizer.

    Returns:
        `special_token_ids`, the ids that it adds to a text or pads with (an unknown word is a word); `text_pooling`,
        `cls` where it has a CLS token, else `last` where it has an EOS token, else `mean`.
    """
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    pooling = "cls" if tokenizer.cls_token_id is not None else "last" if tokenizer.eos_token_id is not None else "mean"
    ids = {getattr(tokenizer, name) for name in names} - {None}
    return {"special_token_ids": sorted(ids), "text_pooling": pooling}


def most_tokens(backbone: nn.Module) -> int | None:
    """Tokens that a text backbone has learned positions for; None if it takes any number. RoBERTa and its kin begin to
    count after the padding's id, OPT at an offset."""
    names = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
    tables = [each for name, each in backbone.named_modules() if name.split(".")[-1] in names]
    tables = [each for each in tables if isinstance(each, nn.Embedding)]
    after = [-1 if each.padding_idx is None else each.padding_idx for each in tables]
    skipped = [getattr(each, "offset", before + 1) for each, before in zip(tables, after, strict=True)]
    return min((each.num_embeddings - start for each, start in zip(tables, skipped, strict=True)), default=None)


def fit_tokenizer(backbone: nn.Module, tokenizer) -> None:
    """See that a text backbone can read what a tokenizer writes: that it pads and, at the latest, cuts where it must.

    Raises:
        ValueError: if the tokenizer has more tokens than the backbone.
    """
    config, limit = backbone.config, most_tokens(backbone)
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, and the text encoder {config.model_type!r} embeds "
            f"{config.vocab_size}; expected those of one checkpoint, loaded from the same folder."
        )
    if config.model_type == "siglip_text_model":  # whose configuration does not always tell
        config.pad_token_id = tokenizer.pad_token_id


def without_pooler(config) -> dict:
    """Arguments that build a backbone without its unused pooler, where its class takes such an argument.

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


def own_image_size(backbone: nn.Module) -> tuple[int, int] | None:
    """Height and width that a backbone's position encodings are for, if it interpolates them; None if any will do."""
    size = getattr(backbone.config, "image_size", None)
    if size is None or "interpolate_pos_encoding" not in inspect.signature(backbone.forward).parameters:
        return None
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def number_of_patches(config, pixel_values: Tensor, tokens: int) -> int:
    """How many of a backbone's output tokens are patches; CLS and registers come before them."""
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


def train_unfrozen(encoder: nn.Module, mode: bool) -> nn.Module:
    """`Module.train`, but frozen parts of the backbone stay in evaluation mode: no dropout, fixed statistics.

    A part is frozen if none of its parameters is trained; with `batch_norm_frozen` every batch norm is.
    """
    nn.Module.train(encoder, mode)
    for part in encoder.backbone.modules():
        parameters = list(part.parameters())
        frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
        if frozen or (encoder.batch_norm_frozen and isinstance(part, nn.modules.batchnorm._BatchNorm)):
            part.eval()
    return encoder


def check_input(backbone: nn.Module, side: str, expected: str) -> None:
    """Check that a backbone is an encoder of that side, which reads `pixel_values`, or `input_ids` alone.

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
