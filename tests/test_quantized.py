"""A model that torchao quantised loads again; the test with torchao itself runs where it is installed."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config

from omit_hf import OmitModel
from omit_hf.export import save_quantized

VIT = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
NAMES = ["logit_scale", "vision_encoder.projection.weight", "größe.weight"]


class Saving(SimpleNamespace):
    """Writes what torchao's quantizer makes `save_pretrained` write: every name in the metadata."""

    def save_pretrained(self, folder):
        folder.mkdir()
        metadata = {name: json.dumps({"_type": "Tensor"}) for name in NAMES}
        metadata["tensor_names"] = json.dumps(NAMES)
        save_file({name: torch.rand(3) for name in NAMES}, folder / "model.safetensors", metadata)
        self.before = load_file(folder / "model.safetensors")
        save_file({"a.b": torch.ones(2)}, folder / "other.safetensors")  # without metadata


def test_names_without_a_dot_leave_the_list_and_nothing_else_changes(tmp_path):
    model = Saving(config=SimpleNamespace(quantization_config=SimpleNamespace(quant_method="torchao")))
    save_quantized(model, tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata.pop("tensor_names")) == NAMES[1:]
    assert metadata == {name: json.dumps({"_type": "Tensor"}) for name in NAMES}
    after = load_file(file)
    assert after.keys() == model.before.keys()
    assert all(torch.equal(after[name], model.before[name]) for name in after)


@pytest.mark.parametrize(
    ("config", "found"),
    [({}, "not quantised"), ({"quantization_config": SimpleNamespace(quant_method="bitsandbytes")}, "with bitsandby")],
)
def test_another_model_is_refused(config, found, tmp_path):
    with pytest.raises(ValueError, match=f"The model is .*{found}.*; expected from_pretrained"):
        save_quantized(Saving(config=SimpleNamespace(**config)), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_quantised_model_loads_again(tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    text = {"model_type": "bert", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 64}
    OmitModel(tiny_config(vision_config=VIT, text_config=text)).save_pretrained(tmp_path / "whole")
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = OmitModel.from_pretrained(tmp_path / "whole", quantization_config=config).eval()
    save_quantized(model, tmp_path / "saved")
    found = OmitModel.from_pretrained(tmp_path / "saved").eval()
    assert type(found.vision_encoder.projection.weight).__name__ == "Int8Tensor"
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "input_ids": torch.randint(1, 30, (3, 5))}
    with torch.no_grad():
        assert torch.equal(found(**inputs).logits_per_image, model(**inputs).logits_per_image)
