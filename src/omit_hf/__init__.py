"""OMIT for Hugging Face: fine-grained image-text matching by partial optimal transport.

Importing the package makes the Auto classes of transformers know its models, and its models the backends of Numba and
Triton, where their cells look, and operators for `torch.compile`.
"""

import importlib
import sys

if sys.argv[:1] == ["-m"]:  # the command, as `python -m omit_hf`, which imports the package first
    import omit_hf_command  # noqa: F401
import omit_hf.alignment.receptive_fields
import omit_hf.kernels
import omit_hf.operators  # noqa: F401 (these three make themselves known)
from omit_hf.evaluation.retrieval import retrieval_metrics
from omit_hf.hub.registration import register
from omit_hf.modeling import OmitConfig, OmitModel, OmitProcessor, partial_sinkhorn_similarity, sinkhorn

register()

__version__ = "0.1.0"
__all__ = [
    "OmitConfig",
    "OmitModel",
    "OmitProcessor",
    "PictureLibrary",
    "partial_sinkhorn_similarity",
    "retrieval_metrics",
    "sinkhorn",
]


def __getattr__(name: str):
    if name == "PictureLibrary":  # only now, since it needs the extra `library`
        return importlib.import_module("omit_hf.library").PictureLibrary
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
