"""Keeps the losses of steps on their device until they are logged: reading a loss stalls a GPU until it is known."""

import torch
from accelerate import Accelerator
from torch import Tensor


class StepLosses:
    """The losses of the steps since the last reading.

    Args:
        accelerator: whose processes all add as many, and read together.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.batches: list[Tensor] = []  # of the step that has begun
        self.means: list[Tensor] = []
        self.steps: list[dict] = []

    def add_batch(self, loss: Tensor) -> None:
        self.batches.append(loss.detach())

    def end_step(self, **values) -> None:
        """End a step of one or more batches; `values`, with its number as `step`, go with its loss."""
        self.means.append(torch.stack(self.batches).mean())
        self.steps.append(values)
        self.batches.clear()

    def read(self) -> list[dict]:
        """Read the steps with their `loss`, the mean over the processes, and forget them.

        Raises:
            FloatingPointError: if a loss is NaN; it names the first step whose is.
        """
        if not self.steps:
            return []
        losses = self.accelerator.reduce(torch.stack(self.means), "mean").tolist()
        read = [{**values, "loss": loss} for values, loss in zip(self.steps, losses, strict=True)]
        self.means.clear()
        self.steps.clear()
        for values in read:
            if values["loss"] != values["loss"]:
                raise FloatingPointError(f"The loss is NaN at step {values['step']}; try a lower learning_rate.")
        return read
