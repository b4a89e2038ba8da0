"""Digests of models and processors: equal where they give the same features."""

import hashlib
import json

import torch

# Fields that saving sets, or that change no feature.
PASSING = ("architectures", "auto_map", "backend", "dtype", "processor_class", "torch_dtype", "transformers_version")


def model_digest(module: torch.nn.Module, parts: list, content: str = "") -> str:
    """A digest of a module's weights and configuration, of image processors and tokenizers, and of a text.

    Args:
        module: with a `config`.
        parts: image processors and tokenizers; None are none.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps(_lasting(module.config.to_dict()), sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for part in parts:
        if hasattr(part, "backend_tokenizer"):
            words = json.loads(part.backend_tokenizer.to_str())
            of_last_call = ("truncation", "padding")
            words = {name: value for name, value in words.items() if name not in of_last_call}
            digest.update(json.dumps(words, sort_keys=True).encode())
            digest.update(str((part.model_max_length, part.padding_side, part.truncation_side)).encode())
        elif part is not None:
            digest.update(json.dumps(_lasting(json.loads(part.to_json_string())), sort_keys=True).encode())
    digest.update(content.encode())
    return digest.hexdigest()[:32]


def _lasting(value):
    """A configuration without what tells how and where it was saved."""
    if not isinstance(value, dict):
        return value
    named = {str(name): each for name, each in value.items()}
    return {name: _lasting(each) for name, each in named.items() if name[:1] != "_" and name not in PASSING}
