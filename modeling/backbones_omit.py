"""Building and loading backbones of transformers, and what their configurations and tokenizers say about them."""

import inspect
import math
from collections.abc import Callable

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoBackbone, AutoConfig, AutoModel, AutoTokenizer, SiglipTextModel

POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")
TEXT_TOWERS = {"siglip_text_model": SiglipTextModel}  # which AutoModel does not find by their configuration


def load(from_pretrained: Callable, *args, **kwargs):
    """What a `from_pretrained` gives; whatever broken files raise becomes a `ValueError` that names their folder."""
    try:
        return from_pretrained(*args, **kwargs)
    except (OSError, ImportError, StrictDataclassError, torch.OutOfMemoryError):  # which say enough
        raise
    except Exception as error:  # of Python, torch, safetensors, tokenizers, huggingface_hub
        name = (*args, kwargs.get("pretrained_model_name_or_path"))[0]
        if name is None or torch.get_default_device().type == "meta":  # which no file is to blame for
            raise
        raise ValueError(f"{name} cannot be loaded, {type(error).__name__}: {str(error)!r:.500}") from error


def build_vision_backbone(config) -> nn.Module:
    """An untrained vision backbone: an `AutoBackbone` where the configuration asks for a stage before the last."""
    stages = getattr(config, "stage_names", None)
    if type(config) in MODEL_MAPPING and (stages is None or list(config.out_features) == [stages[-1]]):
        return AutoModel.from_config(config, **without_pooler(config))
    return AutoBackbone.from_config(config)


def pretrained_backbone(name_or_path: str, part: str, dtype: torch.dtype) -> nn.Module:
    """A pretrained backbone; of a model with several towers, such as CLIP, the one whose configuration is `part`."""
    config = load(AutoConfig.from_pretrained, name_or_path)
    config = getattr(config, part, config)
    kind = TEXT_TOWERS.get(config.model_type, AutoModel)
    options = without_pooler(config) if kind is AutoModel else {}
    return align_memory(load(kind.from_pretrained, name_or_path, config=config, dtype=dtype, **options))


def align_memory(model: nn.Module) -> nn.Module:
    """Copy unaligned weights, mapped from a file, so that a loaded model scores as the saved one did, to the bit.

    Products of unaligned tensors round differently, which transport amplifies.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()
    return model


def pretrained_tokenizer(name_or_path: str):
    """The tokenizer beside a text model; `OSError` if there is none, where `AutoTokenizer` may make up an empty one."""
    tokenizer = load(AutoTokenizer.from_pretrained, name_or_path)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise OSError(f"There is no tokenizer beside the text model {name_or_path}; save its tokenizer there.")
    return tokenizer


def text_settings(tokenizer) -> dict:
    """The fields of an [`OmitConfig`] that follow from a tokenizer: `special_token_ids` and `text_pooling`.

    Special are the tokens that it adds to a text or pads with; an unknown word is a word. Pooling is `cls` where it has
    a CLS token, else `last` where it has an EOS token, else `mean`.
    """
    names = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    ids = {getattr(tokenizer, name) for name in names} - {None}
    pooling = "cls" if tokenizer.cls_token_id in ids else "last" if tokenizer.eos_token_id in ids else "mean"
    return {"special_token_ids": sorted(ids), "text_pooling": pooling}


def most_tokens(backbone: nn.Module) -> int | None:
    """Tokens that a text backbone has learned positions for; None if it takes any number."""
    limits = []
    for name, table in backbone.named_modules():
        if name.split(".")[-1] in POSITION_TABLES and isinstance(table, nn.Embedding):
            start = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from there
            limits.append(table.num_embeddings - getattr(table, "offset", start))  # and OPT from an offset
    return min(limits, default=None)


def fit_tokenizer(backbone: nn.Module, tokenizer) -> None:
    """Let a backbone pad as a tokenizer does, which then cuts where the backbone's positions end.

    `ValueError` if the backbone has not an embedding for every token.
    """
    config, limit = backbone.config, most_tokens(backbone)
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    if len(tokenizer) > config.vocab_size:
        found = f"The tokenizer has {len(tokenizer)} tokens, and the text encoder {config.model_type!r} embeds "
        raise ValueError(f"{found}{config.vocab_size}; expected those of one checkpoint, loaded from the same folder.")
    if config.model_type == "siglip_text_model":  # whose configuration does not always tell
        config.pad_token_id = tokenizer.pad_token_id


def without_pooler(config) -> dict:
    """Arguments that build a backbone without its unused pooler, whose lack of gradient breaks distributed training."""
    if type(config) not in MODEL_MAPPING:
        found = f"AutoModel has no model for a configuration of type {config.model_type!r}"
        raise ValueError(f"{found}; choose another backbone.")
    accepted = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in accepted else {}


def backbone_width(backbone: nn.Module) -> int:
    """Width of a vision backbone's last states."""
    if hasattr(backbone, "channels"):
        return backbone.channels[-1]
    # In this order: MobileViT has hidden_sizes as well as the neck after them.
    for name in ("hidden_size", "neck_hidden_sizes", "hidden_sizes", "hidden_dim", "last_hidden_size"):
        if (width := getattr(backbone.config, name, None)) is not None:
            return width if isinstance(width, int) else width[-1]
    found = f"The configuration of {type(backbone).__name__} does not tell the width of its last states"
    raise ValueError(f"{found}; expected hidden_size or the like. Set vision_config.hidden_size to that width.")


def cell_grid(config, pixels: tuple[int, int], states: Tensor) -> tuple[int, int]:
    """Rows and columns of the cells that a vision backbone makes of an image of `pixels`, height and width.

    Its last states are [B, width, rows, columns], or a list [B, n, width] of CLS and registers, if any, and the cells.
    """
    if states.ndim == 4:
        return tuple(states.shape[-2:])
    num_states = states.shape[1]
    if hasattr(config, "depths"):  # hierarchical transformers (Swin and its kin) have no CLS, and squarish cells
        divisors = [n for n in range(1, num_states + 1) if num_states % n == 0]
        rows = min(divisors, key=lambda n: abs(math.log(n * n * pixels[1] / (num_states * pixels[0]))))
        return rows, num_states // rows
    sizes = config.patch_size if isinstance(config.patch_size, list | tuple) else (config.patch_size,) * 2
    rows, columns = (side // size for side, size in zip(pixels, sizes, strict=True))
    if not 0 < rows * columns <= num_states:
        found = f"{config.model_type} gave {num_states} tokens for an image of {tuple(pixels)} pixels"
        raise ValueError(f"{found}; expected at least {rows * columns}, one for each {sizes[0]} x {sizes[1]} patch.")
    return rows, columns


class BackboneEncoder(nn.Module):
    """An encoder in whose training frozen parts of the backbone stay in evaluation mode: no dropout, fixed statistics.

    A part is frozen if none of its parameters is trained; with `batch_norm_frozen` every batch norm is.
    """

    batch_norm_frozen = False

    def train(self, mode: bool = True):
        super().train(mode)
        for part in self.backbone.modules():
            parameters = list(part.parameters())
            frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
            if frozen or (self.batch_norm_frozen and isinstance(part, nn.modules.batchnorm._BatchNorm)):
                part.eval()
        return self


def check_input(backbone: nn.Module, side: str, expected: str) -> None:
    """Raise `ValueError` unless a backbone is an encoder of that side, which reads the expected input."""
    found, reads = f"The {side} backbone is a {backbone.config.model_type!r} model", backbone.main_input_name
    if reads != expected:
        raise ValueError(f"{found}, which reads {reads}; expected a {side} encoder, which reads {expected}.")
    if side == "text" and backbone.config.is_encoder_decoder:
        raise ValueError(f"{found}, an encoder and a decoder; expected an encoder, such as BERT.")
