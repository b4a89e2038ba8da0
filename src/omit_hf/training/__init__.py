"""Trains a model from a recipe."""

from omit_hf.training.checkpoints import holding_runs, recipe_changes
from omit_hf.training.loop import train
from omit_hf.training.machine import usable_cores, use_cpu_threads
from omit_hf.training.recipe import Recipe
from omit_hf.training.recipe_files import (
    data_of_model,
    find_recipe,
    load_split,
    own_recipes,
    parse_recipe,
    read_mapping,
    read_recipe_file,
    recipe_parser,
    recipe_types,
    recipe_value,
    write_recipe_file,
)
from omit_hf.training.trainer_guard import TrainerGuard, guard_loading

__all__ = [
    "Recipe",
    "TrainerGuard",
    "data_of_model",
    "find_recipe",
    "guard_loading",
    "holding_runs",
    "load_split",
    "own_recipes",
    "parse_recipe",
    "read_mapping",
    "read_recipe_file",
    "recipe_changes",
    "recipe_parser",
    "recipe_types",
    "recipe_value",
    "train",
    "usable_cores",
    "use_cpu_threads",
    "write_recipe_file",
]
