"""Write a model as ONNX or programs of torch.export: `python examples/export.py outputs/scenes exported`.

It is `omit-hf export`; --help explains it.
"""

import omit_hf_command  # noqa: F401 (before torch is loaded)
from omit_hf.command_line import run_script
from omit_hf.command_line.export import main

if __name__ == "__main__":
    run_script(main)
