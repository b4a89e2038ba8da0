"""Try what users of other tools do with this package, and print a table of what works: needs a clone with its tests.

    python examples/ecosystem.py
    python examples/ecosystem.py --only peft FSDP2

Each row is a tool, and runs those tests that use it.
"""

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from omit_hf.command_line import CommandParser, run_script

ROOT = Path(__file__).parents[1]
# Tool: the package whose version counts, and the tests.
TOOLS = {
    "Accelerate": ("accelerate", ["test_loop.py::test_two_processes_train_as_one_with_the_doubled_batch"]),
    "bf16": ("torch", ["test_loop.py::test_mixed_precision", "test_modeling_omit.py::test_half_precision"]),
    "GradCache": ("torch", ["test_gradient_cache.py"]),
    "gradient checkpointing": ("transformers", ["test_modeling_omit.py::test_gradient_checkpointing"]),
    "FSDP2": ("torch", ["test_sharding.py"]),
    "torch.compile": ("torch", ["test_operators.py"]),
    "peft": ("peft", ["test_low_rank.py"]),
    "TensorBoard": ("tensorboard", ["test_trackers.py::test_tensorboard_has_losses_recipe_test_and_card"]),
    "trackio": ("trackio", ["test_trackers.py::test_trackio_follows_a_run_and_its_resumption_without_a_network"]),
    "Trainer": ("transformers", ["test_trainer_guard.py"]),
    "mteb": ("mteb", ["test_mteb.py"]),
    "pipeline": ("transformers", ["test_pipeline.py"]),
    "inference endpoint": ("transformers", ["test_handler.py"]),
    "ONNX, torch.export": ("onnx", ["test_export.py"]),
}


@dataclass
class Arguments:
    only: list[str] = field(default_factory=list, metadata={"help": f"Tools to try, of: {', '.join(TOOLS)}."})


def main() -> int:
    arguments = CommandParser(Arguments, description=__doc__).parse_args()
    for name in arguments.only:
        if name not in TOOLS:
            raise ValueError(f"only has {name!r}; expected some of {', '.join(TOOLS)}.")
    results = {}
    for name in tqdm(arguments.only or list(TOOLS), desc="Trying"):
        command = [sys.executable, "-m", "pytest", *(f"tests/{each}" for each in TOOLS[name][1])]
        results[name] = subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    print("| tool | package | works |\n|---|---|---|")
    for name, passed in results.items():
        package = TOOLS[name][0]
        print(f"| {name} | {package} {importlib.metadata.version(package)} | {'yes' if passed else '**no**'} |")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    run_script(main)
