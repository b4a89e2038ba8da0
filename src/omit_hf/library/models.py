"""The model of a library: loaded, checked and known by its digest."""

import threading
from pathlib import Path
from typing import NamedTuple

from omit_hf.digests import model_digest
from omit_hf.modeling import OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.parsing import shown

TOKENIZING = threading.RLock()  # a tokenizer keeps how the last call cut and padded, which threads must not change
UNSAVED = ""  # name of a model that was made in memory


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its processor, the name that it was loaded by and its digest."""

    name: str
    model: OmitModel
    processor: OmitProcessor
    digest: str


def load_library_model(name: str, path: str) -> LoadedModel:
    """Load the model that a library was made with.

    Raises:
        ValueError: if it was an object that had not been saved.
        OSError: if it is no longer there.
    """
    remedy = f"Pass it: PictureLibrary({path!r}, model, processor); or encode the library again with another one"
    if name == UNSAVED:
        raise ValueError(f"The library {path!r} was made with a model that had no name. {remedy}.")
    try:
        return load_model(name, None)
    except OSError as error:
        raise OSError(f"The model {name!r} of the library {path!r} cannot be loaded. {remedy}. {error}") from error


def load_model(model: OmitModel | str | Path, processor: OmitProcessor | None) -> LoadedModel:
    """Load a model, or take one that is loaded.

    Raises:
        ValueError: if it pools fragments, is no model of ours, or is given without its processor.
        OSError: if it cannot be loaded.
    """
    if isinstance(model, str | Path):
        name = _name_of(model)
        model = OmitModel.from_pretrained(name)
        processor = OmitProcessor.from_pretrained(name) if processor is None else processor
    elif hasattr(model, "matching") and hasattr(model, "get_image_features"):  # perhaps remote code
        name = _name_of(model.name_or_path) if model.name_or_path else UNSAVED
    else:
        raise ValueError(f"The model is {shown(model)}; expected an OmitModel, its folder or its Hub id.")
    if processor is None:
        raise ValueError("A model is given without its processor; expected PictureLibrary(path, model, processor).")
    if not model.matching.aligns:
        able = ", ".join(repr(each) for each, head in MATCHING.items() if head.aligns)
        raise ValueError(
            f"{name or 'The model'} matches with {model.config.matching!r}, which pools fragments into one vector, and "
            f"a library keeps fragments; expected a model that matches with one of {able}."
        )
    fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
    digest = model_digest(model, [processor.image_processor, processor.tokenizer])
    return LoadedModel(name, model.eval(), processor, digest)


def _name_of(model: str | Path) -> str:
    """A Hub id, or a folder by its absolute path."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else str(model)
