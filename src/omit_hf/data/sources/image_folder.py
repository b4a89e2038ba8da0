"""A folder of images with `metadata.jsonl` in each split, the layout of `imagefolder` in `datasets`."""

from pathlib import Path

from datasets import DatasetDict

from omit_hf.data.schema import SPLITS, tidy
from omit_hf.data.sources.picture_files import PictureFiles
from omit_hf.parsing import parse_json

METADATA = "metadata.jsonl"


def load_image_folder(folder: str | Path, caption_field: str = "text") -> DatasetDict:
    """Load `train/`, `validation/` and `test/`, each with its images and a `metadata.jsonl`.

    Args:
        folder: holds the three folders; the name of a split leads to no other folder.
        caption_field: the field of a line that holds its caption or its list of captions. A line is
            `{"file_name": "0001.jpg", "text": "a red kite"}`; lines with the same `file_name` add up.

    Returns:
        `DatasetDict` with columns `image`, `captions` and `image_id` (the file's path in `folder`).

    Raises:
        FileNotFoundError: if a split has no `metadata.jsonl`.
        ValueError: with every problem of the lines: no JSON, not the expected fields, no caption, an image that is
            missing or outside the folder.
    """
    folder = Path(folder)
    files = PictureFiles(folder, folder)
    for split in SPLITS:
        metadata = folder / split / METADATA
        if not metadata.is_file():
            raise FileNotFoundError(
                f"No {METADATA} in {folder / split}; expected the folders {', '.join(SPLITS)}, each with its images "
                f"and its {METADATA}."
            )
        first_lines, captions = {}, {}
        for number, line in enumerate(text_lines(metadata), start=1):
            if not line.strip():
                continue
            where = f"{split}/{METADATA} line {number}"
            try:
                entry = parse_json(line)
                name, found = entry["file_name"], entry[caption_field]
                if not isinstance(found, str | list):
                    raise TypeError(f"{caption_field} is {found!r:.40}; expected a text or a list")
                found = [tidy(caption) for caption in ([found] if isinstance(found, str) else found)]
                first_lines.setdefault(name, where)
                captions.setdefault(name, []).extend(found)
            except ValueError as error:
                files.problems.append(f"{where}: no JSON ({error})")
            except KeyError as error:
                fields = ", ".join(entry)
                files.problems.append(f"{where}: no field {error}; it has {fields} (option caption_field)")
            except (TypeError, AttributeError) as error:
                files.problems.append(f"{where}: not the expected fields ({error})")
        for name, where in first_lines.items():
            files.add(where, split, f"{split}/{name}", captions[name])
    return files.data(SPLITS)


def text_lines(file: Path) -> list[str]:
    """Lines of a file of JSON Lines, each with its end."""
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:  # JSON may hold other separators as they are
            return list(lines)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}.") from error
