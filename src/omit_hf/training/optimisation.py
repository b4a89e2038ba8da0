"""Chooses the parameters to optimise, and their learning rates."""

import logging
from collections import defaultdict

import torch
from torch import nn

from omit_hf.training.recipe import Recipe

logger = logging.getLogger(__name__)


def freeze_unreached(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    """Freeze the parameters that the loss does not reach, such as a backbone's pooler.

    Distributed training would wait for their gradients forever, and weight decay would shrink them.

    Returns:
        Their names.
    """
    training = model.training
    model.eval()  # so that nothing random is drawn and no batch-norm statistic moves
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    loss = model(**batch, return_loss=True, negatives="all").loss
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    model.train(training)
    unreached = [(name, each) for (name, each), gradient in zip(named, gradients, strict=True) if gradient is None]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    names = [name for name, _ in unreached]
    if names:
        logger.info("The loss does not reach %d parameters, now frozen: %s", len(names), ", ".join(names))
    return names


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Group the trained parameters for AdamW: by learning rate factor, and with or without weight decay."""
    factors = {"vision_encoder.backbone": recipe.vision_lr_factor, "text_encoder.backbone": recipe.text_lr_factor}
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((factors[part] for part in factors if name.startswith(part)), 1.0)
            groups[factor, parameter.ndim > 1].append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": recipe.learning_rate * factor,
            "lr": recipe.learning_rate * factor,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]


def backbone_stages(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """List the trained parameters of a backbone by stage, from the first to the last.

    The stages are the entries of its largest `ModuleList`: the stages of a ResNet or Swin, the layers of a ViT.
    Parameters before them, such as patch embeddings, are a stage of their own; parameters after them, such as a norm,
    belong to the last stage.
    """
    lists = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(backbone).__name__} has no list of stages; leave out unfreeze_epochs.")
    path, stages = max(lists, key=lambda found: sum(each.numel() for each in found[1].parameters()))
    before, after, inside = [], [], [[] for _ in stages]
    for name, parameter in backbone.named_parameters():
        if name.startswith(f"{path}."):
            inside[int(name.removeprefix(f"{path}.").split(".")[0])].append(parameter)
        else:
            (after if any(inside) else before).append(parameter)
    inside[-1] += after
    return [[each for each in stage if each.requires_grad] for stage in (before, *inside)]


def unfreezing(model: nn.Module, recipe: Recipe) -> list[tuple[int, list[nn.Parameter]]]:
    """List the stages of the vision backbone that the recipe unfreezes, with their epochs; others stay frozen.

    Raises:
        ValueError: if the recipe names more stages than there are.
    """
    if not recipe.unfreeze_epochs:
        return []
    backbone = model.vision_encoder.backbone
    stages = backbone_stages(backbone)
    if len(recipe.unfreeze_epochs) > len(stages):
        raise ValueError(
            f"unfreeze_epochs has {len(recipe.unfreeze_epochs)} stages, {recipe.unfreeze_epochs}; "
            f"{type(backbone).__name__} has {len(stages)}, the embeddings among them."
        )
    stages.reverse()
    for stage in stages[len(recipe.unfreeze_epochs) :]:
        for parameter in stage:
            parameter.requires_grad_(False)
    return list(zip(recipe.unfreeze_epochs, stages, strict=False))


def unfreeze(stages: list[tuple[int, list[nn.Parameter]]], epoch: int) -> bool:
    """Unfreeze the stages whose epoch has come, and freeze the others; tell whether that is a change."""
    changed = False
    for start, parameters in stages:
        for parameter in parameters:
            changed |= parameter.requires_grad != (epoch >= start)
            parameter.requires_grad_(epoch >= start)
    return changed


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, epoch: int) -> float:
    """Set the learning rate: linear warm-up over the first steps, and a decay at every epoch of `decay_epochs`.

    It depends on step and epoch alone, so there is nothing to save and restore.

    Args:
        step: steps made so far.
        epoch: epoch of this step, from 0.

    Returns:
        The learning rate of a group with factor 1.
    """
    factor = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    factor *= recipe.decay_factor ** sum(epoch >= decay for decay in recipe.decay_epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return recipe.learning_rate * factor
