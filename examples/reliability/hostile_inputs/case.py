"""A hostile input, and what the package made of it."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hostile_inputs.mutations import EVIL
from omit_hf.parsing import told

MAX_LINE = 1000  # characters of a line of an error, beside the folder's name
MAX_LINES = 23  # a heading, 20 problems, and how many more
ANY, REFUSED = object(), object()


class WrongValue(Exception):
    """What was read is not what is there."""


@dataclass
class Case:
    """A hostile input.

    Args:
        kind: of the file that was changed.
        what: how it was changed.
        read: gives it to the package, and gives what the package reads.
        expected: what must be read; REFUSED if nothing may be, ANY if nobody knows, where `read` itself looks at the
            value and may raise `WrongValue`.
        names: a refusal must have one of them, so that its reader knows where to look.
        foreign: whether a refusal may be in the words of transformers, which quotes names of files however they are.
    """

    kind: str
    what: str
    read: Callable[[], Any]
    expected: Any = ANY
    names: tuple[str, ...] = ()
    foreign: bool = False


@dataclass
class Outcome:
    """What became of a case: `read`, `refused` or `fault`; and why."""

    status: str
    why: str = ""


def judge(case: Case, folder: Path) -> Outcome:
    """Read a case, whose files are in a folder, and see whether what comes is right."""
    try:
        value = case.read()
    except Exception as error:
        return _of_error(case, error, folder)
    if case.expected is REFUSED:
        return Outcome("fault", f"read, and must be refused: {value!r:.300}")
    if case.expected is not ANY and value != case.expected:
        return Outcome("fault", f"wrong value: {value!r:.300}; expected {case.expected!r:.300}")
    return Outcome("read")


def _of_error(case: Case, error: Exception, folder: Path) -> Outcome:
    if isinstance(error, StrictDataclassError):  # of a configuration; scripts show its cause
        error = ValueError(told(error.__cause__ or error)).with_traceback(error.__traceback__)
    said = str(error).replace(str(folder), "…")
    where = " at ".join(
        f"{Path(each.filename).name}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[:1:-1][:4]
    )
    shown = f"{type(error).__name__}: {' '.join(said.split())[:300]!r} at {where}"
    chain, each = [], error
    while each is not None:
        chain.append(each)
        each = each.__cause__ or each.__context__
    if any(isinstance(each, MemoryError) for each in chain):
        return Outcome("fault", f"out of memory: {shown}")
    if not isinstance(error, ValueError | OSError) or isinstance(error, UnicodeError):
        return Outcome("fault", shown)
    if case.expected not in (ANY, REFUSED):
        return Outcome("fault", f"refused, and is right: {shown}")
    lines = said.split("\n")
    if (EVIL in said or not all(line.isprintable() for line in lines)) and not case.foreign:
        return Outcome("fault", f"unprintable message: {shown}")
    if len(lines) > MAX_LINES or not all(line.startswith("  ") for line in lines[1:-1]):
        return Outcome("fault", f"message of {len(lines)} lines: {shown}")
    if max(map(len, lines)) > MAX_LINE and not case.foreign:
        return Outcome("fault", f"message of {max(map(len, lines))} characters: {shown}")
    if case.names and not any(name in str(error) for name in case.names):
        return Outcome("fault", f"message without {' or '.join(case.names)}: {shown}")
    return Outcome("refused", said)
