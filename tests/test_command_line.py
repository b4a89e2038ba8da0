import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from omit_hf import OmitConfig
from omit_hf.command_line import CommandParser, Text, errors_in_one_line, json_object

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass
class Arguments:
    output: str = field(default="~/default.png", metadata={"help": "File."})
    models: list[str] = field(default_factory=list, metadata={"help": "Folders."})


@pytest.mark.parametrize("error", [ValueError("k is 0"), FileNotFoundError("k is 0"), ImportError("k is 0")])
def test_what_the_user_can_mend_is_one_line(error):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error
    assert end.value.code == "error: k is 0"


def test_an_invalid_configuration_says_what_is_wrong_and_not_where_it_was_found():
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        OmitConfig(regularization=-1)
    assert end.value.code.startswith("error: regularization is -1; expected a number greater than 0")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(FloatingPointError), errors_in_one_line():
        raise FloatingPointError
    with pytest.raises(SystemExit), errors_in_one_line(FloatingPointError):
        raise FloatingPointError


def test_an_option_in_json():
    assert json_object('{"size": 3}') == {"size": 3}
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\{size' is no JSON"):
        json_object("{size")
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\[3\]' is list; expected names and values in \{\}"):
        json_object("[3]")
    with pytest.raises(argparse.ArgumentTypeError, match=r"^'\[{78}… is no JSON: values nested too deep$"):
        json_object("[" * 100_000)


def parsed(*arguments):
    parser = CommandParser(Arguments, description="Draws.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sentence", nargs="?", type=Text)
    parser.add_argument("--options", type=json_object, default={})
    parser.add_argument("--files", nargs="+", default=[])
    return parser.parse_args(arguments)


def test_the_home_folder_in_every_kind_of_option(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["~/in", "~/words of a caption", "--output=~/plan.png", "--models", "~/a", "user/b", "--files", "~", "~c"]
    found = parsed(*given, "--options", '{"image_folder": "~/x", "columns": {"captions": "a~/b"}}')
    assert (found.folder, found.output, found.models) == (
        tmp_path / "in",
        f"{tmp_path}/plan.png",
        [f"{tmp_path}/a", "user/b"],
    )
    assert found.files == [str(tmp_path), "~c"]
    assert found.options == {"image_folder": f"{tmp_path}/x", "columns": {"captions": "a~/b"}}
    assert found.sentence == "~/words of a caption"


def test_what_is_not_given_stays_and_neither_are_variables_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parsed("$HOME/~")
    assert (found.folder, found.output, found.sentence) == (Path("$HOME/~"), "~/default.png", None)


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.py")), ids=lambda script: script.stem)
def test_every_command_has_the_parser(script):
    """Which replaces `~`; that of train.py is in `parse_recipe`."""
    code = script.read_text()
    assert "ArgumentParser" not in code
    assert len(re.findall(r"CommandParser\(|parse_recipe\(description", code)) == 1
