"""The model of a library: loaded, checked and known by its digest."""

from pathlib import Path
from typing import NamedTuple

from omit_hf.digests import model_digest
from omit_hf.modeling import OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.modeling.matching_omit import MATCHING


class LoadedModel(NamedTuple):
    """A model in evaluation mode, its processor, the name that it was loaded by and its digest."""

    name: str
    model: OmitModel
    processor: OmitProcessor
    digest: str


def load_model(model: OmitModel | str | Path, processor: OmitProcessor | None) -> LoadedModel:
    """Load a model, or take one that is loaded.

    Raises:
        ValueError: if it pools fragments, or is given without its processor.
        OSError: if it cannot be loaded.
    """
    if isinstance(model, str | Path):
        name = str(Path(model).expanduser().absolute()) if Path(model).expanduser().is_dir() else str(model)
        model = OmitModel.from_pretrained(name)
        processor = OmitProcessor.from_pretrained(name) if processor is None else processor
    else:
        name = model.name_or_path or type(model).__name__
    if processor is None:
        raise ValueError("A model is given without its processor; expected PictureLibrary(path, model, processor).")
    if not model.matching.aligns:
        able = ", ".join(repr(each) for each, head in MATCHING.items() if head.aligns)
        raise ValueError(
            f"{name} matches with {model.config.matching!r}, which pools fragments into one vector, and a library "
            f"keeps fragments; expected a model that matches with one of {able}."
        )
    fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
    digest = model_digest(model, [processor.image_processor, processor.tokenizer])
    return LoadedModel(name, model.eval(), processor, digest)
