import json

import pytest
import torch
from miniatures import SMALL
from runs import finish, launch, log_of, start
from safetensors.torch import load_file
from tiny import PROGRAMS, tiny_config, tiny_recipe

from omit_hf import OmitModel
from omit_hf.training import Recipe, sharding, write_recipe_file

VIT = {**SMALL, "model_type": "vit", "image_size": 32, "patch_size": 8}
BERT = {**SMALL, "model_type": "bert", "vocab_size": 30}
OPTIONS = {
    "vision_config": VIT,
    "image_processor": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
    "loss": "infonce",
    "dustbin": "learned",
    "learning_rate": 1e-3,
    "batch_size": 5,
}


def launch_sharded(folder, *more, **options) -> str:
    recipe = folder.with_suffix(".yaml")
    write_recipe_file(Recipe(**tiny_recipe(**options)), recipe)
    return finish(start([str(PROGRAMS / "train_sharded.py"), str(recipe), "--output_dir", str(folder), *more], 2))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    finish(launch(folder / "whole", processes=2, **OPTIONS))
    launch_sharded(folder / "sharded", **OPTIONS)
    return folder


def test_shards_train_as_whole_models(runs):
    losses = [[line["loss"] for line in log_of(runs / name)] for name in ("whole", "sharded")]
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [load_file(runs / name / "model.safetensors") for name in ("whole", "sharded")]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        if name.endswith("key.bias"):  # softmax takes no notice of it: it stays zero, but for rounding
            assert max(each[name].abs().max() for each in weights) <= 1e-5, name
            continue
        assert (weights[1][name] - expected).norm() <= 1e-4 * expected.norm().clamp_min(1e-2), name
    metrics = [json.loads((runs / name / "metrics.json").read_text()) for name in ("whole", "sharded")]
    assert metrics[1]["test"] == pytest.approx(metrics[0]["test"])
    assert metrics[1]["validation"] == pytest.approx(metrics[0]["validation"])


def test_shards_go_on_from_a_checkpoint(runs, tmp_path):
    launch_sharded(tmp_path / "parts", "--max_steps", "3", **OPTIONS)
    launch_sharded(tmp_path / "parts", "--resume", **OPTIONS)
    assert log_of(tmp_path / "parts") == log_of(runs / "sharded")
    whole, parts = (load_file(each / "model.safetensors") for each in (runs / "sharded", tmp_path / "parts"))
    assert all(torch.equal(parts[name], each) for name, each in whole.items())


def test_layers_are_sharded_and_placed_whole():
    model = OmitModel(tiny_config(vision_config=VIT, text_config=BERT))
    assert model._no_split_modules >= {"ViTLayer", "BertLayer"}


@pytest.mark.parametrize("fields", [{"unfreeze_epochs": [0]}, {"lora": {"side": "vision"}}])
def test_what_needs_the_whole_model_is_refused(monkeypatch, fields):
    state = type("State", (), {"fsdp_plugin": type("Plugin", (), {"fsdp_version": 2})})
    accelerator = type("Accelerator", (), {"distributed_type": sharding.DistributedType.FSDP, "state": state})
    recipe = Recipe(**tiny_recipe(**OPTIONS, **fields))
    with pytest.raises(ValueError, match=f"{next(iter(fields))} is given, and FSDP shards the parameters"):
        sharding.check_sharding(accelerator, recipe)
    sharding.check_sharding(accelerator, Recipe(**tiny_recipe(**OPTIONS)))
    state.fsdp_plugin.fsdp_version = 1
    with pytest.raises(ValueError, match="expected fsdp_version: 2"):
        sharding.check_sharding(accelerator, Recipe(**tiny_recipe(**OPTIONS)))
