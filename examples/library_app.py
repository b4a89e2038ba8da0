"""Find pictures of a library in the browser: `python examples/library_app.py photos.lance`.

It is `omit-hf browse`; --help explains it.
"""

from omit_hf.command_line import run_script
from omit_hf.command_line.browse import main

if __name__ == "__main__":
    run_script(main)
