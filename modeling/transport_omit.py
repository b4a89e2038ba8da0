"""Transport as a function of tensors: what it is given, and which backend computes it.

What the dustbin is and how mass is shared out is in the rows of a side and their mass; a backend only transports. This
folder has the readable reference; `omit_hf.kernels` registers faster ones. See ``docs/concepts/backends.md``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from .features_omit import OmitFeatures, check_floating
from .sinkhorn_omit import add_dustbin, check_transport, fragment_marginals, reference_score
from .tiling_omit import MEMORY_BUDGET, score_in_tiles

MATMUL_DTYPES = ("float32", "bfloat16", "int8")
PACKAGE_BACKENDS = ("cpu", "numba", "triton")  # those of omit_hf.kernels
PLANS_IN_MEMORY = 10  # tensors of a plan's size alive at once in a forward pass of the reference

logger = logging.get_logger(__name__)


class Side(NamedTuple):
    """One side of a transport: rows, [B, R, D], any dustbin first, and their mass, which sums to 1 or is all zero.

    Mass is [B_i, 1, R] of images and [1, B_t, C] of captions, or [B_i, B_t, R] and [B_i, B_t, C] where it depends on
    the pair. A row without mass must be finite, and plays no part.
    """

    rows: Tensor
    mass: Tensor


def make_sides(image_rows: Tensor, mu: Tensor, text_rows: Tensor, nu: Tensor) -> tuple[Side, Side]:
    """Sides whose mass depends on the item, [B, R], or on the pair, [B_i, B_t, R] and [B_t, B_i, C]."""
    image = Side(image_rows, mu if mu.ndim == 3 else mu[:, None])
    return image, Side(text_rows, nu.transpose(0, 1) if nu.ndim == 3 else nu[None])


@dataclass(frozen=True)
class TransportOptions:
    """How to transport.

    Args:
        regularization, num_iterations: λ > 0, in units of a cosine, and n ≥ 1.
        num_dustbins: rows in front of a side that are dustbins, which the score leaves out: 1, or 0 for full transport.
        backend: a name of `BACKENDS`, or `auto`: the fastest that is registered for the device, pays at this size and
            can serve these inputs. The choice is logged at level DEBUG, a fallback at level INFO.
        matmul_dtype: type in which cosines are multiplied out: `float32`, or, faster and coarser, on a CPU and without
            gradient, `bfloat16` or `int8`. All that follows is float32.
        memory_budget: bytes for the intermediate results of the reference.
    """

    regularization: float = 0.02
    num_iterations: int = 3
    num_dustbins: int = 1
    backend: str = "auto"
    matmul_dtype: str = "float32"
    memory_budget: int = MEMORY_BUDGET

    def __post_init__(self):
        check_transport(self.regularization, self.num_iterations)


class CannotServe(ValueError):
    """A backend's reason why it cannot serve these inputs."""


class Backend(NamedTuple):
    """One way to score all pairs.

    Args:
        transport: scores two checked sides, [B_i, B_t], or raises [`CannotServe`] before it has begun.
        late_interaction: scores sides whose mass is a mask, by temperature and matmul_dtype (see `MaxSimMatching`);
            None where plain torch does it.
        device, min_entries: type of device and number of cosines from which `auto` considers it; None for no device.
        matmul_dtypes: those that it knows.
    """

    transport: Callable[[Side, Side, TransportOptions], Tensor]
    late_interaction: Callable[[Side, Side, float | None, str], Tensor] | None = None
    device: str | None = None
    min_entries: int = 0
    matmul_dtypes: tuple[str, ...] = ("float32",)


def partial_sinkhorn_similarity(
    image_embeds: Tensor,
    image_mask: Tensor | None,
    image_pooled: Tensor,
    text_embeds: Tensor,
    text_mask: Tensor | None,
    text_pooled: Tensor,
    *,
    regularization: float = 0.02,
    num_iterations: int = 3,
    backend: str = "auto",
) -> Tensor:
    """OMIT's similarity of every image and every caption.

    A side gets a dustbin, its global feature, with the mass of one fragment. The similarity is what the plan carries
    between fragments, without the mass that goes to or comes from a dustbin.

    Args:
        image_embeds: V, [B_i, K, D], L2-normalised. Padding may hold anything.
        image_mask: true where an image fragment is valid, [B_i, K]; None for all.
        image_pooled: v̄, [B_i, D], L2-normalised.
        text_embeds, text_mask, text_pooled: T [B_t, L, D], its mask [B_t, L] and t̄ [B_t, D], likewise.
        regularization, num_iterations: λ > 0 and n ≥ 1.
        backend: `reference`, the readable implementation; `cpu`, `numba` (the same, compiled) or `triton`, once
            `omit_hf.kernels` is imported; or `auto`, the fastest that can serve these inputs on their device.

    Returns:
        [B_i, B_t], float32 (float64 for float64 inputs), in [−1, 1]; 0 where an image or a caption has no valid
        fragment: all of its mass lies in dustbins.

    Raises:
        ValueError: for shapes that do not fit, features that are integers, λ ≤ 0, n < 1 or an unknown backend.

    Source: ``docs/concepts/method.md#partial-matching``.

    Example:
        >>> regions, words = torch.eye(2)[None], torch.eye(2)[None, :1]  # two regions; one word, like the first
        >>> image_pooled, text_pooled = torch.ones(1, 2) / 2**0.5, words[:, 0]
        >>> partial_sinkhorn_similarity(regions, None, image_pooled, words, None, text_pooled, regularization=0.1)
        tensor([[0.1667]])

        The word and its dustbin look alike, so each takes half of the first region's mass, a third.
    """
    image_rows, mu = _rows_and_mass("image", image_embeds, image_mask, image_pooled)
    text_rows, nu = _rows_and_mass("text", text_embeds, text_mask, text_pooled)
    options = TransportOptions(regularization, num_iterations, backend=backend)
    return transport_similarity(*make_sides(image_rows, mu, text_rows, nu), options)


def _rows_and_mass(side: str, embeds: Tensor, mask: Tensor | None, pooled: Tensor) -> tuple[Tensor, Tensor]:
    if embeds.ndim != 3:
        raise ValueError(f"{side}_embeds has shape {tuple(embeds.shape)}; expected [batch, fragments, width].")
    batch, fragments, width = embeds.shape
    mask = embeds.new_ones(batch, fragments) if mask is None else mask
    for name, tensor, shape in (("mask", mask, (batch, fragments)), ("pooled", pooled, (batch, width))):
        if tensor.shape != shape:
            found = f"{side}_{name} has shape {tuple(tensor.shape)}"
            raise ValueError(f"{found}; expected {shape}, to fit {side}_embeds of shape {tuple(embeds.shape)}.")
    features = OmitFeatures(embeds=embeds.masked_fill(~mask.bool()[..., None], 0), mask=mask.bool())
    return add_dustbin(features.embeds, features.mask, fragment_marginals("uniform", features, features), pooled)


def transport_similarity(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """Score of every image and caption, Σ P S over fragments, where P is the plan of [`sinkhorn`].

    It is [B_i, B_t], float32 (float64 if an input is float64), and 0 where a side has no mass.

    Raises:
        ValueError: for sides of unequal type, device or width, or of integers; for a backend that is unknown or cannot
            serve the inputs; for a reduced matmul_dtype with gradient or not on a CPU.
    """
    check_sides(image.rows, text.rows)
    if options.matmul_dtype != "float32":
        check_matmul(image.rows, text.rows, options.backend, options.matmul_dtype)
    if torch.compiler.is_compiling():  # or exporting: a graph holds what can be traced
        return (reference_similarity if options.backend == "reference" else compiled_similarity)(image, text, options)
    entries = image.rows.shape[0] * image.rows.shape[1] * text.rows.shape[0] * text.rows.shape[1]
    candidates = candidate_backends(options.backend, image.rows.device.type, entries, options.matmul_dtype)
    for name in candidates:
        try:
            with torch.autocast(image.rows.device.type, enabled=False):
                scores = BACKENDS[name].transport(image, text, options)
            logger.debug("Transport on %s by backend %r.", image.rows.device, name)
            return scores
        except CannotServe as error:
            reason = error
            logger.info("Backend %r cannot be used: %s", name, reason)
    hint = "" if options.backend == "auto" else " backend='auto' chooses one that can."
    raise ValueError(f"backend {candidates[-1]!r} cannot be used: {reason}{hint}")


def reference_similarity(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """`reference_score` in tiles of bounded memory."""
    settings = (options.regularization, options.num_iterations, options.num_dustbins)

    def score(images: slice, captions: slice) -> Tensor:
        # A size of 1 stands for all items of the other side.
        mu = image.mass[images, captions if image.mass.shape[1] > 1 else slice(None)]
        nu = text.mass[images if text.mass.shape[0] > 1 else slice(None), captions]
        return reference_score(image.rows[images], mu, text.rows[captions], nu, *settings)

    elements = PLANS_IN_MEMORY * image.rows.shape[1] * text.rows.shape[1]
    return score_in_tiles(score, image.rows.shape[0], text.rows.shape[0], elements, options.memory_budget)


BACKENDS = {"reference": Backend(reference_similarity)}
compiled_similarity = reference_similarity  # in the graphs of torch.compile; `omit_hf.operators` sets another


def register_backend(name: str, backend: Backend) -> None:
    """Make a backend known. Of those for a device, `auto` tries the last one first."""
    BACKENDS[name] = backend


def candidate_backends(name: str, device: str, entries: int, matmul_dtype: str = "float32") -> list[str]:
    """Names of the backends to try in turn for so many cosines on a type of device; `ValueError` for an unknown one."""
    if torch.compiler.is_compiling():  # or exporting: the only one that a graph can hold
        return ["reference"]
    if name == "auto":
        found = []
        for key, each in reversed(BACKENDS.items()):
            if each.device == device and matmul_dtype in each.matmul_dtypes:
                if entries >= each.min_entries:
                    found.append(key)
                else:
                    logger.debug("Backend %r pays from %d cosines, and these are %d.", key, each.min_entries, entries)
        if not found and device == "cpu":
            logger.info_once("Scoring with the readable reference; with omit-hf installed and imported it is faster.")
        return found if matmul_dtype != "float32" else [*found, "reference"]
    if name in PACKAGE_BACKENDS and name not in BACKENDS and not __name__.startswith("omit_hf."):
        logger.warning_once(f"Backend {name!r} comes with omit-hf, which is not installed; the reference takes over.")
        return ["reference"]
    if name not in BACKENDS:
        known = ", ".join(map(repr, ["auto", *BACKENDS]))
        hint = f" (import omit_hf.kernels to have {name!r})" if name in PACKAGE_BACKENDS else ""
        raise ValueError(f"backend is {name!r}; expected one of {known}{hint}.")
    return [name]


def check_sides(image_embeds: Tensor, text_embeds: Tensor) -> None:
    """Raise `ValueError` unless both are floating-point numbers of one type, width and device."""
    check_floating(image_embeds=image_embeds, text_embeds=text_embeds)
    widths = image_embeds.shape[-1], text_embeds.shape[-1]
    if widths[0] != widths[1]:
        raise ValueError(f"image_embeds are {widths[0]} wide, text_embeds {widths[1]}; expected the same.")
    if image_embeds.dtype != text_embeds.dtype or image_embeds.device != text_embeds.device:
        images, captions = (f"{embeds.dtype} on {embeds.device}" for embeds in (image_embeds, text_embeds))
        remedy = "Cast one side, as in text.embeds.to(image.embeds.dtype)"
        raise ValueError(f"The images are {images}, the captions {captions}; expected the same. {remedy}.")


def check_matmul(image_rows: Tensor, text_rows: Tensor, backend: str, matmul_dtype: str) -> None:
    """Raise `ValueError` unless cosines can be multiplied out in a reduced `matmul_dtype`."""
    if matmul_dtype not in MATMUL_DTYPES:
        raise ValueError(f"matmul_dtype is {matmul_dtype!r}; expected one of {', '.join(map(repr, MATMUL_DTYPES))}.")
    name = f"matmul_dtype {matmul_dtype!r}"
    able = [key for key, each in BACKENDS.items() if matmul_dtype in each.matmul_dtypes]
    if backend not in ("auto", *able) or image_rows.device.type != "cpu" or not able:
        expected = "the backends 'cpu' and 'numba' of omit_hf.kernels on a CPU"
        raise ValueError(f"{name} is for {expected}; this is backend {backend!r} on {image_rows.device}.")
    if torch.is_grad_enabled() and (image_rows.requires_grad or text_rows.requires_grad):
        raise ValueError(f"{name} has no gradient; score under torch.inference_mode(), or use 'float32'.")
