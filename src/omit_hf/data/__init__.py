"""Sources of images and captions, all in one schema, and the inputs of a model made from it.

A row is an image: `image` (a picture), `captions` (list of str) and `image_id` (str); where the source has them,
`width`, `height`, `boxes`, `phrases` and `relevant_captions` (see `omit_hf.data.scenes`). The splits are `train`,
`validation` and `test`.
"""

from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.augmentation import Augmentation
from omit_hf.data.inputs import ImageTextInputs
from omit_hf.data.karpathy import load_karpathy
from omit_hf.data.scenes import load_scenes
from omit_hf.data.states import cache_states
from omit_hf.data.vocabulary import build_word_tokenizer
from omit_hf.data.word_vectors import read_word_vectors


def load_image_text(source: str | Path, **options) -> DatasetDict:
    """Load any known source of images and captions.

    Args:
        source: `scenes`, the built-in benchmark, or the path of a Karpathy JSON.
        options: of the loader, `load_scenes` or `load_karpathy`.

    Returns:
        `DatasetDict` with `train`, `validation` and `test`.

    Raises:
        ValueError: if the source is neither; and what the loader raises.
    """
    if source == "scenes":
        return load_scenes(**options)
    if Path(source).suffix == ".json":
        return load_karpathy(source, **options)
    raise ValueError(f"data source {str(source)!r} is unknown; expected 'scenes' or the path of a Karpathy .json file.")


__all__ = [
    "Augmentation",
    "ImageTextInputs",
    "build_word_tokenizer",
    "cache_states",
    "load_image_text",
    "load_karpathy",
    "load_scenes",
    "read_word_vectors",
]
