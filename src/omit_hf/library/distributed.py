"""Adds pictures to a library from many machines: workers of Ray encode and write, and one process commits.

A worker encodes some files and writes them as a fragment of Lance, which belongs to no version of the table yet. The
process that calls commits what arrives, so that a worker may die at any moment, and so may the caller: what was
committed is there, and another call goes on.
"""

import os
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import torch
from tqdm.auto import tqdm

from omit_hf.library.changing import places_of
from omit_hf.library.columns import as_arrow
from omit_hf.library.encoding import encode
from omit_hf.library.files import PictureFile, find_pictures, is_gone
from omit_hf.library.library import PictureLibrary
from omit_hf.library.reading import Reader
from omit_hf.library.searching import check_whole
from omit_hf.library.updating import COMMIT_SECONDS, KNOWN, Report, Update
from omit_hf.writing import names_what_fails

try:
    import lance
    import lance_ray
    import ray
except ImportError as error:
    raise ImportError("omit_hf.library.distributed needs Ray: pip install 'omit-hf[library,ray]'.") from error

FILES = 1024  # that a worker gets at once, and whose rows are one fragment of Lance
PARTITION = 4096  # pictures in a part of the index, as LanceDB has it
SAMPLE = 256  # pictures a part of the index, of which its centre is learned


class Encoder:
    """An actor of Ray: encodes files and writes their rows as a fragment that is not committed.

    Args:
        loaded: model and processor, a reference of Ray.
        table: its `uri`, `schema`, `data_storage_version` and `storage_options`.
        gone: digests of files that are not there any more; what has their content moved, and is left to the caller.
        batch_size: pictures that are encoded together.
    """

    def __init__(self, loaded, table: dict, gone: set[str], batch_size: int):
        model, processor = ray.get(loaded)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.reader = Reader(self.model, processor, {}, {digest: [{}] for digest in gone})
        self.writer = lance_ray.LanceFragmentWriter(**table)
        self.schema, self.batch_size = table["schema"], batch_size

    def __call__(self, files: pa.Table) -> pa.Table:
        """Write the rows of files. What cannot be read gets none, and is left to the caller.

        Raises:
            FileNotFoundError: if this machine lacks their folder.
        """
        files = [PictureFile(**row) for row in files.to_pylist()]
        for folder in {file.folder for file in files}:
            if not os.path.isdir(folder):
                node = os.uname().nodename
                raise FileNotFoundError(f"The machine {node} has no folder {folder!r}; expected one that all share.")
        calls = (partial(self.reader.file, file) for file in files)
        items = [item for group in encode(self.model, "pictures", calls, self.batch_size) for item in group]
        items = [item for item in items if item.problem is None and item.same_as is None]
        rows = [{"key": uuid.uuid4().hex, **item.metadata} for item in items]
        written = self.writer(as_arrow(rows, self.schema)).to_pylist() if rows else []
        return pa.table({"fragments": [written], "ids": [[row["id"] for row in rows]], "files": [len(files)]})


def add_distributed(
    library: PictureLibrary,
    source: str | Path | Sequence[str | Path],
    *,
    encoders: int | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> Report:
    """Add pictures as `PictureLibrary.add` does, encoded by the machines of a Ray cluster, which share the folders.

    What has no row yet is encoded by Ray, and the index is made by it; the caller's own process does the rest: files
    that changed or moved, and the list of those that cannot be read.

    Args:
        library: on a disk that all machines share, or in an object store.
        source: a folder or a file, or a list of them.
        encoders: processes that encode; None for one a GPU or, without any, one a core.
        batch_size: how many pictures a process encodes together.
        progress: show a bar.

    Raises:
        FileNotFoundError, ValueError: for a place without pictures, a machine without the folder, or a library of
            captions.
        BlockingIOError: while another process adds.
        ray.exceptions.RayError: if Ray fails.
    """
    check_whole("batch_size", batch_size)
    if encoders is not None:
        check_whole("encoders", encoders)
    if library.of != "pictures":
        raise ValueError(f"The library {library.path!r} is one of captions; expected pictures. Use its add.")
    started = time.perf_counter()
    places, problems = places_of(source), {}
    found = find_pictures(places, problems)
    with library._updating(batch_size, progress) as update:
        update.reader.check_form(["image"])
        known = {row["id"]: row for row in update.store.metadata(columns=list(KNOWN))}
        paths = {file.path for file in found}
        rows = [row for row in known.values() if row["bytes"] is not None and row["path"] not in paths]
        gone = {row["digest"] for row in rows if is_gone(row["path"])}
        new = [file for file in found if file.path not in known and file.path not in update.failed]
        added = _encode(update, new, gone, encoders) if new else 0
        _make_index(library, update)
        report = update.files(found, problems, places, remove=False)
        report.added, report.unchanged = report.added + added, report.unchanged - added
        report.seconds = time.perf_counter() - started
    return report


def _encode(update: Update, files: list[PictureFile], gone: set[str], encoders: int | None) -> int:
    """Encode files by Ray and commit what arrives; the number of rows."""
    parts = [files[start : start + FILES] for start in range(0, len(files), FILES)]
    blocks = [pa.Table.from_pylist([vars(file) for file in part]) for part in parts]
    encoders, resources = _resources(encoders)
    table, loaded = _table(update), ray.put((update.model, update.processor))
    written = ray.data.from_arrow(blocks).map_batches(
        Encoder,
        fn_constructor_args=(loaded, table, gone, update.batch_size),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(encoders, len(parts))),
        **resources,
    )
    met: set[str] = set()
    waiting, since = [], time.monotonic()
    with tqdm(total=len(files), desc="Encoding", unit=" pictures", disable=not update.progress) as bar:
        for batch in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for part in batch.to_pylist():
                # A part of a worker that died is encoded again. Whatever Ray delivers, its rows are committed once.
                if met.isdisjoint(part["ids"]):
                    waiting += part["fragments"]
                    met |= set(part["ids"])
                    bar.update(part["files"])
            if waiting and time.monotonic() - since >= COMMIT_SECONDS:
                _commit(update, table, waiting)
                waiting, since = [], time.monotonic()
        if waiting:
            _commit(update, table, waiting)
    update.store.refresh()
    return len(met)


def _table(update: Update) -> dict:
    """The table, and how a fragment is written that is to belong to it."""
    uri, options = update.store.table.uri, update.store.storage_options
    table = lance.dataset(uri, storage_options=options)
    version = table.data_storage_version
    return {"uri": uri, "schema": table.schema, "data_storage_version": version, "storage_options": options}


def _commit(update: Update, table: dict, fragments: list[dict]) -> None:
    """Append fragments to the table in one transaction."""
    with names_what_fails(update.store.uri):
        options = table["storage_options"]
        sink = lance_ray.LanceFragmentCommitter(table["uri"], mode="append", storage_options=options)
        sink.on_write_start()
        sink.on_write_complete([[(each["fragment"], each["schema"]) for each in fragments]])


def _make_index(library: PictureLibrary, update: Update) -> None:
    """Make the index that `PictureLibrary` would make, a segment a core, if it is due and missing."""
    store = update.store
    is_due = not library.fits(len(store), store) and update.model.config.marginals != "cross_global"
    if store.index is not None or not is_due:
        return
    parts = max(1, len(store) // PARTITION)
    lance_ray.create_index(
        store.table.uri,
        column="fragments",
        index_type="IVF_RQ",
        metric="cosine",
        num_bits=1,
        num_partitions=parts,
        sample_rate=max(2, min(SAMPLE, len(store) // parts)),
        num_workers=max(1, int(ray.cluster_resources().get("CPU", 1))),  # of the machines that are left
        storage_options=store.storage_options,
    )
    store.refresh()


def _resources(encoders: int | None) -> tuple[int, dict]:
    """How many processes encode, and what each asks Ray for.

    Without GPUs a process asks for half a core, so that there is room for it elsewhere when its machine dies.
    """
    if not ray.is_initialized():
        ray.init()
    there = ray.cluster_resources()
    gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
    return encoders or gpus or cores, {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 0.5}
