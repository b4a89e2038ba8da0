"""Aligns the words of a sentence with the fragments of a picture, in numbers; `omit_hf.visualization` draws them."""

import contextlib
import copy
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from omit_hf.alignment.cells import boxes_in_picture, grid_cells, shown_size, tile_edges, window_of
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.modeling.features_omit import OmitFeatures
from omit_hf.modeling.matching_omit import MATCHING, MatchingHead
from omit_hf.modeling.pictures_omit import rgb_picture
from omit_hf.modeling.words_omit import Word, words_of_tokens


@dataclass
class WordAlignment:
    """An alignment of L words with K image fragments. Sub-words are merged into words.

    Args:
        matching: name of the head that aligned them, as in `OmitConfig.matching`.
        similarity: the head's similarity of the picture and the sentence.
        words: the words as the sentence spells them, L.
        known: false for a word that the tokenizer has no token for, L.
        mass: share of a word's mass that comes from a fragment, [K, L], from 0 to 1.
        matched: share of a word's mass that comes from all fragments, `mass` summed over them, [L]. The rest comes from
            the image's dustbin. A head without dustbins matches everything. Heads without a plan have no dustbins; they
            take a word's mass to be its column of the alignment.
        width, height: size of the picture in pixels; without a picture, the outermost corners of the boxes.
        grid: rows and columns of the cells, which are the fragments in reading order; None for regions.
        area: part of the picture that the model sees, x0, y0, x1, y1 in pixels (a processor may crop); None for
            regions.
        boxes: where the fragments are, x0, y0, x1, y1 in pixels, [K, 4]: regions, or where the cells of a grid look,
            which may overlap (see `OmitModel.fragment_boxes`). None for a grid that divides `area` evenly, and for
            regions without known boxes.
        plan: transport plan with a column per word, [K + 1, L + 1] with dustbins first or [K, L] without; None for
            heads without a plan.
        row_marginals, column_marginals: mass that every row and column of the plan was to hold; None without a plan.
    """

    matching: str
    similarity: float
    words: list[str]
    known: list[bool]
    mass: np.ndarray
    matched: np.ndarray
    width: int
    height: int
    grid: tuple[int, int] | None = None
    area: tuple[float, float, float, float] | None = None
    boxes: np.ndarray | None = None
    plan: np.ndarray | None = None
    row_marginals: np.ndarray | None = None
    column_marginals: np.ndarray | None = None

    @property
    def has_dustbins(self) -> bool:
        return self.plan is not None and len(self.plan) == len(self.mass) + 1

    def places(self) -> np.ndarray | None:
        """Where the fragments are in the picture, x0, y0, x1, y1 in pixels, [K, 4]; None if it is not known."""
        if self.boxes is None and self.grid is not None:
            return grid_cells(np.array(self.area), *self.grid)
        return self.boxes

    def tiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Edges of a grid's cells as they are drawn, side by side: from left to right, and from top to bottom."""
        return tile_edges(self.places(), self.grid)

    def to_dict(self) -> dict:
        """Convert to what JSON can hold: `similarity`, `matching`, `width`, `height`, `places` (a box per fragment, or
        None), and `words`, a list of dicts with `word`, `known`, `matched` and `mass` (a number per fragment)."""
        places = self.places()
        columns = zip(self.words, self.known, self.matched.tolist(), self.mass.T.tolist(), strict=True)
        return {
            "matching": self.matching,
            "similarity": self.similarity,
            "width": self.width,
            "height": self.height,
            "places": None if places is None else places.tolist(),
            "words": [dict(zip(("word", "known", "matched", "mass"), each, strict=True)) for each in columns],
        }


@dataclass
class EncodedPicture:
    """An encoded picture, or its regions, with which any number of sentences can be aligned.

    Args:
        features: features of the image, without the backbone's outputs.
        frame: the fields of `WordAlignment` that locate its K fragments.
    """

    features: OmitFeatures
    frame: dict


def word_alignment(
    model,
    processor,
    picture: Image.Image | None = None,
    sentence: str = "",
    *,
    regions=None,
    boxes=None,
    size: tuple[int, int] | None = None,
    matching: str | None = None,
) -> WordAlignment:
    """Align the words of a sentence with the fragments of a picture.

    Args:
        model: `OmitModel` with a head that aligns; its mode is restored afterwards.
        processor: its `OmitProcessor`.
        picture: a PIL image. With regions it only gives the size, and may be left out.
        sentence: the text to align.
        regions: precomputed features of regions, [K, width], for a model that takes them.
        boxes: boxes of the regions, x0, y0, x1, y1 in pixels, [K, 4].
        size: width and height of the picture that the boxes lie in. Default: the size of `picture`, or without one the
            outermost corners.
        matching: another head to align the same features with, one without parameters; see `OmitConfig.matching`.

    Raises:
        ValueError: if the head does not align, or has parameters that the model lacks; if the sentence has no word that
            the model matches; if the model takes other inputs than those given; if boxes do not fit the regions, or the
            cells do not form a grid.
    """
    encoded = encode_picture(model, processor, picture, regions=regions, boxes=boxes, size=size)
    return align_sentence(model, processor, encoded, sentence, matching=matching)


@torch.inference_mode()
def encode_picture(
    model,
    processor,
    picture: Image.Image | None = None,
    *,
    regions=None,
    boxes=None,
    size: tuple[int, int] | None = None,
) -> EncodedPicture:
    """Do the part of `word_alignment` that does not depend on the sentence; same arguments and errors."""
    takes_regions = model.vision_encoder.input_name == "region_features"
    if takes_regions == (regions is None) or (picture is None and not takes_regions):
        wanted = "regions=…, features [K, width]" if takes_regions else "a picture and no regions"
        raise ValueError(
            f"The image encoder is {model.config.vision_config.model_type!r}, which takes {wanted}; got "
            f"{'no picture' if picture is None else 'a picture'} and {'no regions' if regions is None else 'regions'}."
        )
    picture = None if picture is None else rgb_picture(picture)
    pixels = processor(regions=regions) if takes_regions else processor(images=picture)
    with _evaluating(model):
        image = model.get_image_features(**pixels.to(model.device))
    count = image.embeds.shape[1]
    if takes_regions:
        frame = _region_frame(picture, boxes, size, count)
    else:
        shown = tuple(pixels["pixel_values"].shape[-2:])
        grid = model.vision_encoder.grid(shown, image.last_hidden_state)
        frame = grid_frame(model, processor, *picture.size, grid, shown)
    return EncodedPicture(image.select(slice(1)), frame)


def grid_frame(
    model, processor, width: int, height: int, grid: tuple[int, int], shown: tuple[int, int] | None = None
) -> dict:
    """Locate the cells of a picture: the fields of `WordAlignment` that say where they are.

    Args:
        width, height: of the picture in pixels.
        grid: rows and columns of the cells.
        shown: height and width of what the processor makes of the picture; None to find out.
    """
    image_processor = processor.image_processor
    shown = shown_size(image_processor, width, height) if shown is None else shown
    window = window_of(image_processor, width, height)
    boxes = boxes_in_picture(model.fragment_boxes(*shown).numpy(), window, shown)
    return {"grid": grid, "area": tuple(window.tolist()), "boxes": boxes, "width": width, "height": height}


@torch.inference_mode()
def align_sentence(
    model, processor, encoded: EncodedPicture, sentence: str, *, matching: str | None = None
) -> WordAlignment:
    """Do the rest of `word_alignment` with the result of `encode_picture`; same arguments and errors."""
    head = _head(model, matching)
    fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
    tokens = processor(text=sentence).to(model.device)
    with _evaluating(model):
        text = model.get_text_features(**tokens)
        similarity = head.tiled_similarity(encoded.features, text).item()
        columns, plan, marginals = _columns(head, encoded.features, text)
    valid = text.mask[0, : tokens["input_ids"].shape[1]].cpu()
    words = words_of_tokens(processor.tokenizer, sentence, tokens["input_ids"][0].cpu(), valid)
    if not words:
        raise ValueError(f"The sentence {sentence!r} has no word that the model matches; expected at least one.")

    columns = _merged(columns, words)
    total = columns.sum(axis=0)
    if plan is not None:
        dustbins = len(plan) - len(columns)
        plan = np.concatenate([plan[:, :dustbins], _merged(plan[:, dustbins:], words)], axis=1)
        row_marginals, column_marginals = marginals
        local = _merged(column_marginals[None, dustbins:], words)[0]
        marginals = row_marginals, np.concatenate([column_marginals[:dustbins], local])
        total = plan[:, dustbins:].sum(axis=0)
    mass = columns / np.where(total > 0, total, 1)
    return WordAlignment(
        matching=matching or model.config.matching,
        similarity=similarity,
        words=[word.text for word in words],
        known=[word.known for word in words],
        mass=mass,
        matched=mass.sum(axis=0),
        plan=plan,
        row_marginals=None if plan is None else marginals[0],
        column_marginals=None if plan is None else marginals[1],
        **encoded.frame,
    )


@contextlib.contextmanager
def _evaluating(model):
    """Put a model into evaluation mode, and afterwards back into its former mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _head(model, matching: str | None) -> MatchingHead:
    """Return the model's own head, or build another without parameters from the model's configuration."""
    name = matching or model.config.matching
    if name not in MATCHING:
        raise ValueError(f"matching is {name!r}; expected one of {', '.join(MATCHING)}.")
    if not MATCHING[name].aligns:
        able = ", ".join(repr(each) for each, kind in MATCHING.items() if kind.aligns)
        raise ValueError(f"matching is {name!r}, which does not align words with fragments; these do: {able}.")
    if name == model.config.matching:
        return model.matching
    config = copy.copy(model.config)
    config.matching = name
    head = MATCHING[name](config)
    if any(True for _ in head.parameters()):
        raise ValueError(
            f"matching is {name!r}, which has parameters of its own, and the model was trained with "
            f"{model.config.matching!r}; compare with a checkpoint that was trained with it."
        )
    return head


def _columns(head: MatchingHead, image: OmitFeatures, text: OmitFeatures) -> tuple:
    """Match the one pair: the alignment, [K, L]; the plan with its dustbins and its row and column marginals, or
    None."""
    match = head.match(image, text)
    of_pair = (match.alignment, match.plan, match.row_marginals, match.column_marginals)
    alignment, plan, *marginals = (None if each is None else each[0, 0].float().cpu().numpy() for each in of_pair)
    return alignment, plan, marginals


def _merged(columns: np.ndarray, words: list[Word]) -> np.ndarray:
    """Sum the columns of tokens, [K, tokens], over the tokens of every word, [K, L]."""
    return np.stack([columns[:, word.tokens].sum(axis=1) for word in words], axis=1)


def _region_frame(picture: Image.Image | None, boxes, size: tuple[int, int] | None, regions: int) -> dict:
    """Collect the boxes of regions, and the size of their picture."""
    if boxes is not None:
        boxes = np.asarray(boxes, dtype=np.float64)
        if boxes.shape != (regions, 4):
            raise ValueError(f"boxes has shape {boxes.shape}; expected {(regions, 4)}, x0, y0, x1, y1 of each region.")
        if not np.isfinite(boxes).all() or (boxes[:, :2] > boxes[:, 2:]).any():
            raise ValueError("boxes has one that is not finite or ends before it begins; expected x0, y0, x1, y1.")
    if picture is not None and size is not None and tuple(size) != picture.size:
        raise ValueError(
            f"The regions lie in a picture of {size[0]} x {size[1]} pixels, and the one given has {picture.width} x "
            f"{picture.height}; expected the picture that they were found in, at its size."
        )
    if picture is not None:
        size = picture.size
    elif size is None and boxes is not None:
        size = [max(1, int(np.ceil(each))) for each in boxes[:, 2:].max(axis=0)]
    width, height = (1, 1) if size is None else size
    return {"boxes": boxes, "width": width, "height": height}
