"""The score of transport, Σ P S, for every image and caption: its definition, and the choice of what computes it.

A side comes as *rows*, its fragments with its dustbin (if any) before them, and the mass of each row. Everything that a
head adds (what the dustbin is, how the mass is shared out) is in these; a backend only transports.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .packed_omit import packed_limit, packed_similarity
from .sinkhorn_omit import at_least_float32, sinkhorn

REDUCED_PRODUCTS = ("bfloat16", "int8")
CPU_BACKENDS = ("cpu", "numba")  # which go tile by tile

logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    """One way to compute `transport_similarity`.

    Args:
        similarity: takes the arguments of `transport_similarity` but `backend`, checked.
        limit: takes the same, and tells why it cannot serve them; None if it can.
        device: the type of device for which `auto` considers it; None for none.
        entries: how many cosines there must be for `auto` to consider it.
    """

    similarity: Callable[..., Tensor]
    limit: Callable[..., str | None]
    device: str | None = None
    entries: int = 0


def transport_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    *,
    regularization: float,
    num_iterations: int,
    dustbins: bool,
    backend: str = "auto",
    product: str = "float32",
) -> Tensor:
    """Score of every image and caption, Σ P S over fragments, where P is the plan of [`sinkhorn`] (sections 1 and 2).

    Args:
        image_rows: [B_i, R, D]. A row without mass must be finite, and plays no part.
        image_mass: marginals μ, [B_i, 1, R], or [B_i, B_t, R] where they depend on the caption. Each sums to 1, or is
            all zero.
        text_rows: [B_t, C, D], likewise.
        text_mass: marginals ν, [1, B_t, C] or [B_i, B_t, C].
        regularization: λ > 0.
        num_iterations: n ≥ 1.
        dustbins: whether the first row of each side is a dustbin, which is left out of the sum.
        backend: name of one of `BACKENDS`, or `auto`: the fastest that is registered for the device, pays at this size
            and can serve these inputs. Why is logged, at level DEBUG; a fallback at level INFO.
        product: type in which the cosines are multiplied out, `float32`, or, faster and coarser, `bfloat16` or `int8`;
            all that follows is float32. For scoring on a CPU: there is no gradient then.

    Returns:
        [B_i, B_t], float32 (float64 if an input is float64); 0 where a side has no mass.

    Raises:
        ValueError: for λ ≤ 0, n < 1, sides of unequal type, device or width, an unknown backend, or one that was asked
            for by name and cannot serve the inputs; for a reduced product elsewhere than on a CPU, or with gradient.
    """
    if not regularization > 0:
        raise ValueError(f"regularization is {regularization}; expected a number greater than 0 (the paper uses 0.02).")
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}; expected at least 1 (the paper uses 3).")
    if image_rows.shape[-1] != text_rows.shape[-1]:
        raise ValueError(
            f"image_embeds are {image_rows.shape[-1]} wide, text_embeds {text_rows.shape[-1]}; expected the same."
        )
    for what in ("dtype", "device"):
        ours, theirs = getattr(image_rows, what), getattr(text_rows, what)
        if ours != theirs:
            raise ValueError(f"The images' {what} is {ours}, the captions' {theirs}; expected the same.")
    arguments = (image_rows, image_mass, text_rows, text_mass)
    options = {"regularization": regularization, "num_iterations": num_iterations, "dustbins": dustbins}
    if product != "float32":
        check_product(product, backend, arguments)
        options["product"] = product
    with torch.autocast(image_rows.device.type, enabled=False):
        chosen = chosen_backend(backend, arguments, options)
        logger.debug("Transport on %s by backend %r.", image_rows.device, chosen)
        return BACKENDS[chosen].similarity(*arguments, **options)


def row_similarity(image_rows: Tensor, text_rows: Tensor) -> Tensor:
    """S = ⟨v, t⟩ of all rows of all pairs, [B_i, B_t, R, C]."""
    with torch.autocast(image_rows.device.type, enabled=False):
        return torch.einsum("ird,tcd->itrc", at_least_float32(image_rows), at_least_float32(text_rows))


def reference_similarity(
    image_rows: Tensor,
    image_mass: Tensor,
    text_rows: Tensor,
    text_mass: Tensor,
    *,
    regularization: float,
    num_iterations: int,
    dustbins: bool,
) -> Tensor:
    """The definition, in as many lines; the other backends are measured against it."""
    similarity = row_similarity(image_rows, text_rows)
    plan = sinkhorn(similarity, image_mass, text_mass, regularization, num_iterations)
    first = int(dustbins)
    return (plan * similarity)[..., first:, first:].sum((-2, -1))


def register_backend(name: str, backend: Backend) -> None:
    """Make a backend known; `auto` tries the last one that was registered for a device first."""
    BACKENDS[name] = backend


BACKENDS = {
    "reference": Backend(reference_similarity, lambda *_, **__: None),
    "cpu": Backend(packed_similarity, packed_limit, device="cpu"),
}


def chosen_backend(name: str, arguments: tuple[Tensor, Tensor, Tensor, Tensor], options: dict) -> str:
    """The name of the backend that serves the arguments of `transport_similarity`, where `name` may be `auto`.

    Raises:
        ValueError: if there is none of the name, or it cannot serve them.
    """
    if name == "auto":
        image_rows, _, text_rows, _ = arguments
        entries = image_rows.shape[:-1].numel() * text_rows.shape[:-1].numel()
        for candidate, backend in reversed(BACKENDS.items()):
            if backend.device != image_rows.device.type:
                continue
            if entries < backend.entries:
                logger.debug("Backend %r pays from %d cosines, and these are %d.", candidate, backend.entries, entries)
                continue
            reason = backend.limit(*arguments, **options)
            if reason is None:
                return candidate
            logger.info("Backend %r cannot be used: %s", candidate, reason)
        name = "cpu" if "product" in options else "reference"  # which knows no other product, so the error is cpu's
    if name not in BACKENDS:
        known = ", ".join(map(repr, ["auto", *BACKENDS]))
        hint = f" (import omit_hf.kernels to have {name!r})" if name in ("numba", "triton") else ""
        raise ValueError(f"backend is {name!r}; expected one of {known}{hint}.")
    reason = BACKENDS[name].limit(*arguments, **options)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot be used: {reason} backend='auto' chooses one that can.")
    return name


def check_product(product: str, backend: str, arguments: tuple) -> None:
    """Raise `ValueError` where a reduced product is none, not for this backend or device, or would need a gradient."""
    if product not in REDUCED_PRODUCTS:
        known = ", ".join(map(repr, ["float32", *REDUCED_PRODUCTS]))
        raise ValueError(f"product is {product!r}; expected one of {known}.")
    if backend not in ("auto", *CPU_BACKENDS) or arguments[0].device.type != "cpu":
        known = " and ".join(map(repr, CPU_BACKENDS))
        raise ValueError(
            f"product {product!r} is for the backends {known} on a CPU; this is backend {backend!r} on "
            f"{arguments[0].device}."
        )
    if torch.is_grad_enabled() and any(each.requires_grad for each in arguments):
        raise ValueError(f"product {product!r} has no gradient; score under torch.inference_mode(), or use 'float32'.")
