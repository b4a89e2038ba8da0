"""A folder of images with `metadata.jsonl` in each split, the layout of `imagefolder` in `datasets`."""

from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import SPLITS, check_only, tidy_captions
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.parsing import label, parse_json, shown, text_lines

METADATA = "metadata.jsonl"


def load_image_folder(
    folder: str | Path, caption_field: str = "text", only: Sequence[str] | None = None
) -> DatasetDict:
    """Load `train/`, `validation/` and `test/`, or those of them that are there, with images and a `metadata.jsonl`.

    Args:
        folder: holds the three folders.
        caption_field: the field of a line that holds its caption or its list of captions. A line is
            `{"file_name": "0001.jpg", "text": "a red kite"}`; lines with the same `file_name` add up.
        only: the splits to load; the others are not looked at. By default those that the folder has.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in `folder`).

    Raises:
        FileNotFoundError: if a split has no `metadata.jsonl`.
        ValueError: with every problem of the lines: no JSON, not the expected fields, no caption, an image that is
            missing, outside the folder, or there twice under any name.
    """
    folder = Path(folder)
    check_only(only)
    files = PictureFiles(folder, folder, only)
    for split in SPLITS:
        metadata = folder / split / METADATA
        if not metadata.is_file():
            if (folder / split).is_dir() if only is None else split in only:
                raise FileNotFoundError(
                    f"No {METADATA} in {folder / split}; expected the folders {', '.join(SPLITS)}, or one of them, "
                    f"each with its images and its {METADATA}."
                )
            continue
        if not files.wants(split):
            continue
        first_lines, captions = {}, {}
        for number, line in enumerate(text_lines(metadata), start=1):
            if not line.strip():
                continue
            where = f"{split}/{METADATA} line {number}"
            try:
                name, found = _entry(line, caption_field)
            except ValueError as error:
                files.problems.append(f"{where}: {error}")
            else:
                first_lines.setdefault(name, where)
                captions.setdefault(name, []).extend(found)
        for name, where in first_lines.items():
            files.add(where, split, f"{split}/{name}", captions[name])
    return files.data()


def _entry(line: str, caption_field: str) -> tuple[str, list[str]]:
    """The file and the captions of a line."""
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise ValueError(f"no JSON ({error})") from error
    if not isinstance(entry, dict):
        raise ValueError(f"not the expected fields, it is {shown(entry)}")
    for name in ("file_name", caption_field):
        if name not in entry:
            fields = label(", ".join(entry))
            raise ValueError(f"no field {name!r}; it has {fields} (option caption_field)")
    name, found = entry["file_name"], entry[caption_field]
    if not isinstance(name, str):
        raise ValueError(f"not the expected fields, file_name is {shown(name)}; expected a text")
    if not isinstance(found, str | list):
        raise ValueError(
            f"not the expected fields, {caption_field} is {shown(found)}; expected a text or a list of them"
        )
    try:
        return name, tidy_captions([found] if isinstance(found, str) else found)
    except ValueError as error:
        raise ValueError(f"not the expected fields, in {caption_field} {error}") from error
