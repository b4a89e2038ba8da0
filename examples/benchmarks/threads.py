"""What OpenMP's wait policy does to training, on a quiet machine and beside other work: steps a second, as ratios.

    python examples/benchmarks/threads.py
    python examples/benchmarks/threads.py --turns 7 --seconds 10

By default threads spin while they wait for each other. Beside other work they then wait for one that the system has put
aside, and keep the core that it needs. The commands of omit-hf let them spin shortly and then sleep; with
`OMP_WAIT_POLICY=PASSIVE` they sleep at once. A process trains the model of `scenes.yaml` on random batches for some
seconds under each setting, with as many threads as there are cores or with one; beside it, none or two processes that
count. The settings take turns. Numbers are medians of the turns.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from omit_hf_command import SPINS

# It ends with this process, however that ends.
BUSY = [sys.executable, "-c", "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"]
SETTINGS = {
    "default": {},
    "omit-hf": {"GOMP_SPINCOUNT": SPINS},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@dataclass
class Arguments:
    turns: int = field(default=5, metadata={"help": "How often each setting is measured."})
    seconds: float = field(default=8, metadata={"help": "Of training, for each measurement."})
    neighbours: int = field(default=2, metadata={"help": "Busy processes beside it."})


def main() -> None:
    from omit_hf.command_line import CommandParser

    arguments = CommandParser(Arguments, description=__doc__).parse_args()
    speeds: dict[tuple[int, str], list[float]] = {}
    cases = [(busy, name) for busy in (0, arguments.neighbours) for name in SETTINGS]
    with tqdm(total=arguments.turns * len(cases), desc="Measuring") as bar:
        for _ in range(arguments.turns):
            for busy, name in cases:
                speeds.setdefault((busy, name), []).append(measure(busy, SETTINGS[name], arguments.seconds))
                bar.update()
    print(f"{'neighbours':>10}  {'setting':10}  {'steps/s':>8}  {'of the default':>14}  {'of the quiet default':>20}")
    for busy, name in cases:
        speed = statistics.median(speeds[busy, name])
        ratio, quiet = (speed / statistics.median(speeds[each, "default"]) for each in (busy, 0))
        print(f"{busy:>10}  {name:10}  {speed:8.2f}  {ratio:14.2f}  {quiet:20.2f}")


def measure(busy: int, setting: dict[str, str], seconds: float) -> float:
    """Steps a second of a process of its own under a setting, beside so many busy ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    neighbours = [subprocess.Popen(BUSY) for _ in range(busy)]
    try:
        worker = [sys.executable, __file__, "--train", str(seconds)]
        printed = subprocess.run(worker, env=clean | setting, stdout=subprocess.PIPE, text=True, check=True).stdout
        return float(printed.split()[-1])
    finally:
        for each in neighbours:
            each.kill()
            each.wait()


def train(seconds: float) -> None:
    """Train on random batches of 64, and print the steps a second."""
    import torch

    from omit_hf import OmitConfig, OmitModel
    from omit_hf.training import Recipe, find_recipe, read_recipe_file

    recipe = Recipe(**read_recipe_file(find_recipe("scenes")))
    torch.manual_seed(0)
    text = {**recipe.text_config, "vocab_size": 200}
    model = OmitModel(OmitConfig(vision_config=recipe.vision_config, text_config=text, **recipe.config_values()))
    optimizer = torch.optim.AdamW(model.parameters())
    pixels, words = torch.rand(64, 3, 96, 96), torch.randint(1, 200, (64, 16))

    def step():
        model(pixel_values=pixels, input_ids=words, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(3):
        step()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    print(steps / (time.perf_counter() - started))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(float(sys.argv[2]))
    else:
        from omit_hf.command_line import run_script

        run_script(main)
