"""Measures where the cells of a grid look: their effective receptive fields (Luo et al. 2016).

A cell of a convolutional backbone need not lie where an even grid puts it: padded, strided convolutions look up and to
the left, and at the border less so. The gradient of a cell's feature by the pixels tells where it looks.
`model.fragment_boxes` asks for it once a size of image.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from omit_hf.modeling import OmitModel

NUM_IMAGES, AT_ONCE = 32, 4  # of noise, over which the gradient's energy is averaged
NOISE_PER_CELL = 2  # along a side: finer noise hardly excites a trained backbone
MIDDLE = 0.5  # share of the energy by which a span is measured: the tails reach far beyond a cell
APART = 32  # lines of a larger grid that are measured at once, nearer than which a line's energy is its own
SEED = 0

logger = logging.get_logger(__name__)


def measure_spans(encoder, height: int, width: int) -> list[list[list[float]]]:
    """Tell which pixels the rows and the columns of an image's fragments look at.

    Patches of a transformer are where it cuts them. Of any other row of cells, the energy of the gradient by the pixels
    has a profile along the image's height: the row's span has the centre of the middle half of the energy, and the
    length that an even profile with this middle has. Of a grid with more than `2 * APART` rows, what a row sees more
    than `APART / 2` rows away is left out. If no gradient reaches the pixels, cells are taken to divide the image
    evenly, and a warning says so.

    Args:
        encoder: the `GridEncoder` of a model. Its mode is restored.
        height, width: of the images in pixels, as the encoder gets them.

    Returns:
        First pixel and the one after the last, of every row and of every column, within the image.

    Raises:
        ValueError: for an encoder of regions; as the encoder, for images of that size.
    """
    if encoder.input_name != "pixel_values":
        raise ValueError("This model's fragments are regions; expected a model of pictures. Regions have boxes.")
    sides, config = (height, width), encoder.backbone.config
    weight = encoder.projection.weight
    with torch.inference_mode(False), _frozen(encoder):
        blank = torch.zeros(1, 3, height, width, device=weight.device)
        with torch.no_grad():
            states = encoder.encode(blank)[1].last_hidden_state
        counts = encoder.grid(sides, states)
        if states.ndim == 3 and not hasattr(config, "depths"):
            patch = config.patch_size if isinstance(config.patch_size, list | tuple) else (config.patch_size,) * 2
            return [_even(count, size * count) for count, size in zip(counts, patch, strict=True)]
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(NUM_IMAGES, 3, *(NOISE_PER_CELL * count for count in counts), generator=generator)
        noise = F.interpolate(noise, size=sides, mode="bicubic")
        profiles = [torch.zeros(count, side).double() for count, side in zip(counts, sides, strict=True)]
        for pixels in noise.to(weight.device).split(AT_ONCE):
            pixels.requires_grad_()
            with torch.enable_grad():
                fragments = encoder(pixels)[0]
                # A random direction stands for all of a cell's features: its energy is theirs on average.
                direction = torch.randn(fragments.shape, generator=generator).to(fragments)
                cells = (F.normalize(fragments, dim=-1) * direction).sum(-1).unflatten(1, counts)
            for side, profile in enumerate(profiles, start=1):
                profile += _energy(cells.sum((0, 3 - side)), pixels, side + 1)
    if not all(profile.sum(1).all() for profile in profiles):
        logger.warning(
            f"No gradient reaches the pixels through the vision backbone {encoder.kind!r}, so nobody knows where its "
            "cells look; they are taken to divide the image evenly."
        )
        return [_even(count, pixels) for count, pixels in zip(counts, sides, strict=True)]
    return [_spans(each).tolist() for each in profiles]


def _even(count: int, pixels: int) -> list[list[float]]:
    return [[number * pixels / count, (number + 1) * pixels / count] for number in range(count)]


def _energy(lines: Tensor, pixels: Tensor, side: int) -> Tensor:
    """Energy of the gradient of lines of cells along a side of the pixels, [lines, pixels]; 0 without a gradient."""
    count, length = len(lines), pixels.shape[side]
    energy = torch.zeros(count, length).double()
    # With many lines, a gradient is that of every `step`-th line, and a line's part of it lies around the line.
    step = count if count <= 2 * APART else APART
    near = (torch.arange(length) * count // length - torch.arange(count)[:, None]).abs() <= step // 2
    for first in range(step if lines.requires_grad else 0):
        (gradient,) = torch.autograd.grad(lines[first::step].sum(), pixels, retain_graph=True, allow_unused=True)
        if gradient is not None:
            profile = gradient.double().square().sum(tuple({0, 1, 2, 3} - {side})).cpu()
            energy[first::step] = profile * near[first::step] if step < count else profile
    return energy


def _spans(energy: Tensor) -> Tensor:
    """Spans of some profiles, [lines, 2]."""
    begin, end = (_quantile(energy, (1 + sign * MIDDLE) / 2) for sign in (-1, 1))
    middle, half = (begin + end) / 2, (end - begin) / 2 / MIDDLE
    half = torch.minimum(half, torch.minimum(middle, energy.shape[1] - middle))
    return torch.stack([middle - half, middle + half], dim=1)


def _quantile(energy: Tensor, share: float) -> Tensor:
    """Where a share of the energy of each profile is passed, [lines]. Within a pixel energy is even."""
    passed = energy.cumsum(1) / energy.sum(1, keepdim=True)
    pixel = (passed < share).sum(1, keepdim=True)
    before = F.pad(passed, (1, 0)).gather(1, pixel)
    return (pixel + (share - before) / (passed.gather(1, pixel) - before))[:, 0]


@contextlib.contextmanager
def _frozen(encoder) -> Iterator[None]:
    """Evaluation mode without gradients of weights; afterwards both are as they were."""
    modes = {module: module.training for module in encoder.modules()}
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    encoder.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        for module, mode in modes.items():
            module.training = mode


OmitModel.measure_spans = staticmethod(measure_spans)
