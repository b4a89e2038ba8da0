"""Karpathy JSON and a folder of images, the usual form of Flickr30K and COCO, to the schema of `omit_hf.data`."""

import json
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value

SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
FEATURES = Features({"image": Image(), "captions": List(Value("string")), "image_id": Value("string")})
PROBLEMS_SHOWN = 20


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
        ValueError: if it is no such JSON, or with every problem of its entries: an image that is missing or lies
            outside the folder, an unknown split, no caption, an empty caption.
    """
    annotations, image_folder = Path(annotations), Path(image_folder)
    if not annotations.is_file():
        raise FileNotFoundError(
            f"No annotations at {annotations}; expected a Karpathy JSON such as dataset_flickr30k.json."
        )
    if not image_folder.is_dir():
        raise FileNotFoundError(
            f"No image folder at {image_folder}; expected the folder of the images of {annotations}."
        )
    try:
        entries = list(json.loads(annotations.read_text(encoding="utf-8"))["images"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations} is no Karpathy JSON, which has a list 'images': {error!r}.") from error

    root = image_folder.resolve()
    rows, problems = {split: [] for split in SPLITS.values()}, []
    for number, entry in enumerate(entries):
        try:
            name = str(Path(entry.get("filepath", "")) / entry["filename"])
            captions = [" ".join(sentence["raw"].split()) for sentence in entry["sentences"]]
            split = entry["split"]
        except (KeyError, TypeError, AttributeError) as error:
            problems.append(f"images[{number}]: not the expected fields ({error!r})")
            continue
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            problems.append(f"images[{number}]: {name} lies outside the image folder")
        elif not path.is_file():
            problems.append(f"images[{number}]: {name} is missing")
        if split not in SPLITS:
            problems.append(f"images[{number}] ({name}): split {split!r}, expected one of {', '.join(SPLITS)}")
        if not captions or not all(captions):
            problems.append(f"images[{number}] ({name}): no caption, or an empty one")
        if not problems:
            rows[SPLITS[split]].append({"image": str(path), "captions": captions, "image_id": name})
    problems += [f"no image in split {split!r}" for split in rows if not rows[split] and not problems]
    if problems:
        shown = "\n  ".join(problems[:PROBLEMS_SHOWN])
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        raise ValueError(f"{annotations} with images in {image_folder} has {len(problems)} problems:\n  {shown}{more}")
    return DatasetDict({split: Dataset.from_list(rows[split], features=FEATURES, split=split) for split in rows})
