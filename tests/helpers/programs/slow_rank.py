"""Trains recipes one after another, as examples/train.py does, with one process of several that comes late everywhere.

    torchrun … slow_rank.py RANK RECIPE.yaml …

Whatever the others do meanwhile, such as deleting what it is about to read, they do; only barriers save it.
"""

import functools
import os
import sys
import time

from accelerate import Accelerator

from omit_hf.command_line import run_script
from omit_hf.modeling import OmitModel
from omit_hf.training import Recipe, building, checkpoints, loop, read_recipe_file

SECONDS = 0.1
STEPS = (
    (loop, "load_image_text"),
    (loop, "build_model"),
    (loop, "cache_states"),
    (loop, "load_last_checkpoint"),
    (loop, "on_main_process"),
    (loop, "save_checkpoint"),
    (loop, "evaluate_split"),
    (checkpoints, "on_main_process"),
    (building, "build_word_tokenizer"),
    (Accelerator, "save_state"),
    (Accelerator, "load_state"),
    (OmitModel, "from_pretrained"),
)


def late(step):
    @functools.wraps(step)
    def wrapped(*arguments, **options):
        time.sleep(SECONDS)
        try:
            return step(*arguments, **options)
        finally:
            time.sleep(SECONDS)

    return wrapped


def main() -> None:
    rank, *recipes = sys.argv[1:]
    if os.environ["RANK"] == rank:
        for owner, name in STEPS:
            setattr(owner, name, late(getattr(owner, name)))
    Accelerator.end_training = Accelerator.wait_for_everyone  # the process group serves the next one too
    for recipe in recipes:
        loop.train(Recipe(**read_recipe_file(recipe)))


if __name__ == "__main__":
    run_script(main, FloatingPointError)
