"""Makes items of files, rows and captions, in threads: what they hold, or why they cannot be read."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from omit_hf.data.pictures import stored_pictures
from omit_hf.library.columns import OWN, same_value
from omit_hf.library.encoding import Item
from omit_hf.library.files import PictureFile, decode, digest_of, escaped
from omit_hf.library.models import TOKENIZING

MEASURED = ("width", "height")  # of a picture, whatever a data set says


class Reader:
    """Reads items on their way into a library.

    Args:
        model, processor: `OmitModel` and its processor.
        known: rows that the library has, by id; an item of theirs that is as it was is not encoded.
        gone: rows whose files are not there any more, by digest; a file of that content takes one over.
    """

    def __init__(self, model, processor, known: dict[str, dict], gone: dict[str, list[dict]]):
        self.processor, self.known, self.gone = processor, known, gone
        self.takes_regions = model.vision_encoder.input_name == "region_features"

    def check_form(self, columns: Sequence[str]) -> None:
        """Raise a ValueError if the model takes pictures where there are regions, or the other way round."""
        wanted = "region_features" if self.takes_regions else "image"
        if wanted not in columns:
            takes = "precomputed regions" if self.takes_regions else "pictures"
            raise ValueError(
                f"The model takes {takes}, and the source has {', '.join(columns)}; expected {wanted}"
                f"{', as rows of a datasets.Dataset' if self.takes_regions else ''}."
            )

    def file(self, file: PictureFile) -> Item:
        metadata = {"id": file.path, **file.metadata()}
        known = self.known.get(file.path)
        try:
            content = Path(file.path).read_bytes()
            metadata["digest"] = digest_of(content)
            if known is not None and known["digest"] == metadata["digest"]:
                changes = {} if known["modified"] == file.modified else {"modified": file.modified}
                return Item(metadata, same_as=known, changes=changes)
            if known is None:
                try:
                    moved = self.gone.get(metadata["digest"], []).pop()  # which no other thread gets then
                except IndexError:
                    pass
                else:
                    changes = {name: metadata[name] for name in ("id", "path", "folder", "modified")}
                    return Item(metadata, same_as=moved, changes=changes)
            seen, inputs = self._picture(content)
            return Item(metadata | seen, inputs)
        except (OSError, ValueError) as error:
            return Item(metadata, problem=reason(error))

    def caption(self, text: str) -> Item:
        digest = digest_of(text.encode())
        metadata = {"id": digest, "digest": digest, "captions": [text]}
        if digest in self.known:
            return Item(metadata, same_as=self.known[digest])
        return Item(metadata, self._tokens(text))

    def rows(self, data: Dataset, fields: Sequence[pa.Field]) -> Iterator[Callable[[], Item]]:
        """Rows of a data set; `fields` are its columns of metadata."""
        for number, row, form in self._stored(data, [field.name for field in fields]):
            yield partial(self._row, row, form, number, fields)

    def again(self, rows: Sequence[dict], data: Dataset | None) -> Iterator[Callable[[], Item]]:
        """Rows whose metadata are known, from their files or captions, or from a data set that has them."""
        by_id = {row["id"]: row for row in rows}
        if data is not None:
            for _, row, form in self._stored(data, []):
                known = by_id.pop(row_id(row, form), None)
                if known is not None:
                    yield partial(self._again, known, form)
        for row in by_id.values():
            yield partial(self._again, row, None)

    def ids(self, data: Dataset) -> set[str]:
        """Those that the rows of a data set have in a library; "" for a row that cannot be read."""
        return {row_id(row, form) for _, row, form in self._stored(data, [])}

    def _stored(self, data: Dataset, columns: Sequence[str]) -> Iterator[tuple[int, dict, dict]]:
        """Number, metadata and inputs of rows, the latter as they are stored."""
        self.check_form(data.column_names)
        data = data.with_format(None)
        form = data.select_columns("region_features").with_format("numpy") if self.takes_regions else None
        form = stored_pictures(data) if form is None else form
        names = [name for name in ("image_id", "boxes", *columns) if name in data.column_names]
        rows = data.select_columns(names) if names else None
        for number in range(len(data)):
            yield number, {} if rows is None else rows[number], form[number]

    def _row(self, row: dict, form: dict, number: int, fields: Sequence[pa.Field]) -> Item:
        metadata = {field.name: row[field.name] for field in fields}
        types = {field.name: field.type for field in fields} | {name: OWN[name] for name in ("path", "boxes")}
        metadata["path"] = _path_of(form)
        name = metadata["path"] or row.get("image_id")
        named = (f"row {number}", False) if name in (None, "") else (str(name), True)
        try:
            content = _content(form)
            metadata |= {"digest": digest_of(content), "id": row_id(row, form, content)}
            if self.takes_regions:
                metadata["boxes"] = _boxes(row.get("boxes"), len(form["region_features"]))
            known = self.known.get(metadata["id"])
            if known is not None and known["digest"] == metadata["digest"]:
                measured = () if self.takes_regions else MEASURED
                changes = {
                    name: value
                    for name, value in metadata.items()
                    if name in types
                    and name not in measured
                    and not (value is None and name in ("taken", "year"))  # which the picture may tell
                    and not same_value(value, known.get(name), types[name])
                }
                return Item(metadata, None, None, known, changes, *named)
            if self.takes_regions:
                return Item(metadata, dict(self.processor(regions=[_regions(form)])), None, None, {}, *named)
            seen, inputs = self._picture(content)
            given = {name: value for name, value in metadata.items() if value is not None}
            return Item(seen | given | {name: seen[name] for name in MEASURED}, inputs, None, None, {}, *named)
        except (OSError, ValueError) as error:
            return Item(metadata, None, reason(error), None, {}, *named)

    def _again(self, row: dict, form: dict | None) -> Item:
        known = self.known.get(row["id"])
        if known is not None:
            return Item(row, same_as=known)
        try:
            if form is None and row["path"] is None:
                return Item(row, self._tokens(row["captions"][0]))
            if self.takes_regions:
                _boxes(row["boxes"], len(form["region_features"]))
                digest = digest_of(_content(form))
                return Item(row | {"digest": digest}, dict(self.processor(regions=[_regions(form)])))
            now = {}
            if form is None and row["bytes"] is not None:
                stat = os.stat(row["path"])
                now = {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
            content = _content(form or {"bytes": None, "path": row["path"]})
            now["digest"] = digest_of(content)
            seen, inputs = self._picture(content)
            told = seen if now["digest"] != row["digest"] else {name: seen[name] for name in MEASURED}
            return Item(row | told | now, inputs)
        except (OSError, ValueError) as error:
            return Item(row, problem=reason(error))

    def _tokens(self, text: str) -> dict:
        with TOKENIZING:
            return dict(self.processor(text=[text]))

    def _picture(self, content: bytes) -> tuple[dict, dict]:
        """Metadata and the model's inputs of a picture; OSError or ValueError for whatever is wrong with it."""
        picture, seen = decode(content)
        try:
            return seen, dict(self.processor(images=[picture]))
        except (OSError, ValueError, MemoryError):
            raise
        except Exception as error:  # image processors raise many kinds
            raise ValueError(f"{type(error).__name__}: {error}") from error


def row_id(row: dict, form: dict, content: bytes | None = None) -> str:
    """What tells a row of a data set from others: its `image_id`, else its file, else its content; "" if that cannot
    be read."""
    if row.get("image_id") not in (None, ""):
        return str(row["image_id"])
    if _path_of(form) is not None:
        return _path_of(form)
    try:
        return digest_of(_content(form) if content is None else content)
    except (OSError, ValueError):
        return ""


def reason(error: Exception) -> str:
    """Why something cannot be read, in UTF-8."""
    return str(error).encode("utf-8", "backslashreplace").decode() or type(error).__name__


def _path_of(form: dict) -> str | None:
    """The file of a stored picture, if it is there and has a name in UTF-8."""
    stored = form.get("image")
    path = None if stored is None else stored["path"]
    if not path or not os.path.isfile(path) or escaped(path) != path:
        return None
    return os.path.abspath(path)


def _content(form: dict) -> bytes:
    if "region_features" in form:
        return _regions(form).tobytes()
    stored = form.get("image", form)
    if stored is None:
        raise ValueError("it has no picture")
    return stored["bytes"] if stored["bytes"] is not None else Path(stored["path"]).read_bytes()


def _regions(form: dict) -> np.ndarray:
    if form["region_features"] is None:
        raise ValueError("it has no regions")
    regions = np.asarray(form["region_features"], np.float32)
    if regions.ndim != 2:
        raise ValueError(f"its region_features have the shape {regions.shape}; expected [K, width]")
    return regions


def _boxes(boxes, count: int) -> list[float] | None:
    """Boxes in one list, x0, y0, x1, y1 of every region."""
    if boxes is None:
        return None
    boxes = np.asarray(boxes, np.float32)
    if boxes.size != 4 * count or not np.isfinite(boxes).all():
        raise ValueError(f"it has boxes of the shape {boxes.shape}; expected {count} x 4 numbers, one box a region")
    return boxes.ravel().tolist()
