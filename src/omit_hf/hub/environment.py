"""Where a result was measured."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def environment(num_processes: int = 1) -> dict:
    """Commit, versions and machine, for a model card."""
    return {
        "commit": _commit(),
        "omit_hf": version("omit-hf"),
        **{name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count(),
        "processes": num_processes,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # installed from a wheel
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
