"""COCO's own `captions_{train,val}2014.json`, with the splits of Karpathy's JSON."""

import collections
from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import SPLITS, tidy
from omit_hf.data.sources.karpathy import KARPATHY_SPLITS, read_karpathy
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.parsing import parse_json

CAPTION_FILES = {"captions_train2014.json": "train2014", "captions_val2014.json": "val2014"}


def load_coco_captions(
    annotations: str | Path, image_folder: str | Path, karpathy: str | Path | None = None
) -> DatasetDict:
    """Load COCO from the annotations that its makers publish, joined with Karpathy's splits by COCO's image number.

    The captions, in their order, and the file names are COCO's; the JSON gives the split alone, so that one without
    sentences will do.

    Args:
        annotations: folder of `captions_train2014.json` and `captions_val2014.json`.
        image_folder: folder of `train2014/` and `val2014/`.
        karpathy: JSON with a list `images`, each with `cocoid` and `split`; `dataset_coco.json` in `annotations` by
            default. COCO's `restval` counts as `train`; images that it does not list are left out.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in the folder).

    Raises:
        FileNotFoundError: if one of the files or the folder is not there.
        ValueError: if one of them is no such JSON, or with every problem of their entries.
    """
    annotations = Path(annotations)
    karpathy = annotations / "dataset_coco.json" if karpathy is None else Path(karpathy)
    names, captions = {}, collections.defaultdict(list)
    for file, folder in CAPTION_FILES.items():
        content = _read_captions(annotations / file)
        names |= {image["id"]: f"{folder}/{image['file_name']}" for image in content["images"]}
        for each in content["annotations"]:
            captions[each["image_id"]].append(tidy(each["caption"]))
    files = PictureFiles(annotations, image_folder)
    for number, entry in enumerate(read_karpathy(karpathy)):
        where = f"{karpathy.name} images[{number}]"
        try:
            image, split = entry["cocoid"], entry["split"]
            known = split in KARPATHY_SPLITS
        except (KeyError, TypeError) as error:
            files.problems.append(f"{where}: not the expected fields ({error!r})")
            continue
        if not known:
            files.problems.append(f"{where}: split {split!r}, expected one of {', '.join(KARPATHY_SPLITS)}")
        if image not in names:
            files.problems.append(f"{where}: cocoid {image!r} is in neither of {', '.join(CAPTION_FILES)}")
        else:
            files.add(where, KARPATHY_SPLITS.get(split), names[image], captions[image])
    return files.data(SPLITS)


def _read_captions(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"No {file.name} in {file.parent}; expected COCO's annotations, train and val of 2014.")
    try:
        content = parse_json(file.read_text(encoding="utf-8"), max_depth=None)
        for image in content["images"]:
            image["id"], image["file_name"]
        for each in content["annotations"]:
            each["image_id"], each["caption"].split
        return content
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no file of COCO's captions, which has 'images' (id, file_name) and 'annotations' (image_id, "
            f"caption): {error!r}."
        ) from error
