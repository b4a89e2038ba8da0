"""The command `omit-hf`. It stands beside the package, whose import takes seconds, so that its help comes at once."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

COMMANDS = {  # each is a module of omit_hf.command_line, imported when it is asked for
    "index": "Make a library of pictures, or bring one up to date.",
    "search": "Find pictures of a library by a sentence, or by a picture.",
}
INTERRUPTED = 130  # the status of a program that SIGINT ended
EXAMPLES = """
examples:
  omit-hf index ~/Pictures --library photos.lance --model outputs/scenes
  omit-hf search "a small red star left of a ring" --library photos.lance

`omit-hf COMMAND --help` tells of one command.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named first, and exit with its status where that is not 0."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        command, *rest = arguments
        try:
            from omit_hf.command_line.running import run_script

            run_script(lambda: importlib.import_module(f"omit_hf.command_line.{command}").main(rest))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        return
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="omit-hf",
        usage="omit-hf COMMAND ...",
        description=f"Fine-grained image-text matching by partial optimal transport.\n\ncommands:\n{listed}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"omit-hf {importlib.metadata.version('omit-hf')}")
    try:
        parser.parse_args(arguments or ["--help"])
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # as by `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
