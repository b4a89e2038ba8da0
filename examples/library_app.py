"""Find pictures of a library in the browser: `python examples/library_app.py photos.lance`.

It is `omit-hf browse`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.browse import main

if __name__ == "__main__":
    run_script(main)
