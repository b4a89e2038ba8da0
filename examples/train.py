"""Train an image-text matching model from a recipe.

    accelerate launch examples/train.py examples/configs/scenes.yaml
    accelerate launch examples/train.py examples/configs/scenes.yaml --matching ot --seed 1 --output_dir outputs/ot-1

Every field of a recipe is an option of the same name; see --help.
"""

from omit_hf.command_line import errors_in_one_line
from omit_hf.training import parse_recipe, train

if __name__ == "__main__":
    recipe = parse_recipe(description=__doc__)
    with errors_in_one_line(FloatingPointError):
        metrics = train(recipe)
