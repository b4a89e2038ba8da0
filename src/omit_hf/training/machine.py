"""The machine that a run has: its threads, and how much memory it took."""

import os
import sys

import psutil
import torch
from accelerate import Accelerator


def use_cpu_threads(accelerator: Accelerator, threads: int) -> None:
    """Give every process its share of the cores on a CPU; `accelerate launch` leaves it only one thread.

    Raises:
        ValueError: if the number of threads is below 0.
    """
    if threads < 0:
        raise ValueError(f"cpu_threads is {threads}; expected at least 0.")
    if accelerator.device.type == "cpu":
        torch.set_num_threads(threads or max(1, usable_cores() // accelerator.num_processes))


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_memory(accelerator: Accelerator) -> int:
    """Measure peak memory in bytes: of the GPU's tensors in this epoch or, without a GPU, of the process so far."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # Windows lacks it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
