"""What a library is made of and from: its place, sources of pictures and captions, and rows of a former model."""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from datasets import Dataset

from omit_hf.library.files import is_gone
from omit_hf.library.lance import OWN_TABLES, LanceStore
from omit_hf.library.updating import Report, Update
from omit_hf.ownership import FolderLock
from omit_hf.parsing import shown
from omit_hf.writing import names_what_fails

WRITER, MEANWHILE = "update of this library", "search it meanwhile"


def place_of(path: str | Path) -> tuple[str, bool]:
    """A library's folder as an absolute path and True, or its address in an object store and False.

    Raises:
        ValueError: for what is neither, and names that LanceDB does not take.
    """
    if not isinstance(path, str | Path) or not str(path).strip():
        raise ValueError(f"The path is {shown(path)}; expected the folder of a library, or its address as s3://….")
    if re.match(r"file://", str(path)):
        path = url2pathname(urlsplit(str(path)).path)
    is_local = "://" not in str(path)
    place = os.path.abspath(os.path.expanduser(path)) if is_local else str(path)
    if any(ord(character) < 32 or "\ud800" <= character <= "\udfff" for character in place):
        raise ValueError(f"The path is {shown(place)}; LanceDB takes no line breaks and the like, and UTF-8 alone.")
    return place, is_local


@contextlib.contextmanager
def owned(path: str, is_local: bool) -> Iterator[None]:
    """Own a library, as the only one that writes; in an object store whoever calls must see to that."""
    lock = FolderLock(path, WRITER, advice=MEANWHILE) if is_local else contextlib.nullcontext()
    with names_what_fails(path), lock:
        yield


def is_foreign(store: LanceStore, is_local: bool) -> bool:
    """Whether a place without settings holds something that no update of a library leaves that was stopped."""
    names = os.listdir(store.uri) if is_local else [f"{name}.lance" for name in store.table_names()]
    names = [name for name in names if not name.startswith(".")]
    return not all(name.endswith(".lance") and OWN_TABLES.fullmatch(name.removesuffix(".lance")) for name in names)


def places_of(source) -> list[str]:
    """Absolute paths of a source's folders and files; `ValueError` for what is none."""
    places = [source] if isinstance(source, str | Path) else source
    is_list = isinstance(places, list | tuple) and len(places) > 0
    if not is_list or not all(isinstance(each, str | Path) and str(each).strip() for each in places):
        raise ValueError(
            f"The source is {shown(source)}; expected a folder, a file, a list of them, or a datasets.Dataset."
        )
    return [os.path.abspath(os.path.expanduser(place)) for place in places]


def texts_of(source) -> list[str]:
    """Captions of a source; `ValueError` for what is none."""
    if isinstance(source, Dataset):
        if "captions" not in source.column_names:
            raise ValueError(f"The data have the columns {', '.join(source.column_names)}; expected captions.")
        source = [caption for captions in source.with_format(None)["captions"] for caption in captions or ()]
    wanted = "expected a list of captions, or a datasets.Dataset with them"
    if not isinstance(source, list | tuple) or not source:
        raise ValueError(f"The source is {shown(source)}; {wanted}.")
    for number, text in enumerate(source):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"Caption {number} is {shown(text)}; expected a text of at least one word.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"Caption {number} is {shown(text)}, with half of a surrogate pair; expected text.")
    return list(source)


def adopt_rows(update: Update, former: LanceStore, data: Dataset | None) -> Report:
    """Encode the rows of a store anew, into that of an update.

    Args:
        data: the rows that came from data sets.

    Raises:
        ValueError: if they are missing there, or no picture of a folder can be found.
    """
    rows = former.metadata(columns=[*former.columns, "boxes"])
    if former.settings.of == "pictures":
        given = set() if data is None else update.reader.ids(data)
        missing = [row["id"] for row in rows if row["path"] is None and row["id"] not in given]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(rows)} pictures came from data sets, such as {min(missing)!r}; pass the "
                "rows that they were made of: reencode(model, data=dataset)."
            )
        files = [row for row in rows if row["path"] is not None and row["id"] not in given]
        if files:
            update.reader.check_form(["image"])
        all_files = Counter(row["folder"] for row in files)
        gone = Counter(row["folder"] for row in files if is_gone(row["path"]))
        for folder, count in gone.items():
            if count == all_files[folder]:
                raise ValueError(
                    f"None of the {count} pictures of {folder!r} is there any more; make the folder available, or "
                    "remove them from the library: remove(\"folder = '…'\")."
                )
    return update.again(rows, data)
