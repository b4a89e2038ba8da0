"""Trainings of a tiny recipe: in this process, or as a user starts them, in one process or several."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from tiny import tiny_recipe

from omit_hf.training import Recipe, train, write_recipe_file

TRAIN = Path(__file__).parents[2] / "examples" / "train.py"


def run(folder, **options) -> dict:
    AcceleratorState._reset_state(True)
    return train(Recipe(**tiny_recipe(output_dir=str(folder), **options)))


def launch(folder, processes=1, **options) -> subprocess.Popen:
    """Start examples/train.py as a user would."""
    recipe = folder.with_suffix(".yaml")
    write_recipe_file(Recipe(**tiny_recipe(**options)), recipe)
    command = [str(TRAIN), str(recipe), "--output_dir", str(folder)]
    if folder.exists():
        command.append("--resume")
    return start(command, processes)


def start(command, processes=1) -> subprocess.Popen:
    """Start a script under Accelerate."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        launcher + command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.terminate()  # upon which a launcher ends its workers
        pytest.fail(f"did not end:\n{process.communicate()[0][-3000:]}")
    assert process.returncode == 0, output[-3000:]
    return output


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def names(folder) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
