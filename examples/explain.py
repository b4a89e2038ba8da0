"""Draw where a model finds the words: `python examples/explain.py outputs/scenes scenes:12`.

It is `omit-hf explain`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.explain import main

if __name__ == "__main__":
    run_script(main)
