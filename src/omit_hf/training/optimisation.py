"""What is optimised, and how fast."""

import logging
from collections import defaultdict

import torch
from torch import nn

from omit_hf.training.recipe import Recipe

logger = logging.getLogger(__name__)


def freeze_unreached(model: nn.Module, batch: dict[str, torch.Tensor]) -> list[str]:
    """Freeze the parameters that the loss does not reach, such as a backbone's pooler.

    Distributed training would wait for their gradients forever, and weight decay would wear them down.

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
    """Groups of trained parameters for AdamW: by learning rate factor, and with or without weight decay."""
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


def set_learning_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, epoch: int) -> float:
    """Linear warm-up over the first steps, a lower rate from each of `decay_epochs` on. A function of step and epoch
    alone, so that there is nothing to save and restore.

    Args:
        step: steps made so far.
        epoch: the epoch of this step, from 0.

    Returns:
        The learning rate of a group with factor 1.
    """
    factor = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    factor *= recipe.decay_factor ** sum(epoch >= decay for decay in recipe.decay_epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return recipe.learning_rate * factor
