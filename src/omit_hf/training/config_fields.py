"""Fields of a recipe that are fields of `OmitConfig`; their types, defaults and help stand only there."""

import inspect
import re
from dataclasses import field, fields

from omit_hf.modeling.configuration_omit import OmitConfig
from omit_hf.modeling.matching_omit import MATCHING

TYPES_AND_DEFAULTS = {each.name: (each.type, each.default) for each in fields(OmitConfig)}


def option(default, help: str, **of_argparse):
    """Declare a field of a recipe, which is an option of the command line too."""
    metadata = {"help": help, **of_argparse}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class OfConfig:
    """A placeholder in the body of a dataclass for a field of `OmitConfig`; it becomes that field as the body ends.

    Args:
        otherwise: tells what None does; None is then the default.
    """

    names: list[str] = []  # of all of them

    def __init__(self, otherwise: str | None = None):
        self.otherwise = otherwise

    def __set_name__(self, owner: type, name: str) -> None:
        kind, default = TYPES_AND_DEFAULTS[name]
        help = HELP.get(name, "")
        if kind == float | int:  # a command line has one type, and a recipe file is read with it
            kind = float
        if self.otherwise is not None:
            kind, default, help = kind | None, None, f"{help} {self.otherwise}"
        owner.__annotations__[name] = kind
        setattr(owner, name, option(default, help, **({"choices": MATCHING} if name == "matching" else {})))
        self.names.append(name)


def _help() -> dict[str, str]:
    """Read the help of every argument from the docstring of `OmitConfig`."""
    arguments = inspect.cleandoc(OmitConfig.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    texts = {name: " ".join(text.split()) for name, text in entries}
    # The first word is capitalised, but not a symbol such as λ.
    return {name: text[0].upper() + text[1:] if re.match("[a-z]{2}", text) else text for name, text in texts.items()}


HELP = _help()
