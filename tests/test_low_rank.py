import json
import sys

import pytest
import torch
from miniatures import save_clip
from runs import contents, log_of, run
from safetensors.torch import load_file
from tiny import CODE, REGIONS, tiny_config, tiny_recipe

from omit_hf import OmitModel
from omit_hf.training import Recipe
from omit_hf.training.low_rank import LowRank, add_adapters, merge_adapters

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
VIT = {**SMALL, "model_type": "vit", "image_size": 32, "patch_size": 8}
BERT = {**SMALL, "model_type": "bert", "vocab_size": 30}
PICTURES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


def model_of(**options) -> OmitModel:
    torch.manual_seed(0)
    return OmitModel(tiny_config(vision_config=VIT, text_config=BERT, **options)).eval()


def inputs() -> dict:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(3, 3, 32, 32), "input_ids": torch.randint(1, 30, (3, 5))}


def adapted(**lora) -> OmitModel:
    model = model_of()
    add_adapters(model, LowRank.of(lora))
    return model


def shake(model) -> OmitModel:
    """Give the adapters something to say."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_adapters_begin_without_effect_and_alone_are_trained():
    plain, model = model_of(), adapted(r=4)
    with torch.no_grad():
        assert torch.equal(model(**inputs()).similarity, plain(**inputs()).similarity)
    for name, parameter in model.named_parameters():
        trained = "lora_" in name if ".backbone." in name else name != "logit_scale"  # which the triplet loss lacks
        assert parameter.requires_grad == trained, name
    ranks = {parameter.shape[0] for name, parameter in model.named_parameters() if "lora_A" in name}
    assert ranks == {4}


@pytest.mark.parametrize(("side", "other"), [("vision", "text_encoder"), ("text", "vision_encoder")])
def test_one_side_alone(side, other):
    model = adapted(side=side)
    assert any("lora_A" in name for name, _ in model.named_parameters())
    assert not any("lora_A" in name for name, _ in model.get_submodule(other).named_parameters())
    assert all(parameter.requires_grad for parameter in model.get_submodule(other).parameters())


def test_some_layers_alone():
    model = adapted(target_modules=["q_proj", "query", "attention.output.dense"])
    names = [name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name]
    assert {name.split(".")[-1] for name in names} == {"q_proj", "query", "dense"}
    assert sum(name.endswith("attention.output.dense") for name in names) == 2
    assert len(names) == 6  # two layers a side


def test_the_merged_model_scores_the_same_and_needs_no_peft(tmp_path):
    model = shake(adapted(r=2, alpha=3, dropout=0.5))
    merged = merge_adapters(model)
    plain = model_of()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        expected = model(**inputs()).similarity
        assert (expected - plain(**inputs()).similarity).abs().max() > 1e-3
        torch.testing.assert_close(merged(**inputs()).similarity, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(**inputs()).similarity, expected)  # which keeps its adapters
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            OmitModel.from_pretrained(tmp_path)(**inputs()).similarity, expected, atol=1e-5, rtol=1e-5
        )
    assert merge_adapters(plain) is plain


def test_alpha_over_r_scales_what_adapters_add():
    """By hand, for one layer: W + alpha / r · B A."""
    model = shake(adapted(side="text", r=2, alpha=5))
    layer = model.text_encoder.backbone.encoder.layer[1].attention.self.query
    expected = layer.base_layer.weight + 2.5 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge_adapters(model).text_encoder.backbone.encoder.layer[1].attention.self.query
    torch.testing.assert_close(merged.weight, expected)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, "lora has the unknown field 'rank'; expected some of alpha, dropout, r, side"),
        ({"side": "image"}, "lora has side 'image'; expected vision, text or both"),
        ({"r": 0}, "lora has r 0; expected a whole number from 1"),
        ({"r": True}, "lora has r True; expected a whole number"),
        ({"alpha": 0}, "lora has alpha 0; expected a number greater than 0"),
        ({"alpha": float("nan")}, "lora has alpha nan; expected a number greater than 0"),
        ({"target_modules": []}, r"lora has target_modules \[\]; expected a list of names"),
        ({"target_modules": "query"}, "expected a list of names"),
        ({"dropout": 1}, "lora has dropout 1; expected a share from 0 to below 1"),
    ],
)
def test_wrong_values(lora, message):
    with pytest.raises(ValueError, match=message):
        LowRank.of(lora)


def test_layers_that_are_not_there():
    with pytest.raises(ValueError, match=r"no linear layer of text_encoder.backbone is called so.*dense, .*query"):
        adapted(target_modules=["q_proj"])
    with pytest.raises(ValueError, match="vision_encoder, which has no backbone; expected side: text"):
        add_adapters(OmitModel(tiny_config(vision_config=REGIONS)), LowRank.of({}))


def test_without_peft(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'omit-hf\[lora\]'"):
        adapted()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": {"side": "both"}}, "expected 'vision', since an omit_bigru"),
        ({"lora": {"side": "vision"}, "freeze_vision": True}, "freeze_vision and lora with side 'vision' are given"),
        ({"lora": {"side": "vision"}, "unfreeze_epochs": [0]}, "unfreeze_epochs and lora"),
        (
            {"lora": {"side": "vision"}, "vision_config": REGIONS, "image_processor": None},
            "omit_region has no backbone",
        ),
        ({"lora": {"side": "vision"}, "cache_states": True}, "no backbone is frozen"),
    ],
)
def test_a_recipe_that_contradicts_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**tiny_recipe(**fields))


LORA = {"side": "vision", "r": 2, "dropout": 0.2}
RECIPE = {"vision_config": VIT, "image_processor": PICTURES, "lora": LORA}


def test_a_run_leaves_a_whole_model(tmp_path):
    metrics = run(tmp_path / "run", **RECIPE)
    model = OmitModel.from_pretrained(tmp_path / "run")
    assert not any("lora" in name for name in model.state_dict())
    assert metrics["trained_parameters"] < metrics["parameters"]
    saved = {file.name for file in (tmp_path / "run").iterdir()}
    assert saved >= CODE | {"config.json", "model.safetensors", "metrics.json"}
    assert "adapter_config.json" not in saved
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["recipe"]["lora"] == LORA


def test_a_run_goes_on_to_the_same_weights(tmp_path):
    run(tmp_path / "whole", **RECIPE)
    run(tmp_path / "parts", max_steps=3, **RECIPE)
    run(tmp_path / "parts", resume=True, **RECIPE)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], each) for name, each in whole.items())
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_a_clip_with_adapters_on_both_sides(tmp_path):
    clip = {"clip_model": str(save_clip("clip", tmp_path / "clip")), "projection_dim": 24}
    sides = {"vision_config": None, "text_config": None, "image_processor": None}
    run(tmp_path / "run", **sides, **clip, lora={"r": 2, "target_modules": ["q_proj", "v_proj"]}, num_epochs=1)
    before = load_file(tmp_path / "clip" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    for side, ours in (("vision_model", "vision_encoder"), ("text_model", "text_encoder")):
        layers = [name for name in before if name.startswith(f"{side}.encoder.layers") and name.endswith("weight")]
        for name in layers:
            same = torch.equal(before[name], after[name.replace(side, f"{ours}.backbone", 1)])
            assert same == (not name.endswith(("q_proj.weight", "v_proj.weight"))), name
    assert contents(tmp_path / "run")
    assert "peft" in sys.modules
