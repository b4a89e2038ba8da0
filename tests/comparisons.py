"""Comparisons whose trainings are replaced by a script that takes no time."""

import json
import sys
from pathlib import Path

import yaml
from tiny import tiny_recipe

from omit_hf.comparison import Runner, read_comparison
from omit_hf.training import Recipe, write_recipe_file

# Takes the arguments of train.py; its figures are simple functions of the recipe, and learning_rate 9 fails.
STAND_IN = """
import json, pathlib, sys
import yaml
recipe = yaml.safe_load(open(sys.argv[1]))
folder = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "launches.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\\\n")
(folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
if recipe["learning_rate"] == 9:
    sys.exit("it diverged")
lr, scale, seed = recipe["learning_rate"], recipe["logit_scale_init_value"], recipe["seed"]
best = {"omit": (0.01, 3), "ot": (0.02, 2), "mean": (0.04, 4)}[recipe["matching"]]
rsum = 300 - 1000 * abs(lr - best[0]) - 10 * abs(scale - best[1]) - 100 * abs(recipe["regularization"] - 0.1)
test = {"rsum": rsum + seed * len(recipe["matching"]), "i2t_r1": 50.0 + seed, "t2i_r1": 40.0}
metrics = {
    "test": test if recipe["test"] else None,
    "validation": {"rsum": rsum},
    "best_epoch": 0,
    "trained_parameters": 1000,
    "training_seconds": 10.0 + seed,
    "scoring_seconds": 0.5 if recipe["test"] else None,
    "scored_pairs": 1000 if recipe["test"] else None,
    "peak_memory": 2**30,
    "environment": {"device": "a machine"},
    "recipe": recipe,
}
(folder / "metrics.json").write_text(json.dumps(metrics))
""".replace("\\\\n", "\\n")


class QuickRunner(Runner):
    """Runs the stand-in, without Accelerate."""

    def __init__(self, folder: Path, jobs: int = 1, script: str = STAND_IN):
        super().__init__(folder.parent / "stand_in.py", folder, jobs)
        self.script.write_text(script)

    def command(self, run, recipe):
        command = super().command(run, recipe)
        assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
        return [sys.executable, *command[3:]]


def written(folder: Path, **content) -> Path:
    """A comparison's file beside the recipe that it is based on."""
    write_recipe_file(Recipe(**tiny_recipe(loss="infonce")), folder / "tiny.yaml")
    file = folder / "compare.yaml"
    whole = {"recipe": "tiny.yaml", "seeds": [0, 1, 2], "grids": {"methods": {"matching": ["omit", "mean"]}}, **content}
    file.write_text(
        yaml.safe_dump({name: value for name, value in whole.items() if value is not None}, sort_keys=False)
    )
    return file


def comparison(folder: Path, **content):
    return read_comparison(written(folder, **content), folder / "runs")


def launches(folder: Path) -> list[str]:
    """The names of the runs that were launched, in order."""
    lines = [line for file in sorted(folder.rglob("launches.txt")) for line in file.read_text().splitlines()]
    return [Path(line.split("--output_dir ")[1].split()[0]).name for line in lines]


def rows_of(folder: Path) -> dict[str, dict]:
    return {row["run"]: row for row in map(json.loads, (folder / "runs.jsonl").read_text().splitlines())}
