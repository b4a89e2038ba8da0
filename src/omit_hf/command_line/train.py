"""Train an image-text matching model from a recipe.

    omit-hf train scenes
    omit-hf train scenes --matching ot --seed 1 --output_dir outputs/ot-1
    omit-hf train flickr30k_clip --data dataset_flickr30k.json --data_options '{"image_folder": "flickr30k-images"}'
    accelerate launch --num_processes 2 -m omit_hf train mine.yaml

A recipe is a YAML file, or the name of one that comes with the package: `omit-hf recipes` lists them. Every field of a
recipe is an option of the same name.
"""

from collections.abc import Sequence

from omit_hf.command_line.parser import CommandParser
from omit_hf.command_line.running import errors_in_one_line
from omit_hf.training import parse_recipe, recipe_parser, train


def build_parser(prog: str | None = None) -> CommandParser:
    return recipe_parser(__doc__, prog)


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    recipe = parse_recipe(given, build_parser(prog))
    with errors_in_one_line(FloatingPointError):  # of a loss that is no number
        train(recipe)
