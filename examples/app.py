"""Show in the browser where words are: `python examples/app.py outputs/scenes`.

It is `omit-hf app`; --help explains it. As a Space: this file as app.py, a requirements.txt that names omit-hf[demo],
and the variable MODEL with the id of the model.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.app import main

if __name__ == "__main__":
    run_script(main)
