import miniatures
import pytest
import torch
from tiny import TEXT, VISION, tiny_config, tiny_recipe
from torch import nn

from omit_hf import OmitModel
from omit_hf.training import Recipe
from omit_hf.training.optimisation import (
    backbone_stages,
    freeze_unreached,
    parameter_groups,
    set_learning_rate,
    unfreeze,
    unfreezing,
)


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


@pytest.mark.parametrize("kind", miniatures.VISION)
def test_stages_of_every_backbone(kind):
    """From the patch embeddings to the last stage, which takes the norms after it; every parameter is in one."""
    backbone = OmitModel(
        tiny_config(vision_config={"model_type": kind, **miniatures.VISION[kind]})
    ).vision_encoder.backbone
    names = {id(each): name for name, each in backbone.named_parameters()}
    stages = [[names[id(each)] for each in stage] for stage in backbone_stages(backbone)]
    assert sorted(name for stage in stages for name in stage) == sorted(names.values())
    assert len(stages) == 3
    assert all("embed" in name or name.startswith("pre_") for name in stages[0])
    for number, stage in enumerate(stages[1:]):
        assert any(f".{number}." in name for name in stage)
        assert not any("embeddings." in name for name in stage)


def test_stages_unfreeze_from_the_last_to_the_first(model):
    backbone = model.vision_encoder.backbone
    backbone.layernorm.requires_grad_(False)  # as freeze_unreached leaves it
    stages = unfreezing(model, recipe(unfreeze_epochs=[1, 3]))

    def trained():
        parts = {"embeddings": backbone.embeddings, "0": backbone.encoder.stages[0], "1": backbone.encoder.stages[1]}
        return {name for name, part in parts.items() if all(each.requires_grad for each in part.parameters())}

    assert trained() == {"0", "1"}  # the embeddings are frozen for good
    seen = [(unfreeze(stages, epoch), trained()) for epoch in range(5)]
    assert seen == [(True, set()), (True, {"1"}), (False, {"1"}), (True, {"0", "1"}), (False, {"0", "1"})]
    assert not any(each.requires_grad for each in (*backbone.embeddings.parameters(), *backbone.layernorm.parameters()))


def test_stages_that_are_not_there(model):
    with pytest.raises(ValueError, match=r"unfreeze_epochs has 4 stages, \[1, 2, 3, 4\]; ConvNextModel has 3"):
        unfreezing(model, recipe(unfreeze_epochs=[1, 2, 3, 4]))
    with pytest.raises(ValueError, match="Linear has no list of stages; leave out unfreeze_epochs"):
        backbone_stages(nn.Linear(2, 2))


def test_what_is_frozen_does_not_move():
    """A frozen stage of a backbone in training keeps its statistics and draws no dropout."""
    config = tiny_config(vision_config={"model_type": "resnet", **miniatures.VISION["resnet"]})
    model = OmitModel(config)
    encoder = model.vision_encoder
    stages = unfreezing(model, recipe(unfreeze_epochs=[0]))
    unfreeze(stages, 0)
    model.train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    model.get_image_features(torch.rand(4, 3, 64, 64))
    moved = {name for name, value in encoder.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("encoder.stages.1.") for name in moved)

    encoder.batch_norm_frozen = True
    model.train()
    before = {name: value.clone() for name, value in encoder.backbone.state_dict().items()}
    model.get_image_features(torch.rand(4, 3, 64, 64)).pooled.sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.backbone.state_dict().items())
    norms = [part for part in encoder.backbone.encoder.stages[1].modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(part.weight.grad is not None for part in norms)  # it is the statistics that are frozen


def test_warm_up_and_step_decay():
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "peak_lr": 0.5}, {"params": [nn.Parameter(torch.zeros(1))], "peak_lr": 0.05}]
    optimizer = torch.optim.AdamW(groups)
    options = recipe(learning_rate=0.5, warmup_steps=4, decay_epochs=[2, 3], decay_factor=0.1)
    rates = [set_learning_rate(optimizer, options, step, step // 3) for step in range(12)]
    expected = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005, 0.005]
    assert rates == pytest.approx(expected)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0005])
