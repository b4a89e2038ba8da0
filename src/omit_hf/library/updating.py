"""Brings a library up to date with files or rows: what is new is encoded, what moved is renamed, what is gone goes."""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from omit_hf.data.pictures import stored_pictures
from omit_hf.library.encoding import Item, encode
from omit_hf.library.files import PictureFile, decode, digest_of, find_pictures
from omit_hf.library.lance import LanceStore
from omit_hf.writing import names_what_fails

COMMIT_ROWS, COMMIT_SECONDS = 1024, 20  # a transaction; what was not committed is encoded again after a kill
KNOWN = ("key", "id", "path", "folder", "digest", "bytes", "modified")


@dataclass
class Report:
    """What an update did.

    Args:
        added, replaced, moved, removed, unchanged: numbers of items.
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
        self.known = {row["id"]: row for row in store.metadata(columns=KNOWN)}
        self.failed = {row["path"]: row for row in store.unreadable()}
        self.gone: dict[str, dict] = {}
        self.writing: Future | None = None
        self._clear()

    def files(self, places: Sequence[str | Path], remove: bool) -> Report:
        """Add the pictures of folders and files; `remove` those that folders no longer have."""
        found = find_pictures(places)
        paths = {file.path for file in found}
        for row in self.known.values():
            if row["path"] is not None and row["path"] not in paths and not os.path.exists(row["path"]):
                self.gone.setdefault(row["digest"], row)
        report = self._run(len(found), self._items_of_files(found))
        if remove:
            roots = [os.path.abspath(os.path.expanduser(place)) for place in places]
            self._remove(roots, paths)
        return report

    def rows(self, data: Dataset) -> Report:
        """Add the pictures, or regions, of a data set, with all of its other columns as metadata."""
        return self._run(len(data), self._items_of_rows(data))

    def again(self, rows: Sequence[dict]) -> Report:
        """Encode files, or captions, whose metadata are known from another table."""
        return self._run(len(rows), (partial(self._again, row) for row in rows))

    def captions(self, captions: Sequence[str]) -> Report:
        """Add captions."""
        return self._run(len(captions), (partial(self._caption, text) for text in dict.fromkeys(captions)))

    # --- items --------------------------------------------------------------------------------------------------------

    def _items_of_files(self, found: list[PictureFile]) -> Iterator[Callable[[], Item]]:
        for file in found:
            known, failed = self.known.get(file.path), self.failed.get(file.path)
            if known is not None and (known["bytes"], known["modified"]) == (file.bytes, file.modified):
                self._count_unchanged()
            elif failed is not None and (failed["bytes"], failed["modified"]) == (file.bytes, file.modified):
                self.report.unreadable[file.path] = failed["reason"]
                self.bar.update()
            else:
                yield partial(self._read, file)

    def _read(self, file: PictureFile) -> Item:
        metadata = {"id": file.path, **file.metadata()}
        try:
            content = Path(file.path).read_bytes()
            metadata["digest"] = digest_of(content)
            for same in (self.known.get(file.path), self.gone.get(metadata["digest"])):
                if same is not None and same["digest"] == metadata["digest"]:
                    return Item(metadata, same_as=same)
            picture, seen = decode(content)
            inputs = self.processor(images=[picture])
        except (OSError, ValueError) as error:
            return Item(metadata, problem=str(error) or type(error).__name__)
        return Item(metadata | seen, dict(inputs))

    def _items_of_rows(self, data: Dataset) -> Iterator[Callable[[], Item]]:
        regions = "region_features" in data.column_names
        if not regions and "image" not in data.column_names:
            raise ValueError(
                f"The data have the columns {', '.join(data.column_names)}; expected image or region_features."
            )
        if not regions:
            images = stored_pictures(data)
            data = data.remove_columns("image")
        for number in range(len(data)):
            row = data[number]
            if regions:
                yield partial(self._row, row, None, number)
            else:
                yield partial(self._row, row, images[number]["image"], number)

    def _row(self, row: dict, stored: dict | None, number: int) -> Item:
        metadata = {name: value for name, value in row.items() if name not in ("region_features", "boxes", "image_id")}
        path = None if stored is None else stored["path"]
        metadata["path"] = os.path.abspath(path) if path and os.path.isfile(path) else None
        try:
            if stored is None:
                features = np.asarray(row["region_features"], np.float32)
                metadata["digest"] = digest_of(features.tobytes())
                metadata["boxes"] = (
                    None if row.get("boxes") is None else np.asarray(row["boxes"], float).ravel().tolist()
                )
                inputs = partial(self.processor, regions=[features])
            else:
                content = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()
                metadata["digest"] = digest_of(content)
            metadata["id"] = str(row.get("image_id") or metadata["path"] or metadata["digest"])
            known = self.known.get(metadata["id"])
            if known is not None and known["digest"] == metadata["digest"]:
                return Item(metadata, same_as=known)
            if stored is not None:
                picture, seen = decode(content)
                metadata = {**seen, **{name: value for name, value in metadata.items() if value is not None}}
                inputs = partial(self.processor, images=[picture])
            return Item(metadata, dict(inputs()))
        except (OSError, ValueError) as error:
            metadata["path"] = metadata["path"] or f"row {number}"
            return Item(metadata, problem=str(error) or type(error).__name__)

    def _caption(self, text: str) -> Item:
        digest = digest_of(text.encode("utf-8", "replace"))
        metadata = {"id": digest, "digest": digest, "captions": [text]}
        if digest in self.known:
            return Item(metadata, same_as=self.known[digest])
        return Item(metadata, dict(self.processor(text=[text])))

    def _again(self, row: dict) -> Item:
        if row["id"] in self.known:
            return Item(row, same_as=self.known[row["id"]])
        try:
            if row["path"] is None:
                return Item(row, dict(self.processor(text=row["captions"])))
            content = Path(row["path"]).read_bytes()
            picture, seen = decode(content)
            stat = os.stat(row["path"])
            now = {"digest": digest_of(content), "bytes": stat.st_size, "modified": stat.st_mtime_ns}
            return Item(row | seen | now, dict(self.processor(images=[picture])))
        except (OSError, ValueError) as error:
            return Item(row, problem=str(error) or type(error).__name__)

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
                if waiting >= COMMIT_ROWS or time.monotonic() - self.since > COMMIT_SECONDS:
                    self._commit()
            self._commit()
            self.writing.result()
        self.report.seconds = time.perf_counter() - started
        return self.report

    def _sort(self, item: Item) -> None:
        """Put an item into the transaction that it belongs to."""
        metadata, known = item.metadata, self.known.get(item.metadata.get("id"))
        if item.problem is not None:
            self.problems.append({**metadata, "reason": item.problem})
        elif item.same_as is None:
            key = uuid.uuid4().hex if known is None else known["key"]
            (self.new if known is None else self.replaced).append({"key": key, **metadata})
            self.known[metadata["id"]] = {name: {"key": key, **metadata}.get(name) for name in KNOWN}
        elif item.same_as is known:
            self._count_unchanged()
            if metadata.get("modified") != known["modified"]:
                self.changes[known["key"]] = {"modified": metadata["modified"]}
        elif self.gone.pop(metadata["digest"], None) is not None:
            moved = {name: metadata[name] for name in ("id", "path", "folder", "modified")}
            self.changes[item.same_as["key"]] = moved
            del self.known[item.same_as["id"]]
            self.known[metadata["id"]] = item.same_as | moved

    def _count_unchanged(self) -> None:
        self.report.unchanged += 1
        self.bar.update()

    def _clear(self) -> None:
        self.new, self.replaced, self.changes, self.problems = [], [], {}, []
        self.since = time.monotonic()

    def _commit(self) -> None:
        """Hand what waits to the writer, as soon as it is done with what it had."""
        if self.writing is not None:
            self.writing.result()
        self.writing = self.writer.submit(self._write, self.new, self.replaced, self.changes, self.problems)
        self._clear()

    def _write(self, new: list[dict], replaced: list[dict], changes: dict[str, dict], problems: list[dict]) -> None:
        readable = [row["path"] for row in (*new, *replaced) if row.get("path") in self.failed]
        with names_what_fails(self.store.uri):
            if new:
                self.store.add(new)
            if replaced:
                self.store.replace(replaced)
            if changes:
                self.store.change(changes)
            if problems or readable:
                self.store.write_unreadable(problems, readable)
            if new or replaced or changes:
                self.tend()
        self.report.added += len(new)
        self.report.replaced += len(replaced)
        moved = sum("path" in change for change in changes.values())
        self.report.moved += moved
        self.report.unreadable |= {row["path"]: row["reason"] for row in problems}
        self.bar.update(len(new) + len(replaced) + len(problems) + moved)

    def _remove(self, roots: list[str], paths: set[str]) -> None:
        """Remove what folders no longer have."""

        def is_gone(path: str | None) -> bool:
            return path is not None and path not in paths and any(Path(path).is_relative_to(root) for root in roots)

        keys = [row["key"] for row in self.known.values() if is_gone(row["path"])]
        failed = [path for path in self.failed if is_gone(path)]
        with names_what_fails(self.store.uri):
            if keys:
                self.store.delete(keys)
            if failed:
                self.store.write_unreadable([], failed)
        self.report.removed = len(keys)
