"""Measure image-text retrieval of a model: `python examples/evaluate.py outputs/scenes`.

It is `omit-hf evaluate`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.evaluate import main

if __name__ == "__main__":
    run_script(main)
