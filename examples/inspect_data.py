"""Show what is in data, and what is wrong with it: `python examples/inspect_data.py pictures`.

It is `omit-hf inspect`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.inspect import main

if __name__ == "__main__":
    run_script(main)
