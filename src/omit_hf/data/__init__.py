"""Sources of images and captions, all in one schema, and the inputs of a model made from it.

A row is an image: `image` (a picture), `captions` (list of str) and `image_id` (str); where the source has them,
`width`, `height`, `boxes`, `phrases` and `relevant_captions` (see `omit_hf.data.scenes`). The splits are `train`,
`validation` and `test`.
"""

import difflib
import inspect
from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.inputs import ImageTextInputs
from omit_hf.data.karpathy import load_karpathy
from omit_hf.data.scenes import load_scenes
from omit_hf.data.states import cache_states
from omit_hf.data.vocabulary import build_word_tokenizer


def load_image_text(source: str | Path, **options) -> DatasetDict:
    """Load any known source of images and captions.

    Args:
        source: `scenes`, the built-in benchmark, or the path of a Karpathy JSON.
        options: of the loader, `load_scenes` or `load_karpathy`.

    Returns:
        `DatasetDict` with `train`, `validation` and `test`.

    Raises:
        ValueError: if the source is neither, or the loader has no such option or needs another one; and what the
            loader raises.
    """
    if source == "scenes":
        _check_options(source, load_scenes, options)
        return load_scenes(**options)
    if Path(source).suffix == ".json":
        _check_options(source, load_karpathy, {"annotations": source, **options})
        return load_karpathy(source, **options)
    raise ValueError(f"data source {str(source)!r} is unknown; expected 'scenes' or the path of a Karpathy .json file.")


def _check_options(source, loader, options) -> None:
    parameters = inspect.signature(loader).parameters
    for name in options:
        if name not in parameters:
            close = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean {close[0]!r}? Expected" if close else "expected"
            raise ValueError(
                f"{loader.__name__}, which reads {str(source)!r}, has no option {name!r}; {hint} some of "
                f"{', '.join(parameters)}."
            )
    missing = [name for name, each in parameters.items() if each.default is each.empty and name not in options]
    if missing:
        raise ValueError(f"{loader.__name__}, which reads {str(source)!r}, needs the option {', '.join(missing)}.")


__all__ = [
    "ImageTextInputs",
    "build_word_tokenizer",
    "cache_states",
    "load_image_text",
    "load_karpathy",
    "load_scenes",
]
