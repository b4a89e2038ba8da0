"""The losses of steps, which are read from their device together."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from omit_hf.training.losses import StepLosses


class Reads(TorchDispatchMode):
    """Counts what waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_is_the_mean_of_its_batches_and_is_read_once(own_cache):
    losses = StepLosses(Accelerator(cpu=True))
    assert losses.read() == []
    with Reads() as reads:
        for step, batches in enumerate(([1.0, 2.0], [4.0]), start=1):
            for loss in batches:
                losses.add_batch(torch.tensor(loss, requires_grad=True))
            losses.end_step(step=step, epoch=0)
    assert reads.count == 0
    assert losses.read() == [{"step": 1, "epoch": 0, "loss": 1.5}, {"step": 2, "epoch": 0, "loss": 4.0}]
    assert losses.read() == []


def test_the_first_loss_that_is_no_number_is_named(own_cache):
    losses = StepLosses(Accelerator(cpu=True))
    for step, loss in enumerate((1.0, float("inf"), float("nan"), float("nan")), start=7):
        losses.add_batch(torch.tensor(loss))
        losses.end_step(step=step)
    with pytest.raises(FloatingPointError, match="The loss is NaN at step 9; try a lower learning_rate"):
        losses.read()
