"""The store that we ship: a LanceDB table, on a disk or in an object store.

A row has its item's metadata, and its features twice in float16: `fragments`, the column that is indexed by late
interaction, and `rows`, the global feature and then the fragments in one piece, which is read to score.
"""

import copy
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta

import pyarrow as pa
import torch
from torch import Tensor

from omit_hf.library.columns import (
    FEATURES,
    OWN,
    READ_AT_ONCE,
    as_arrow,
    as_features,
    as_stored,
    missing_fields,
    table_schema,
)
from omit_hf.library.filters import checked_filter, filter_errors, quoted
from omit_hf.library.stores import Candidates
from omit_hf.modeling import OmitFeatures
from omit_hf.parsing import parse_json, shown

os.environ.setdefault("LANCEDB_LOG", "error")  # read as it is imported; it warns of tables that it makes
try:
    import lancedb
    from lancedb.index import IvfRq
except ImportError as error:
    raise ImportError("omit_hf.library needs LanceDB: pip install 'omit-hf[library]'.") from error

__all__ = ["LanceStore", "Settings", "as_stored"]

VERSION = 1  # of the layout
SETTINGS, UNREADABLE = "settings", "unreadable"
OWN_TABLES = re.compile(r"settings|unreadable|items(_\w+)?")  # one of items a model
COPIES = 4  # of a word in a query, on average, by which words have their weights: Lance adds up words of one weight
PROBES = 8  # parts of the index that are searched for a word
KEPT = timedelta(hours=1)  # former versions, which a long search may still read
SAMPLE = 64  # rows whose mean size is taken for that of all
DELETED_AT_ONCE = 50_000  # rows
TRIALS = 5  # to open a table, while others replace it


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
    candidates: int = 400
    version: int = VERSION

    @classmethod
    def of_model(cls, of: str, model: str, digest: str, width: int) -> "Settings":
        return cls(of, model, digest, width, f"items_{digest[:16]}")


class LanceStore:
    """Rows of a library in LanceDB; the methods of a `Store`, and those that keep them.

    An object looks at one version of the table, so that a search sees a consistent state while others write; what it
    writes itself, and `refresh`, take it on to the last one. An item's id is the number of its row in that version.

    Args:
        uri: folder, or address in an object store, such as `s3://bucket/photos.lance`.
        storage_options: of the object store; see LanceDB's documentation.

    Raises:
        ValueError: if the library has the layout of another version of this package, or is damaged.
        OSError: if the place cannot be reached.
    """

    def __init__(self, uri: str, storage_options: dict[str, str] | None = None):
        self.uri, self.storage_options = uri, storage_options
        try:
            self.database = lancedb.connect(uri, storage_options=storage_options)
        except (ValueError, RuntimeError, TypeError) as error:
            said = " ".join(str(error).removeprefix("Invalid input, ").split())
            raise OSError(f"{uri!r} cannot be opened; see its name and storage_options: {said[:500]}") from error
        self.settings = self.table = None
        self.refresh()

    def refresh(self) -> None:
        """Look at the last version, if the library is there; errors as of the class."""
        for trial in range(TRIALS):
            settings = self._open(SETTINGS)
            if settings is None:
                return
            self.settings = self._read(settings)
            self.table = self._open(self.settings.table)
            if self.table is not None:
                break
            if trial == TRIALS - 1:  # and not one that was replaced since the settings were read
                raise ValueError(f"The library {self.uri} lacks its table {self.settings.table!r}; restore it.")
        self._probes = [self._open(SETTINGS), self._open(self.settings.table)]
        self._versions = [settings.version, self.table.version]

    def _open(self, name: str):
        """A table; None if it is not there, or a kill left no more than its folder."""
        try:
            return self.database.open_table(name)
        except (ValueError, RuntimeError) as error:
            if "was not found" in str(error) or "Not found: " in str(error):
                return None
            raise

    def _read(self, settings) -> Settings:
        rows = settings.to_arrow().to_pylist()
        try:
            found = parse_json(rows[0]["json"])
            version = found.get("version")
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.uri} is a database of another program; expected a library of omit-hf.") from error
        if version != VERSION:
            raise ValueError(
                f"The library {self.uri} has the layout {version!r}; this version of omit-hf reads {VERSION}. Use the "
                "version that made it, or make the library anew."
            )
        kinds = {field.name: field.type for field in fields(Settings)}
        if found.keys() != kinds.keys() or any(type(found[name]) is not kind for name, kind in kinds.items()):
            raise ValueError(f"The settings of the library {self.uri} are damaged: they are {shown(found)}.")
        return Settings(**found)

    def table_names(self) -> list[str]:
        return list(self.database.list_tables().tables)

    def is_old(self) -> bool:
        """Whether others have written since."""
        try:
            for probe in self._probes:
                probe.checkout_latest()
        except (ValueError, RuntimeError, AttributeError):  # the table was deleted
            return True
        return [probe.version for probe in self._probes] != self._versions

    @property
    def item_bytes(self) -> float:
        """Bytes of an item's features in float32, the mean of the first 64; 0 without an item."""
        first = self.table.search().select(["rows"]).limit(SAMPLE).to_arrow()["rows"]
        return sum(2 * len(row.as_py()) for row in first) / len(first) if len(first) else 0

    def write_settings(self, settings: Settings) -> None:
        """Make the library, or change what it says of itself, in one step."""
        self.make_table(settings.table, settings.width)
        self.database.create_table(SETTINGS, [{"json": json.dumps(vars(settings))}], mode="overwrite")
        self.refresh()

    def make_table(self, name: str, width: int):
        """Open a table of rows, which is made if need be."""
        table = self._open(name)  # which may have more columns
        return self.database.create_table(name, schema=table_schema(width)) if table is None else table

    def beside(self, model: str, digest: str, width: int) -> "LanceStore":
        """A store whose rows are those of another model, in a table of their own, with the columns of this one."""
        other = copy.copy(self)
        other.settings = Settings.of_model(self.settings.of, model, digest, width)
        other.table = self.make_table(other.settings.table, width)
        other.widen([field for field in self.table.schema if field.name != "fragments"])
        return other

    def drop_others(self) -> None:
        """Delete tables of former models."""
        for name in self.table_names():
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
        with filter_errors(where, lambda: self.columns):
            found = search.to_arrow()
        return found["_rowid"].to_pylist()

    def candidates(self, words: Tensor, weights: Tensor, where: str | None, count: int) -> Candidates:
        """Candidates by the index, with the bounds of what it found. A word weighs by how often it is asked for."""
        copies = (weights / weights.mean() * COPIES).round().long()
        if (weights == weights[0]).all() or not copies.any():
            copies = torch.ones_like(copies)
        vectors = words.repeat_interleave(copies, dim=0).numpy()
        search = self.table.search(vectors, vector_column_name="fragments").distance_type("cosine")
        if where is not None:
            search = search.where(checked_filter(where))
        with filter_errors(where, lambda: self.columns):
            found = search.nprobes(PROBES).select(["_distance"]).with_row_id(True).limit(count).to_arrow()
        bounds = weights.sum() * (1 - torch.tensor(found["_distance"].to_pylist()) / len(vectors))
        return Candidates(found["_rowid"].to_pylist(), bounds, None)

    def fragments(self, ids: Sequence[int]) -> OmitFeatures:
        found = self._take(ids, ["rows", "norms"]) if len(ids) else self.table.schema.empty_table()
        return as_features(found, self.settings.width)

    def scan(self, where: str | None = None) -> Iterator[tuple[list[int], OmitFeatures]]:
        """All rows, or those that a filter lets pass, in blocks of ids and features."""
        search = self.table.search().select(["rows", "norms"]).with_row_id(True)
        if where is not None:
            search = search.where(checked_filter(where))
        with filter_errors(where, lambda: self.columns):
            for block in search.to_batches(READ_AT_ONCE):
                block = pa.Table.from_batches([block])
                yield block["_rowid"].to_pylist(), as_features(block, self.settings.width)

    def _take(self, ids: Sequence[int], columns: list[str]) -> pa.Table:
        found = self.table.take_row_ids(list(ids)).select(columns).with_row_id().to_arrow()
        places = {row: place for place, row in enumerate(found["_rowid"].to_pylist())}
        return found.take([places[row] for row in ids]).drop_columns("_rowid")

    # --- writing ------------------------------------------------------------------------------------------------------

    def add(self, rows: list[dict], table=None) -> None:
        """Add rows in one transaction: metadata, and what `as_stored` makes of features."""
        table = self.table if table is None else table
        self.widen(missing_fields(rows, table.schema), table)
        table.add(as_arrow(rows, table.schema))

    def widen(self, fields: Sequence[pa.Field], table=None) -> None:
        """Add columns, those that are not there."""
        table = self.table if table is None else table
        fields = [field for field in fields if field.name not in table.schema.names]
        if fields:
            table.add_columns(pa.schema(fields))

    def replace(self, rows: list[dict]) -> None:
        """Replace the rows with the same `key` in one transaction."""
        self.widen(missing_fields(rows, self.table.schema))
        merge = self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(as_arrow(rows, self.table.schema))

    def change(self, changes: dict[str, dict]) -> None:
        """Change metadata of rows by their `key`, in one transaction."""
        keys = ", ".join(quoted(key) for key in changes)
        table = self.table.search().where(f"key IN ({keys})").limit(len(changes)).to_arrow()
        for name in {name for change in changes.values() for name in change}:
            values = [changes[row["key"]].get(name, row[name]) for row in table.select(["key", name]).to_pylist()]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.field(place), pa.array(values, table.field(place).type))
        self.table.merge_insert("key").when_matched_update_all().execute(table)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete rows by their `key`."""
        for start in range(0, len(keys), DELETED_AT_ONCE):
            self.table.delete(f"key IN ({', '.join(map(quoted, keys[start : start + DELETED_AT_ONCE]))})")

    def delete_where(self, where: str) -> int:
        """Delete the rows that a filter lets pass, in one transaction, and return how many."""
        with filter_errors(where, lambda: self.columns):
            return self.table.delete(checked_filter(where)).num_deleted_rows

    def write_unreadable(self, files: list[dict], gone: Sequence[str] = ()) -> None:
        """Keep files that could not be read, by `path`, with their `reason`, size and time; forget others."""
        schema = pa.schema({name: OWN[name] for name in ("path", "folder", "bytes", "modified")})
        schema = schema.append(pa.field("reason", pa.string()))
        table = self._open(UNREADABLE)
        table = self.database.create_table(UNREADABLE, schema=schema) if table is None else table
        if files:
            new = pa.Table.from_pylist(files, schema=schema)
            table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(new)
        for start in range(0, len(gone), DELETED_AT_ONCE):
            table.delete(f"path IN ({', '.join(map(quoted, gone[start : start + DELETED_AT_ONCE]))})")

    def unreadable(self) -> list[dict]:
        table = self._open(UNREADABLE)
        return [] if table is None else table.to_arrow().to_pylist()

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
        """Merge small files, and new rows into the index; left to the next one if another writer comes in between."""
        try:
            self.table.optimize()
        except RuntimeError as error:  # in an object store, which has no lock
            if "commit conflict" not in str(error):
                raise

    def clean(self) -> None:
        """Tidy, delete versions that are older than an hour, and what was written by updates that did not end.

        Only for the one that writes: files of an update that is going on would be deleted too.
        """
        for table in (self.table, self._open(SETTINGS), self._open(UNREADABLE)):
            if table is not None:
                table.optimize(cleanup_older_than=KEPT, delete_unverified=True)
        self.refresh()
