"""Trackers of experiments: TensorBoard, trackio, Weights & Biases, MLflow, and what else Accelerate knows.

A tracker sees what the logs of the run have: losses, learning rate, validation and test, the recipe and the card. One
whose package is missing never stops a training.
"""

import json
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from omit_hf.training.recipe import Recipe

LOGS = "logs"  # in the output folder, for those that write files
PACKAGES = {"tensorboard": "'omit-hf[train]'", "comet_ml": "comet-ml"}  # where the name is another
TITLES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
RUN_NAMES = {  # what each calls the name of a run
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
    "wandb": "name",
}


def asked_trackers(recipe: Recipe) -> list[str]:
    """The trackers that a recipe asks for, by name.

    Raises:
        ValueError: for a name that Accelerate does not know, or "none" beside others.
    """
    if recipe.report_to is None:
        return ["tensorboard"] if recipe.tensorboard else []
    known = [*LOGGER_TYPE_TO_CLASS, "all", "none"]
    for name in recipe.report_to:
        if name not in known:
            raise ValueError(f"report_to has {name!r}; expected some of {', '.join(sorted(known))}.")
    if "none" in recipe.report_to and len(recipe.report_to) > 1:
        raise ValueError(f"report_to is {recipe.report_to}; expected 'none' alone, or trackers.")
    if "all" in recipe.report_to:
        return [str(name) for name in get_available_trackers()]
    return [name for name in dict.fromkeys(recipe.report_to) if name != "none"]


def installed_trackers(asked: list[str]) -> tuple[list[str], list[str]]:
    """Those trackers whose package is installed, and for each other one a line that says so."""
    installed = {str(name) for name in get_available_trackers()}
    missing = [name for name in asked if name not in installed]
    lines = [
        f"No {TITLES.get(name, name)} logs: pip install {PACKAGES.get(name, name)} brings it; "
        "train_log.jsonl has all of it."
        for name in missing
    ]
    return [name for name in asked if name in installed], lines


def start_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Begin, or go on with, a run under the recipe's name in every tracker; the recipe is its configuration."""
    if not accelerator.log_with:
        return
    name = recipe.run_name or Path(recipe.output_dir).resolve().name
    options = {tracker: {argument: name} for tracker, argument in RUN_NAMES.items()}
    options["trackio"]["resume"] = "allow" if recipe.resume else "never"
    # Weights & Biases finds a run that was cut off by a file that it leaves in its folder, which it does not make.
    logs = Path(recipe.output_dir) / LOGS
    options["wandb"] |= {"dir": str(logs), "resume": "auto" if recipe.resume else None}
    if "wandb" in map(str, accelerator.log_with) and accelerator.is_main_process:
        logs.mkdir(exist_ok=True)
    plain = (bool, int, float, str)
    config = {
        field: value if isinstance(value, plain) else json.dumps(value)
        for field, value in asdict(recipe).items()
        if value is not None and field != "output_dir"
    }
    accelerator.init_trackers(recipe.project, config=config, init_kwargs=options)


def log_result(accelerator: Accelerator, step: int, test: dict, card: str) -> None:
    """Log the metrics of the test, and the model card to trackers that take a text."""
    accelerator.log({f"test/{name}": value for name, value in test.items()}, step=step)
    if not accelerator.is_main_process:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.tracker.add_text("card", card, step)
        elif tracker.name == "trackio":
            from trackio import Markdown

            tracker.log({"card": Markdown(card)}, step=step)
        elif tracker.name == "mlflow":
            import mlflow

            mlflow.log_text(card, "README.md")
        elif tracker.name == "wandb":
            tracker.tracker.summary["card"] = card
