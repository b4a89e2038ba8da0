"""The parser of every command: help that shows defaults, `~` in paths, options in JSON."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from transformers import HfArgumentParser

from omit_hf.parsing import parse_json, shown


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults of options that have one, and a script's examples as they are written."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Text(str):
    """The type of an option that is never a path: its `~` stays."""


class CommandParser(HfArgumentParser):
    """The parser of every command. A leading `~` of what is given is the home folder, as where the shell replaces it;
    it does not in `--output=~/x`, in JSON and in quotes.

    Args:
        groups: dataclasses whose fields are options.
        options: further ones of `argparse.ArgumentParser`.
    """

    def __init__(self, groups: type | Iterable[type] = (), **options):
        super().__init__(groups, formatter_class=HelpFormatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        before = dict(vars(namespace or argparse.Namespace()))
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            if value is not before.get(name, self.get_default(name)):
                setattr(found, name, expanded(value))
        return found, rest


def expanded(value):
    """An option's value with the home folder in the place of a leading `~`, also within lists and JSON."""
    if isinstance(value, dict):
        return {name: expanded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [expanded(each) for each in value]
    if isinstance(value, str | Path) and not isinstance(value, Text):
        return type(value)(os.path.expanduser(value))
    return value


def json_object(text: str) -> dict:
    """The type of an option of a command line whose value is a JSON object."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{shown(text)} is {type(value).__name__}; expected names and values in {{}}")
    return value
