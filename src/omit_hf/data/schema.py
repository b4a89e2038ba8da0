"""The schema that every loader reaches, and the error that lists all that is wrong with a source."""

from collections.abc import Iterable

from datasets import Features, Image, List, Value

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
    """A caption in one line, with single spaces."""
    return " ".join(caption.split())


def listed(names: Iterable) -> str:
    """Names in an error message: all of a few, the first of many."""
    names = [str(name) for name in names]
    return ", ".join(names[:10]) + (f" … ({len(names)} in all)" if len(names) > 10 else "")
