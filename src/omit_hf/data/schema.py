"""The schema that every loader produces, and the error that lists all that is wrong with a source."""

from collections.abc import Iterable, Sequence

from datasets import Features, Image, List, Value

from omit_hf.parsing import BYTE_ORDER_MARK, is_text, label, shown

SPLITS = ("train", "validation", "test")
# What others call the splits.
SPLIT_NAMES = {
    "train": "train",
    "restval": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
FEATURES = Features({"image": Image(), "captions": List(Value("string")), "image_id": Value("string")})
PROBLEMS_SHOWN = 20


class DataError(ValueError):
    """Data that cannot be used, with every reason; the message shows the first of a long list.

    Args:
        what: the data, as the subject of a sentence.
        problems: what is wrong with them, a line each.
    """

    def __init__(self, what: str, problems: list[str]):
        shown = "\n  ".join(problems[:PROBLEMS_SHOWN])
        more = f"\n  … and {len(problems) - PROBLEMS_SHOWN} more" if len(problems) > PROBLEMS_SHOWN else ""
        count = f"{len(problems)} problems" if len(problems) != 1 else "1 problem"
        super().__init__(f"{what} has {count}:\n  {shown}{more}")
        self.what, self.problems = what, problems

    def __reduce__(self):
        return DataError, (self.what, self.problems)


def tidy(caption: str) -> str:
    """Put a caption in one line, with single spaces and without a byte-order mark."""
    return " ".join(caption.lstrip(BYTE_ORDER_MARK).split())


def tidy_captions(captions: list) -> list[str]:
    """Tidy the captions of an image.

    Raises:
        ValueError: names the first that is not text.
    """
    wrong = next((n for n, caption in enumerate(captions) if not is_text(caption)), None)
    if wrong is not None:
        raise ValueError(f"caption {wrong} is {shown(captions[wrong])}; expected a text")
    return [tidy(caption) for caption in captions]


def chosen_splits(what: object, found: Iterable[str], only: Sequence[str] | None = None) -> list[str]:
    """Choose the splits to load, in our order.

    Args:
        what: the source, for messages.
        found: those that it has.
        only: those that are wanted; None for all that it has.

    Raises:
        ValueError: if the source has none, or lacks one that is wanted.
    """
    found = [split for split in SPLITS if split in set(found)]
    if only is None:
        if not found:
            raise ValueError(f"{what} has no image; expected some in {', '.join(SPLITS)}, or one of them.")
        return found
    check_only(only)
    missing = [split for split in SPLITS if split in only and split not in found]
    if missing:
        listed_splits = " and ".join(f"no split {split!r}" for split in missing)
        raise ValueError(f"{what} has {listed_splits}; it has {', '.join(found) or 'no image at all'}.")
    return [split for split in found if split in only]


def check_only(only: Sequence[str] | None) -> None:
    """Raise a ValueError if `only` is no list of splits."""
    if only is None:
        return
    if isinstance(only, str) or not isinstance(only, Sequence) or not only or not all(each in SPLITS for each in only):
        raise ValueError(f"only is {shown(only)}; expected a list of some of {', '.join(SPLITS)}.")


def check_count(name: str, value) -> None:
    """Raise a ValueError unless an option is a number of images from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {shown(value)}; expected at least 1 image, as an integer.")


def listed(names: Iterable) -> str:
    """List names in an error message: all of a few, the first of many."""
    names = [label(name) for name in names]
    return ", ".join(names[:10]) + (f" … ({len(names)} in all)" if len(names) > 10 else "")
