"""Runs a comparison: finished runs stay, interrupted ones go on."""

import json
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen

import psutil
from tqdm.auto import tqdm

from omit_hf.comparison.plan import Run
from omit_hf.ownership import FolderLock
from omit_hf.parsing import is_text, parse_json, shown, text_lines
from omit_hf.training import Recipe, read_recipe_file, recipe_changes, usable_cores, write_recipe_file
from omit_hf.training.checkpoints import RECIPE_FILE
from omit_hf.training.records import METRICS_FILE, read_metrics
from omit_hf.writing import write_atomically

ROWS_FILE = "runs.jsonl"
COSTS = ("trained_parameters", "training_seconds", "scoring_seconds", "scored_pairs", "peak_memory", "best_epoch")


def metrics_of(run: Run) -> dict | None:
    """Read what a finished run measured; None for an unfinished run.

    Raises:
        OSError, ValueError: as `read_metrics`.
    """
    file = run.folder / METRICS_FILE
    return read_metrics(file) if file.exists() else None


def read_rows(file: Path) -> dict[str, dict]:
    """Read the rows of `runs.jsonl`, by the names of their runs.

    Raises:
        OSError: if it cannot be read.
        ValueError: names the first line that is no row.
    """
    rows = {}
    for number, line in enumerate(text_lines(file), start=1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict) or not is_text(row.get("run")) or not row["run"]:
                raise ValueError(f"it is {shown(row)}")
        except ValueError as error:
            raise ValueError(
                f"{file} line {number} is no row of a run ({error}); expected an object with the name of a run. "
                "Delete the line, or the file: it is written anew."
            ) from error
        rows[row["run"]] = row
    return rows


def check_folders(runs: list[Run]) -> None:
    """Check, before any run begins, that existing folders of runs have the same recipes.

    Raises:
        ValueError: names every run that has another recipe, and what is different.
    """
    changed = []
    for run in runs:
        finished, begun = metrics_of(run), run.folder / RECIPE_FILE
        if finished is not None:
            state, before = "finished", finished["recipe"]
        elif begun.exists():
            state, before = "interrupted", vars(Recipe(**read_recipe_file(begun)))
        else:
            continue
        changes = recipe_changes(before, run.recipe)
        if changes:
            changed.append("\n  ".join([f"The {state} run in {run.folder} has another recipe:", *changes]))
    if changed:
        raise ValueError("\n".join([*changed, "Delete what is no longer wanted, or choose another --output_dir."]))


class Runner:
    """Runs trainings under Accelerate, some of them side by side.

    Args:
        folder: folder of the comparison; it gets `runs.jsonl`, a row per run, and the recipes and logs of the runs.
        jobs: number of runs side by side. They share the cores, unless a recipe sets `cpu_threads`.
        program: what Accelerate launches; it takes the arguments of `omit-hf train`.
    """

    def __init__(self, folder: Path, jobs: int = 1, program: Sequence[str] = ("-m", "omit_hf", "train")):
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; expected at least 1.")
        self.folder, self.jobs, self.program = folder, jobs, program
        self.failed: dict[str, str] = {}  # by name, and why
        self.processes: set[Popen] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, runs: list[Run], title: str) -> None:
        """Run the unfinished runs. A run that fails stops no other; `failed` lists it afterwards.

        Raises:
            BlockingIOError: if another command runs in this folder, since both would write the same files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with FolderLock(self.folder, "comparison", advice="choose another --output_dir"):
            self.run_alone(runs, title)

    def run_alone(self, runs: list[Run], title: str) -> None:
        """What `run` does, once no other command does it in this folder."""
        runs = list({run.name: run for run in runs}.values())
        waiting = [run for run in runs if metrics_of(run) is None and run.name not in self.failed]
        self.record([run for run in runs if run not in waiting])
        bar = tqdm(total=len(runs), initial=len(runs) - len(waiting), desc=title)
        executor = ThreadPoolExecutor(self.jobs)
        try:
            for done in as_completed([executor.submit(self.launch, run, bar) for run in waiting]):
                self.record([done.result()])
                bar.update()
        except BaseException:  # Ctrl-C as well: nothing goes on behind one's back
            self.stop()
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            bar.close()

    def command(self, run: Run, recipe: Path) -> list[str]:
        """What trains a run, from the beginning or from where it was interrupted."""
        command = [sys.executable, "-m", "accelerate.commands.launch", *self.program, str(recipe)]
        command += ["--output_dir", str(run.folder)]
        if run.recipe.cpu_threads == 0:
            command += ["--cpu_threads", str(max(1, usable_cores() // self.jobs))]
        return [*command, "--resume"] if (run.folder / RECIPE_FILE).exists() else command

    def launch(self, run: Run, bar: tqdm) -> Run:
        """Train once, in a process of its own, and note why it failed if it did."""
        recipe = self.folder / "recipes" / f"{run.name}.yaml"
        log = self.folder / "logs" / f"{run.name}.log"
        for file in (recipe, log):
            file.parent.mkdir(parents=True, exist_ok=True)
        write_recipe_file(run.recipe, recipe)
        with log.open("a", encoding="utf-8") as output:
            with self.lock:
                if self.stopped:
                    return run
                bar.set_postfix_str(run.name)
                environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # of the log, whatever the console's is
                process = Popen(self.command(run, recipe), env=environment, stdin=DEVNULL, stdout=output, stderr=STDOUT)
                self.processes.add(process)
            status = process.wait()
        with self.lock:
            self.processes.discard(process)
        if status != 0:
            self.failed[run.name] = f"exit status {status}; see {log}"
        elif metrics_of(run) is None:
            self.failed[run.name] = f"it ended without {METRICS_FILE}; see {log}"
        return run

    def stop(self) -> None:
        """End what runs, with the processes that Accelerate started for it."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                try:
                    family = psutil.Process(process.pid).children(recursive=True)
                except psutil.NoSuchProcess:
                    continue
                process.terminate()
                for child in family:
                    try:
                        child.terminate()
                    except psutil.NoSuchProcess:
                        continue

    def record(self, runs: list[Run]) -> None:
        """Put a row for each of these runs into `runs.jsonl`, in the place of an older one.

        Raises:
            OSError: if the file cannot be read or written.
            ValueError: if a line of it is no row.
        """
        file = self.folder / ROWS_FILE
        rows = read_rows(file) if file.exists() else {}
        rows |= {run.name: self.row(run) for run in runs}
        write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))

    def row(self, run: Run) -> dict:
        metrics = metrics_of(run)
        row = {"run": run.name, "status": "finished" if metrics else "failed", "seed": run.recipe.seed, **run.labels}
        if metrics is None:
            return {**row, "reason": self.failed.get(run.name)}
        measured = {
            f"{split}_{name}": value
            for split in ("test", "validation")
            for name, value in (metrics[split] or {}).items()
        }
        return {**row, **measured, **{name: metrics.get(name) for name in COSTS}}
