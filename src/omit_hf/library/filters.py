"""Filters that users write: one condition in LanceDB's SQL, and no more."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence

from omit_hf.parsing import shown

MOST_CHARACTERS = 2**16  # LanceDB overflows its stack, and ends the process, at some hundred thousand conditions


def checked_filter(where: str) -> str:
    """A filter in parentheses, so that it can be no more than one.

    Raises:
        ValueError: for what is no text, is very long, or ends its own parentheses, texts or statement.
    """
    if not isinstance(where, str) or not where.strip():
        raise no_filter(where, "it is empty" if isinstance(where, str) else "it is no text")
    if len(where) > MOST_CHARACTERS:
        raise no_filter(where, f"it has {len(where)} characters, and the most are {MOST_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in where):
        raise no_filter(where, "it has half of a surrogate pair")
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "''", where)  # without texts and names
    depth = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth != 0:
        raise no_filter(where, "its parentheses do not close")
    if ";" in bare or "--" in bare or "/*" in bare or "\0" in where:
        raise no_filter(where, "it is more than a condition")
    return f"({where})"


def no_filter(where, why: str) -> ValueError:
    return ValueError(
        f'where is {shown(where)}, which is no filter: {why}; expected a condition such as "year >= 2020".'
    )


@contextlib.contextmanager
def filter_errors(where: str | None, columns: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Errors of LanceDB within say that the filter is none, unless it is a file that is missing or cannot be read."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        said = str(error)
        if where is None or "(os error" in said or "Not found: " in said:
            raise
        why = re.sub(r", /\S+\.rs:\d+:\d+", "", " ".join(said.removeprefix("Invalid input, ").split()))
        raise ValueError(f"{no_filter(where, why[:300])} The columns are {', '.join(columns())}.") from error


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
