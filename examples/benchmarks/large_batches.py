"""What a batch costs when its pairs are encoded in chunks (`mini_batch_size`): memory and time of a training step.

    python examples/benchmarks/large_batches.py
    python examples/benchmarks/large_batches.py --batch_size 1024 --chunks 256 64

A CLIP in miniature (`flickr30k_clip.yaml` with small towers) takes training steps on random pairs, each setting in a
process of its own. Memory is what the process holds at most beyond what it held before the first step; time is the
median of the steps after it.
"""

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

from tqdm.auto import tqdm

SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {**SMALL, "model_type": "clip_vision_model", "image_size": 64, "patch_size": 32}
TEXT = {**SMALL, "model_type": "clip_text_model", "vocab_size": 1000, "max_position_embeddings": 8}
MIB = 2**20


@dataclass
class Arguments:
    batch_size: int = field(default=4096, metadata={"help": "Pairs of a batch, all negatives of each other."})
    chunks: list[int] = field(
        default_factory=lambda: [1024, 256, 64], metadata={"help": "Values of mini_batch_size, beside the whole batch."}
    )
    steps: int = field(default=2, metadata={"help": "Steps after the first."})
    threads: int = field(default=1, metadata={"help": "Of torch."})


def main() -> None:
    from omit_hf.command_line import CommandParser

    arguments = CommandParser(Arguments, description=__doc__).parse_args()
    rows = []
    for chunk in tqdm([None, *arguments.chunks], desc="Measuring"):
        settings = (chunk or 0, arguments.batch_size, arguments.steps, arguments.threads)
        worker = [sys.executable, __file__, "--step", *map(str, settings)]
        printed = subprocess.run(worker, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append((chunk, *map(float, printed.split()[-2:])))
    print(f"{'mini_batch_size':>15}  {'memory':>10}  {'of whole':>8}  {'seconds a step':>14}  {'of whole':>8}")
    _, memory, seconds = rows[0]
    for chunk, held, took in rows:
        name = chunk or "whole batch"
        print(f"{name:>15}  {held / MIB:6.0f} MiB  {held / memory:8.2f}  {took:14.2f}  {took / seconds:8.2f}")


def step(chunk: int, batch_size: int, steps: int, threads: int) -> None:
    """Take steps, and print the memory and the seconds."""
    import psutil
    import torch
    from accelerate import Accelerator

    from omit_hf import OmitConfig, OmitModel
    from omit_hf.training.gradient_cache import backward_in_chunks
    from omit_hf.training.machine import peak_memory

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    config = OmitConfig(vision_config=VISION, text_config=TEXT, projection_dim=128, loss="infonce", text_pooling="last")
    model = OmitModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {
        "pixel_values": torch.randn(batch_size, 3, 64, 64),
        "input_ids": torch.randint(1, 1000, (batch_size, 8)),
        "image_ids": torch.arange(batch_size),
    }
    before, seconds = psutil.Process().memory_info().rss, []
    for _ in range(steps + 1):
        started = time.perf_counter()
        if chunk:
            backward_in_chunks(accelerator, model, batch, chunk, "hardest")
        else:
            accelerator.backward(model(**batch, return_loss=True).loss)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    print(peak_memory(accelerator) - before, statistics.median(seconds[1:]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        step(*map(int, sys.argv[2:]))
    else:
        from omit_hf.command_line import run_script

        run_script(main)
