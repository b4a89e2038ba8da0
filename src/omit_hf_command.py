"""The command `omit-hf`. It stands beside the package, whose import takes seconds, so that its help comes at once.

Importing it, before torch is loaded, lets OpenMP's threads wait for each other only shortly before they sleep. As they
are, they spin, which beside other work keeps the core that the awaited thread needs: training is then 30 times slower,
and with this 2 times (`examples/benchmarks/threads.py`).
"""

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence

# Each is a module of omit_hf.command_line, imported when it is asked for: `build_parser(prog)` and `main(given, prog)`.
COMMANDS = {
    "recipes": "List the recipes that come with the package, or print one.",
    "inspect": "Show what is in images and captions, and what is wrong with them.",
    "train": "Train a model from a recipe.",
    "evaluate": "Measure retrieval of a model, also by the protocols of the literature.",
    "evaluate-alignment": "Measure whether a model finds words where their objects are.",
    "explain": "Draw where a model finds the words of a sentence in a picture.",
    "compare": "Train methods with several seeds, tuned alike, and compare them.",
    "export": "Write a model as ONNX, or as programs of torch.export.",
    "push": "Publish a trained model on the Hub, with its card.",
    "app": "Show in the browser where a model finds words.",
    "index": "Make a library of pictures, or bring one up to date.",
    "search": "Find pictures of a library by a sentence, or by a picture.",
    "browse": "Find pictures of a library in the browser.",
    "completion": "Print what makes a shell complete these commands.",
}
SPINS = "30000"  # a fraction of a millisecond: on a quiet machine nothing is lost
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():  # what the user has chosen stays
    os.environ["GOMP_SPINCOUNT"] = SPINS

INTERRUPTED = 130  # the status of a program that SIGINT ended
EXAMPLES = """
examples, of which none needs data or weights from elsewhere:
  omit-hf train scenes                                               a model in outputs/scenes, in minutes
  omit-hf evaluate outputs/scenes                                    its recalls
  omit-hf explain outputs/scenes scenes:2                            plan.png: where it finds words in test scene 2
  omit-hf index ~/Pictures --library photos.lance --model outputs/scenes
  omit-hf search "a small red star left of a ring" --library photos.lance

`omit-hf COMMAND --help` tells of one command. Several processes or GPUs: `accelerate launch -m omit_hf train ...`
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named first, and exit with its status where that is not 0."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        command, *rest = arguments
        try:
            from omit_hf.command_line.running import run_script

            run_script(lambda: module_of(command).main(rest, f"omit-hf {command}"))
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


def module_of(command: str):
    return importlib.import_module(f"omit_hf.command_line.{command.replace('-', '_')}")


if __name__ == "__main__":
    main()
