"""Lets `mteb` evaluate a model with the model's own scores, on the image-text tasks of MIEB."""

try:
    import mteb  # noqa: F401 (the package, which this folder only shares its name with)
except ImportError as error:
    raise ImportError("omit_hf.mteb needs mteb: pip install 'omit-hf[mteb]'.") from error

from omit_hf.mteb.embeddings import EncodedItems, FragmentEmbeddings, items_similarity
from omit_hf.mteb.wrapper import OmitForMteb

__all__ = ["EncodedItems", "FragmentEmbeddings", "OmitForMteb", "items_similarity"]
