"""Files and folders that appear when they are complete, and errors that name what could not be written."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def names_what_fails(path: str | Path) -> Iterator[None]:
    """What cannot be written within is an OSError that names a path, whichever library wrote.

    A full disk is a RuntimeError of torch, a SafetensorError of safetensors, an Exception of tokenizers, and an OSError
    without a path where a file is flushed.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        rust = re.search(r"\(os error (\d+)\)", str(error))
        if rust:
            raise OSError(int(rust[1]), os.strerror(int(rust[1])), str(path)) from error
        if isinstance(error, RuntimeError) and re.search(
            "inline_container|PytorchStreamWriter|iostream error", str(error)
        ):
            _try_to_write(Path(path))  # torch does not tell why
            raise OSError(f"torch could not write in {path}; is the disk full, or its quota used up?") from error
        raise


def _try_to_write(path: Path) -> None:
    """Raise the error with which a folder, or that of a file, takes no more."""
    try:
        with tempfile.TemporaryFile(dir=path if path.is_dir() else path.parent) as file:
            file.write(bytes(2**20))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def partial_of(path: Path) -> Path:
    """Where a file or folder is while it is not complete."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def appears_when_complete(file: Path) -> Iterator[Path]:
    """Where to write a file, which then gets its name; nothing is left of one that could not be written."""
    partial = partial_of(file)
    with names_what_fails(file):
        try:
            yield partial
            os.replace(partial, file)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise


def write_atomically(file: Path, text: str) -> None:
    """Write a text as UTF-8. Half of a surrogate pair, as in a file name that is no UTF-8, becomes its escape."""
    with appears_when_complete(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder that appears when `write` has filled it."""
    partial = partial_of(folder)
    with names_what_fails(folder):
        try:
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)
            write(partial)
            remove_folder(folder)
            os.replace(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def remove_folder(folder: Path) -> None:
    """Delete a folder, if it is there, such that no half of it is ever under its name."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.is_dir():
        doomed = folder.with_name(f".{folder.name}.old.partial")
        if doomed.exists():
            shutil.rmtree(doomed)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def check_output_files(*files: str | Path | None) -> None:
    """See that files can be written, before the work whose results they get; None are none.

    Raises:
        FileNotFoundError: for a file whose folder is not there.
        IsADirectoryError: for one that is a folder.
        PermissionError: for one whose folder cannot be written to.
    """
    for file in map(Path, filter(None, files)):
        if not file.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {file.parent} for {file.name}; make it first.")
        if file.is_dir():
            raise IsADirectoryError(f"{file} is a folder; expected the name of a file.")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise PermissionError(f"{file} cannot be written: its folder is read-only; choose another one.")
