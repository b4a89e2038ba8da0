"""Where a result was measured."""

import os
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGES = "torch", "transformers", "datasets", "accelerate", "numba"


def environment(num_processes: int = 1, device: torch.device | None = None) -> dict:
    """Commit, versions and machine, for a model card; Numba rounds scores its own way, so its version counts too.

    Args:
        num_processes: that measured.
        device: that they measured on; by default a GPU where there is one.
    """
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return {
        "commit": _commit(),
        "omit_hf": version("omit-hf"),
        **{name: version(name) for name in PACKAGES if find_spec(name)},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "processes": num_processes,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:  # from a wheel there is none, though the environment may lie in somebody's checkout
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
