"""Brings a library up to date with files or rows: what is new is encoded, what moved is renamed, what is gone goes."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm

from omit_hf.library.columns import check_ids, metadata_fields
from omit_hf.library.encoding import Item, encode
from omit_hf.library.files import PictureFile, is_gone
from omit_hf.library.lance import LanceStore
from omit_hf.library.reading import Reader
from omit_hf.writing import names_what_fails

# A transaction; what was not committed is encoded again after a kill.
COMMIT_ROWS, COMMIT_BYTES, COMMIT_SECONDS = 1024, 2**28, 20
KNOWN = ("key", "id", "path", "folder", "digest", "bytes", "modified")


@dataclass
class Report:
    """What an update did.

    Args:
        added, replaced, moved, removed, unchanged: numbers of items.
        changed: items whose metadata alone are others now.
        unreadable: files that could not be read, by path, and why.
        seconds: that it took.
    """

    added: int = 0
    replaced: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    changed: int = 0


class Update:
    """One update of a library, whose lock its caller holds.

    Args:
        store: of the library, with the table that gets the rows.
        model, processor: `OmitModel` in evaluation mode, and its processor.
        batch_size: items that are encoded together.
        progress: show a bar.
        tend: called now and then, to index what was added.
    """

    def __init__(self, store: LanceStore, model, processor, batch_size: int, progress: bool, tend: Callable[[], None]):
        self.store, self.model, self.processor = store, model, processor
        self.batch_size, self.progress, self.tend = batch_size, progress, tend
        self.report = Report()
        self.known: dict[str, dict] = {}
        self.met: set[str] = set()
        self.failed = {row["path"]: row for row in store.unreadable()}
        self.gone: dict[str, list[dict]] = {}
        self.reader = Reader(model, processor, {}, self.gone)
        self.writing: Future | None = None
        self._clear()

    def files(
        self, found: Sequence[PictureFile], problems: dict[str, str], roots: Sequence[str], remove: bool
    ) -> Report:
        """Add files, and remove those of folders that are gone.

        Args:
            found, problems: from `find_pictures`.
            roots: the folders in which they were found.
            remove: whether what is gone from the folders is removed.
        """
        self.reader.check_form(["image"])
        self._know(KNOWN)
        paths = {file.path for file in found}
        rows = [row for row in self.known.values() if row["path"] is not None and row["path"] not in paths]
        for row in rows:
            if row["bytes"] is not None and is_gone(row["path"]):
                self.gone.setdefault(row["digest"], []).append(row)
        self._run(len(found), self._items_of_files(found, problems))
        stale = [path for path in self.failed if _is_below(path, roots) and path not in paths | problems.keys()]
        gone = []
        if remove:
            rows = [row for row in self.known.values() if row["path"] is not None and row["path"] not in paths]
            gone = [row["key"] for row in rows if _is_below(row["path"], roots) and is_gone(row["path"])]
        with names_what_fails(self.store.uri):
            if gone:
                self.store.delete(gone)
            if stale:
                self.store.write_unreadable([], stale)
        self.report.removed = len(gone)
        return self.report

    def rows(self, data: Dataset) -> Report:
        """Add the pictures, or regions, of a data set, with all of its other columns as metadata."""
        self.reader.check_form(data.column_names)
        check_ids(data)
        fields = metadata_fields(data, self.store.table.schema)
        self.store.widen(fields)
        self._know(dict.fromkeys([*KNOWN, "boxes", *(field.name for field in fields)]))
        return self._run(len(data), self.reader.rows(data, fields))

    def again(self, rows: Sequence[dict], data: Dataset | None) -> Report:
        """Encode what is known from another table, whose `metadata` and `boxes` the rows are.

        A row that is here already with the same metadata stays; what is here and not among them goes.
        """
        columns = [*self.store.columns, "boxes"]
        wanted = {row["key"]: row for row in rows}
        here = self.store.metadata(columns=columns)
        stale = [row["key"] for row in here if not _agrees(row, wanted.get(row["key"]))]
        if stale:
            self.store.delete(stale)
        self._know(KNOWN)
        return self._run(len(rows), self.reader.again(rows, data))

    def captions(self, captions: Sequence[str]) -> Report:
        """Add captions."""
        captions = list(dict.fromkeys(captions))
        self._know(KNOWN)
        return self._run(len(captions), (partial(self.reader.caption, text) for text in captions))

    def _know(self, columns) -> None:
        self.known = {row["id"]: row for row in self.store.metadata(columns=list(columns))}
        self.reader.known = dict(self.known)  # as it was before: what is read does not depend on what is done

    def _items_of_files(self, found: Sequence[PictureFile], problems: dict[str, str]) -> Iterator[Callable[[], Item]]:
        for path, problem in problems.items():
            yield partial(Item, {"path": path}, problem=problem)
        for file in found:
            known = self.known.get(file.path)
            if known is not None and (known["bytes"], known["modified"]) == (file.bytes, file.modified):
                self._count_unchanged()
                if file.path in self.failed:
                    self.readable.append(file.path)
            else:
                yield partial(self.reader.file, file)

    # --- transactions -------------------------------------------------------------------------------------------------

    def _run(self, total: int, items: Iterator[Callable[[], Item]]) -> Report:
        started = time.perf_counter()
        of = self.store.settings.of
        with (
            tqdm(total=total, desc="Encoding", unit=f" {of}", disable=not self.progress) as self.bar,
            ThreadPoolExecutor(1) as self.writer,
        ):
            for group in encode(self.model, of, items, self.batch_size):
                for item in group:
                    self._sort(item)
                waiting = sum(map(len, (self.new, self.replaced, self.changes, self.problems)))
                is_late = time.monotonic() - self.since > COMMIT_SECONDS
                if waiting >= COMMIT_ROWS or self.bytes >= COMMIT_BYTES or is_late:
                    self._commit()
            self._commit()
            self.writing.result()
        self.report.seconds = time.perf_counter() - started
        return self.report

    def _sort(self, item: Item) -> None:
        """Put an item into the transaction that it belongs to."""
        metadata = item.metadata
        name = item.name or metadata.get("path") or metadata["id"]
        if item.problem is not None:
            self.problems.append({**metadata, "path": name, "reason": item.problem, "lasting": item.lasting})
            return
        if name in self.failed:
            self.readable.append(name)
        known = self.known.get(metadata["id"])
        if metadata["id"] in self.met:  # the same content twice
            self._count_unchanged()
            return
        self.met.add(metadata["id"])
        if item.same_as is None:
            row = {"key": uuid.uuid4().hex, **metadata} if known is None else {**metadata, "key": known["key"]}
            (self.new if known is None else self.replaced).append(row)
            self.bytes += len(row["rows"])
            self.known[metadata["id"]] = {name: row.get(name) for name in KNOWN}
        elif not item.changes or item.changes.keys() == {"modified"}:
            self._count_unchanged()
            if item.changes:
                self.changes[item.same_as["key"]] = item.changes
        else:
            self.changes[item.same_as["key"]] = item.changes
            self.known.pop(item.same_as["id"])
            self.known[metadata["id"]] = item.same_as | item.changes

    def _count_unchanged(self) -> None:
        self.report.unchanged += 1
        self.bar.update()

    def _clear(self) -> None:
        self.new, self.replaced, self.changes, self.problems, self.readable = [], [], {}, [], []
        self.bytes, self.since = 0, time.monotonic()

    def _commit(self) -> None:
        """Hand what waits to the writer, as soon as it is done with what it had."""
        if self.writing is not None:
            self.writing.result()
        waiting = self.new, self.replaced, self.changes, self.problems, self.readable
        self.writing = self.writer.submit(self._write, *waiting)
        self._clear()

    def _write(
        self,
        new: list[dict],
        replaced: list[dict],
        changes: dict[str, dict],
        problems: list[dict],
        readable: list[str],
    ) -> None:
        told = ("reason", "bytes", "modified")
        kept = [row for row in problems if row["lasting"]]
        kept = [row for row in kept if any(row.get(x) != self.failed.get(row["path"], {}).get(x) for x in told)]
        with names_what_fails(self.store.uri):
            if new:
                self.store.add(new)
            if replaced:
                self.store.replace(replaced)
            if changes:
                self.store.change(changes)
            if kept or readable:
                self.store.write_unreadable(kept, readable)
            if new or replaced or changes:
                self.tend()
        self.report.added += len(new)
        self.report.replaced += len(replaced)
        moved = sum("id" in change for change in changes.values())
        changed = sum(change.keys() != {"modified"} for change in changes.values()) - moved
        self.report.moved += moved
        self.report.changed += changed
        self.report.unreadable |= {row["path"]: row["reason"] for row in problems}
        self.bar.update(len(new) + len(replaced) + len(problems) + moved + changed)


def _agrees(row: dict, wanted: dict | None) -> bool:
    return wanted is not None and all(row.get(name) == value for name, value in wanted.items())


def _is_below(path: str, roots: Sequence[str]) -> bool:
    return os.path.isabs(path) and any(Path(path).is_relative_to(root) for root in roots)
