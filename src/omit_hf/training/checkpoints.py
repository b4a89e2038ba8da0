"""Checks, checkpoints and log in the output folder of a run; nothing in it is ever half-written."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers.utils import CONFIG_NAME

from omit_hf.ownership import LOCK_FILE, FolderLock
from omit_hf.parsing import BYTE_ORDER_MARK, parse_json
from omit_hf.training.recipe import Recipe
from omit_hf.training.recipe_files import RECIPE_FILE, read_recipe_file, write_recipe_file
from omit_hf.training.records import METRICS_FILE, PROGRESS_FILE, Progress, read_progress
from omit_hf.writing import check_output_files, names_what_fails, partial_of, remove_folder, write_atomically

CARD_FILE = "README.md"
LOG_FILE = "train_log.jsonl"
CHECKPOINTS = "checkpoints"
# Patterns of all files that a run writes; nothing else is ever deleted.
RUN_NAMES = (RECIPE_FILE, METRICS_FILE, CARD_FILE, LOG_FILE, CHECKPOINTS, "logs", ".*.partial", f"{LOCK_FILE}*")
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
# A run that was killed before it had a recipe leaves these; none is worth keeping.
UNBEGUN_NAMES = (CHECKPOINTS, ".*.partial", f"{LOCK_FILE}*")
# Fields that may change when a run is resumed, because its result does not depend on them. Only the rounding of sums
# does: cpu_threads and the sizes of evaluation set their order.
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
    "project",
    "report_to",
    "run_name",
    "tensorboard",
    "eval_batch_size",
    "eval_memory",
    "cpu_threads",
}


Result = TypeVar("Result")


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Act on the main process while the others wait. All get its result, and all raise its errors."""
    result = error = None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as caught:
            error = caught
    kind = next((kind for kind in (OSError, ValueError) if isinstance(error, kind)), RuntimeError)
    [(result, failed, kind)] = broadcast_object_list([(result, None if error is None else str(error), kind)])
    if error is not None:
        raise error
    if failed is not None:
        raise kind(f"The main process failed: {failed}")
    return result


def check_output_dir(recipe: Recipe) -> None:
    """Check that the output folder can be used; changes nothing.

    Raises:
        FileExistsError: if the folder is not empty and neither `resume` nor `overwrite_output_dir` is set; or if it is
            to be overwritten, but is not a run's folder or holds files that no run writes.
        FileNotFoundError: if the run to resume never began.
        PermissionError: if the folder cannot be written to.
        ValueError: if the run to resume had another recipe.
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
    elif folder.is_dir() and _has_begun(folder):
        if not recipe.overwrite_output_dir:
            raise FileExistsError(
                f"output_dir {folder} is not empty. Choose another one, or set resume to go on with its run, or "
                "overwrite_output_dir to delete it."
            )
        if not is_run(folder):
            raise FileExistsError(
                f"output_dir {folder} holds no run of ours, so it is not emptied; choose another one."
            )
        foreign = [each for each in folder.iterdir() if not _matches(each, RUN_NAMES)]
        if (folder / CHECKPOINTS).is_dir():
            foreign += [each for each in (folder / CHECKPOINTS).iterdir() if not _matches(each, CHECKPOINT_NAMES)]
        if foreign:
            listed = ", ".join(sorted(str(each.relative_to(folder)) for each in foreign))
            raise FileExistsError(
                f"output_dir {folder} holds what no run writes, {listed}; move it away, or choose another output_dir."
            )


def is_run(folder: Path) -> bool:
    """Tell whether a folder is that of a run; a recipe alone may be somebody's own."""
    checkpoints = folder / CHECKPOINTS
    return (folder / RECIPE_FILE).is_file() and (checkpoints.is_dir() or partial_of(checkpoints).is_dir())


def _has_begun(folder: Path) -> bool:
    """Tell whether a folder holds more than a run leaves that was killed before it had a recipe."""
    if any(not _matches(each, UNBEGUN_NAMES) for each in folder.iterdir()):
        return True
    return (folder / CHECKPOINTS).exists() and any(os.scandir(folder / CHECKPOINTS))


def claim_output_dir(recipe: Recipe, lock: FolderLock) -> None:
    """Check the output folder and, if it exists, take its lock; changes nothing else.

    Raises:
        BlockingIOError: if another command writes into it.
        OSError, ValueError: as `check_output_dir`.
    """
    folder = Path(recipe.output_dir)
    if (folder / LOCK_FILE).is_file():  # first, since what its holder is about to write is not there yet
        lock.acquire()
    check_output_dir(recipe)
    if folder.is_dir():
        lock.acquire()
        check_output_dir(recipe)  # once more, for what has come into the folder meanwhile


def begin_output_dir(recipe: Recipe) -> None:
    """Delete the run to overwrite, and make the folder of the new one. Raises the errors of `check_output_dir`.

    If it is cut off anywhere, it can be repeated. As long as the old recipe is there, its run can begin anew.
    """
    check_output_dir(recipe)  # once more, for what has come into the folder meanwhile
    folder = Path(recipe.output_dir)
    checkpoints = folder / CHECKPOINTS
    with names_what_fails(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS_FILE).unlink(missing_ok=True)
        doomed = partial_of(checkpoints)
        if checkpoints.is_dir() and any(os.scandir(checkpoints)):  # all at once, so that none is left half
            if doomed.exists():
                shutil.rmtree(doomed)
            os.replace(checkpoints, doomed)
        checkpoints.mkdir(exist_ok=True)
        for each in folder.iterdir():
            if each.name in (RECIPE_FILE, CHECKPOINTS) or each.name.startswith(LOCK_FILE):
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        partial = partial_of(folder / RECIPE_FILE)
        # What is repeated from it deletes nothing, and needs no run that is there.
        write_recipe_file(replace(recipe, overwrite_output_dir=False, resume=False), partial)
        os.replace(partial, folder / RECIPE_FILE)


def _check_resumed(recipe: Recipe, folder: Path) -> None:
    if not (folder / RECIPE_FILE).is_file():
        if folder.is_dir() and any(folder.iterdir()) and not _has_begun(folder):
            return  # a run that was killed before it had a recipe
        raise FileNotFoundError(f"There is no run to resume in {folder}; leave out resume to begin one.")
    changes = recipe_changes(asdict(Recipe(**read_recipe_file(folder / RECIPE_FILE))), recipe)
    if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
            f"The run in {folder} has another recipe; resume it with its own, or choose another output_dir:\n  {listed}"
        )


def recipe_changes(before: dict, recipe: Recipe) -> list[str]:
    """List the changed fields on which a result depends, a line per field with the values, cut where they are long.

    Args:
        before: fields of an earlier recipe, as in `metrics.json`.
        recipe: the present recipe.
    """
    now = asdict(recipe)
    return [
        f"{name}: was {before.get(name, 'not there')!r:.400}, is {now[name]!r:.400}"
        for name in now
        if name not in FREE_FIELDS and (name not in before or now[name] != before[name])
    ]


def _matches(file: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file.name, pattern) for pattern in patterns)


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress, keep: int) -> None:
    """Save everything that the run needs to go on from here; the checkpoint appears when all is written."""
    final = checkpoint_folder(folder, progress)
    partial = partial_of(final)

    def begin():
        with names_what_fails(partial):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(parents=True)

    def finish():
        with names_what_fails(final):
            (partial / PROGRESS_FILE).write_text(json.dumps(asdict(progress)), encoding="utf-8")
            remove_folder(final)
            os.replace(partial, final)
            _rotate(folder, keep)

    try:
        on_main_process(accelerator, begin)
        with names_what_fails(partial):
            accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        on_main_process(accelerator, finish)
    except Exception:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # room on a full disk
        raise


def _rotate(folder: Path, keep: int) -> None:
    for old in checkpoints_of(folder)[:-keep]:
        remove_folder(old)


def record_progress(folder: Path, progress: Progress, keep: int) -> None:
    """Add a validation to the checkpoint that was saved before it, and delete what is no longer needed."""
    write_atomically(checkpoint_folder(folder, progress) / PROGRESS_FILE, json.dumps(asdict(progress)))
    tidy_output_dir(folder, keep, progress)


def tidy_output_dir(folder: Path, keep: int, progress: Progress | None = None) -> None:
    """Delete the leftovers of an interrupted run: incomplete files, old checkpoints, and models that are no longer the
    best.

    Args:
        folder: folder of the run.
        keep: how many of the last checkpoints stay.
        progress: progress of its last checkpoint, which knows the best model; None for a complete run.
    """
    best = None if progress is None else best_folder(folder, progress)
    with names_what_fails(folder):
        for old in (folder / CHECKPOINTS).glob("best-*"):
            if old != best:
                remove_folder(old)
        _rotate(folder, keep)
        for left in [*folder.glob(".*.partial"), *(folder / CHECKPOINTS).glob(".*.partial")]:
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def load_last_checkpoint(accelerator: Accelerator, folder: Path, vocabulary: str, keep: int) -> Progress:
    """Restore the run's last checkpoint, or begin anew if there is none; delete what an interruption left.

    Raises:
        OSError, ValueError: as `read_progress`.
        ValueError: if the run had another number of processes or another vocabulary.
    """
    found = on_main_process(accelerator, lambda: checkpoints_of(folder))  # the same for all
    progress = Progress(num_processes=accelerator.num_processes, vocabulary=vocabulary)
    if not found:

        def begin_anew():
            (folder / CHECKPOINTS).mkdir(exist_ok=True)  # first, since it marks the folder as a run's
            tidy_output_dir(folder, keep, progress)

        on_main_process(accelerator, begin_anew)
        return progress
    progress = read_progress(found[-1] / PROGRESS_FILE)
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
    on_main_process(accelerator, lambda: tidy_output_dir(folder, keep, progress))
    return progress


def vocabulary_digest(tokenizer) -> str:
    """Compute a digest of a tokenizer's words and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def checkpoints_of(folder: Path) -> list[Path]:
    """List the complete checkpoints of a run, the oldest first."""
    return sorted((folder / CHECKPOINTS).glob("step-*"))


def checkpoint_folder(folder: Path, progress: Progress) -> Path:
    """Return the folder of a step's checkpoint."""
    return folder / CHECKPOINTS / f"step-{progress.step:08d}"


def best_folder(folder: Path, progress: Progress) -> Path:
    """Return the folder of the best model yet."""
    return folder / CHECKPOINTS / f"best-{progress.best_step:08d}"


def publish_best(folder: Path, best: Path) -> None:
    """Move the best model's files to the top of the output folder; can be repeated if it is cut off.

    The configuration goes first: where it is missing, the move has begun, and the model no longer loads.
    """
    if best.is_dir():
        with names_what_fails(folder):
            for file in sorted(best.iterdir(), key=lambda file: file.name != CONFIG_NAME):
                os.replace(file, folder / file.name)
            best.rmdir()


class TrainingLog:
    """A log with one JSON line per step, written in blocks.

    It holds every step once and in order, however often the run was resumed. A step that a resume undoes is removed.
    """

    def __init__(self, folder: Path, step: int):
        self.file = folder / LOG_FILE
        self.lines: list[dict] = []
        if self.file.exists():
            lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines()
            lines = [line.lstrip(BYTE_ORDER_MARK) for line in lines]
            kept = {number: line for line in lines if (number := _step_of(line)) <= step}
            write_atomically(self.file, "".join(f"{kept[number]}\n" for number in sorted(kept)))

    def add(self, **values) -> None:
        self.lines.append(values)

    def write(self) -> None:
        with names_what_fails(self.file), self.file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in self.lines))
        self.lines.clear()


@contextlib.contextmanager
def holding_runs(*files: str | Path | None, purpose: str) -> Iterator[None]:
    """Hold the lock of every run that holds one of these files, so that no two commands write into it.

    Raises:
        BlockingIOError: if another command writes into a run.
        OSError: as `check_output_files`.
    """
    check_output_files(*files)
    folders = {file.resolve().parent for file in map(Path, filter(None, files))}
    with contextlib.ExitStack() as locks:
        for folder in sorted(filter(is_run, folders)):
            locks.enter_context(FolderLock(folder, purpose, advice="write elsewhere"))
        yield


def _step_of(line: str) -> float:
    try:
        return float(parse_json(line)["step"])
    except (ValueError, TypeError, KeyError, OverflowError):  # cut off by a kill
        return float("inf")
