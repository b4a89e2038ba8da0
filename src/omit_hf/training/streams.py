"""Training on a stream: a split that is read as it comes, for data that fit on no disk.

A stream has no length, so an epoch is a number of steps, and the data are passed over again where they end. Each
process reads shards of its own where there are enough of them, or else every n-th image.
"""

import hashlib
import itertools
import json
import tarfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, Image, IterableDataset, IterableDatasetDict
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from omit_hf.data import Augmentation, load_image_text
from omit_hf.data.pictures import open_picture
from omit_hf.parsing import text_lines
from omit_hf.training.recipe import Recipe

STATE_FILE = "stream-{process}.json"  # of each process, in a checkpoint


def open_stream(recipe: Recipe) -> IterableDataset:
    """Open the training split of a recipe's data as a stream of images with their captions.

    Raises:
        ValueError: if the source cannot be streamed; as its loader.
    """
    options = {**(recipe.data_options or {}), "only": ["train"], "streaming": True}
    data = load_image_text(recipe.data, **options)
    if not isinstance(data, IterableDatasetDict):
        raise ValueError("epoch_steps is given, and data_options has max_images, which loads them; expected one.")
    return data["train"].cast_column("image", Image(decode=False))


def vocabulary_captions(stream: IterableDataset, recipe: Recipe) -> Dataset:
    """The captions of which vocabularies are made: the lines of a file, or those of a stream's first images.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no caption, or the file is no text.
    """
    if recipe.vocabulary_file is None:
        captions = [row["captions"] for row in itertools.islice(_rows(stream), recipe.vocabulary_images)]
        where = "The training stream has no image"
    else:
        captions = [[line.strip()] for line in text_lines(recipe.vocabulary_file) if line.strip()]
        where = f"vocabulary_file {recipe.vocabulary_file} has no caption"
    if not captions:
        raise ValueError(f"{where}; expected some.")
    return Dataset.from_dict({"captions": captions})


class PairInputs:
    """Makes the inputs of the model for some pairs of a stream, as `ImageTextInputs.pairs` does for those of a split.

    What it is asked for are the pairs themselves, so that a `DataLoader` hands them to its workers.
    """

    def __init__(self, processor, augmentation: Augmentation | None = None):
        self.processor, self.augmentation = processor, augmentation

    def __getitem__(self, pairs: list[dict]) -> dict[str, torch.Tensor]:
        """Raises `ValueError` if a picture cannot be read."""
        pictures, captions, numbers = [], [], [_number(f"{each['image_id']}\0{each['caption']}") for each in pairs]
        for each, number in zip(pairs, numbers, strict=True):
            try:
                picture = open_picture(each["image"])
            except Exception as error:
                raise ValueError(f"Image {each['image_id']!r} of the stream cannot be read: {error}") from error
            caption = each["caption"]
            if self.augmentation is not None and (self.augmentation.crop < 1 or self.augmentation.flip):
                picture = self.augmentation.picture(picture, number)
            if self.augmentation is not None and self.augmentation.words:
                caption = self.augmentation.caption(caption, number)
            pictures.append(picture)
            captions.append(caption)
        inputs = dict(self.processor(images=pictures, text=captions))
        return {**inputs, "image_ids": torch.tensor([_number(each["image_id"]) for each in pairs])}


class PairStream:
    """Batches of pairs of a stream, an epoch at a time; each goes on where the one before ended.

    Images are shuffled by shards, and pairs in a buffer. A process reads its part of the stream itself, and its workers
    open the pictures. A checkpoint keeps where the stream was after the last batch that came out; what the buffer held
    then is left out of this pass when it goes on from there.

    Args:
        stream: images with their captions, as of `open_stream`.
        processor: `OmitProcessor`.
        recipe: its batch, epoch, buffer and workers.
        accelerator: whose processes share the stream.
        augmentation: of the pairs.
    """

    def __init__(
        self,
        stream: IterableDataset,
        processor,
        recipe: Recipe,
        accelerator: Accelerator,
        augmentation: Augmentation | None = None,
    ):
        self.inputs, self.accelerator = PairInputs(processor, augmentation), accelerator
        self.batch_size, self.num_workers = recipe.batch_size, recipe.num_workers
        self.batches = recipe.epoch_steps * recipe.gradient_accumulation_steps
        own = split_dataset_by_node(stream, accelerator.process_index, accelerator.num_processes)
        pairs = own.map(_pairs, batched=True, batch_size=1, remove_columns=["captions"])
        self.rows = pairs.shuffle(seed=recipe.seed, buffer_size=recipe.shuffle_buffer)
        self.passes, self.begun, self.coming = 0, 0, None
        self.state, self.states = self._place(), deque()  # after the last batch that came out, and those on their way
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._load)

    def __len__(self) -> int:
        """Batches of an epoch, per process."""
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        """The order depends on how often the data were passed over, not on epochs of steps."""

    def starting_at(self, batch: int) -> "PairStream":
        """The rest of an epoch of which so many batches are done."""
        self.begun = batch
        return self

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        begun, self.begun = self.begun, 0
        self.states.clear()
        loader = DataLoader(
            self.inputs,
            sampler=self._batches(len(self) - begun),
            batch_size=None,  # what the sampler gives are batches
            num_workers=self.num_workers,
            generator=torch.Generator(),  # its own, so that starting an epoch draws nothing from the global one
        )
        for batch in loader:
            self.state = self.states.popleft()
            yield {name: value.to(self.accelerator.device) for name, value in batch.items()}

    def first(self, pairs: int) -> dict[str, torch.Tensor]:
        """Inputs of some pairs, of which none counts as read."""
        state = self.rows.state_dict()
        batch = self.inputs[list(itertools.islice(_rows(self.rows), pairs))]
        self.rows.load_state_dict(state)
        return batch

    def _batches(self, count: int) -> Iterator[list[dict]]:
        for _ in range(count):
            if self.coming is None:
                self.coming = self._all_pairs()
            pairs = list(itertools.islice(self.coming, self.batch_size))
            self.states.append(self._place())
            yield pairs

    def _place(self) -> dict:
        return {"passes": self.passes, "rows": self.rows.state_dict()}

    def _all_pairs(self) -> Iterator[dict]:
        empty = 0  # passes; that of a checkpoint may be at its end
        while empty < 2:
            self.rows.set_epoch(self.passes)
            empty += 1
            for pair in _rows(self.rows):
                empty = 0
                yield pair
            self.passes += 1
        raise ValueError("The training stream has no image for a process; expected at least one for each.")

    def _save(self, models, weights, folder: str) -> None:
        file = Path(folder) / STATE_FILE.format(process=self.accelerator.process_index)
        file.write_text(json.dumps(self.state), encoding="utf-8")

    def _load(self, models, folder: str) -> None:
        file = Path(folder) / STATE_FILE.format(process=self.accelerator.process_index)
        self.state = json.loads(file.read_text(encoding="utf-8"))
        self.passes, self.coming = self.state["passes"], None
        self.rows.load_state_dict(self.state["rows"])


def _rows(stream: IterableDataset) -> Iterator[dict]:
    try:
        yield from stream
    except tarfile.TarError as error:  # which is no error of a kind that commands tell in a line
        raise ValueError(
            f"An archive of the training stream is damaged: {error}. `omit-hf inspect` tells which."
        ) from error


def _pairs(rows: dict) -> dict:
    """A row for each caption of an image."""
    [image], [image_id], [captions] = rows["image"], rows["image_id"], rows["captions"]
    return {"image": [image] * len(captions), "image_id": [image_id] * len(captions), "caption": captions}


def _number(text: str) -> int:
    """A number of an image or a pair, the same in every process and run."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
