"""Rows whose pictures are files in a folder, with every problem that they have.

What a data file says may come from anybody, so a name in it must stay in the folder as it is written. What the folder
itself holds is its owner's: links in it are followed, as in a cache of the Hub, or to a larger disk.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from omit_hf.data.schema import FEATURES, DataError, check_only, chosen_splits
from omit_hf.parsing import is_text, shown


class PictureFiles:
    """Gathers rows, and the problems of all of them before it raises.

    Nothing is read but the file system's tables: a picture is opened when its row is accessed.

    Args:
        source: where the captions come from, for messages.
        image_folder: the folder that must hold every picture; a name that leads out of it is a problem.
        only: splits that are wanted; rows of others are counted, and not looked at.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, source: str | Path, image_folder: str | Path, only: Sequence[str] | None = None):
        check_only(only)
        self.source, self.image_folder, self.only = source, Path(image_folder), only
        if not self.image_folder.is_dir():
            raise FileNotFoundError(
                f"No image folder at {image_folder}; expected the folder of the images of {source}."
            )
        self.rows: dict[str, list[dict]] = {}
        self.problems: list[str] = []
        self._splits: set[str] = set()
        self._ids: dict[str, str] = {}
        self._files: dict[tuple, str] = {}

    def wants(self, split: str) -> bool:
        """Whether the rows of a split, which the source has, are wanted."""
        self._splits.add(split)
        return self.only is None or split in self.only

    def add(self, where: str, split: str, name: str, captions: list[str], image_id: str | None = None) -> None:
        """Add a row, or note what is wrong with it: among that, a picture that is there already under any name.

        Args:
            where: the entry in the source, for messages.
            split: one of ours.
            name: path of the picture in the folder.
            captions: tidy, and at least one.
            image_id: `name` by default.
        """
        if not self.wants(split):
            return
        image_id = name if image_id is None else image_id
        path = None
        try:
            path = file_within(self.image_folder, name)
            place = file_identity(path)
        except ValueError as error:
            self.problems.append(f"{where}: {error}")
        if not captions or not all(captions):
            self.problems.append(f"{where} ({name}): no caption, or an empty one")
        if image_id in self._ids:
            self.problems.append(f"{where}: {image_id} is there already, as {self._ids[image_id]}")
        elif path is not None and place in self._files:
            self.problems.append(f"{where}: {name} is there already, under another name, as {self._files[place]}")
        self._ids[image_id] = where
        if path is not None:
            self._files.setdefault(place, where)
        if not self.problems:
            row = {"image": str(path), "captions": captions, "image_id": image_id}
            self.rows.setdefault(split, []).append(row)

    def data(self) -> DatasetDict:
        """The rows, by their splits.

        Raises:
            DataError: if anything was wrong with any row.
            ValueError: if there is none, or none of a split that is wanted.
        """
        what = f"{self.source} with images in {self.image_folder}"
        if self.problems:
            raise DataError(what, self.problems)
        empty = {split for split in self._splits - self.rows.keys() if self.wants(split)}
        splits = chosen_splits(what, self._splits - empty, self.only)
        return DatasetDict(
            {split: Dataset.from_list(self.rows[split], features=FEATURES, split=split) for split in splits}
        )


def file_within(folder: str | Path, name: str) -> Path:
    """The absolute path of a file that a data file names.

    Args:
        folder: that the name starts from.
        name: a path as it is written; `..` in it takes away the folder before it, whether that is a link or not.

    Raises:
        ValueError: if the name leads out of the folder, is no path, or there is no such file.
    """
    root = os.path.abspath(folder)
    if not is_text(name) or not name or "\0" in name:
        raise ValueError(f"the file is {shown(name)}; expected a path in the folder {folder}")
    path = os.path.normpath(os.path.join(root, name))
    if not Path(path).is_relative_to(root):
        raise ValueError(f"{shown_name(name)} lies outside the image folder {folder}; expected a path in it")
    try:
        os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{shown_name(name)} is missing") from None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a surrogate
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{shown_name(name)} cannot be read: {reason}") from error
    if not os.path.isfile(path):
        raise ValueError(f"{shown_name(name)} is missing: there is a folder, or something else that is no file")
    return Path(path)


def file_identity(path: str | Path) -> tuple:
    """What is the same for all names of a file: links of both kinds, and letters of either case where that is one.

    Raises:
        OSError: if it is not there.
    """
    found = os.stat(path)
    return (found.st_dev, found.st_ino) if found.st_ino else (os.path.realpath(path),)


def shown_name(name: str) -> str:
    """A name for a message, as it is, or as its repr where it would spoil the line."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)
