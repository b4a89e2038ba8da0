import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import PROGRAMS

from omit_hf import OmitConfig, command_line
from omit_hf.command_line import CommandParser, Text, errors_in_one_line, json_object, run_script

EXAMPLES = Path(__file__).parents[1] / "examples"
COMMANDS = Path(command_line.__file__).parent


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


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
def test_a_name_of_a_file_does_nothing_to_the_console(error):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error("a\x1b[2J\u202eb has 1 problem:\n  c\rd")
    assert end.value.code == "error: a\\x1b[2J\\u202eb has 1 problem:\n  c\\rd"
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        OmitConfig(matching="a\x1b[2J\nerror: b")
    assert end.value.code.isprintable()


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


SCRIPTS = [file for file in sorted(EXAMPLES.rglob("*.py")) if not file.with_name("__init__.py").exists()]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_command_has_the_parser(script):
    """Which replaces `~`; of a script that is a command of `omit-hf` the command has it."""
    code = script.read_text()
    command = re.search(r"^from omit_hf\.command_line\.(\w+) import main$", code, flags=re.MULTILINE)
    if command is not None:
        assert len(code.splitlines()) < 15
        code = (COMMANDS / f"{command[1]}.py").read_text()
    assert "ArgumentParser" not in code
    made = r"(?:Command|Page)Parser\(" if "Parser(" in code else r"recipe_parser\("  # which is a CommandParser too
    assert len(re.findall(made, code)) == 1


def script(way: str, stdout=subprocess.PIPE, **environment) -> subprocess.CompletedProcess:
    """A script's run, with what it printed as bytes."""
    environment = {**os.environ, "PYTHONUTF8": "0", **environment}
    command = [sys.executable, str(PROGRAMS / "end_as_a_script.py"), way]
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, timeout=120)


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"image \\u2192 text: \\u03bb = 0.02, \\xab \\u2581 \\udcff \\xbb"),
        ("cp1252", b"image \\u2192 text: \\u03bb = 0.02, \xab \\u2581 \\udcff \xbb"),
        ("utf-8", "image → text: λ = 0.02, « ▁ ".encode() + b"\\udcff \xc2\xbb"),
    ],
)
def test_any_console(encoding, printed):
    result = script("print", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, printed, b"")
    failed = script("error", PYTHONIOENCODING=encoding)
    assert failed.returncode == 1
    assert failed.stdout.strip() == b"first"
    assert failed.stderr.startswith(b"error: ")
    assert b"Traceback" not in failed.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("way", ["much", "print"])
def test_a_pipe_that_is_closed_early(way, unbuffered):
    """As by `| head`: while the script prints, or when all is printed at its end."""
    read, write = os.pipe()
    os.close(read)
    result = script(way, stdout=write, PYTHONUNBUFFERED=unbuffered)
    os.close(write)
    assert result.stderr == b""
    assert result.returncode in (0, 141)


def test_another_pipe_that_broke_is_an_error():
    result = script("pipe")
    assert (result.returncode, result.stderr.strip()) == (1, b"error: [Errno 32] Broken pipe")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_is_full(unbuffered):
    with open("/dev/full", "wb") as full:  # of Linux
        result = script("print", stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert result.returncode == 1
    assert result.stderr.startswith(b"error: ")
    assert b"[Errno 28] No space left on device" in result.stderr
    assert result.stderr.count(b"\n") == 1


def test_the_status_of_a_script():
    result = script("status")
    assert (result.returncode, result.stdout) == (3, b"done\n")


def test_a_thread_that_finds_the_disk_full_has_one_line():
    result = script("thread")
    assert result.stderr == b"error: [Errno 28] No space left on device: 'logs/events'\n"


def test_a_stream_of_a_notebook(monkeypatch):
    class Stream:
        def write(self, text):
            return len(text)

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Stream())
    run_script(lambda: print("→"))
