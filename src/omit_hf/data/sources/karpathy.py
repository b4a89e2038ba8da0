"""Karpathy JSON and a folder of images, the usual form of Flickr30K and COCO, to the schema of `omit_hf.data`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import tidy_captions
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.parsing import label, parse_json, read_text, shown

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def load_karpathy(annotations: str | Path, image_folder: str | Path, only: Sequence[str] | None = None) -> DatasetDict:
    """Load a data set with Karpathy's splits.

    Args:
        annotations: JSON with a list `images`, each with `filename`, `split`, `sentences` (each with `raw`) and, in
            COCO, `filepath`, the folder of the file. COCO's `restval` counts as `train`.
        image_folder: the folder that `filepath` and `filename` start from. Images are read when they are needed.
        only: the splits to load; the images of others need not be there. By default those that the JSON has.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in the folder).

    Raises:
        FileNotFoundError: if the file or the folder is not there.
        ValueError: if it is no such JSON, lacks a split of `only`, or with every problem of its entries: an image that
            is missing, there twice under any name, or outside the folder, an unknown split, no caption, an empty
            caption.
    """
    entries = read_karpathy(annotations)
    files = PictureFiles(annotations, image_folder, only)
    for where, split, entry in wanted_entries(entries, files):
        try:
            name = file_name(entry)
            captions = tidy_captions([sentence["raw"] for sentence in entry["sentences"]])
        except (KeyError, TypeError, AttributeError) as error:
            files.problems.append(f"{where}: not the expected fields ({label(repr(error))})")
        except ValueError as error:
            files.problems.append(f"{where}: {error}")
        else:
            files.add(where, split, name, captions)
    return files.data()


def wanted_entries(entries: list[dict], files: PictureFiles, prefix: str = "") -> Iterator[tuple[str, str, dict]]:
    """Where an entry stands, its split and the entry, of the splits that are wanted; problems go to `files`."""
    for number, entry in enumerate(entries):
        where = f"{prefix}images[{number}]"
        try:
            split = split_of_entry(entry)
        except ValueError as error:
            files.problems.append(f"{where}: {error}")
        else:
            if files.wants(split):
                yield where, split, entry


def read_karpathy(annotations: str | Path) -> list[dict]:
    """The entries of a Karpathy JSON, as they are.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is no such JSON.
    """
    annotations = Path(annotations)
    if not annotations.is_file():
        raise FileNotFoundError(
            f"No annotations at {annotations}; expected a Karpathy JSON such as dataset_flickr30k.json."
        )
    text = read_text(annotations)
    try:
        return list(parse_json(text, max_depth=None)["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{annotations} is no Karpathy JSON, which has a list 'images': {label(repr(error))}."
        ) from error


def split_of_entry(entry: dict) -> str:
    """Our split of an entry.

    Raises:
        ValueError: if it has none, or an unknown one.
    """
    if not isinstance(entry, dict) or "split" not in entry:
        raise ValueError("not the expected fields (KeyError('split'))")
    split = entry["split"]
    if not isinstance(split, str) or split not in KARPATHY_SPLITS:
        raise ValueError(f"split {shown(split)}, expected one of {', '.join(KARPATHY_SPLITS)}")
    return KARPATHY_SPLITS[split]


def file_name(entry: dict) -> str:
    """The path of an entry's picture in the image folder."""
    return str(Path(entry.get("filepath", "")) / entry["filename"])
