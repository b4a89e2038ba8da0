"""What a run writes down of itself, and reading it back: how far it has come, and what it has measured.

The files may be those of others, of another version, or damaged, so that nothing of them is taken on trust.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.dataclasses import type_validator

from omit_hf.parsing import MAX_DEPTH, label, read_json, shown

METRICS_FILE, PROGRESS_FILE = "metrics.json", "progress.json"
LARGEST = 1e18  # of a number that was measured
WHOLE = ("best_epoch", "trained_parameters")
MEASURED = ("training_seconds", "peak_memory")
# What runs of before lack, or a run that was not tested.
PERHAPS_WHOLE = ("epochs", "steps", "parameters", "scored_pairs")
PERHAPS_MEASURED = ("pairs_per_second", "waiting_for_data", "test_seconds", "scoring_seconds")


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: current epoch, from 0.
        batch: finished batches of this epoch, per process.
        step: finished optimiser steps.
        seconds: training time so far, without evaluation.
        waiting: the part of `seconds` that the main process waited for data.
        pairs: pairs trained on, over all processes.
        peak_memory: peak memory of the main process in training, in bytes: on the GPU, or else on the machine.
        best_rsum, best_epoch, best_step: RSUM, epoch and step of the best validation yet.
        validations: metrics of every validation.
        num_processes: number of processes that the run began with.
        vocabulary: digest of the tokenizer's words and their ids.
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


def read_progress(file: str | Path) -> Progress:
    """Read the progress that a checkpoint was saved with.

    Raises:
        OSError: if the file cannot be read.
        ValueError: names the first thing in it that no run writes.
    """
    found, expect = _read(file)
    kinds = typing.get_type_hints(Progress)
    _check_names(found, kinds, expect)
    for name, kind in kinds.items():
        if kind is float:
            expect(_is_number(found[name]), name, found[name], "a number")
        elif kind is int:
            least = -1 if name.startswith("best_") else 0
            whole = _is_whole(found[name]) and found[name] >= least
            expect(whole, name, found[name], f"an integer from {least}")
        else:
            try:
                type_validator(name, found[name], kind)
            except TypeError:
                expect(False, name, found[name], "a text" if kind is str else "a list of metrics")
    for number, each in enumerate(found["validations"]):
        _check_figures(f"validations[{number}]", each, expect)
    epoch, count = found["epoch"], len(found["validations"])
    expect(epoch - 1 <= count <= epoch, "validations", f"of {count} epochs", f"those of {epoch} or of one less")
    best = found["best_epoch"]
    expect(best < count and (best >= 0 or count == 0), "best_epoch", best, "one of validations")
    return Progress(**found)


def read_metrics(file: str | Path) -> dict:
    """Read what a finished run has measured.

    Raises:
        OSError: if the file cannot be read.
        ValueError: names the first thing in it that no run writes.
    """
    found, expect = _read(file)
    _check_names(found, ("recipe", "test", "validation", "environment", *WHOLE, *MEASURED), expect, others=True)
    for name in ("recipe", "environment"):
        expect(isinstance(found[name], dict), name, found[name], "an object")
    for name, value in found["environment"].items():
        expect(isinstance(value, str | int | None), f"environment.{label(name)}", value, "a text or a number")
    _check_figures("validation", found["validation"], expect)
    tested = found["recipe"].get("test", True)
    if tested is False:
        expect(found["test"] is None, "test", found["test"], "null, as the recipe has test off")
    elif found["test"] is not None:  # which who needs it refuses
        _check_figures("test", found["test"], expect)
    for names, optional, fits, wanted in (
        (WHOLE, False, _is_whole, "an integer"),
        (MEASURED, False, _is_number, "a number"),
        (PERHAPS_WHOLE, True, _is_whole, "an integer"),
        (PERHAPS_MEASURED, True, _is_number, "a number"),
    ):
        for name in names:
            value = found.get(name)
            expect((optional and value is None) or (fits(value) and value >= 0), name, value, f"{wanted} from 0")
    splits = found.get("splits", {})
    expect(isinstance(splits, dict), "splits", splits, "an object")
    for name, counts in splits.items():
        numbers = isinstance(counts, dict) and all(_is_whole(counts.get(each)) for each in ("images", "captions"))
        expect(numbers, f"splits.{label(name)}", counts, "the numbers of images and captions")
    return found


def _read(file: str | Path) -> tuple[dict, Callable]:
    """The object in a file, and what raises for whatever in it is not as expected."""
    found = read_json(file, MAX_DEPTH + 2)  # a recipe lies in it

    def expect(is_so: bool, name: str, value, expected: str) -> None:
        if not is_so:
            raise ValueError(f"{file} is not what a run writes: {name} is {shown(value)}; expected {expected}.")

    expect(isinstance(found, dict), "it", found, "an object")
    return found, expect


def _check_names(found: dict, names: typing.Iterable[str], expect: Callable, others: bool = False) -> None:
    missing = [name for name in names if name not in found]
    expect(not missing, "missing", missing, "nothing")
    unknown = [name for name in found if name not in names]
    expect(others or not unknown, "more than that", unknown, "nothing")


def _check_figures(name: str, figures, expect: Callable) -> None:
    expect(isinstance(figures, dict) and "rsum" in figures, name, figures, "metrics with rsum")
    for metric, value in figures.items():
        expect(_is_number(value), f"{name}.{label(metric)}", value, "a number")


def _is_whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
