"""COCO's own `captions_{train,val}2014.json`, with the splits of Karpathy's JSON."""

import collections
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import tidy
from omit_hf.data.sources.karpathy import read_karpathy, wanted_entries
from omit_hf.data.sources.picture_files import PictureFiles, shown_name
from omit_hf.parsing import is_text, label, parse_json, read_text, shown

CAPTION_FILES = {"captions_train2014.json": "train2014", "captions_val2014.json": "val2014"}


def load_coco_captions(
    annotations: str | Path,
    image_folder: str | Path,
    karpathy: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> DatasetDict:
    """Load COCO from the annotations that its makers publish, joined with Karpathy's splits by COCO's image number.

    The captions, in their order, and the file names are COCO's; the JSON gives the split alone, so that one without
    sentences will do.

    Args:
        annotations: folder of `captions_train2014.json` and `captions_val2014.json`; the latter alone has all images
            of the validation and test splits.
        image_folder: folder of `train2014/` and `val2014/`.
        karpathy: JSON with a list `images`, each with `cocoid` and `split`; `dataset_coco.json` in `annotations` by
            default. COCO's `restval` counts as `train`; images that it does not list are left out.
        only: the splits to load; the images of others need not be there. By default those that the JSON has.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in the folder).

    Raises:
        FileNotFoundError: if a file that has images of these splits, or the folder, is not there.
        ValueError: if one of them is no such JSON, two images have one number, a split of `only` is lacking, or with
            every problem of their entries.
    """
    annotations = Path(annotations)
    karpathy = annotations / "dataset_coco.json" if karpathy is None else Path(karpathy)
    names, captions = {}, collections.defaultdict(list)
    absent = [file for file in CAPTION_FILES if not (annotations / file).is_file()]
    for file, folder in CAPTION_FILES.items():
        if file in absent:
            continue
        content = _read_captions(annotations / file)
        for number, image in enumerate(content["images"]):
            name = f"{folder}/{image['file_name']}"
            if names.setdefault(image["id"], name) != name:
                other = shown_name(names[image["id"]])
                raise ValueError(
                    f"{annotations / file} images[{number}]: id {image['id']} is that of {other} too, and this is "
                    f"{shown_name(name)}; expected a number for each image."
                )
        for each in content["annotations"]:
            captions[each["image_id"]].append(tidy(each["caption"]))
    files, unknown = PictureFiles(annotations, image_folder, only), []
    for where, split, entry in wanted_entries(read_karpathy(karpathy), files, f"{karpathy.name} "):
        image = entry.get("cocoid")
        if not _is_number(image):
            files.problems.append(f"{where}: not the expected fields (cocoid is {shown(image)}; expected a number)")
        elif image not in names:
            unknown.append(f"{where}: cocoid {image} is in neither of {', '.join(CAPTION_FILES)}")
        else:
            files.add(where, split, names[image], captions[image])
    if unknown and absent:
        raise FileNotFoundError(
            f"No {' and '.join(absent)} in {annotations}; expected COCO's annotations, train and val of 2014, which "
            f"have {len(unknown)} of the images."
        )
    files.problems += unknown
    return files.data()


def _read_captions(file: Path) -> dict:
    text = read_text(file)
    try:
        content = parse_json(text, max_depth=None)
        for number, image in enumerate(content["images"]):
            if not _is_number(image["id"]) or not isinstance(image["file_name"], str):
                raise ValueError(f"images[{number}] is {shown(image)}")
        for number, each in enumerate(content["annotations"]):
            if not _is_number(each["image_id"]) or not is_text(each["caption"]):
                raise ValueError(f"annotations[{number}] is {shown(each)}")
        return content
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no file of COCO's captions, which has 'images' (id, a number; file_name, a text) and "
            f"'annotations' (image_id, a number; caption, a text): {label(repr(error))}."
        ) from error


def _is_number(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
