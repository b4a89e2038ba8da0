"""Data sets of the Hub, or folders of parquet files, to the schema of `omit_hf.data`."""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from omit_hf.data.schema import SPLIT_NAMES, check_count, check_only, listed
from omit_hf.data.sources.karpathy import KARPATHY_SPLITS, read_karpathy
from omit_hf.data.sources.picture_files import file_identity
from omit_hf.data.sources.split_plans import split_plan
from omit_hf.data.sources.tables import Columns, column_values, streams_to_schema, tables_to_schema
from omit_hf.parsing import label, told


def load_hub(
    source: str | Path,
    *,
    columns: dict | None = None,
    captions_as: str = "list",
    splits: dict | None = None,
    split_column: str | None = None,
    split_file: str | Path | None = None,
    image_folder: str | Path | None = None,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    max_images: int | None = None,
    only: Sequence[str] | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Load a data set of the Hub, or of local parquet files, by a declared mapping of its columns and splits.

    No code of a data set is run. For data sets that are known, in the form of a recipe:

        data: hub:umaru97/flickr30k_train_val_test      # its splits have usual names
        data_options: {columns: {captions: caption, image_id: filename}}

        data: hub:nlphuji/flickr30k                     # one split, of which a column tells
        data_options: {revision: refs/convert/parquet, split_column: split,
                       columns: {captions: caption, image_id: filename}}

        data: hub:lmms-lab/flickr30k                    # one split, to be split as Karpathy's JSON says
        data_options: {split_file: dataset_flickr30k.json, columns: {captions: caption, image_id: filename}}

        data: hub:yerevann/coco-karpathy                # no pictures; they are in a folder
        data_options: {image_folder: coco, columns: {image: [filepath, filename], captions: sentences,
                       image_id: cocoid}}

    Args:
        source: `hub:user/name`, `user/name`, or a folder of `.parquet` files, whose split is the beginning of their
            name (`train-00000-of-00002.parquet`) or the name of their folder.
        columns: names of the schema (`image` or `region_features`, `captions`, `image_id`; also `width`, `height`,
            `boxes`) → the source's. An `image_id` of null numbers the rows. Regions are lists, [K] of [width] numbers.
        captions_as: what a value of the captions' column is: `list`; `json`, the text of a JSON list; `lines`, a text
            with a caption a line; `text`, one caption, where the rows of one `image_id` are one image.
        splits: ours → theirs, or a list of theirs. By default by their usual names (`val`, `dev`, `restval` …).
        split_column: column that tells the split of each row.
        split_file: Karpathy JSON that tells the split of each `image_id`, by its `filename`; others are left out.
        image_folder: where the pictures are, if the columns of `image` name files.
        name: of the configuration, where a data set has several.
        revision: branch, tag or commit of the Hub; a commit makes a run repeatable.
        streaming: do not fetch the data set, but read its rows as they are asked for. What comes is an
            `IterableDatasetDict`, to look at or to work through once; training numbers and shuffles all pairs, so it
            needs `max_images` as well.
        max_images: with `streaming`, fetch so many images of each split and no more, into memory: for a trial.
        only: the splits to load; rows of others are not looked at, nor local files of theirs. By default those that the
            source has.

    Returns:
        `DatasetDict` in the schema of `omit_hf.data` with those of the splits that the source has; its pictures are in
        the cache of `datasets`, or in `image_folder`.

    Raises:
        FileNotFoundError: if there is no such data set, folder or file.
        ValueError: if the mapping does not fit the source, or with every problem of its rows.
    """
    mapping = Columns.declared(columns, captions_as)
    check_only(only)
    if splits is not None and split_file is not None:
        raise ValueError("splits and split_file are both given; expected one of them.")
    if split_column is not None and split_file is not None:
        raise ValueError("split_column and split_file are both given; expected one of them.")
    if image_folder is None and not isinstance(mapping.image, str):
        raise ValueError(f"columns maps image to {mapping.image}, which name files; image_folder says where these are.")
    if mapping.regions and (streaming or image_folder):
        raise ValueError(
            "columns maps region_features, which goes without streaming and image_folder; leave out either."
        )
    if streaming and (split_column or split_file or image_folder or mapping.kept):
        raise ValueError(
            "streaming goes without split_column, split_file, image_folder, width, height and boxes; leave out either."
        )
    if max_images is not None:
        check_count("max_images", max_images)
        if not streaming:
            raise ValueError(f"max_images is {max_images}; expected at least 1, and streaming.")
    tables = _load(str(source), name, revision, streaming, splits, None if split_column or split_file else only)
    if streaming:
        return streams_to_schema(str(source), tables, mapping, splits, max_images, only)

    split_of = None
    if split_column is not None:
        split_of = _by_column(split_column)
    elif split_file is not None:
        split_of = _by_file(split_file, mapping, only)
    return tables_to_schema(str(source), tables, mapping, splits, split_of, image_folder, only)


def find_parquet(folder: Path) -> list[Path]:
    """All parquet files in a folder and those below it, also where these are links; a folder that links lead to twice
    counts once.
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        identity = file_identity(place)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders.sort()
        found += [Path(place) / name for name in files if name.endswith(".parquet")]
    return sorted(found)


def parquet_files(folder: Path) -> dict[str, list[str]]:
    """The parquet files in a folder, by the splits that their names begin with or their folder has.

    Raises:
        ValueError: if neither names a split.
    """
    files = defaultdict(list)
    for file in find_parquet(folder):
        names = [re.split(r"[-._]", file.name)[0], file.parent.name]
        split = next((name for name in names if name in SPLIT_NAMES), None)
        if split is None:
            raise ValueError(
                f"{file} tells no split; expected a name or a folder that begins with one of {', '.join(SPLIT_NAMES)}."
            )
        files[split].append(str(file))
    return dict(files)


def _load(source: str, name: str | None, revision: str | None, streaming: bool, splits: dict | None, only):
    """The tables of a source; of a folder those alone that make the splits of `only`."""
    folder = Path(source)
    try:
        if folder.is_dir():
            if name is not None or revision is not None:
                raise ValueError(f"name and revision are of the Hub, and {source} is a folder; leave them out.")
            files = parquet_files(folder)
            if only is not None:
                plan = split_plan(source, files, splits, only)
                files = {name: files[name] for theirs in plan.values() for name in theirs}
            return _load_parquet(source, files, streaming)
        return load_dataset(source.removeprefix("hub:"), name, revision=revision, streaming=streaming)
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{source} is no folder here, and no data set that you can read on the Hub (hf auth login?): {error}"
        ) from error
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(f"{source} cannot be read: {told(error.__cause__ or error)}.") from error


def _load_parquet(source: str, files: dict[str, list[str]], streaming: bool):
    try:
        return load_dataset("parquet", data_files=files, streaming=streaming)
    except Exception as error:  # of Arrow and of `datasets`, by what is wrong in a file
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        names = listed(Path(file).name for each in files.values() for file in each)
        raise ValueError(
            f"{source} cannot be read: {type(reason).__name__}, {told(reason).removesuffix('.')}, in one of {names}."
        ) from error


def _by_column(column: str):
    def split_of(table: Dataset) -> list[str]:
        if column not in table.column_names:
            raise ValueError(f"split_column is {column!r}; expected one of {listed(table.column_names)}.")
        return [str(value) for value in column_values(table, column)]

    return split_of


def _by_file(file: str | Path, columns: Columns, only: Sequence[str] | None):
    entries = read_karpathy(file)
    try:
        by_name = {entry["filename"]: KARPATHY_SPLITS[entry["split"]] for entry in entries}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} has an entry without a filename or a known split: {label(repr(error))}.") from error
    twice = [entry["filename"] for entry in entries if by_name[entry["filename"]] != KARPATHY_SPLITS[entry["split"]]]
    if twice:
        raise ValueError(f"{file} has images in two splits: {listed(twice)}; expected each in one.")
    if columns.image_id is None:
        raise ValueError("split_file is given without a column of file names; expected columns: {image_id: …}.")

    def split_of(table: Dataset) -> list[str | None]:
        columns.check(table.column_names, "the source")
        names = [str(value) for value in column_values(table, columns.image_id)]
        wanted = {name for name, split in by_name.items() if only is None or split in only}
        missing = sorted(map(str, wanted - set(names)))
        if missing:
            raise ValueError(
                f"{file} names {len(missing)} images that are not in column {columns.image_id!r}: {listed(missing)}. "
                "It must hold the file names of the JSON."
            )
        return [by_name.get(name) for name in names]

    return split_of
