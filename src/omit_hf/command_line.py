"""What the scripts share: help that shows defaults, options in JSON, and errors of one line."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator

from huggingface_hub.errors import StrictDataclassError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of options, and a script's examples as they are written."""


def json_object(text: str) -> dict:
    """The type of an option of a command line whose value is a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is {type(value).__name__}; expected names and values in {{}}")
    return value


@contextlib.contextmanager
def errors_in_one_line(*others: type[Exception]) -> Iterator[None]:
    """Ends the script with status 1 and a line on stderr for what its user can mend, instead of a traceback.

    Args:
        others: kinds of errors beside wrong values, files that cannot be read or written and packages that are missing.
    """
    try:
        yield
    except StrictDataclassError as error:  # of a configuration; its cause says what is wrong
        sys.exit(f"error: {error.__cause__}")
    except (ValueError, OSError, ImportError, *others) as error:
        sys.exit(f"error: {error}")
