"""Saves a model that torchao quantised so that it loads again."""

import json
from pathlib import Path

from safetensors import safe_open

HEADER_SIZE = 8  # bytes that hold the length of a safetensors header


def save_quantized(model, folder: str | Path) -> None:
    """Save a model that was quantised with torchao, for `from_pretrained` and `trust_remote_code=True`.

    `save_pretrained` lists all parameters in the files' metadata, and torchao (0.18) splits each name at a dot when it
    loads them. `logit_scale` has none, so it fails with "not enough values to unpack". Such parameters are never
    quantised, and torchao needs no list of what is not: they are left out of it.

    Args:
        model: `OmitModel`, loaded with `quantization_config=TorchAoConfig(…)`.
        folder: made if it is not there. Publish it with `huggingface_hub.upload_folder`: `model.push_to_hub` would save
            the model anew.

    Raises:
        ValueError: for a model that was not quantised with torchao.
    """
    found = getattr(getattr(model.config, "quantization_config", None), "quant_method", None)
    if found != "torchao":
        kind = "not quantised" if found is None else f"quantised with {getattr(found, 'value', found)}"
        raise ValueError(f"The model is {kind}; expected from_pretrained(…, quantization_config=TorchAoConfig(…)).")
    model.save_pretrained(folder)
    for file in sorted(Path(folder).glob("*.safetensors")):
        _list_dotted_names(file)


def _list_dotted_names(file: Path) -> None:
    """Rewrite the metadata in place. They get shorter, and spaces keep the header's length."""
    with safe_open(file, "pt") as opened:
        names = json.loads((opened.metadata() or {}).get("tensor_names", "[]"))
    dotted = [name for name in names if "." in name]
    if dotted == names:
        return
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(HEADER_SIZE), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"]["tensor_names"] = json.dumps(dotted)
        stream.seek(HEADER_SIZE)
        stream.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))
