"""Measure whether a model finds words in their boxes: `python examples/evaluate_alignment.py outputs/scenes`.

It is `omit-hf evaluate-alignment`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.evaluate_alignment import main

if __name__ == "__main__":
    run_script(main)
