"""Describes the machine and the software of a measurement."""

import os
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

PACKAGES = "torch", "transformers", "datasets", "accelerate", "numba"


def environment(num_processes: int = 1, device: torch.device | None = None) -> dict:
    """Collect commit, versions and machine for a model card. Numba rounds scores its own way, so it is listed too.

    Args:
        num_processes: number of processes that measured.
        device: device of the measurement. Default: a GPU if there is one.
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
    """Find the commit of the checkout that this package runs from; it is marked if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:  # a wheel has no commit, though its environment may lie in somebody's checkout
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
