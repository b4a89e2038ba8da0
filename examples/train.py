"""Train an image-text matching model from a recipe.

    accelerate launch examples/train.py examples/configs/scenes.yaml
    accelerate launch examples/train.py examples/configs/scenes.yaml --matching ot --seed 1 --output_dir outputs/ot-1

Every field of a recipe is an option of the same name; see --help.
"""

import sys

from huggingface_hub.errors import StrictDataclassError

from omit_hf.training import parse_recipe, train

if __name__ == "__main__":
    recipe = parse_recipe(description=__doc__)
    try:
        metrics = train(recipe)
    except StrictDataclassError as error:
        sys.exit(f"error: {error.__cause__}")
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
