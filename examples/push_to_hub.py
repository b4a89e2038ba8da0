"""Publish a training: `python examples/push_to_hub.py outputs/scenes user/omit-scenes --dry_run`.

It is `omit-hf push`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.push import main

if __name__ == "__main__":
    run_script(main)
