"""The columns of a library's table: its own, those of features, and those that data sets bring."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.features.features import require_decoding
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omit_hf.modeling import OmitFeatures
from omit_hf.parsing import shown

OWN = {
    "key": pa.string(),
    "id": pa.string(),
    "path": pa.string(),
    "folder": pa.string(),
    "digest": pa.string(),
    "bytes": pa.int64(),
    "modified": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "taken": pa.timestamp("s"),
    "year": pa.int32(),
    "captions": pa.list_(pa.string()),
    "boxes": pa.list_(pa.float32()),
    "grid": pa.list_(pa.int32()),
    "norms": pa.binary(),
    "rows": pa.binary(),
}
FEATURES = ("rows", "fragments", "norms", "boxes", "grid")  # columns that are no metadata
INPUTS = ("image", "region_features", "boxes", "image_id")  # columns of a data set that are no metadata
GIVEN = ("width", "height", "taken", "year", "captions")  # own columns that a data set may fill
READ_AT_ONCE = 1024  # rows


def table_schema(width: int) -> pa.Schema:
    """The columns of a new library whose features are D = `width` wide."""
    fragments = pa.field("fragments", pa.list_(pa.list_(pa.float16(), width)))
    return pa.schema([pa.field(*each) for each in OWN.items()] + [fragments])


def as_stored(features: OmitFeatures) -> list[dict]:
    """The columns that hold the features of B items."""
    masks, norms = features.mask.cpu().numpy(), features.norms.cpu().float().numpy()
    embeds, pooled = (each.cpu().to(torch.float16).numpy() for each in (features.embeds, features.pooled))
    rows = []
    for number, mask in enumerate(masks):
        fragments = embeds[number][mask]
        whole = np.concatenate([pooled[number, None], fragments])
        rows.append({"fragments": fragments, "rows": whole.tobytes(), "norms": norms[number][mask].tobytes()})
    return rows


def as_features(table: pa.Table, width: int) -> OmitFeatures:
    """The features of N rows, float32, from their columns `rows` and `norms`."""
    rows, sizes = _numbers(table["rows"], torch.float16, width)
    norms, _ = _numbers(table["norms"], torch.float32, 1)
    if len(set(sizes)) == 1:
        whole, norms = rows.view(len(sizes), sizes[0], width), norms.view(len(sizes), sizes[0] - 1)
        return OmitFeatures(embeds=whole[:, 1:], mask=torch.ones_like(norms).bool(), pooled=whole[:, 0], norms=norms)
    if not sizes:
        none = torch.zeros(0, 0)
        return OmitFeatures(embeds=none[..., None].expand(0, 0, width), mask=none.bool(), pooled=none, norms=none)
    items, counts = rows.split(sizes), [size - 1 for size in sizes]
    return OmitFeatures(
        embeds=pad_sequence([item[1:] for item in items], batch_first=True),
        mask=pad_sequence([torch.ones(count, dtype=torch.bool) for count in counts], batch_first=True),
        pooled=torch.stack([item[0] for item in items]),
        norms=pad_sequence(norms[:, 0].split(counts), batch_first=True),
    )


def _numbers(column: pa.ChunkedArray, dtype: torch.dtype, width: int) -> tuple[Tensor, list[int]]:
    """The numbers of a binary column in rows of a width, float32 [ΣR, width], and how many rows an item has."""
    parts, sizes = [torch.zeros(0, width)], []
    for chunk in column.chunks:
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        sizes += (np.diff(offsets) // (width * dtype.itemsize)).tolist()
        content = chunk.buffers()[2]
        if content is not None and offsets[-1] > offsets[0]:
            data = np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]].copy()
            parts.append(torch.from_numpy(data).view(dtype).view(-1, width).float())
    return torch.cat(parts) if len(parts) != 2 else parts[1], sizes


def as_arrow(rows: Sequence[dict], schema: pa.Schema) -> pa.Table:
    """Rows as a table; a column that a row lacks is null."""
    columns = {}
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.name == "fragments":
            flat = pa.array(np.concatenate(values).reshape(-1), pa.float16())
            vectors = pa.FixedSizeListArray.from_arrays(flat, field.type.value_type.list_size)
            ends = np.cumsum([0, *(len(each) for each in values)]).astype(np.int32)
            columns[field.name] = pa.ListArray.from_arrays(ends, vectors)
        else:
            columns[field.name] = pa.array(values, field.type)
    return pa.table(columns, schema=schema)


def missing_fields(rows: Sequence[dict], schema: pa.Schema) -> list[pa.Field]:
    """The columns that rows have and a schema has not, of the type that their values have."""
    new = {name: [row.get(name) for row in rows] for row in rows for name in row if name not in schema.names}
    fields = [pa.field(name, pa.array(values).type) for name, values in new.items()]
    return [field for field in fields if not pa.types.is_null(field.type)]


def metadata_fields(data: Dataset, schema: pa.Schema) -> list[pa.Field]:
    """The columns of a data set that become metadata, those whose values are all None aside; looks at their values.

    Args:
        data: rows of pictures.
        schema: of the library's table, with whose columns they must agree.

    Raises:
        ValueError: for a column that the library fills itself, a name that LanceDB does not take, pictures or sounds,
            and values that do not fit the column that the library has.
    """
    types = data.features.arrow_schema
    fields = []
    for name in data.column_names:
        if name in INPUTS:
            continue
        advice = f"rename it, as in data.rename_column({name!r}, 'my_column')"
        if (name in OWN and name not in GIVEN) or name in FEATURES:
            raise ValueError(f"The data have a column {name!r}, which the library fills itself; {advice}.")
        if not name.strip() or name.startswith("_") or "." in name or "`" in name or not name.isprintable():
            raise ValueError(f"The data have a column {name!r}, a name that LanceDB does not take; {advice}.")
        if require_decoding(data.features[name]):
            kind = type(data.features[name]).__name__
            raise ValueError(
                f"The column {name!r} holds {kind}, which is no metadata; leave it out: data.remove_columns({name!r})."
            )
        kind = _plain(types.field(name).type)
        if pa.types.is_null(kind):
            continue
        wanted = schema.field(name).type if name in schema.names else kind
        if kind != wanted:
            _check_values(data, name, kind, wanted)
        fields.append(pa.field(name, wanted))
    return fields


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without extensions of `datasets`, and with the strings that a library has."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return pa.string() if pa.types.is_large_string(kind) else kind


def _check_values(data: Dataset, name: str, kind: pa.DataType, wanted: pa.DataType) -> None:
    column = data.with_format("arrow").select_columns(name)
    for start in range(0, len(data), READ_AT_ONCE):
        values = column[start : start + READ_AT_ONCE][name].to_pylist()
        try:
            fitting = pa.array(values, wanted).to_pylist()
            for given, fit in zip(values, fitting, strict=True):
                if given != fit and given == given:  # but NaN
                    raise ValueError(f"it would make {fit} of {given}")
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"The column {name!r} of the data is {kind}, and that of the library {wanted}: {error}. Cast it, as in "
                f"data.cast_column({name!r}, …), or rename it."
            ) from error


def same_value(given, stored, kind: pa.DataType) -> bool:
    """Whether a value is what a column of this type has."""
    if given != stored and given is not None:
        given = pa.array([given], kind)[0].as_py()
    return given == stored or (given != given and stored != stored)  # NaN


def check_ids(data: Dataset) -> None:
    """Raise a ValueError if two rows have the same `image_id`."""
    places: dict[str, int] = {}
    for number, name in enumerate(data["image_id"] if "image_id" in data.column_names else ()):
        if name in (None, ""):
            continue
        before = places.setdefault(str(name), number)
        if before != number:
            raise ValueError(
                f"Rows {before} and {number} have the same image_id, {shown(name)}; expected a row a picture, with all "
                "of its captions."
            )
