"""Turns rows of a split into the inputs of a model."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, List

from omit_hf.data.augmentation import Augmentation
from omit_hf.data.pictures import open_picture, stored_pictures

# Columns that can stand for an image; the first one present counts.
SOURCES = ("image_states", "region_features", "image")


class ImageTextInputs:
    """The images and captions of a split, numbered, as inputs of an `OmitModel`.

    Captions are numbered through the split: those of image 0 come first, then those of image 1. A pair is a caption
    with its image, and has the caption's number. If the split carries states of a frozen backbone (see
    `omit_hf.data.states`), they replace that backbone's input; precomputed regions replace pixels.

    Args:
        split: split in the schema of `omit_hf.data`.
        processor: `OmitProcessor`.
        augmentation: augmentation of `pairs`; `images` and `texts` are never augmented.

    Raises:
        TypeError: if the split is a stream, whose rows have no numbers.
        ValueError: if it has neither pictures nor regions nor states.
    """

    def __init__(self, split: Dataset, processor, augmentation: Augmentation | None = None):
        if not isinstance(split, Dataset):
            raise TypeError(
                f"The split is {type(split).__name__}; expected a datasets.Dataset. A stream cannot be shuffled, "
                "numbered or resumed exactly: load it without streaming, or its beginning with max_images."
            )
        self.processor = processor
        self.augmentation = augmentation
        self.captions = [caption for captions in split["captions"] for caption in captions]
        counts = [len(captions) for captions in split["captions"]]
        self.caption_image_index = np.repeat(np.arange(len(counts)), counts)
        self.num_images = len(split)
        self._first_caption = np.cumsum([0, *counts])
        self._image_ids = split["image_id"]
        names = split.column_names
        self._source = next((name for name in SOURCES if name in names), None)
        if self._source is None:
            raise ValueError(f"The split has the columns {', '.join(names)}; expected one of {', '.join(SOURCES)}.")
        self._images = stored_pictures(split) if self._source == "image" else split.select_columns(self._source)
        self._text_states = split.select_columns(["text_states", "text_lengths"]) if "text_states" in names else None
        if self._source == "image_states" or isinstance(self._images.features[self._source], List):
            self._images = self._images.with_format("numpy")
        if self._text_states is not None:
            self._text_states = self._text_states.with_format("numpy")

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def captions_of(self, image: int) -> range:
        """Return the numbers of an image's captions."""
        return range(self._first_caption[image], self._first_caption[image + 1])

    def images(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Make the inputs of `get_image_features` for some images: `pixel_values`, `region_features` [B, K, width]
        (float32) or `image_states`. Regions of different numbers are padded with zeros, and `region_mask` [B, K] tells
        them from padding; there is none where none is needed.

        Raises:
            ValueError: if a picture or regions cannot be read, an image has no region, or widths differ.
        """
        numbers = [int(number) for number in numbers]
        if self._source == "image":
            return dict(self.processor(images=[self.picture(number) for number in numbers]))
        arrays = [self._images[number][self._source] for number in numbers]
        first = arrays[0]
        if len({array.shape for array in arrays}) > 1 or first.ndim != 2 or 0 in first.shape:
            return dict(self.processor(regions=[self._regions(*each) for each in zip(numbers, arrays, strict=True)]))
        return {self._source: torch.from_numpy(np.stack(arrays)).float()}

    def _regions(self, number: int, value: np.ndarray) -> np.ndarray:
        """The regions of an image, [K, width], of what its row has."""
        array = np.stack(value) if value.dtype == object and len(value) else value  # of lists in a list
        if array.ndim != 2 or 0 in array.shape:
            found = f"Image {self._image_ids[number]!r} has {self._source} of shape {array.shape}"
            raise ValueError(f"{found}; expected [K, width] with K from 1. Leave it out with the data option exclude.")
        return array

    def texts(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Make the inputs of `get_text_features` for captions: `input_ids`, `attention_mask`, perhaps `text_states`."""
        inputs = dict(self.processor(text=[self.captions[number] for number in numbers]))
        if self._text_states is not None:
            states = torch.from_numpy(np.concatenate([self._states_of_caption(int(number)) for number in numbers]))
            inputs["text_states"] = states.new_zeros(*inputs["input_ids"].shape, states.shape[-1])
            inputs["text_states"][inputs["attention_mask"].bool()] = states
        return inputs

    def pairs(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Make the inputs of the model for some captions and their images, with the images' numbers as `image_ids`."""
        images, augmentation = self.caption_image_index[list(numbers)], self.augmentation
        if augmentation is not None and (augmentation.crop < 1 or augmentation.flip):
            pictures = zip((self.picture(int(image)) for image in images), numbers, strict=True)
            inputs = dict(self.processor(images=[augmentation.picture(*pair) for pair in pictures]))
        else:
            inputs = self.images(images)
        if augmentation is not None and augmentation.words:
            inputs |= self.processor(text=[augmentation.caption(self.captions[pair], pair) for pair in numbers])
        else:
            inputs |= self.texts(numbers)
        return {**inputs, "image_ids": torch.from_numpy(images)}

    def picture(self, number: int) -> PIL.Image.Image:
        """Open the picture of an image, upright and in RGB.

        Raises:
            ValueError: if it cannot be read.
        """
        try:
            return open_picture(self._images[number]["image"])
        except Exception as error:
            raise ValueError(
                f"Image {self._image_ids[number]!r} cannot be read: {error}; replace it, or leave out every such image "
                "with the data option skip_unreadable."
            ) from error

    def _states_of_caption(self, number: int) -> np.ndarray:
        image = int(self.caption_image_index[number])
        row = self._text_states[image]
        ends = np.cumsum(row["text_lengths"])
        place = number - self._first_caption[image]
        return row["text_states"][ends[place] - row["text_lengths"][place] : ends[place]]
