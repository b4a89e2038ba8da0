"""The store that we ship: a LanceDB table, on a disk or in an object store.

A row has its item's metadata, and its features twice in float16: `fragments`, the column that is indexed by late
interaction, and `rows`, the global feature and then the fragments in one piece, which is read to score.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from omit_hf.library.stores import Candidates
from omit_hf.modeling import OmitFeatures
from omit_hf.parsing import shown

os.environ.setdefault("LANCEDB_LOG", "error")  # read as it is imported; it warns of tables that it makes
try:
    import lancedb
    from lancedb.index import IvfRq
except ImportError as error:
    raise ImportError("omit_hf.library needs LanceDB: pip install 'omit-hf[library]'.") from error

VERSION = 1  # of the layout
SETTINGS, UNREADABLE = "settings", "unreadable"
READ_AT_ONCE = 1024  # rows
COPIES = 32  # of query vectors, by which a word has its weight, since Lance adds up words of one weight
PROBES = 32  # parts of the index that are searched
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


@dataclass
class Settings:
    """What a library says of itself.

    Args:
        of: `pictures` or `captions`.
        model: the model's folder or Hub id, as it was given.
        digest: of the model's weights, configuration, image processor and tokenizer.
        width: D, of its features.
        table: the table that holds its rows.
        candidates: C, of the first stage.
        version: of the layout.
    """

    of: str
    model: str
    digest: str
    width: int
    table: str
    candidates: int = 200
    version: int = VERSION


class LanceStore:
    """Rows of a library in LanceDB; the methods of a `Store`, and those that keep them.

    An object looks at one version of the table, so that a search sees a consistent state while others write; `refresh`
    goes on to the last one. An item's id is the number of its row in that version.

    Args:
        uri: folder, or address in an object store, such as `s3://bucket/photos.lance`.
        storage_options: of the object store; see LanceDB's documentation.
    """

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None):
        self.uri = uri
        self.database = lancedb.connect(uri, storage_options=storage_options)
        self.settings = self.table = None
        self.refresh()

    def refresh(self) -> None:
        """Look at the last version, if the library is there.

        Raises:
            ValueError: if it has the layout of another version of this package.
        """
        if SETTINGS not in self._names():
            return
        row = self.database.open_table(SETTINGS).to_arrow().to_pylist()[0]
        found = json.loads(row["json"])
        if found.get("version") != VERSION:
            raise ValueError(
                f"The library {self.uri} has the layout {found.get('version')!r}; this version of omit-hf reads "
                f"{VERSION}. Use the version that made it, or make the library anew."
            )
        self.settings = Settings(**found)
        self.table = self.database.open_table(self.settings.table)
        self._probes = [self.database.open_table(name) for name in (SETTINGS, self.settings.table)]
        self._versions = [probe.version for probe in self._probes]

    def _names(self) -> list[str]:
        return list(self.database.list_tables().tables)

    def is_old(self) -> bool:
        """Whether others have written since."""
        for probe in self._probes:
            probe.checkout_latest()
        return [probe.version for probe in self._probes] != self._versions

    @property
    def item_bytes(self) -> int:
        """Bytes of the first item's features in float32; 0 without an item."""
        first = self.table.search().select(["rows"]).limit(1).to_arrow()["rows"]
        return 2 * len(first[0].as_py()) if len(first) else 0

    def write_settings(self, settings: Settings) -> None:
        """Make the library, or change what it says of itself, in one step."""
        self.make_table(settings.table, settings.width)
        self.database.create_table(SETTINGS, [{"json": json.dumps(vars(settings))}], mode="overwrite")
        self.refresh()

    def make_table(self, name: str, width: int):
        """Open a table of rows, which is made if need be."""
        fragments = pa.field("fragments", pa.list_(pa.list_(pa.float16(), width)))
        schema = pa.schema([pa.field(*each) for each in OWN.items()] + [fragments])
        return self.database.create_table(name, schema=schema, exist_ok=True)

    def drop_others(self) -> None:
        """Delete tables of former models."""
        for name in self._names():
            if name.startswith("items") and name != self.settings.table:
                self.database.drop_table(name)

    # --- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return 0 if self.table is None else self.table.count_rows()

    @property
    def columns(self) -> list[str]:
        """Names of the metadata."""
        return [name for name in self.table.schema.names if name not in FEATURES]

    def metadata(self, ids: Sequence[int] | None = None, columns: Sequence[str] | None = None) -> list[dict]:
        """Rows of metadata, all or those of some ids in their order."""
        columns = self.columns if columns is None else list(columns)
        if ids is None:
            return self.table.search().select(columns).to_arrow().to_pylist()
        if not len(ids):
            return []
        return self._take(ids, columns).to_pylist()

    def matching(self, where: str) -> list[int]:
        """Ids of the rows that a filter lets pass; `ValueError` for what is no filter."""
        search = self.table.search().where(checked_filter(where)).select(["key"]).with_row_id(True)
        with _filter_errors(where, self):
            found = search.to_arrow()
        return found["_rowid"].to_pylist()

    def candidates(self, words: Tensor, weights: Tensor, where: str | None, count: int) -> Candidates:
        """Candidates by the index, with the bounds of what it found. A word weighs by how often it is asked for."""
        copies = (weights / weights.sum() * COPIES).round().long()
        if (weights == weights[0]).all() or not copies.any():
            copies = torch.ones_like(copies)
        vectors = words.repeat_interleave(copies, dim=0).numpy()
        search = self.table.search(vectors, vector_column_name="fragments").distance_type("cosine")
        if where is not None:
            search = search.where(checked_filter(where))
        with _filter_errors(where, self):
            found = search.nprobes(PROBES).select(["_distance"]).with_row_id(True).limit(count).to_arrow()
        bounds = weights.sum() * (1 - torch.tensor(found["_distance"].to_pylist()) / len(vectors))
        return Candidates(found["_rowid"].to_pylist(), bounds, None)

    def fragments(self, ids: Sequence[int]) -> OmitFeatures:
        return self._features(self._take(ids, ["rows", "norms"]))

    def scan(self, where: str | None = None) -> Iterator[tuple[list[int], OmitFeatures]]:
        """All rows, or those that a filter lets pass, in blocks of ids and features."""
        search = self.table.search().select(["rows", "norms"]).with_row_id(True)
        if where is not None:
            search = search.where(checked_filter(where))
        with _filter_errors(where, self):
            blocks = search.to_batches(READ_AT_ONCE)
        for block in blocks:
            block = pa.Table.from_batches([block])
            yield block["_rowid"].to_pylist(), self._features(block)

    def _take(self, ids: Sequence[int], columns: list[str]) -> pa.Table:
        found = self.table.take_row_ids(list(ids)).select(columns).with_row_id().to_arrow()
        places = {row: place for place, row in enumerate(found["_rowid"].to_pylist())}
        return found.take([places[row] for row in ids])

    def _features(self, table: pa.Table) -> OmitFeatures:
        rows = _arrays(table["rows"], np.float16, self.settings.width)
        embeds, pooled = pad_sequence([each[1:] for each in rows], batch_first=True), torch.stack([x[0] for x in rows])
        mask = pad_sequence([torch.ones(len(each) - 1, dtype=torch.bool) for each in rows], batch_first=True)
        norms = pad_sequence([each[:, 0] for each in _arrays(table["norms"], np.float32, 1)], batch_first=True)
        return OmitFeatures(embeds=embeds, mask=mask, pooled=pooled, norms=norms)

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, rows: list[dict], table=None) -> None:
        """Add rows in one transaction: metadata, and what `as_stored` makes of features."""
        table = self.table if table is None else table
        _widen(table, rows)
        table.add(_as_arrow(rows, table.schema))

    def replace(self, rows: list[dict]) -> None:
        """Replace the rows with the same `key` in one transaction."""
        _widen(self.table, rows)
        merge = self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(_as_arrow(rows, self.table.schema))

    def change(self, changes: dict[str, dict]) -> None:
        """Change metadata of rows by their `key`, in one transaction."""
        keys = ", ".join(_quoted(key) for key in changes)
        table = self.table.search().where(f"key IN ({keys})").limit(len(changes)).to_arrow()
        for name in {name for change in changes.values() for name in change}:
            values = [changes[row["key"]].get(name, row[name]) for row in table.select(["key", name]).to_pylist()]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.field(place), pa.array(values, table.field(place).type))
        self.table.merge_insert("key").when_matched_update_all().execute(table)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows by their `key`, in one transaction."""
        self.table.delete(f"key IN ({', '.join(_quoted(key) for key in keys)})")

    def write_unreadable(self, files: list[dict], gone: Sequence[str] = ()) -> None:
        """Keep files that could not be read, by `path`, with their `reason`, size and time; forget others."""
        schema = pa.schema({name: OWN[name] for name in ("path", "folder", "bytes", "modified")})
        schema = schema.append(pa.field("reason", pa.string()))
        table = self.database.create_table(UNREADABLE, schema=schema, exist_ok=True)
        if files:
            new = pa.Table.from_pylist(files, schema=schema)
            table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(new)
        if gone:
            table.delete(f"path IN ({', '.join(_quoted(path) for path in gone)})")

    def unreadable(self) -> list[dict]:
        if UNREADABLE not in self._names():
            return []
        return self.database.open_table(UNREADABLE).to_arrow().to_pylist()

    @property
    def index(self) -> str | None:
        return next((each.name for each in self.table.list_indices() if each.columns == ["fragments"]), None)

    @property
    def num_unindexed(self) -> int:
        return self.table.index_stats(self.index).num_unindexed_rows if self.index else len(self)

    def make_index(self) -> None:
        """Make the index of late interaction: a bit a number, 46 bytes a fragment of D = 256."""
        self.table.create_index("fragments", config=IvfRq(distance_type="cosine", num_bits=1))

    def tidy(self) -> None:
        """Merge small files, and new rows into the index."""
        self.table.optimize()


def as_stored(features: OmitFeatures) -> list[dict]:
    """The columns that hold the features of B items."""
    rows = []
    for number, mask in enumerate(features.mask.cpu()):
        fragments = features.embeds[number].cpu()[mask].to(torch.float16).numpy()
        whole = np.concatenate([features.pooled[number, None].cpu().to(torch.float16).numpy(), fragments])
        norms = features.norms[number].cpu()[mask].float().numpy()
        rows.append({"fragments": fragments, "rows": whole.tobytes(), "norms": norms.tobytes()})
    return rows


def checked_filter(where: str) -> str:
    """A filter in parentheses, so that it can be no more than one.

    Raises:
        ValueError: for what is no text, or ends its own parentheses, texts or statement.
    """
    if not isinstance(where, str) or not where.strip():
        raise _no_filter(where, "it is empty" if isinstance(where, str) else "it is no text")
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "''", where)  # without texts and names
    depth = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth != 0:
        raise _no_filter(where, "its parentheses do not close")
    if ";" in bare or "--" in bare or "/*" in bare or "\0" in where:
        raise _no_filter(where, "it is more than a condition")
    return f"({where})"


def _no_filter(where, why: str) -> ValueError:
    return ValueError(
        f'where is {shown(where)}, which is no filter: {why}; expected a condition such as "year >= 2020".'
    )


@contextlib.contextmanager
def _filter_errors(where: str | None, store: LanceStore) -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if where is None:
            raise
        why = " ".join(str(error).removeprefix("Invalid input, ").split())
        raise ValueError(f"{_no_filter(where, why[:300])} The columns are {', '.join(store.columns)}.") from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _arrays(column: pa.ChunkedArray, dtype, width: int) -> list[Tensor]:
    """The arrays of a binary column, float32 [R, width] each."""
    column = column.combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if not len(column):
        return []
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(column.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].view(dtype).reshape(-1, width)
    sizes = np.diff(offsets) // (width * np.dtype(dtype).itemsize)
    return list(torch.from_numpy(data.astype(np.float32)).split(sizes.tolist()))


def _as_arrow(rows: list[dict], schema: pa.Schema) -> pa.Table:
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


def _widen(table, rows: list[dict]) -> None:
    """Add the columns that rows have and the table has not."""
    known = table.schema.names
    new = {name: [row.get(name) for row in rows] for row in rows for name in row if name not in known}
    fields = [pa.field(name, pa.array(values).type) for name, values in new.items()]
    fields = [field for field in fields if not pa.types.is_null(field.type)]
    if fields:
        table.add_columns(pa.schema(fields))
