"""Train from a recipe: `accelerate launch examples/train.py examples/configs/scenes.yaml --seed 1`.

It is `omit-hf train`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.train import main

if __name__ == "__main__":
    run_script(main)
