"""Comparisons whose trainings are replaced by a script that takes no time."""

import json
import sys
from pathlib import Path

import yaml
from tiny import PROGRAMS, tiny_recipe

from omit_hf.comparison import Runner, read_comparison
from omit_hf.training import Recipe, write_recipe_file


class QuickRunner(Runner):
    """Runs the stand-in, without Accelerate."""

    def __init__(self, folder: Path, jobs: int = 1, script: Path = PROGRAMS / "train_stand_in.py"):
        super().__init__(folder, jobs, [str(script)])

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
