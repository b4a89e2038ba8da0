"""Backends of `transport_similarity` beside those that travel with a checkpoint; importing this registers them.

Registering costs nothing: Triton is imported when the backend is first used.
"""

from importlib.util import find_spec

from torch import Tensor

from omit_hf.modeling.transport_omit import Backend, register_backend


def triton_similarity(*arguments: Tensor, **options) -> Tensor:
    """See `triton_transport.similarity`."""
    from omit_hf.kernels import triton_transport

    return triton_transport.similarity(*arguments, **options)


def triton_limit(*arguments: Tensor, **options) -> str | None:
    """See `triton_transport.limit`."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install omit-hf[triton])."
    from omit_hf.kernels import triton_transport

    return triton_transport.limit(*arguments, **options)


register_backend("triton", Backend(triton_similarity, triton_limit))
