"""The output folder of a run: its checks, its checkpoints, and its log; nothing in it is ever half-written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omit_hf.training.recipe import Recipe
from omit_hf.training.recipe_files import RECIPE_FILE, read_recipe_file, write_recipe_file

METRICS_FILE, CARD_FILE = "metrics.json", "README.md"
LOG_FILE = "train_log.jsonl"
CHECKPOINTS, PROGRESS_FILE = "checkpoints", "progress.json"
# Patterns of all that a run writes; nothing else is ever deleted.
RUN_NAMES = (RECIPE_FILE, METRICS_FILE, CARD_FILE, LOG_FILE, CHECKPOINTS, "logs", ".*.partial")
RUN_NAMES += ("config.json", "model*.safetensors", "model.safetensors.index.json", "processor_config.json")
RUN_NAMES += (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*_omit.py",
)
CHECKPOINT_NAMES = ("step-*", "best-*", ".*.partial")
# Fields that may change between the parts of an interrupted run, because its result does not depend on them but for the
# rounding of sums, which cpu_threads and the sizes of evaluation order.
FREE_FIELDS = {
    "check_images",
    "num_workers",
    "cache_folder",
    "output_dir",
    "overwrite_output_dir",
    "resume",
    "max_steps",
    "checkpoint_steps",
    "keep_checkpoints",
    "log_steps",
    "tensorboard",
    "eval_batch_size",
    "eval_memory",
    "cpu_threads",
}


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: the epoch that it is in, from 0.
        batch: batches of this epoch that are done, on each process.
        step: optimiser steps made.
        seconds: training time so far, without evaluation.
        waiting: of it, the time that the main process waited for data.
        pairs: that were trained on, on all processes.
        peak_memory: most bytes that the main process has had in training: of the GPU, or else of the machine.
        best_rsum, best_epoch, best_step: of the best validation yet.
        validations: metrics of every validation.
        num_processes: that the run began with.
        vocabulary: a digest of the tokenizer's words and their ids.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    pairs: int = 0
    peak_memory: int = 0
    best_rsum: float = -1.0
    best_epoch: int = -1
    best_step: int = -1
    validations: list[dict] = field(default_factory=list)
    num_processes: int = 1
    vocabulary: str = ""


def on_main_process(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Do something on the main process while the others wait; what it raises, all raise."""
    error = None
    if accelerator.is_main_process:
        try:
            action()
        except Exception as caught:
            error = caught
    [message] = broadcast_object_list([None if error is None else str(error)])
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(f"The main process failed: {message}")


def check_output_dir(recipe: Recipe) -> None:
    """See whether the output folder can be used; changes nothing.

    Raises:
        FileExistsError: if it is not empty, and neither `resume` nor `overwrite_output_dir` is set; or if it is to be
            overwritten, and is no run's or holds what no run writes.
        FileNotFoundError: if a run is to be resumed that never began.
        PermissionError: if it cannot be written to.
        ValueError: if a run is to be resumed whose recipe was another one.
    """
    folder = Path(recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output_dir is {folder}, which is a file; expected a folder.")
    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise FileExistsError(f"output_dir is {folder}, but {nearest} is a file; expected a folder to make it in.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PermissionError(f"output_dir is {folder}, but {nearest} cannot be written to; choose another one.")
    if recipe.resume:
        _check_resumed(recipe, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        if not recipe.overwrite_output_dir:
            raise FileExistsError(
                f"output_dir {folder} is not empty. Choose another one, or set resume to go on with its run, or "
                "overwrite_output_dir to delete it."
            )
        # A recipe alone may be somebody's own.
        if not (folder / RECIPE_FILE).is_file() or not (folder / CHECKPOINTS).is_dir():
            raise FileExistsError(
                f"output_dir {folder} holds no run of ours, so it is not emptied; choose another one."
            )
        foreign = [each for each in folder.iterdir() if not _matches(each, RUN_NAMES)]
        foreign += [each for each in (folder / CHECKPOINTS).iterdir() if not _matches(each, CHECKPOINT_NAMES)]
        if foreign:
            listed = ", ".join(sorted(str(each.relative_to(folder)) for each in foreign))
            raise FileExistsError(
                f"output_dir {folder} holds what no run writes, {listed}; move it away, or choose another output_dir."
            )


def begin_output_dir(recipe: Recipe) -> None:
    """Delete the run that is to be overwritten, and make the folder of the new one. Raises as `check_output_dir`."""
    check_output_dir(recipe)  # once more, for what has come into the folder meanwhile
    folder = Path(recipe.output_dir)
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    old = [each for each in folder.iterdir() if each.name not in (RECIPE_FILE, CHECKPOINTS)]  # these mark it as a run
    for each in sorted([*old, *(folder / CHECKPOINTS).iterdir()], key=lambda each: each.name != METRICS_FILE):
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
    partial = folder / f".{RECIPE_FILE}.partial"
    write_recipe_file(replace(recipe, overwrite_output_dir=False), partial)  # what is repeated from it deletes nothing
    os.replace(partial, folder / RECIPE_FILE)


def _check_resumed(recipe: Recipe, folder: Path) -> None:
    if not (folder / RECIPE_FILE).is_file():
        raise FileNotFoundError(f"There is no run to resume in {folder}; leave out resume to begin one.")
    changes = recipe_changes(asdict(Recipe(**read_recipe_file(folder / RECIPE_FILE))), recipe)
    if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"The run in {folder} has another recipe; resume it with its own, or choose another output_dir:\n  {listed}"
        )


def recipe_changes(before: dict, recipe: Recipe) -> list[str]:
    """What a result depends on and is not as it was: a line a field.

    Args:
        before: fields of an earlier recipe, as in `metrics.json`.
        recipe: the present one.
    """
    now = asdict(recipe)
    return [
        f"{name}: was {before.get(name, 'not there')!r}, is {now[name]!r}"
        for name in now
        if name not in FREE_FIELDS and (name not in before or now[name] != before[name])
    ]


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Save everything that the run needs to go on from here, under a name that appears when all is written."""
    name = f"step-{progress.step:08d}"
    final, partial = folder / CHECKPOINTS / name, folder / CHECKPOINTS / f".{name}.partial"

    def begin():
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish():
        (partial / PROGRESS_FILE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in checkpoints_of(folder)[:-keep]:
            shutil.rmtree(old)
        for old in (folder / CHECKPOINTS).glob("best-*"):  # only now, since the last checkpoint knew of the old one
            if old != best_folder(folder, progress):
                shutil.rmtree(old)

    on_main_process(accelerator, begin)
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    on_main_process(accelerator, finish)


def load_last_checkpoint(accelerator: Accelerator, folder: Path, vocabulary: str) -> Progress:
    """Restore the run's last checkpoint, or begin where there is none yet.

    Raises:
        ValueError: if the run had another number of processes or another vocabulary.
    """
    found = checkpoints_of(folder)
    if not found:
        return Progress(num_processes=accelerator.num_processes, vocabulary=vocabulary)
    progress = Progress(**json.loads((found[-1] / PROGRESS_FILE).read_text(encoding="utf-8")))
    if progress.num_processes != accelerator.num_processes:
        raise ValueError(
            f"{found[-1]} was written by {progress.num_processes} processes, and this run has "
            f"{accelerator.num_processes}; resume with as many."
        )
    if progress.vocabulary != vocabulary:
        raise ValueError(
            f"{found[-1]} was trained with another vocabulary: the training captions, or the tokenizer of text_model, "
            "have changed since the run began. Put back what they were, or begin anew in another output_dir."
        )
    accelerator.load_state(str(found[-1]))
    return progress


def vocabulary_digest(tokenizer) -> str:
    """A digest of a tokenizer's words and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def checkpoints_of(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def best_folder(folder: Path, progress: Progress) -> Path:
    """Where the best model yet is."""
    return folder / CHECKPOINTS / f"best-{progress.best_step:08d}"


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Make a folder that appears when `write` has filled it."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


class TrainingLog:
    """One JSON line a step, written in blocks; the loss of a step that was undone by a resume is not in it."""

    def __init__(self, folder: Path, step: int):
        self.file = folder / LOG_FILE
        self.lines: list[dict] = []
        if self.file.exists():
            kept = [line for line in self.file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomically(self.file, "".join(f"{line}\n" for line in kept))

    def add(self, **values) -> None:
        self.lines.append(values)

    def write(self) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in self.lines)
        self.lines.clear()


def check_output_files(*files: str | Path | None) -> None:
    """Raise a FileNotFoundError for a file, of those that are to be written, whose folder is not there."""
    for file in map(Path, filter(None, files)):
        if not file.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {file.parent} for {file.name}; make it first.")


def write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:  # cut off by a kill
        return float("inf")
