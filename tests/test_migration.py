"""Checkpoints of earlier versions, whose logit_scale is a scalar; made here from today's."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_recipe
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from omit_hf import OmitConfig, OmitModel
from omit_hf.modeling.configuration_omit import BiGRUConfig, RegionEncoderConfig
from omit_hf.training import Recipe, train


def make_scalar(file):
    tensors = load_file(file)
    save_file({**tensors, "logit_scale": tensors["logit_scale"].reshape(())}, file, metadata={"format": "pt"})


@pytest.fixture
def new(tmp_path):
    torch.manual_seed(0)
    OmitModel(tiny_config(loss="infonce", logit_scale_init_value=2.5)).save_pretrained(tmp_path / "new")
    return tmp_path / "new"


@pytest.fixture
def old(new):
    shutil.copytree(new, new.with_name("old"))
    make_scalar(new.with_name("old") / "model.safetensors")
    return new.with_name("old")


def test_an_old_checkpoint_loads_and_is_saved_as_a_new_one(old, new):
    model, info = OmitModel.from_pretrained(old, output_loading_info=True)
    assert not any(info.values())
    assert (model.logit_scale.shape, model.logit_scale.item()) == ((1,), 2.5)
    assert model.logit_scale.requires_grad
    model.save_pretrained(old.with_name("again"))
    saved, expected = (load_file(folder / "model.safetensors") for folder in (old.with_name("again"), new))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert AutoModel.from_pretrained(old).logit_scale.shape == (1,)


def test_the_code_that_an_old_checkpoint_brings_keeps_its_scalar(old, new):
    """And loads a new checkpoint too; of two versions in one process."""
    code = old / "modeling_omit.py"
    now = code.read_text()
    code.write_text(now.replace("torch.empty(1)", "torch.empty(())"))
    assert code.read_text() != now
    model_class = get_class_from_dynamic_module("modeling_omit.OmitModel", str(old))
    for folder in (old, new):
        assert model_class.from_pretrained(folder).logit_scale.shape == ()
    for own in (BiGRUConfig, RegionEncoderConfig):  # those of the package stay, for the models that it loads afterwards
        assert type(AutoConfig.for_model(own.model_type)) is own
    assert type(OmitModel.from_pretrained(new).config.text_config) is BiGRUConfig


def test_a_scale_of_several_numbers_is_still_refused(new):
    tensors = load_file(new / "model.safetensors")
    save_file({**tensors, "logit_scale": torch.ones(2)}, new / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"logit_scale has shape \[2\]; expected \[1\]"):
        OmitModel.from_pretrained(new)


def test_a_run_that_an_old_version_began_goes_on_to_the_same_weights(tmp_path, own_cache):
    def run(name, **options):
        return train(Recipe(**tiny_recipe(output_dir=str(tmp_path / name), loss="infonce", **options)))

    run("whole")
    run("old", max_steps=4)
    [checkpoint] = sorted((tmp_path / "old" / "checkpoints").glob("step-*"))[-1:]
    for file in (tmp_path / "old").rglob("model.safetensors"):
        make_scalar(file)
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    scalars = [state for state in optimizer["state"].values() if state["exp_avg"].shape == (1,)]
    assert scalars
    for state in scalars:
        state |= {name: state[name].reshape(()) for name in ("exp_avg", "exp_avg_sq")}
    torch.save(optimizer, checkpoint / "optimizer.bin")
    run("old", resume=True)
    last = "checkpoints/step-00000008/model.safetensors"
    resumed, expected = (load_file(tmp_path / name / last) for name in ("old", "whole"))
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert resumed["logit_scale"] != resumed["logit_scale"].new_tensor(OmitConfig().logit_scale_init_value)  # it moved
    tests = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("old", "whole")]
    assert tests[0] == tests[1]


def test_sharded_training_takes_the_model(new, tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = OmitModel.from_pretrained(new)
        inputs = {"pixel_values": torch.rand(2, 3, 32, 32), "input_ids": torch.tensor([[2, 3, 4], [5, 6, 7]])}
        expected = model(**inputs, return_loss=True).loss
        fully_shard(model)
        loss = model(**inputs, return_loss=True).loss
        loss.backward()
        torch.testing.assert_close(loss, expected)
        assert model.logit_scale.grad.full_tensor().abs() > 0
    finally:
        destroy_process_group()
