"""Opens the pictures of a split, and finds those that cannot be opened."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
from datasets import Dataset, Image
from tqdm.auto import tqdm

from omit_hf.modeling.pictures_omit import BoundedFile, rgb_picture

MAX_PIXELS = 89_478_485  # 256 MB in RGB; the number of which PIL warns, where it refuses twice as many
MAX_FILE = 2**30  # bytes; of 16 bits with alpha, these pixels have 720 MB
BATCH = 256


def stored_pictures(split: Dataset) -> Dataset:
    """Read the `image` column as it is stored, `{"bytes": …, "path": …}`."""
    return split.select_columns("image").cast_column("image", Image(decode=False))


def open_picture(stored: dict) -> PIL.Image.Image:
    """Open a stored picture, upright and in RGB. Ignores broken metadata, with which `datasets` would fail.

    Raises:
        Exception: whatever PIL raises for what is no picture, or is cut off; ValueError for one of more than
            `MAX_PIXELS`, before it is decoded, or in PostScript, which PIL gives to another program to draw.
    """
    content = stored["bytes"]
    if content is None:
        file = Path(stored["path"])
        if file.stat().st_size > MAX_FILE:
            raise ValueError(f"its file has more than {MAX_FILE} bytes; expected a picture of at most that")
        content = file.read_bytes()
    with PIL.Image.open(BoundedFile(content)) as picture:
        if stored["bytes"] is None:
            picture.filename = stored["path"]  # for messages, as of a picture that PIL opened by its name
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(
                f"it has {picture.width} x {picture.height} pixels; expected at most {MAX_PIXELS}, scaled down"
            )
        if picture.format == "EPS":
            raise ValueError("it is PostScript, a program that draws; expected a picture of pixels, such as PNG")
        return rgb_picture(picture)


def unreadable_pictures(split: Dataset, progress: bool = True) -> dict[int, str]:
    """Find the rows whose picture cannot be opened: number → reason. Decodes every picture, in threads."""
    stored, found = stored_pictures(split), {}
    with (
        ThreadPoolExecutor() as threads,
        tqdm(total=len(stored), desc="Reading images", disable=not progress, leave=False) as bar,
    ):
        for start in range(0, len(stored), BATCH):
            batch = stored[start : start + BATCH]["image"]
            problems = enumerate(threads.map(_problem, batch), start=start)
            found |= {number: problem for number, problem in problems if problem is not None}
            bar.update(len(batch))
    return found


def _problem(stored: dict) -> str | None:
    try:
        open_picture(stored)
    except Exception as error:
        return str(error) or type(error).__name__
    return None
