"""Trainer of transformers loads all weights of its checkpoints with our callback, and loses some without it."""

from pathlib import Path

import pytest
import torch
from miniatures import save_text, save_vision
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from omit_hf import OmitModel
from omit_hf.training import TrainerGuard
from omit_hf.training.trainer_guard import guard_loading

NAMED_OTHERWISE = 32  # of the 80 weights of a ViT with a BERT, in transformers 5.23


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return save_vision("vit", folder / "vit"), save_text("bert", folder / "bert")


@pytest.fixture
def new_model(backbones):
    def new():
        torch.manual_seed(0)
        model = OmitModel.from_vision_text_pretrained(*map(str, backbones), projection_dim=16)
        with torch.no_grad():
            for parameter in model.parameters():  # biases too, which begin with zeros in all models
                parameter += 0.01 * torch.randn_like(parameter)
        return model

    return new


def collate(numbers):
    generator = torch.Generator().manual_seed(sum(numbers))
    pixels = torch.randn(len(numbers), 3, 32, 32, generator=generator)
    words = torch.randint(6, 30, (len(numbers), 5), generator=generator)
    return {"pixel_values": pixels, "input_ids": words, "return_loss": True}


def trainer_of(folder, model=None, guarded=True, **options):
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",  # or it would end with the first part
        save_steps=2,
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        **{"max_steps": 4, **options},
    )
    data = {"train_dataset": list(range(16)), "eval_dataset": list(range(4)), "data_collator": collate}
    callbacks = [TrainerGuard()] if guarded else []
    made = {"model_init": model} if not isinstance(model, OmitModel) else {"model": model}
    return Trainer(**made, args=arguments, callbacks=callbacks, **data)


def as_saved(checkpoint) -> dict:
    return OmitModel.from_pretrained(checkpoint).state_dict()


def equal(weights: dict, others: dict) -> int:
    assert weights.keys() == others.keys()
    return sum(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_best_model_comes_back_whole(guarded, new_model, tmp_path, caplog):
    """It is not the last one. Without the callback this shows what transformers loses."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "greater_is_better": False}
    trainer = trainer_of(tmp_path, new_model(), guarded, metric_for_best_model="loss", **options)
    trainer.train()
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-2"
    best, found = as_saved(tmp_path / "checkpoint-2"), trainer.model.state_dict()
    assert len(best) - equal(best, found) == (0 if guarded else NAMED_OTHERWISE)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(guarded, new_model, tmp_path):
    whole = trainer_of(tmp_path / "whole", new_model())
    whole.train()
    trainer_of(tmp_path / "parts", new_model(), max_steps=2).train()
    resumed = trainer_of(tmp_path / "parts", new_model(), guarded)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    same = equal(whole.model.state_dict(), resumed.model.state_dict())
    assert (same == len(whole.model.state_dict())) == guarded


def test_weights_that_a_checkpoint_lacks_are_refused(new_model, tmp_path):
    model = new_model()
    model.save_pretrained(tmp_path)
    guard_loading(model)
    for name in ("vision_encoder.backbone.encoder.layer.0.layernorm_after.bias", "text_encoder.projection.weight"):
        weights = load_file(tmp_path / "model.safetensors")
        del weights[name]
        with pytest.raises(ValueError, match="1 parameters of the model are not those of the checkpoint"):
            model.load_state_dict(weights, strict=False)


def test_what_has_the_names_of_the_model_is_loaded_as_it_is(new_model, monkeypatch):
    model, weights = new_model(), new_model().state_dict()
    guard_loading(model)
    monkeypatch.setattr(OmitModel, "from_pretrained", None)
    model.load_state_dict({name: weight + 1 for name, weight in weights.items()})
    assert equal(model.state_dict(), {name: weight + 1 for name, weight in weights.items()}) == len(weights)


def test_the_configuration_of_the_model_stays(new_model, tmp_path):
    model = new_model().eval()
    model.fragment_boxes(32, 32)
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    guard_loading(model)
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert model.config.fragment_boxes == before["fragment_boxes"] is not None


def test_a_model_is_guarded_once(new_model):
    model = new_model()
    assert guard_loading(model)
    assert not guard_loading(model)
    assert not guard_loading(torch.nn.Linear(1, 1))


def test_a_model_that_is_made_too_late_is_refused(new_model, tmp_path):
    trainer_of(tmp_path, new_model, max_steps=2).train()
    with pytest.raises(RuntimeError, match=r"resumed at step 2 with a model that model_init made after the Trainer"):
        trainer_of(tmp_path, new_model).train(resume_from_checkpoint=True)
