"""WebDataset archives, `{split}-*.tar`, to the schema of `omit_hf.data`."""

import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, Value, load_dataset

from omit_hf.data.schema import SPLIT_NAMES, DataError, check_only
from omit_hf.data.sources.picture_files import shown_name
from omit_hf.data.sources.split_plans import split_plan
from omit_hf.data.sources.tables import Columns, streams_to_schema, tables_to_schema
from omit_hf.parsing import decode_text, label, parse_json, told


def load_webdataset(
    folder: str | Path,
    *,
    columns: dict | None = None,
    captions_as: str = "lines",
    splits: dict | None = None,
    streaming: bool = False,
    only: Sequence[str] | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Load archives in which the files of one image share their name: `0001.jpg` and `0001.txt` or `0001.json`.

    Args:
        folder: holds `.tar` files whose names begin with their split, such as `train-00000.tar`.
        columns: `image` and `captions` → the ending of their files, or `json.` and a field of a JSON file. By default
            the one ending that is of pictures, and `txt`. `image_id` is the archive's name and the key.
        captions_as: what a captions' file or field is: `lines`, a text with a caption a line; `list`; or `json`, the
            text of a JSON list.
        splits: ours → theirs, or a list of theirs; by default by their usual names.
        streaming: read the samples as they are asked for, and copy none. What is wrong with one is said when it comes.
        only: the splits to load; archives of others are not opened. By default those that the folder has.

    Returns:
        `DatasetDict`, or with `streaming` an `IterableDatasetDict`, in the schema of `omit_hf.data` with those of the
        splits that the folder has. Without `streaming` the archives are read once, into the cache of `datasets`.

    Raises:
        ValueError: if the name of an archive tells no split, an archive is damaged, the mapping does not fit, or with
            every problem of the rows, or every sample whose files are not those of the others.
    """
    columns = dict(columns or {})
    check_only(only)
    if "image_id" in columns:
        raise ValueError("columns maps image_id; in archives it is the archive's name and the key, so leave it out.")
    if captions_as == "text":
        raise ValueError("captions_as is 'text'; in an archive an image has one captions' file, so expected 'lines'.")
    folder = Path(folder)
    archives = _archives(folder, splits, only)
    number = _numbered_stream if streaming else _numbered
    tables = {split: number(table) for split, table in _load(folder, archives, streaming).items()}
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
    if streaming:
        return streams_to_schema(str(folder), tables, mapping, splits, only=only)
    if "json." in mapping.captions:  # `datasets` makes a list of letters of a text where the first samples have lists
        samples, problems = _samples(archives)
        problems += _other_kinds(samples, [mapping.captions])
        if problems:
            raise DataError(str(folder), problems)
    return tables_to_schema(str(folder), tables, mapping, splits, only=only)


def _archives(folder: Path, splits: dict | None, only: Sequence[str] | None) -> dict[str, list[Path]]:
    """The archives that are wanted, by the splits of their names."""
    archives = defaultdict(list)
    for file in sorted(folder.glob("*.tar")):
        split = re.split(r"[-._]", file.name)[0]
        if split not in SPLIT_NAMES:
            raise ValueError(
                f"{file} tells no split; expected a name that begins with one of {', '.join(SPLIT_NAMES)}."
            )
        archives[split].append(file)
    if only is not None:
        plan = split_plan(folder, archives, splits, only)
        archives = {name: archives[name] for theirs in plan.values() for name in theirs}
    return archives


def _load(folder: Path, archives: dict[str, list[Path]], streaming: bool) -> DatasetDict | IterableDatasetDict:
    files = {name: list(map(str, each)) for name, each in archives.items()}
    try:
        return load_dataset("webdataset", data_files=files, streaming=streaming)
    except Exception as error:  # `datasets` looks at the first samples unguarded, and gives no sample's name
        samples, problems = _samples(archives)
        problems = problems or _unlike(samples)
        if problems:
            what = f"The archives in {folder}, whose samples must have the same files and fields,"
            raise DataError(what, problems) from error
        reason = told(error.__cause__ or error)
        raise ValueError(f"An archive in {folder} cannot be read: {reason}") from error


def _samples(archives: dict[str, list[Path]]) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """The columns that each sample makes, with their kinds, and what is wrong with its texts; no picture is read.

    Raises:
        ValueError: if an archive is damaged.
    """
    samples, problems = {}, []
    for archive in [file for files in archives.values() for file in files]:
        try:
            with tarfile.open(archive) as members:
                for member in members:
                    match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
                    if not member.isfile() or match is None:
                        continue
                    where, ending = f"{archive.name} sample {shown_name(match[1])}", match[2].lower()
                    fields = samples.setdefault(where, {})
                    try:
                        content = members.extractfile(member).read() if ending.endswith(("txt", "json")) else b""
                        fields |= _fields(ending, content)
                    except ValueError as error:
                        problems.append(f"{where}: {error}")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"An archive in {archive.parent} cannot be read: {archive.name}: {told(error)}."
            ) from error
    return samples, problems


def _unlike(samples: dict[str, dict]) -> list[str]:
    """Every sample whose columns, or their kinds, are not those of most."""
    if not samples:
        return []
    usual = Counter(frozenset(fields) for fields in samples.values()).most_common(1)[0][0]
    expected = ", ".join(sorted(usual))
    problems = [
        f"{where} has {', '.join(sorted(fields))}; expected {expected}, as most have"
        for where, fields in samples.items()
        if fields.keys() != usual
    ]
    return problems or _other_kinds(samples, sorted(usual))


def _other_kinds(samples: dict[str, dict], columns: list[str]) -> list[str]:
    """Every sample of which a column's kind is not that of most."""
    problems = []
    for column in columns:
        kinds = {where: fields[column] for where, fields in samples.items() if fields.get(column) is not None}
        for usual, _ in Counter(kinds.values()).most_common(1):
            problems += [
                f"{where}: {column} is {kind}; expected {usual}, as most have"
                for where, kind in kinds.items()
                if kind != usual
            ]
    return problems


def _fields(ending: str, content: bytes) -> dict[str, str | None]:
    """The columns that a file of a sample makes, and the kind of each; None fits any."""
    if ending.endswith("txt"):
        decode_text(content, f"its .{ending}")
    if not ending.endswith("json"):
        return {ending: None}
    try:
        value = parse_json(content.decode(json.detect_encoding(content)))  # as `datasets` reads it
    except ValueError as error:
        raise ValueError(f"its .{ending} is no JSON ({label(error)})") from error
    if isinstance(value, dict) and value:
        return {f"{ending}.{name}": _kind(each) for name, each in value.items()}
    return {ending: _kind(value)}


def _kind(value) -> str | None:
    """What Arrow takes a JSON value for."""
    if isinstance(value, list):
        kind = next(filter(None, map(_kind, value)), None)
        return kind and f"a list of {kind}"
    if isinstance(value, bool):
        return "a boolean"
    return {str: "text", int: "numbers", float: "numbers", dict: "an object"}.get(type(value))


def _numbered(table: Dataset) -> Dataset:
    """With JSON's fields as columns of their own, and ids that are unique."""
    ids = list(map(_id, table["__url__"], table["__key__"]))
    return table.flatten().add_column("image_id", ids)


def _numbered_stream(stream: IterableDataset) -> IterableDataset:
    """The same; its pictures are not decoded."""
    flat = {**stream.features.flatten(), "image_id": Value("string")}
    pictures = {name: Image(decode=False) for name, feature in flat.items() if isinstance(feature, Image)}
    for name, feature in pictures.items():
        stream = stream.cast_column(name, feature)

    def number(sample: dict) -> dict:
        found = {**dict.fromkeys(flat), "image_id": _id(sample["__url__"], sample["__key__"])}
        for name, value in sample.items():
            found |= _leaves(name, value, flat)
        return found

    return stream.map(number, remove_columns=stream.column_names, features=Features(flat | pictures))


def _leaves(name: str, value, columns: Collection[str]) -> dict:
    """A value by the column that it is of, or what is in it by theirs."""
    if name in columns:
        return {name: value}
    inside = [_leaves(f"{name}.{key}", each, columns) for key, each in (value or {}).items()]
    return {column: each for leaves in inside for column, each in leaves.items()}


def _id(archive: str, key: str) -> str:
    """Of a sample: its key alone often begins anew in each archive."""
    return f"{Path(archive).name.removesuffix('.tar')}/{key}"
