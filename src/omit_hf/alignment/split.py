"""Aligns every image of a split with its own captions, and locates the fragments in picture and text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from omit_hf.alignment.cells import boxes_in_picture, window_of
from omit_hf.data.inputs import ImageTextInputs
from omit_hf.data.phrases import COLUMNS, Phrase, check_phrases, phrases_of
from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.backbones_omit import fit_tokenizer


@dataclass
class AlignedPair:
    """An image aligned with one of its captions. Only valid fragments are kept: K cells, L words.

    Args:
        caption: the text.
        phrases: phrases of the caption.
        boxes: boxes of all objects of the image, [N, 4].
        cells: rectangles of the image's fragments, [K, 4], in pixels of the picture.
        offsets: first character of every word and the one after its last, [L, 2].
        alignment: mass of every word from every cell, float64 [K, L], at least 0.
        plan: plan of a head with dustbins, [K + 1, L + 1], dustbins first; otherwise None.
    """

    caption: str
    phrases: list[Phrase]
    boxes: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray
    alignment: np.ndarray
    plan: np.ndarray | None


class Aligner:
    """Aligns the images of a split with their own captions.

    Args:
        model, processor, split: as in `evaluate_alignment`.

    Raises:
        ValueError: as `evaluate_alignment`.
    """

    def __init__(self, model, processor, split: Dataset):
        check_aligns(model)
        check_offsets(processor.tokenizer)
        fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
        cached = [name for name in ("image_states", "text_states") if name in split.column_names]
        self.inputs = ImageTextInputs(split.remove_columns(cached), processor)
        check_phrases(split)
        self.model, self.processor = model, processor
        self.rows = split.select_columns(list(COLUMNS)).with_format(None)
        self.region_boxes = None
        if "image" not in split.column_names:
            if "region_boxes" not in split.column_names:
                raise ValueError(
                    "The split has no column region_boxes; expected where its regions lie in the picture, [K, 4]."
                )
            self.region_boxes = split.select_columns("region_boxes")
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Number of images."""
        return self.inputs.num_images

    @torch.inference_mode()
    def pairs(self, numbers: Sequence[int]) -> list[AlignedPair]:
        """Align some images, encoded at once, with all of their captions."""
        device, head = self.model.device, self.model.matching
        image, cells = self._images(numbers)
        captions = [caption for number in numbers for caption in self.inputs.captions_of(number)]
        texts = self.inputs.texts(captions)
        offsets = self.processor(text=[self.inputs.captions[each] for each in captions], return_offsets_mapping=True)
        text = self.model.get_text_features(**{name: each.to(device) for name, each in texts.items()})
        offsets = np.asarray(offsets["offset_mapping"])
        pairs, first = [], 0
        for place, number in enumerate(numbers):
            row = self.rows[number]
            last = first + len(row["captions"])
            match = head.match(image.select(slice(place, place + 1)), text.select(slice(first, last)))
            alignments = _array(match.alignment[0])
            plans = _array(match.plan[0]) if match.row_dustbin is not None else None
            valid_cells = np.asarray(image.mask[place].cpu())
            for caption in range(last - first):
                words = np.asarray(text.mask[first + caption].cpu())
                kept = np.ix_(valid_cells, words)
                check_mass(alignments[caption][kept], f"The alignment of {row['image_id']} and caption {caption}")
                plan = None
                if plans is not None:
                    plan = plans[caption][np.ix_(np.r_[True, valid_cells], np.r_[True, words])]
                pairs.append(
                    AlignedPair(
                        caption=row["captions"][caption],
                        phrases=phrases_of(row, caption),
                        boxes=np.asarray(row["boxes"], dtype=np.float64).reshape(-1, 4),
                        cells=cells[place][valid_cells],
                        offsets=offsets[first + caption][words],
                        alignment=alignments[caption][kept],
                        plan=plan,
                    )
                )
            first = last
        return pairs

    def _images(self, numbers: Sequence[int]) -> tuple[OmitFeatures, list[np.ndarray]]:
        """Encode some images, and locate their cells."""
        if self.region_boxes is not None:
            inputs = self.inputs.images(numbers)
            image = self.model.get_image_features(**{name: each.to(self.model.device) for name, each in inputs.items()})
            cells = [np.asarray(self.region_boxes[number]["region_boxes"], dtype=np.float64) for number in numbers]
            for number, each in zip(numbers, cells, strict=True):
                if each.shape != (image.embeds.shape[1], 4) or not np.isfinite(each).all():
                    raise ValueError(
                        f"region_boxes of {self.rows[number]['image_id']} has shape {each.shape}; expected "
                        f"{(image.embeds.shape[1], 4)}, numbers, a box a region."
                    )
            return image, cells
        pictures = [self.inputs.picture(number) for number in numbers]
        for number, picture in zip(numbers, pictures, strict=True):
            row = self.rows[number]
            if picture.size != (row["width"], row["height"]):
                raise ValueError(
                    f"The picture of {row['image_id']} has {picture.width} x {picture.height} pixels, and its boxes "
                    f"are of {row['width']} x {row['height']}; expected the picture that the boxes were drawn on."
                )
        pixels = self.processor(images=pictures)["pixel_values"]
        image = self.model.get_image_features(pixels.to(self.model.device))
        shown = tuple(pixels.shape[-2:])
        boxes = self.model.fragment_boxes(*shown).numpy()
        return image, [boxes_in_picture(boxes, self._window(picture.size), shown) for picture in pictures]

    def _window(self, size: tuple[int, int]) -> np.ndarray:
        if size not in self._windows:
            self._windows[size] = window_of(self.processor.image_processor, *size)
        return self._windows[size]


def check_aligns(model) -> None:
    """Check that a model's head tells which fragments matched.

    Raises:
        ValueError: if it does not.
    """
    if not model.matching.aligns:
        raise ValueError(
            f"matching is {model.config.matching!r}, which pools each side into one vector and aligns nothing; "
            "expected a head that aligns fragments, such as 'omit' or 'maxsim'."
        )


def check_offsets(tokenizer) -> None:
    """Check that a tokenizer tells which characters a token stands for.

    Raises:
        ValueError: if it is slow; slow tokenizers do not tell.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer is a {type(tokenizer).__name__}, a slow one, which does not tell the characters that a "
            "token stands for; expected a fast one, of the tokenizers library."
        )


def check_mass(mass: np.ndarray, what: str) -> None:
    """Check that mass is finite and at least 0.

    Raises:
        ValueError: if it is not.
    """
    wrong = ~(np.isfinite(mass) & (mass >= 0))
    if wrong.any():
        raise ValueError(f"{what} holds {mass[wrong][0]} at {np.argwhere(wrong)[0].tolist()}; expected at least 0.")


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
