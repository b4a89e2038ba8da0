"""From a recipe to a trained model."""

from omit_hf.training.loop import train, use_cpu_threads
from omit_hf.training.recipe import Recipe, parse_recipe, read_recipe_file, write_recipe_file

__all__ = ["Recipe", "parse_recipe", "read_recipe_file", "train", "use_cpu_threads", "write_recipe_file"]
