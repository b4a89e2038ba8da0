"""From rows of a split to the tensors of a model."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from omit_hf.modeling.pictures_omit import rgb_picture


class ImageTextInputs:
    """The images and captions of a split, numbered, as inputs of an `OmitModel`.

    Captions are numbered through the split: those of image 0 come first, then those of image 1. A pair is a caption
    with its image, so it has the caption's number. Where the split carries the states of a frozen backbone (see
    `omit_hf.data.states`), they take the place of that backbone's input.

    Args:
        split: a split in the schema of `omit_hf.data`.
        processor: `OmitProcessor`.
    """

    def __init__(self, split: Dataset, processor):
        self.processor = processor
        self.captions = [caption for captions in split["captions"] for caption in captions]
        counts = [len(captions) for captions in split["captions"]]
        self.caption_image_index = np.repeat(np.arange(len(counts)), counts)
        self.num_images = len(split)
        self._first_caption = np.cumsum([0, *counts])
        self._image_ids = split["image_id"]
        names = split.column_names
        self._images = split.select_columns("image_states" if "image_states" in names else "image")
        self._text_states = split.select_columns(["text_states", "text_lengths"]) if "text_states" in names else None
        if "image_states" in names:
            self._images = self._images.with_format("numpy")
        if self._text_states is not None:
            self._text_states = self._text_states.with_format("numpy")

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def captions_of(self, image: int) -> range:
        """Numbers of the captions of an image."""
        return range(self._first_caption[image], self._first_caption[image + 1])

    def images(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs of `get_image_features` for some images: `pixel_values` or `image_states`."""
        if "image_states" in self._images.column_names:
            states = [self._images[int(number)]["image_states"] for number in numbers]
            return {"image_states": torch.from_numpy(np.stack(states))}
        return dict(self.processor(images=self._pictures([int(number) for number in numbers])))

    def texts(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs of `get_text_features` for some captions: `input_ids`, `attention_mask`, perhaps `text_states`."""
        inputs = dict(self.processor(text=[self.captions[number] for number in numbers]))
        if self._text_states is not None:
            states = torch.from_numpy(np.concatenate([self._states_of_caption(int(number)) for number in numbers]))
            inputs["text_states"] = states.new_zeros(*inputs["input_ids"].shape, states.shape[-1])
            inputs["text_states"][inputs["attention_mask"].bool()] = states
        return inputs

    def pairs(self, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Inputs of the model for some captions and their images, and the number of each image as `image_ids`."""
        images = self.caption_image_index[list(numbers)]
        return {**self.images(images), **self.texts(numbers), "image_ids": torch.from_numpy(images)}

    def _pictures(self, numbers: list[int]) -> list:
        try:
            return [rgb_picture(picture) for picture in self._images[numbers]["image"]]
        except Exception as error:
            if len(numbers) == 1:
                raise ValueError(f"Image {self._image_ids[numbers[0]]!r} cannot be read: {error}") from error
            return [self._pictures([number])[0] for number in numbers]  # finds out which

    def _states_of_caption(self, number: int) -> np.ndarray:
        image = int(self.caption_image_index[number])
        row = self._text_states[image]
        ends = np.cumsum(row["text_lengths"])
        place = number - self._first_caption[image]
        return row["text_states"][ends[place] - row["text_lengths"][place] : ends[place]]
