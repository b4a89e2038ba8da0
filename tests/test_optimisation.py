import pytest
import torch
from tiny import TEXT, VISION, tiny_recipe
from torch import nn

from omit_hf.training import Recipe
from omit_hf.training.optimisation import freeze_unreached, parameter_groups, set_learning_rate


def recipe(**options) -> Recipe:
    return Recipe(**tiny_recipe(vision_config=VISION, text_config=TEXT, **options))


def test_what_the_loss_does_not_reach_is_frozen(model, inputs):
    model.text_encoder.backbone.pooler = nn.Linear(4, 4)
    model.train()
    unreached = freeze_unreached(model, {**inputs, "pixel_values": inputs["pixel_values"][:2]})
    assert {"text_encoder.backbone.pooler.weight", "text_encoder.backbone.pooler.bias"} <= set(unreached)
    assert not any(dict(model.named_parameters())[name].requires_grad for name in unreached)
    assert not model.text_encoder.backbone.pooler.weight.requires_grad
    assert model.text_encoder.backbone.gru.weight_hh_l0.requires_grad
    assert model.training


def test_every_trained_parameter_is_in_one_group(model):
    model.vision_encoder.projection.bias.requires_grad_(False)
    groups = parameter_groups(model, recipe(vision_lr_factor=0.1, text_lr_factor=0.5, learning_rate=0.01))
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(each) for each in model.parameters() if each.requires_grad)
    rates = {id(each): (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}
    backbone = model.text_encoder.backbone
    assert rates[id(backbone.gru.weight_hh_l0)] == (pytest.approx(0.005), 1e-4)
    assert rates[id(backbone.gru.bias_hh_l0)] == (pytest.approx(0.005), 0.0)
    assert rates[id(model.vision_encoder.projection.weight)] == (0.01, 1e-4)
    assert all(rates[id(each)][0] == pytest.approx(0.001) for each in model.vision_encoder.backbone.parameters())


def test_warm_up_and_step_decay():
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "peak_lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))], "peak_lr": 0.05}]
    optimizer = torch.optim.AdamW(groups)
    options = recipe(learning_rate=0.5, warmup_steps=4, decay_epochs=[2, 3], decay_factor=0.1)
    rates = [set_learning_rate(optimizer, options, step, step // 3) for step in range(12)]
    expected = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005, 0.005]
    assert rates == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0005])
