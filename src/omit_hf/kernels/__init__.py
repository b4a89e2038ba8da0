"""Backends of `transport_similarity` beside the reference; importing this registers them.

Registering costs nothing: Numba and Triton are imported when their backend is first considered.
"""

from importlib.util import find_spec

from torch import Tensor

from omit_hf.kernels.tiled import score_late_interaction, score_transport
from omit_hf.modeling.transport_omit import (
    MATMUL_DTYPES,
    Backend,
    CannotServe,
    Side,
    TransportOptions,
    register_backend,
)

NUMBA_PAYS_FROM = 2**20  # cosines; fewer are done before it is loaded


def score_with_numba(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """See `numba.transport`."""
    try:
        from omit_hf.kernels.numba import transport
    except ImportError as error:  # also where it does not go with the NumPy that is installed
        raise CannotServe(f"Numba cannot be imported ({error}; pip install omit-hf[numba]).") from error
    return transport.score_transport(image, text, options)


def score_with_triton(image: Side, text: Side, options: TransportOptions) -> Tensor:
    """See `triton.transport`."""
    if find_spec("triton") is None:
        raise CannotServe("Triton is not installed (pip install omit-hf[triton]).")
    from omit_hf.kernels.triton import transport

    return transport.score_transport(image, text, options)


register_backend("cpu", Backend(score_transport, score_late_interaction, "cpu", 0, MATMUL_DTYPES))
register_backend("numba", Backend(score_with_numba, score_late_interaction, "cpu", NUMBA_PAYS_FROM, MATMUL_DTYPES))
register_backend("triton", Backend(score_with_triton, device="cuda"))
