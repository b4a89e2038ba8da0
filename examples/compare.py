"""Train one recipe with several matching methods and seeds, and print the results side by side.

    python examples/compare.py examples/configs/scenes.yaml --matching omit ot mean --seeds 0 1 2

A run whose metrics.json exists is not repeated, and an interrupted one goes on, so the command can be stopped and
started again, with the same recipe. Options that it does not know go to examples/train.py, for every run alike.
"""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from omit_hf.training import HelpFormatter, parse_recipe, recipe_changes

COLUMNS = {
    "RSUM": "rsum",
    "i2t R@1": "i2t_r1",
    "t2i R@1": "t2i_r1",
    "i2t mAP": "i2t_map",
    "t2i mAP": "t2i_map",
}
OWN_OPTIONS = {"seed", "matching", "output_dir", "resume", "overwrite_output_dir"}  # of train.py, set for each run


@dataclass
class Arguments:
    matching: list[str] = field(
        default_factory=lambda: ["omit", "ot", "mean"], metadata={"help": "Matching methods, a row each."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds, a run each."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Where the runs and the table go; outputs/compare_<recipe> by default."}
    )


def main() -> None:
    parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="The recipe that all runs share.")
    arguments, for_train = parser.parse_known_args()
    taken = [each for each in for_train if each.split("=")[0].lstrip("-").replace("-", "_") in OWN_OPTIONS]
    if taken:
        raise ValueError(f"{' and '.join(taken)} cannot be given, since it is set for each run; see --seeds.")
    for name in ("matching", "seeds"):
        values = getattr(arguments, name)
        if len(set(values)) < len(values):
            raise ValueError(f"{name} is {' '.join(map(str, values))}; expected each of them once.")
    folder = Path(arguments.output_dir or f"outputs/compare_{Path(arguments.recipe).stem}")
    runs = {
        matching: [
            [arguments.recipe, *for_train, "--matching", matching, "--seed", str(seed)]
            + ["--output_dir", str(folder / f"{matching}_seed{seed}")]
            for seed in arguments.seeds
        ]
        for matching in arguments.matching
    }
    for options in (each for row in runs.values() for each in row):  # so that a mistake shows before the first run
        check_run(options)
    table = markdown({matching: [run(options) for options in row] for matching, row in runs.items()})
    (folder / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def check_run(options: list[str]) -> None:
    """See that the options make a recipe, and that a finished run in its place had the same one."""
    recipe = parse_recipe(options)
    file = Path(recipe.output_dir) / "metrics.json"
    if file.exists():
        changes = recipe_changes(json.loads(file.read_text(encoding="utf-8"))["recipe"], recipe)
        if changes:
            listed = "\n  ".join(changes)
            raise ValueError(
                f"The finished run in {file.parent} has another recipe; delete it, or choose another --output_dir:\n"
                f"  {listed}"
            )


def run(options: list[str]) -> dict:
    """Train once and give the metrics, or those of the earlier run."""
    output_dir = Path(options[-1])
    if not (output_dir / "metrics.json").exists():
        command = [sys.executable, "-m", "accelerate.commands.launch", str(Path(__file__).with_name("train.py"))]
        command += options
        if (output_dir / "recipe.yaml").exists():
            command.append("--resume")
        print(" ".join(command), file=sys.stderr)
        subprocess.run(command, check=True)
    return json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))


def markdown(results: dict[str, list[dict]]) -> str:
    """A row a method: mean ± standard deviation of each test metric over the seeds."""
    measured = next(iter(results.values()))[0]["test"]
    columns = {title: name for title, name in COLUMNS.items() if name in measured}
    lines = [f"| matching | seeds | {' | '.join(columns)} | training (s) |", "|---" * (len(columns) + 3) + "|"]
    for matching, runs in results.items():
        cells = [spread([each["test"][name] for each in runs]) for name in columns.values()]
        cells.append(f"{statistics.mean(each['training_seconds'] for each in runs):.0f}")
        lines.append(f"| `{matching}` | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: a run failed with exit status {error.returncode}; start again to go on from there.")
