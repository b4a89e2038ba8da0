"""WebDataset archives, `{split}-*.tar`, to the schema of `omit_hf.data`."""

import re
import tarfile
from collections import defaultdict
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, load_dataset
from datasets.exceptions import DatasetGenerationError

from omit_hf.data.schema import SPLIT_NAMES
from omit_hf.data.sources.tables import Columns, tables_to_schema


def load_webdataset(
    folder: str | Path, *, columns: dict | None = None, captions_as: str = "lines", splits: dict | None = None
) -> DatasetDict:
    """Load archives in which the files of one image share their name: `0001.jpg` and `0001.txt` or `0001.json`.

    Args:
        folder: holds `.tar` files whose names begin with their split, such as `train-00000.tar`.
        columns: `image` and `captions` → the ending of their files, or `json.` and a field of a JSON file. By default
            the one ending that is of pictures, and `txt`. `image_id` is the archive's name and the key.
        captions_as: what a captions' file or field is: `lines`, a text with a caption a line; `list`; or `json`, the
            text of a JSON list.
        splits: ours → theirs, or a list of theirs; by default by their usual names.

    Returns:
        `DatasetDict` in the schema of `omit_hf.data` with those of the splits that the folder has. The archives are
        read once, into the cache of `datasets`.

    Raises:
        ValueError: if the name of an archive tells no split, an archive is damaged, the mapping does not fit, or with
            every problem of the rows.
    """
    columns = dict(columns or {})
    if "image_id" in columns:
        raise ValueError("columns maps image_id; in archives it is the archive's name and the key, so leave it out.")
    if captions_as == "text":
        raise ValueError("captions_as is 'text'; in an archive an image has one captions' file, so expected 'lines'.")
    tables = {split: _numbered(table) for split, table in _load(Path(folder)).items()}
    if "image" not in columns:
        features = next(iter(tables.values())).features
        endings = [name for name, feature in features.items() if isinstance(feature, Image)]
        if len(endings) != 1:
            raise ValueError(
                f"The archives in {folder} hold {', '.join(features)}; expected pictures of one ending, or the option "
                "columns: {image: …} to choose one."
            )
        columns["image"] = endings[0]
    mapping = Columns.declared({"captions": "txt", **columns, "image_id": "image_id"}, captions_as)
    return tables_to_schema(str(folder), tables, mapping, splits)


def _load(folder: Path) -> DatasetDict:
    archives = defaultdict(list)
    for file in sorted(folder.glob("*.tar")):
        split = re.split(r"[-._]", file.name)[0]
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"{file} tells no split; expected a name that begins with one of {', '.join(SPLIT_NAMES)}."
            )
        archives[split].append(str(file))
    try:
        return load_dataset("webdataset", data_files=dict(archives))
    except (DatasetGenerationError, tarfile.TarError, OSError) as error:
        raise ValueError(f"An archive in {folder} cannot be read: {error.__cause__ or error}") from error


def _numbered(table: Dataset) -> Dataset:
    """With JSON's fields as columns of their own, and ids that are unique: keys often begin anew in each archive."""
    pairs = zip(table["__url__"], table["__key__"], strict=True)
    ids = [f"{Path(archive).name.removesuffix('.tar')}/{key}" for archive, key in pairs]
    return table.flatten().add_column("image_id", ids)
