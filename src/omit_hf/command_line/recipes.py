"""List the recipes and comparisons that come with the package, or print one, as a start for your own.

    omit-hf recipes
    omit-hf recipes scenes > mine.yaml
    omit-hf train mine.yaml --num_epochs 10

A recipe is for `omit-hf train`, a comparison for `omit-hf compare`; both take a name of this list, or a file.
"""

from collections.abc import Sequence
from pathlib import Path

from omit_hf.command_line.parser import CommandParser
from omit_hf.command_line.printing import columns
from omit_hf.training import find_recipe, own_recipes


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(prog=prog, description=__doc__)
    parser.add_argument("name", nargs="?", help="Of the recipe to print.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    name = build_parser(prog).parse_args(given).name
    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    print(columns([(name, summary_of(file)) for name, file in own_recipes().items()]))


def summary_of(file: Path) -> str:
    """The first line of a recipe, which says what it is."""
    return file.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ").removesuffix(".")
