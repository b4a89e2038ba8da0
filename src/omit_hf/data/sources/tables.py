"""From tables of `datasets`, with columns and splits of any name, to the schema of `omit_hf.data`."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
)

from omit_hf.data.schema import (
    FEATURES,
    DataError,
    listed,
    tidy,
    tidy_captions,
)
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.data.sources.region_lists import region_problems
from omit_hf.data.sources.split_plans import split_plan
from omit_hf.parsing import is_text, parse_json, shown, told

BOXES = "a list of boxes, each x0, y0, x1, y1 in pixels, finite and not ending before it begins"
SIDE = "a whole number of pixels, at least 1"
KEPT = ("width", "height", "boxes")  # columns of the schema that a table may have too


@dataclass
class Columns:
    """How the rows of a table give those of the schema.

    Args:
        image: column of the pictures, or with an `image_folder` the columns whose texts, joined by `/`, are the path of
            the file in it.
        captions: column of the captions.
        image_id: column of a text or number of its own for every image; None to number the rows.
        regions: the column `image` holds precomputed regions, lists [K] of lists [width], and no pictures.
        captions_as: what a value of the captions' column is: `list` of texts; `json`, the text of a JSON list; `lines`,
            a text with a caption a line; or `text`, one caption, where all rows with the same `image_id` are one image.
    """

    image: str | list[str] = "image"
    captions: str = "captions"
    image_id: str | None = "image_id"
    captions_as: str = "list"
    regions: bool = False
    kept: dict[str, str] = field(default_factory=dict)

    @classmethod
    def declared(cls, columns: dict | None, captions_as: str) -> "Columns":
        """From the options of a loader.

        Raises:
            ValueError: for a name that the schema does not have, what is no name of a column, or an unknown form of
                captions.
        """
        columns = {} if columns is None else columns
        if not isinstance(columns, dict):
            raise ValueError(f"columns is {columns!r}; expected names of the schema and the source's in {{}}.")
        columns = dict(columns)
        known = {"image", "region_features", "captions", "image_id", *KEPT}
        if not columns.keys() <= known:
            wrong = listed(sorted(columns.keys() - known))
            raise ValueError(f"columns maps {wrong}; expected names of the schema: {', '.join(sorted(known))}.")
        for name, value in columns.items():
            if name == "image_id" and value is None:
                continue
            names = value if name == "image" and isinstance(value, list) else [value]
            if not names or not all(isinstance(each, str) for each in names):
                raise ValueError(f"columns maps {name} to {value!r}; expected the name of a column.")
        if captions_as not in PARSERS:
            raise ValueError(f"captions_as is {captions_as!r}; expected one of {', '.join(PARSERS)}.")
        kept = {name: columns.pop(name) for name in KEPT if name in columns}
        regions = "region_features" in columns
        if regions and "image" in columns:
            raise ValueError("columns maps image and region_features; expected the one that the model takes.")
        if regions:
            columns["image"] = columns.pop("region_features")
        return cls(**columns, captions_as=captions_as, regions=regions, kept=kept)

    @property
    def images(self) -> list[str]:
        return [self.image] if isinstance(self.image, str) else list(self.image)

    def names(self) -> list[str]:
        """All columns that are read."""
        names = [*self.images, self.captions, *self.kept.values()]
        return list(dict.fromkeys(names + [self.image_id] if self.image_id is not None else names))

    def check(self, found: Iterable[str], what: str) -> None:
        missing = [name for name in self.names() if name not in found]
        if missing:
            raise ValueError(
                f"{what} has no column {listed(missing)}; it has {listed(found)}. Map them with the option columns: "
                "{image: …, captions: …, image_id: …} (image_id: null numbers the rows)."
            )


def _as_list(value) -> list[str]:
    if not isinstance(value, list):
        raise ValueError(f"{shown(value)} is no list; captions_as says what it is: {', '.join(PARSERS)}")
    return tidy_captions(value)


def _as_json(value) -> list[str]:
    try:
        found = parse_json(_text(value))
    except ValueError as error:
        raise ValueError(f"{shown(value)} is no JSON list ({error})") from error
    return _as_list(found)


def _as_lines(value) -> list[str]:
    return [tidy(line) for line in _text(value).splitlines() if line.strip()]


def _as_text(value) -> list[str]:
    return [tidy(_text(value))]


def _text(value) -> str:
    if not is_text(value):
        raise ValueError(f"{shown(value)} is no text; captions_as says what it is: {', '.join(PARSERS)}")
    return value


PARSERS: dict[str, Callable[..., list[str]]] = {
    "list": _as_list,
    "json": _as_json,
    "lines": _as_lines,
    "text": _as_text,
}


def tables_to_schema(
    what: str,
    tables: dict[str, Dataset],
    columns: Columns,
    splits: dict | None = None,
    split_of: Callable[[Dataset], list[str | None]] | None = None,
    image_folder: str | Path | None = None,
    only: Sequence[str] | None = None,
) -> DatasetDict:
    """Splits in the schema; pictures stay in the files where `datasets` keeps them.

    Args:
        what: the source, for messages.
        tables: by their names.
        columns: how to read a row.
        splits: see `split_plan`.
        split_of: gives a split's name for every row of a table, None to leave it out; by default that of the table.
        image_folder: where the pictures are, if not in the table.
        only: the splits that are wanted; rows of others are not looked at.

    Raises:
        ValueError: with every problem of the rows; see `Columns` and `split_plan`.
    """
    problems, parts, sources = [], {}, {}
    labels = {name: [name] * len(table) if split_of is None else split_of(table) for name, table in tables.items()}
    found = {label for each in labels.values() for label in each if label is not None}
    plan = split_plan(what, sorted(found, key=str), splits, only)
    wanted = {name for theirs in plan.values() for name in theirs}
    for name, table in tables.items():
        kept = [label if label in wanted else None for label in labels[name]]
        if not any(label is not None for label in kept):
            continue
        columns.check(table.column_names, f"split {name!r} of {what}")
        try:
            parts[name] = _read(name, table, columns, kept, problems)
        except ValueError as error:
            raise ValueError(f"Split {name!r} of {what}: {error}") from error
        sources[name] = table
    if image_folder is not None:
        return _from_files(what, parts, sources, columns, plan, image_folder, problems)

    shaped = {}
    for name, table in sources.items():
        check = region_problems if columns.regions else _pictures_outside
        problems += check(name, table, columns, parts[name].labels)
        if problems:
            continue
        rows = table.select_columns([columns.image, *columns.kept.values()])
        source = "region_features" if columns.regions else "image"
        rows = rows.rename_columns({columns.image: source, **{old: new for new, old in columns.kept.items()}})
        # Before rows are chosen: a table with chosen rows would be copied, pictures and all, to add a column.
        rows = rows.add_column("captions", parts[name].captions, feature=FEATURES["captions"])
        rows = rows.add_column("image_id", parts[name].ids, feature=FEATURES["image_id"])
        shaped[name] = rows if columns.regions else rows.cast_column("image", Image())
    if problems:
        raise DataError(what, problems)
    data = {}
    for ours, name, numbers in _chosen(plan, parts):
        whole = len(numbers) == len(shaped[name])
        data.setdefault(ours, []).append(shaped[name] if whole else shaped[name].select(numbers))
    return DatasetDict({ours: concatenate_datasets(rows) for ours, rows in data.items()})


def streams_to_schema(
    what: str,
    streams: IterableDatasetDict,
    columns: Columns,
    splits: dict | None = None,
    max_images: int | None = None,
    only: Sequence[str] | None = None,
) -> IterableDatasetDict | DatasetDict:
    """Splits in the schema, row by row as they come; or the first `max_images` of each, in memory.

    Raises:
        ValueError: as `tables_to_schema`, but for what is in the rows only when they come; and where one caption a row
            would have to be gathered from the whole split.
    """
    if columns.captions_as == "text":
        raise ValueError("captions_as is 'text', whose images are gathered from all rows; a stream cannot do that.")
    plan = split_plan(what, list(streams), splits, only)
    data = {}
    for ours, theirs in plan.items():
        stream = concatenate_datasets([_stream(what, name, streams[name], columns) for name in theirs])
        if max_images is None:
            data[ours] = stream
        else:
            stored = stream.cast_column("image", Image(decode=False)).take(max_images)
            data[ours] = Dataset.from_list(list(stored), features=FEATURES, split=ours)
    return IterableDatasetDict(data) if max_images is None else DatasetDict(data)


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """What is said of the rows of a table, one value a row; a row of no image of its own has the label None."""

    captions: list[list[str]]
    ids: list[str]
    labels: list[str | None]


def column_values(table: Dataset, column: str) -> list:
    """All values of a column.

    Raises:
        ValueError: names a column whose values cannot be read, such as text that is no UTF-8.
    """
    try:
        return list(table[column])
    except Exception as error:  # of Arrow, and of whatever decodes a feature
        raise ValueError(f"column {column!r} cannot be read: {type(error).__name__}, {told(error)}.") from error


def _read(name: str, table: Dataset, columns: Columns, labels: list, problems: list[str]) -> _Rows:
    """The captions, ids and split names of the rows that are wanted; what is wrong with them goes to `problems`."""
    parse = PARSERS[columns.captions_as]
    captions = []
    for number, (value, label) in enumerate(zip(column_values(table, columns.captions), labels, strict=True)):
        captions.append([])
        if label is None:
            continue
        try:
            captions[-1] = _captions(parse, value)
        except ValueError as error:
            problems.append(f"split {name!r} row {number}: {error}")
    if columns.image_id is None:
        ids = [f"{name}-{number}" for number in range(len(table))]
    else:
        ids = ["" if value is None else str(value) for value in column_values(table, columns.image_id)]
    wanted = [n for n, label in enumerate(labels) if label is not None]
    problems += [f"split {name!r} row {n}: no {columns.image_id}" for n in wanted if not ids[n]]
    for ours, theirs in columns.kept.items():
        fits, expected = (_is_boxes, BOXES) if ours == "boxes" else (_is_side, SIDE)
        for number, value in enumerate(column_values(table, theirs)):
            if labels[number] is not None and not fits(value):
                problems.append(f"split {name!r} row {number}: {theirs} is {shown(value)}; expected {expected}")
    rows = _Rows(captions, ids, list(labels))
    if columns.captions_as == "text":
        _gather(name, rows, problems)
    return rows


def _captions(parse: Callable[..., list[str]], value) -> list[str]:
    captions = parse(value)
    if not captions or not all(captions):
        raise ValueError("no caption, or an empty one")
    return captions


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value) -> bool:
    return _is_number(value) and 1 <= value < 2**31 and value == int(value)


def _is_boxes(value) -> bool:
    return isinstance(value, list) and all(
        isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and box[0] <= box[2] and box[1] <= box[3]
        for box in value
    )


def _gather(name: str, rows: _Rows, problems: list[str]) -> None:
    """Give all captions of an image to its first row, and drop the others."""
    first = {}
    for number, (image, label) in enumerate(zip(rows.ids, rows.labels, strict=True)):
        if label is None:
            continue
        head = first.setdefault(image, number)
        if head != number:
            if rows.labels[head] != label:
                problems.append(f"split {name!r} row {number}: {image} is in {label!r}, and in {rows.labels[head]!r}")
            rows.captions[head] += rows.captions[number]
            rows.captions[number], rows.labels[number] = [], None


def _chosen(plan: dict[str, list[str]], parts: dict[str, _Rows]) -> Iterator[tuple[str, str, list[int]]]:
    """The rows of each of our splits: its name, that of a table, and their numbers in it."""
    for ours, theirs in plan.items():
        for wanted in theirs:
            for name, rows in parts.items():
                numbers = [number for number, label in enumerate(rows.labels) if label == wanted]
                if numbers:
                    yield ours, name, numbers


def _pictures_outside(name: str, table: Dataset, columns: Columns, labels: list[str | None]) -> list[str]:
    """Pictures that are not in the table itself: it could name any file of this machine."""
    feature = table.features[columns.image]
    column = table.data.column(columns.image)
    if isinstance(feature, Image) or (isinstance(feature, dict) and feature.keys() == {"bytes", "path"}):
        missing = pc.is_null(pc.struct_field(column, "bytes")).to_numpy().nonzero()[0]
        return [f"split {name!r} row {n}: no bytes in {columns.image}" for n in missing if labels[n] is not None]
    if feature in (Value("binary"), Value("large_binary")):
        return []
    return [
        f"split {name!r}: column {columns.image!r} holds {feature}; expected pictures. Where it holds names of files, "
        "image_folder says where these are"
    ]


def _from_files(what, parts, sources, columns: Columns, plan, image_folder, problems) -> DatasetDict:
    files = PictureFiles(what, image_folder)
    files.problems += problems
    for ours, name, numbers in _chosen(plan, parts):
        paths = list(zip(*(column_values(sources[name], column) for column in columns.images), strict=True))
        for number in numbers:
            where = f"split {name!r} row {number}"
            if any(part is None for part in paths[number]):
                files.problems.append(f"{where}: no file in {listed(columns.images)}")
                continue
            path = "/".join(map(str, paths[number]))
            image_id = path if columns.image_id is None else parts[name].ids[number]
            files.add(where, ours, path, parts[name].captions[number], image_id)
    return files.data()


def _stream(what: str, name: str, stream: IterableDataset, columns: Columns) -> IterableDataset:
    if stream.column_names is not None:
        columns.check(stream.column_names, f"split {name!r} of {what}")
    if stream.features is not None and isinstance(stream.features.get(columns.image), Image):
        stream = stream.cast_column(columns.image, Image(decode=False))

    def to_schema(row, number):
        where = f"{what}, split {name!r} row {number}"
        picture = row[columns.image]
        picture = picture if isinstance(picture, dict) else {"bytes": picture, "path": None}
        if not isinstance(picture.get("bytes"), bytes):
            raise ValueError(f"{where}: no bytes in {columns.image}; expected the picture itself.")
        try:
            captions = _captions(PARSERS[columns.captions_as], row[columns.captions])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        image_id = f"{name}-{number}" if columns.image_id is None else row[columns.image_id]
        if image_id is None or image_id == "":
            raise ValueError(f"{where}: no {columns.image_id}; expected a text or a number of its own.")
        image_id = str(image_id)
        return {"image": picture, "captions": captions, "image_id": image_id}

    removed = stream.column_names or columns.names()
    # With `features` given to it, map would leave pictures as they are stored.
    return stream.map(to_schema, with_indices=True, remove_columns=removed).cast(FEATURES)
