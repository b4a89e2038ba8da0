"""Karpathy JSON and a folder of images, the usual form of Flickr30K and COCO, to the schema of `omit_hf.data`."""

from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import SPLITS, tidy
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.parsing import parse_json

KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def load_karpathy(annotations: str | Path, image_folder: str | Path) -> DatasetDict:
    """Load a data set with Karpathy's splits.

    Args:
        annotations: JSON with a list `images`, each with `filename`, `split`, `sentences` (each with `raw`) and, in
            COCO, `filepath`, the folder of the file. COCO's `restval` counts as `train`.
        image_folder: the folder that `filepath` and `filename` start from. Images are read when they are needed.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in the folder).

    Raises:
        FileNotFoundError: if the file or the folder is not there.
        ValueError: if it is no such JSON, or with every problem of its entries: an image that is missing, named twice
            or outside the folder, an unknown split, no caption, an empty caption.
    """
    entries = read_karpathy(annotations)
    files = PictureFiles(annotations, image_folder)
    for number, entry in enumerate(entries):
        where = f"images[{number}]"
        try:
            name = file_name(entry)
            captions = [tidy(sentence["raw"]) for sentence in entry["sentences"]]
            split = entry["split"]
            known = split in KARPATHY_SPLITS
        except (KeyError, TypeError, AttributeError) as error:
            files.problems.append(f"{where}: not the expected fields ({error!r})")
            continue
        if not known:
            files.problems.append(f"{where} ({name}): split {split!r}, expected one of {', '.join(KARPATHY_SPLITS)}")
        files.add(where, KARPATHY_SPLITS.get(split), name, captions)
    return files.data(SPLITS)


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
    try:
        return list(parse_json(annotations.read_text(encoding="utf-8"), max_depth=None)["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations} is no Karpathy JSON, which has a list 'images': {error!r}.") from error


def file_name(entry: dict) -> str:
    """The path of an entry's picture in the image folder."""
    return str(Path(entry.get("filepath", "")) / entry["filename"])
