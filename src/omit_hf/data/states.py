"""Computes the states of frozen backbones once and keeps them on disk.

A frozen backbone gives the same states in every epoch. With cached states an epoch costs only the projections and the
head.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Array2D, Dataset, DatasetDict, Features, Image, List, Value, concatenate_datasets

from omit_hf.data.inputs import ImageTextInputs
from omit_hf.digests import model_digest
from omit_hf.parsing import told
from omit_hf.writing import names_what_fails


def cache_states(
    model, processor, data: DatasetDict, folder: str | Path, *, image: bool, text: bool, batch_size: int = 32
) -> DatasetDict:
    """Add the backbones' states to every row, from the cache if it has them.

    A file's name is a digest of the backbone's weights and configuration, the processor and the data, so a change of
    any of them makes a new file. A file appears when it is complete.

    Args:
        model: `OmitModel`; the backbones run on the device of its parameters.
        processor: `OmitProcessor`.
        data: splits in the schema of `omit_hf.data`.
        folder: folder of the files; created if missing.
        image, text: which backbones' states to cache.
        batch_size: images per batch, with all of their captions.

    Returns:
        `data` with the columns `image_states` [1 + K, width], and `text_states` [tokens of all captions, width] with
        `text_lengths`, the number of tokens of every caption; float32 and memory-mapped.

    Raises:
        ValueError: if `image` is set, and there are no pictures; or if a file of the folder is damaged.
    """
    if image and any("image" not in rows.column_names for rows in data.values()):
        raise ValueError("The data have no pictures for the vision backbone; cache the states of the text side alone.")
    folder = Path(folder).expanduser()
    with names_what_fails(folder):
        return _cached(model, processor, data, folder, image, text, batch_size)


def _cached(model, processor, data: DatasetDict, folder: Path, image: bool, text: bool, batch_size: int) -> DatasetDict:
    folder.mkdir(parents=True, exist_ok=True)
    was_training = model.training
    model.eval()
    out = {}
    try:
        for split, rows in data.items():
            inputs = ImageTextInputs(rows, processor)
            parts = [rows]
            if image:
                key = model_digest(model.vision_encoder.backbone, [processor.image_processor], _content(rows, "image"))
                file = folder / f"image-{split}-{key}.arrow"
                parts.append(_computed(file, inputs, _image_states(model, inputs), batch_size))
            if text:
                key = model_digest(model.text_encoder.backbone, [processor.tokenizer], _content(rows, "captions"))
                file = folder / f"text-{split}-{key}.arrow"
                parts.append(_computed(file, inputs, _text_states(model, inputs), batch_size))
            out[split] = concatenate_datasets(parts, axis=1)
    finally:
        model.train(was_training)
    return DatasetDict(out)


def _image_states(model, inputs: ImageTextInputs) -> Callable[[list[int]], dict]:
    def states_of(images):
        pixel_values = inputs.images(images)["pixel_values"].to(model.device)
        states, _ = model.vision_encoder.encode(pixel_values)
        return {"image_states": list(states.float().cpu().numpy())}

    return states_of


def _text_states(model, inputs: ImageTextInputs) -> Callable[[list[int]], dict]:
    def states_of(images):
        captions = [number for image in images for number in inputs.captions_of(image)]
        batch = {name: tensor.to(model.device) for name, tensor in inputs.texts(captions).items()}
        states = model.text_encoder.backbone(**batch).last_hidden_state.float()
        kept = iter(zip(states, batch["attention_mask"].bool(), strict=True))
        rows = [[state[mask].cpu() for state, mask in (next(kept) for _ in inputs.captions_of(i))] for i in images]
        return {
            "text_states": [torch.cat(row).numpy() for row in rows],
            "text_lengths": [[len(states) for states in row] for row in rows],
        }

    return states_of


def _computed(file: Path, inputs: ImageTextInputs, states_of: Callable[[list[int]], dict], batch_size: int) -> Dataset:
    """Load the states of all images; write them to `file` first unless it exists.

    Raises:
        ValueError: if it exists, and is damaged.
    """

    @torch.inference_mode()
    def compute(batch):
        return states_of(batch["image"])

    first = compute({"image": [0]})
    if "image_states" in first:
        features = Features({"image_states": Array2D(first["image_states"][0].shape, "float32")})
    else:
        shape = (None, first["text_states"][0].shape[-1])
        features = Features({"text_states": Array2D(shape, "float32"), "text_lengths": List(Value("int32"))})
    was_there = file.is_file()
    try:
        rows = Dataset.from_dict({"image": range(inputs.num_images)}).map(
            compute,
            batched=True,
            batch_size=batch_size,
            writer_batch_size=batch_size,
            remove_columns="image",
            features=features,
            cache_file_name=str(file),
            new_fingerprint=file.stem,
            load_from_cache_file=True,
            desc=f"Computing {file.name}",
        )
        if rows.features != features or len(rows) != inputs.num_images:
            raise ValueError(f"it holds {', '.join(rows.column_names)} of {len(rows)} images, not {inputs.num_images}")
    except Exception as error:  # of Arrow
        if not was_there:
            raise
        raise ValueError(f"{file} is damaged ({told(error)}); delete it, and it is computed anew.") from error
    return rows


def _content(rows: Dataset, column: str) -> str:
    """Compute a digest of a split's captions or images (their bytes, or the path, size and time of their file)."""
    digest = hashlib.sha256()
    if column == "image":
        rows = rows.cast_column("image", Image(decode=False))
    for value in rows[column]:
        if column == "image" and value["bytes"] is None:
            stat = Path(value["path"]).stat()
            value = {"path": value["path"], "size": stat.st_size, "time": stat.st_mtime_ns}
        digest.update(repr(value).encode())
    return digest.hexdigest()
