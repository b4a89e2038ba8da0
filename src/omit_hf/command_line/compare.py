"""Train methods with several seeds, tuned alike, and print the results side by side.

    omit-hf compare compare_scenes --only methods --jobs 2
    omit-hf compare scenes --matching omit ot mean --seeds 0 1 2

The first is a comparison: a base recipe, grids of the fields that vary, seeds, and an equal search for the settings of
every method. The second trains one recipe with several methods; options that are not listed here go to
`omit-hf train`, for every run alike. `omit-hf recipes` lists the names of both; a file has its path.

A finished run is not repeated, and an interrupted one goes on, so the command can be stopped and started again. The
folder gets for each grid its table (.md), all figures (.json) and plots (.png, .svg); a row a run in runs.jsonl; and
the runs, with their logs in logs/.
"""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omit_hf.command_line.parser import CommandParser
from omit_hf.command_line.running import INTERRUPTED
from omit_hf.comparison import (
    RUN_FIELDS,
    Comparison,
    Runner,
    check_folders,
    comparison_of,
    is_comparison,
    markdown,
    read_comparison,
    search_settings,
    selected,
    summary,
)
from omit_hf.training import parse_recipe, recipe_parser
from omit_hf.writing import write_atomically

OWN_OPTIONS = {"matching", *RUN_FIELDS}  # of a training


@dataclass
class Arguments:
    matching: list[str] | None = field(
        default=None, metadata={"help": "With a recipe: matching methods, a row each; by default omit, ot and mean."}
    )
    seeds: list[int] | None = field(
        default=None, metadata={"help": "With a recipe: seeds, a run each; by default 0, 1 and 2."}
    )
    only: list[str] | None = field(default=None, metadata={"help": "Of a comparison, the grids of these names alone."})
    jobs: int = field(default=1, metadata={"help": "Runs side by side; each gets its share of the cores."})
    plots: bool = field(default=True, metadata={"help": "Draw the plots, where matplotlib is installed."})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Where all goes; outputs/<comparison> or outputs/compare_<recipe> by default."},
    )


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(Arguments, prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("file", metavar="NAME", help="A comparison, or the recipe that all runs share: name or file.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> int:
    arguments, for_train = build_parser(prog).parse_known_args(given)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended too
    try:
        return compare(arguments, for_train, prog)
    except KeyboardInterrupt:
        print("Interrupted; start again to go on from there.", file=sys.stderr)
        return INTERRUPTED


def compare(arguments: Arguments, for_train: list[str], prog: str | None = None) -> int:
    """Run what is not there yet, and print the tables; 1 where a run failed."""
    save_plots = plotter() if arguments.plots else None
    comparison = read(arguments, for_train, prog)
    folder, grids = comparison.output_dir, selected(comparison, arguments.only)
    runner = Runner(folder, arguments.jobs)

    found = search_settings(comparison, grids, runner) if comparison.search is not None else None
    runs = [run for grid in grids for run in comparison.runs(grid, found)]
    check_folders(runs)
    runner.run(runs, "Runs")

    tables = []
    for grid in grids:
        figures = summary(comparison, grid, found)
        table = markdown(figures)
        tables.append(f"{grid.name}\n\n{table}\n" if len(grids) > 1 else table)
        write_atomically(folder / f"{grid.name}.md", table + "\n")
        write_atomically(folder / f"{grid.name}.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        if save_plots is not None:
            save_plots(figures, folder)
    print("\n".join(tables))
    for name, reason in runner.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if runner.failed else 0


def plotter() -> Callable[[dict, Path], list[Path]] | None:
    """What saves the plots; without matplotlib a line says so before the first run, and the tables have to do."""
    try:
        from omit_hf.comparison.plots import save_plots
    except ImportError as error:
        print(f"No plots: {error}", file=sys.stderr)
        return None
    return save_plots


def read(arguments: Arguments, for_train: list[str], prog: str | None) -> Comparison:
    """The comparison of a command line."""
    stem = Path(arguments.file).stem
    if is_comparison(arguments.file):
        for name in ("matching", "seeds"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name} cannot be given with a comparison; its file says it.")
        if for_train:
            raise ValueError(f"{' '.join(for_train)} cannot be given with a comparison; put it into its overrides.")
        return read_comparison(arguments.file, arguments.output_dir or f"outputs/{stem}")
    if arguments.only is not None:
        raise ValueError("--only is for the grids of a comparison, and this is a recipe; leave it out.")
    taken = [each for each in for_train if option(each) in OWN_OPTIONS]
    if taken:
        raise ValueError(f"{' and '.join(taken)} cannot be given, since it is set for each run; see --seeds.")
    matching, seeds = arguments.matching or ["omit", "ot", "mean"], arguments.seeds or [0, 1, 2]
    folder = arguments.output_dir or f"outputs/compare_{stem}"
    return comparison_of(parse_recipe([arguments.file, *for_train], recipe_parser(prog=prog)), matching, seeds, folder)


def option(argument: str) -> str:
    """The field that an argument of a training sets; `--no_test` sets `test`."""
    return argument.split("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
