"""Train an image-text matching model from a recipe.

    accelerate launch examples/train.py examples/configs/scenes.yaml
    accelerate launch examples/train.py examples/configs/scenes.yaml --matching ot --seed 1 --output_dir outputs/ot-1

Every field of a recipe is an option of the same name; see --help.
"""

from omit_hf.command_line import run_script
from omit_hf.training import parse_recipe, train


def main() -> None:
    train(parse_recipe(description=__doc__))


if __name__ == "__main__":
    run_script(main, FloatingPointError)
