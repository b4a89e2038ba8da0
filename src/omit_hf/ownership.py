"""One owner of a folder at a time: who writes into it holds its lock, which ends with the process that holds it."""

import contextlib
import json
import os
import socket
from datetime import datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from omit_hf.parsing import label, read_json

LOCK_FILE = ".lock"
HOLDER_SUFFIX = ".json"  # beside it: who holds it


class FolderLock:
    """The lock of a folder that several processes may own together, such as those of one training.

    Process 0 takes it first, and only where no process of another owner is left; then the others take their parts.
    The files are `.lock` and `.lock-1`, `.lock-2` …, each with a `.json` that tells who holds it; they are gone when it
    is released. A process that dies, however it does, holds nothing, and neither does an object that is gone.

    Args:
        folder: which must be there when the lock is taken.
        purpose: what the owner does, for the message that others get.
        process: number of this process among those of the owner.
        advice: what others may do instead of waiting, for the same message.
    """

    def __init__(self, folder: str | Path, purpose: str, process: int = 0, advice: str = "choose another output_dir"):
        self.folder, self.purpose, self.advice = Path(folder), purpose, advice
        self.file = self.folder / (f"{LOCK_FILE}-{process}" if process else LOCK_FILE)
        self.process, self.lock = process, None

    def acquire(self) -> None:
        """Take the lock, unless this object has it.

        Raises:
            BlockingIOError: if another has it; tells the process, its computer and since when it runs.
            OSError: if the folder is not there or cannot be written to.
        """
        if self.lock is not None:
            return
        if not self.folder.is_dir():  # which filelock would make
            raise FileNotFoundError(f"There is no folder {self.folder} to own; make it first.")
        lock = self._take(self.file)
        try:
            if self.process == 0:
                for file in sorted(self.folder.glob(f"{LOCK_FILE}-*[0-9]")):  # an owner's process that outlived it
                    _drop(self._take(file), file)
            holder = {"purpose": self.purpose, "process": os.getpid(), "host": socket.gethostname()}
            holder["since"] = datetime.fromtimestamp(psutil.Process().create_time()).isoformat(" ", "seconds")
            _holder_file(self.file).write_text(json.dumps(holder), encoding="utf-8")
        except BaseException:
            _drop(lock, self.file)
            raise
        self.lock = lock

    def release(self) -> None:
        """Give the lock back, if this object has it."""
        if self.lock is not None:
            lock, self.lock = self.lock, None
            _drop(lock, self.file)

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def _take(self, file: Path) -> FileLock:
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            purpose, details = self.purpose, ""
            try:
                holder = {name: label(value) for name, value in read_json(_holder_file(file)).items()}
                details = ": process {process} on {host}, since {since}".format(**holder)
                purpose = holder["purpose"]
            except (OSError, ValueError, KeyError, AttributeError):  # it has the lock, and has not said who it is
                pass
            raise BlockingIOError(
                f"Another {purpose} is running in {self.folder}{details}; wait for it, or {self.advice}."
            ) from None
        return lock


def _holder_file(file: Path) -> Path:
    return file.with_name(file.name + HOLDER_SUFFIX)


def _drop(lock: FileLock, file: Path) -> None:
    """Release a lock, and delete its files while it is still held, so that they are nobody else's."""
    for each in (_holder_file(file), file):
        with contextlib.suppress(OSError):  # an open file of Windows, or a read-only disk: what is left locks nothing
            each.unlink(missing_ok=True)
    lock.release()
