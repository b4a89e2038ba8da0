"""Train methods side by side: `python examples/compare.py examples/configs/compare_scenes.yaml`.

It is `omit-hf compare`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.compare import main

if __name__ == "__main__":
    run_script(main)
