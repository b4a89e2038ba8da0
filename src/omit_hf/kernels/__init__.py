"""Backends of `transport_similarity` beside those that travel with a checkpoint; importing this registers them.

Registering costs nothing: Numba and Triton are imported when their backend is first considered.
"""

from importlib.util import find_spec

from torch import Tensor

from omit_hf.modeling.transport_omit import Backend, register_backend

NUMBA_PAYS_FROM = 2**20  # cosines; fewer are done before it is loaded


def numba_similarity(*arguments: Tensor, **options) -> Tensor:
    """See `numba_transport.similarity`."""
    from omit_hf.kernels import numba_transport

    return numba_transport.similarity(*arguments, **options)


def numba_limit(*arguments: Tensor, **options) -> str | None:
    """See `numba_transport.limit`."""
    try:
        from omit_hf.kernels import numba_transport
    except ImportError as error:  # also where it does not go with the NumPy that is installed
        return f"Numba cannot be imported ({error}; pip install omit-hf[numba])."
    return numba_transport.limit(*arguments, **options)


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


register_backend("numba", Backend(numba_similarity, numba_limit, device="cpu", entries=NUMBA_PAYS_FROM))
register_backend("triton", Backend(triton_similarity, triton_limit, device="cuda"))
