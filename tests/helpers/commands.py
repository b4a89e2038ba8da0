"""The command `omit-hf`, in this process and in one of its own."""

import subprocess
import sys

import omit_hf_command


def run(capsys, *arguments) -> tuple[int | str, str]:
    """Status, or its one line on stderr, and what was printed."""
    status = 0
    try:
        omit_hf_command.main(list(map(str, arguments)))
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def process(*arguments, **options) -> subprocess.CompletedProcess:
    options = {"capture_output": True, "timeout": 240, **options}
    return subprocess.run([sys.executable, "-m", "omit_hf", *map(str, arguments)], **options)
