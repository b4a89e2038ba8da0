"""From a recipe to a trained model."""

from omit_hf.training.checkpoints import recipe_changes
from omit_hf.training.loop import train, use_cpu_threads
from omit_hf.training.recipe import (
    HelpFormatter,
    Recipe,
    json_object,
    load_split,
    parse_recipe,
    read_recipe_file,
    write_recipe_file,
)

__all__ = [
    "HelpFormatter",
    "Recipe",
    "json_object",
    "load_split",
    "parse_recipe",
    "read_recipe_file",
    "recipe_changes",
    "train",
    "use_cpu_threads",
    "write_recipe_file",
]
