"""Rows whose pictures are files in a folder, with every problem that they have."""

from pathlib import Path

from datasets import Dataset, DatasetDict

from omit_hf.data.schema import FEATURES, DataError


class PictureFiles:
    """Gathers rows, and the problems of all of them before it raises.

    Nothing is read but the file system's tables: a picture is opened when its row is accessed.

    Args:
        source: where the captions come from, for messages.
        image_folder: the folder that must hold every picture; a path or a link that leads out of it is a problem.

    Raises:
        FileNotFoundError: if there is no such folder.
    """

    def __init__(self, source: str | Path, image_folder: str | Path):
        self.source, self.image_folder = source, Path(image_folder)
        if not self.image_folder.is_dir():
            raise FileNotFoundError(
                f"No image folder at {image_folder}; expected the folder of the images of {source}."
            )
        self.root = self.image_folder.resolve()
        self.rows: dict[str, list[dict]] = {}
        self.problems: list[str] = []
        self._seen: dict[str, str] = {}

    def add(self, where: str, split: str, name: str, captions: list[str], image_id: str | None = None) -> None:
        """Add a row, or note what is wrong with it.

        Args:
            where: the entry in the source, for messages.
            split: one of ours.
            name: path of the picture in the folder.
            captions: tidy, and at least one.
            image_id: `name` by default.
        """
        path = (self.root / name).resolve()
        image_id = name if image_id is None else image_id
        if not path.is_relative_to(self.root):
            self.problems.append(f"{where}: {name} lies outside the image folder")
        elif not path.is_file():
            self.problems.append(f"{where}: {name} is missing")
        if not captions or not all(captions):
            self.problems.append(f"{where} ({name}): no caption, or an empty one")
        if image_id in self._seen:
            self.problems.append(f"{where}: {image_id} is there already, as {self._seen[image_id]}")
        self._seen[image_id] = where
        if not self.problems:
            row = {"image": str(path), "captions": captions, "image_id": image_id}
            self.rows.setdefault(split, []).append(row)

    def data(self, splits: tuple[str, ...]) -> DatasetDict:
        """The rows of some splits.

        Raises:
            DataError: if anything was wrong with any row, or one of the splits has none.
        """
        if not self.problems:
            self.problems = [f"no image in split {split!r}" for split in splits if split not in self.rows]
        if self.problems:
            raise DataError(f"{self.source} with images in {self.image_folder}", self.problems)
        return DatasetDict(
            {split: Dataset.from_list(self.rows[split], features=FEATURES, split=split) for split in splits}
        )
