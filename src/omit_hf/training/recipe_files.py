"""Reads recipes from files and command lines, and writes them to files."""

import difflib
import re
import textwrap
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import yaml
from datasets import Dataset
from huggingface_hub import hf_hub_download

from omit_hf.command_line import CommandParser
from omit_hf.data import check_data, load_image_text
from omit_hf.data.schema import SPLITS
from omit_hf.modeling.configuration_omit import check_fields
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.parsing import read_yaml, shown
from omit_hf.training.recipe import TYPES, Recipe
from omit_hf.training.recipe_fields import DataFields, LossFields, ModelFields, OptimisationFields, RunFields

RECIPE_FILE = "recipe.yaml"  # beside the model


def recipe_parser(description: str | None = None, prog: str | None = None) -> CommandParser:
    """Make the parser whose options are the fields of a recipe."""
    groups = [DataFields, ModelFields, LossFields, OptimisationFields, RunFields]
    texts = {"usage": "%(prog)s [RECIPE] [--FIELD VALUE ...]", "description": description, "epilog": _heads()}
    parser = CommandParser(groups, prog=prog, allow_abbrev=False, **texts)
    parser.add_argument(
        "recipe_file",
        nargs="?",
        metavar="RECIPE",
        help="File, or name of a recipe that comes with the package; the options override its fields.",
    )
    return parser


def parse_recipe(arguments: Sequence[str] | None = None, parser: CommandParser | None = None) -> Recipe:
    """Parse the recipe of a command line: `[RECIPE] [--field value …]`. Exits with status 2 if it is wrong.

    Args:
        arguments: of the command line. Default: this process's.
        parser: a `recipe_parser`.
    """
    parser = recipe_parser() if parser is None else parser
    file = parser.parse_known_args(arguments)[0].recipe_file
    try:
        of_file = Namespace(**read_recipe_file(file) if file is not None else {})
        values = vars(parser.parse_args(arguments, of_file))
        del values["recipe_file"]
        if values["output_dir"] is None:
            values["output_dir"] = str(Path("outputs") / Path(file or "omit").stem)
        return Recipe(**values)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _heads() -> str:
    """List the heads that --matching chooses from, for the end of the help."""
    lines = ["heads of --matching:"]
    for name, head in MATCHING.items():
        text = f"{head.title}: {head.summary}" if head.title else head.summary
        lines += textwrap.wrap(text, 80, initial_indent=f"  {name:<9} ", subsequent_indent=12 * " ")
    return "\n".join(lines)


def own_recipes() -> dict[str, Path]:
    """List the recipes and comparisons that come with the package: their files, by name."""
    files = Path(str(resources.files("omit_hf.recipes"))).glob("*.yaml")
    return {file.stem: file for file in sorted(files)}


def find_recipe(name: str | Path) -> Path:
    """Find the file of a recipe.

    Args:
        name: a file, or the name of a recipe that comes with the package, such as "scenes"; a file goes before.

    Raises:
        FileNotFoundError: if there is neither; it names those of similar names.
    """
    if Path(name).is_file():
        return Path(name)
    own = own_recipes()
    if str(name) in own:
        return own[str(name)]
    close = difflib.get_close_matches(Path(name).stem, own)
    hint = f"did you mean {' or '.join(close)}?" if close else "expected a file or a name."
    raise FileNotFoundError(f"No recipe at {name}; {hint} `omit-hf recipes` lists those that come with the package.")


def read_recipe_file(file: str | Path) -> dict:
    """Read the fields that a recipe sets.

    Args:
        file: what `find_recipe` finds.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a YAML mapping, or names a field that a recipe does not have.
    """
    values = read_mapping(file)
    if "grids" in values:
        raise ValueError(f"{file} is a comparison, which `omit-hf compare` runs; expected a recipe.")
    check_fields(str(file), values, TYPES)
    return {name: recipe_value(str(file), name, value) for name, value in values.items()}


def read_mapping(file: str | Path) -> dict:
    """Read the mapping of a recipe or a comparison.

    Args:
        file: what `find_recipe` finds.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a YAML mapping, or one that `parse_yaml` does not read.
    """
    values = read_yaml(find_recipe(file))
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds {type(values).__name__}; expected fields and their values.")
    return values


def recipe_types() -> dict:
    """List the fields of a recipe and their types."""
    return dict(TYPES)


def recipe_value(where: str, name: str, value):
    """Convert the value of a field from YAML, which reads 1 as an integer and 1e-3 as text, to the field's type.

    Raises:
        ValueError: if a number is expected and the value is not one; the message begins with `where`.
    """
    if TYPES[name] in (int, float) and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return TYPES[name](value)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{where}: {name} is {shown(value)}; expected a number.") from error
    return value


def data_of_model(model: str | Path, data: str | None = None, data_options: dict | None = None) -> tuple[str, dict]:
    """Find the source and the options of the data to measure a published model on.

    Args:
        model: folder or Hub id.
        data: any source that training takes. Default: the data of the recipe beside the model.
        data_options: options of the loader; they override those of the recipe if the recipe gives the data.

    Raises:
        OSError: if there is no recipe beside the model, and no data are given.
    """
    if data is not None:
        return data, data_options or {}
    if Path(model).is_dir() and not (Path(model) / RECIPE_FILE).is_file():
        raise FileNotFoundError(f"{model} has no {RECIPE_FILE} that names its data; give --data.")
    file = Path(model) / RECIPE_FILE if Path(model).is_dir() else hf_hub_download(str(model), RECIPE_FILE)
    recipe = Recipe(**read_recipe_file(file))
    return recipe.data, {**(recipe.data_options or {}), **(data_options or {})}


def load_split(data: str, data_options: dict, split: str) -> Dataset:
    """Load and check one split of a source; the others need not exist.

    Raises:
        ValueError: if there is no such split, or something is wrong with it (all is listed); and as `load_image_text`.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    splits = load_image_text(data, **{**data_options, "only": [split]})
    check_data(splits, [split])
    return splits[split]


def write_recipe_file(recipe: Recipe, file: str | Path) -> None:
    """Write a recipe in the form that `read_recipe_file` reads."""
    Path(file).write_text(recipe_text(asdict(recipe)), encoding="utf-8")


def recipe_text(fields: dict) -> str:
    """Format the content of a recipe file."""
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """A dumper that writes repeated values in full, since aliases are not read, and line separators as escapes, since
    they would be read as blanks."""

    def ignore_aliases(self, data) -> bool:
        return True

    def represent_str(self, data: str):
        style = '"' if re.search("[\r\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
