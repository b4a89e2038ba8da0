"""Reads comparisons from files and command lines, and lists all that is wrong in them."""

import math
import re
from dataclasses import asdict
from pathlib import Path

from omit_hf.command_line import expanded
from omit_hf.comparison.plan import RUN_FIELDS, Comparison, Grid, Search, matters
from omit_hf.modeling.configuration_omit import check_fields
from omit_hf.parsing import label, shown
from omit_hf.training import (
    Recipe,
    find_recipe,
    own_recipes,
    read_mapping,
    read_recipe_file,
    recipe_types,
    recipe_value,
)

KEYS = ("recipe", "overrides", "seeds", "settings", "search", "grids")
UNFINISHED = "max_steps, which leaves a run unfinished; set num_epochs or data_options"
MAX_RUNS = 2000  # of a grid or a search
SEARCH_KEYS = ("candidates", "overrides", "seed", "product", "per")
# Any recipe's fields, for their defaults; a comparison's own are checked when they are whole.
DEFAULTS = asdict(Recipe(clip_model="any")) | {"clip_model": None}


def is_comparison(file: str | Path) -> bool:
    """Tell whether a file is a comparison rather than a recipe."""
    return "grids" in read_mapping(file)


def comparison_of(recipe: Recipe, matching: list[str], seeds: list[int], output_dir: str | Path) -> Comparison:
    """Compare some methods with one recipe.

    Raises:
        ValueError: lists all that is wrong.
    """
    comparison = Comparison(asdict(recipe), [Grid("table", {"matching": matching}, seeds)], Path(output_dir))
    problems = _repeated("matching", matching) + _seeds("seeds", seeds)
    _stop("The comparison", problems or _unfit(comparison))
    return comparison


def read_comparison(file: str | Path, output_dir: str | Path) -> Comparison:
    """Read a comparison from its file.

    Args:
        file: what `find_recipe` finds: YAML with `recipe` (the base recipe: a file, from this file's folder, or the
            name of one that comes with the package), `grids` (by name: fields and their values, and `seeds` where they
            are not the file's), and where wanted `overrides` (fields of all runs), `seeds` (0, 1, 2), `settings` (by
            field and value: what else such runs need) and `search` (what `Search` has).
        output_dir: folder of the runs and tables.

    Raises:
        FileNotFoundError: if the file or the recipe is not there.
        ValueError: with all that is wrong in it.
    """
    file, problems = find_recipe(file), []
    content = read_mapping(file)
    check_fields(str(file), content, KEYS)
    recipe = content.get("recipe")
    if not isinstance(recipe, str) or not recipe.isprintable():
        raise ValueError(f"{file}: recipe is {shown(recipe)}; expected the file of the base recipe.")
    overrides = _values("overrides", content.get("overrides", {}), problems)
    base = recipe if recipe in own_recipes() else file.parent / expanded(recipe)
    base = DEFAULTS | read_recipe_file(base) | overrides
    seeds = content.get("seeds", [0, 1, 2])
    grids = []
    for name, given in _mapping("grids", content.get("grids"), problems).items():
        lists = _lists(f"grid {label(name)}", given, problems)
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            problems.append(f"the name of grid {label(name)} is no file's; expected letters, digits, '_', '-' and '.'")
        grids.append(Grid(str(name), lists, given.get("seeds", seeds) if isinstance(given, dict) else seeds))
    for grid in grids:
        problems += _seeds(f"seeds of grid {label(grid.name)}", grid.seeds)
    if not grids:
        problems.append("grids is empty; expected at least one")
    settings = {
        name: {
            _text(name, value): _values(f"settings of {label(name)} {label(value)}", given, problems)
            for value, given in _mapping(f"settings of {label(name)}", by_value, problems).items()
        }
        for name, by_value in _mapping("settings", content.get("settings", {}), problems).items()
    }
    search = _search(content["search"], problems) if "search" in content else None
    problems += _conflicts(overrides, grids, settings, search)
    _stop(file, problems or _too_many(grids, search))
    comparison = Comparison(base, grids, Path(output_dir), settings, search)
    _stop(file, _unfit(comparison))
    return comparison


def selected(comparison: Comparison, names: list[str] | None) -> list[Grid]:
    """Select the grids of these names, or all.

    Raises:
        ValueError: for a name that no grid has.
    """
    known = {grid.name: grid for grid in comparison.grids}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"only is {' '.join(unknown)}; expected some of {', '.join(known)}.")
    return [grid for name, grid in known.items() if not names or name in names]


def _stop(where, problems: list[str]) -> None:
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise ValueError(f"{where}: {problems[0].removesuffix('.')}.")
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"{where}: {len(problems)} problems:\n  {listed}")


def _mapping(where: str, value, problems: list[str]) -> dict:
    if isinstance(value, dict):
        return value
    problems.append(f"{where} is {shown(value)}; expected names and values")
    return {}


def _values(where: str, given, problems: list[str]) -> dict:
    """Fields of a recipe and their values, as far as they are right."""
    values = {}
    for name, value in _mapping(where, given, problems).items():
        try:
            check_fields(where, [name], recipe_types())
            values[name] = recipe_value(where, name, value)
        except ValueError as error:
            problems.append(str(error))
            continue
        if name in RUN_FIELDS:
            problems.append(f"{where} has {name}, which is set for each run; leave it out")
        if name == "max_steps":
            problems.append(f"{where} has {UNFINISHED}")
    return values


def _lists(where: str, given, problems: list[str]) -> dict[str, list]:
    """Fields of a recipe and the lists of their values, as far as they are right."""
    lists = {}
    for name, values in _mapping(where, given, problems).items():
        if name == "seeds":
            continue
        if not isinstance(values, list) or not values or len(values) > MAX_RUNS:
            most = f" of at most {MAX_RUNS}" if isinstance(values, list) and values else ""
            problems.append(f"{where}: {label(name)} is {shown(values)}; expected a list of values{most}")
            continue
        checked = [each for value in values for each in _values(where, {name: value}, problems).values()]
        problems += _repeated(f"{where}: {name}", checked)
        lists[name] = checked
    return lists


def _repeated(where: str, values: list) -> list[str]:
    if all(value not in values[:number] for number, value in enumerate(values)):
        return []
    return [f"{where} is {label(' '.join(map(str, values)))}; expected each of them once"]


def _seeds(where: str, seeds) -> list[str]:
    if not isinstance(seeds, list) or not 0 < len(seeds) <= MAX_RUNS or any(type(seed) is not int for seed in seeds):
        return [f"{where} is {shown(seeds)}; expected a list of integers"]
    return _repeated(where, seeds)


def _text(name: str, value) -> str:
    try:
        return str(recipe_value("", name, value))
    except (KeyError, ValueError):  # which is reported elsewhere
        return str(value)


def _search(given, problems: list[str]) -> Search | None:
    given = _mapping("search", given, problems)
    try:
        check_fields("search", given, SEARCH_KEYS)
    except ValueError as error:
        problems.append(str(error))
    candidates = _lists("candidates of search", given.get("candidates") or {}, problems)
    if not given.get("candidates"):
        problems.append("search has no candidates; expected fields and lists of values to try")
    search = Search(candidates, _values("overrides of search", given.get("overrides", {}), problems))
    for name, kind in (("seed", int), ("product", bool), ("per", list)):
        value = given.get(name, getattr(search, name))
        if type(value) is not kind:
            problems.append(f"{name} of search is {shown(value)}; expected {kind.__name__}")
        else:
            setattr(search, name, value)
    return search


def _too_many(grids: list[Grid], search: Search | None) -> list[str]:
    """Grids or a search of more runs than anybody trains, of which each would be looked at."""
    counts = {f"grid {grid.name}": math.prod(map(len, [*grid.fields.values(), grid.seeds])) for grid in grids}
    if search is not None:
        counts["search"] = math.prod(len(values) for values in search.candidates.values())
    wrong = {name: count for name, count in counts.items() if count > MAX_RUNS}
    return [f"{name} is of {count:.4g} runs; expected at most {MAX_RUNS}" for name, count in wrong.items()]


def _conflicts(overrides: dict, grids: list[Grid], settings: dict, search: Search | None) -> list[str]:
    """What is set in two places, and what is set for nothing."""
    varied = {name for grid in grids for name in grid.fields}
    own = {field for by_value in settings.values() for given in by_value.values() for field in given}
    tried = set(search.candidates) if search else set()
    sets = {"overrides": set(overrides), "a grid": varied, "settings": own, "search": tried}
    pairs = [("overrides", "a grid"), ("a grid", "settings"), ("a grid", "search"), ("settings", "search")]
    problems = [
        f"{name} is set by both {first} and {second}; expected one of them"
        for first, second in pairs
        for name in sorted(sets[first] & sets[second])
    ]
    if search:
        both = sorted(tried & set(search.overrides))
        problems += [f"{name} is among both the candidates and the overrides of search" for name in both]
        unknown = [name for name in search.per if not isinstance(name, str) or name not in varied | {"matching"}]
        problems += [f"per of search has {shown(name)}; expected fields that a grid varies" for name in unknown]
        if "matching" in varied and "matching" not in search.per:
            problems.append("per of search lacks 'matching', so one method would be tuned for all; put it in")
    for name, by_value in settings.items():
        known = {str(value) for grid in grids for value in grid.fields.get(name, ())}
        problems += [
            f"settings are for {label(name)} {label(value)}, which no grid has; expected some of "
            f"{', '.join(map(label, sorted(known))) or 'none'}"
            for value in by_value
            if value not in known
        ]
    return problems


def _unfit(comparison: Comparison) -> list[str]:
    """What is wrong with the recipes of single runs, names that two of them share, and search that is not equal."""
    problems, recipes = [], {}
    if comparison.base["max_steps"] is not None:
        problems.append(f"the base recipe has {UNFINISHED}")

    def see(where: str, make) -> None:
        try:
            run = make()
        except ValueError as error:
            problems.append(f"{where}: {error}")
        else:
            if recipes.setdefault(run.name, run.recipe) != run.recipe:
                problems.append(f"{where}: another run has the name {run.name} too; give the value another name")

    for grid in comparison.grids:
        for labels in comparison.rows(grid):
            for seed in grid.seeds:
                see(label(grid.name), lambda labels=labels, seed=seed: comparison.run(labels, seed))
    if comparison.search is None or problems:
        return problems
    search, counts = comparison.search, {}
    for group in comparison.groups(comparison.grids):
        values = comparison.fields_of(group)
        counts[" ".join(map(str, group.values()))] = comparison.trials(group)
        for name, candidates in search.candidates.items():
            for value in candidates if matters(name, values) else ():
                see("search", lambda group=group, name=name, value=value: comparison.trial(group, {name: value}))
    if len(set(counts.values())) > 1 or 0 in counts.values():
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        problems.append(
            f"search has not as many trials for each: {listed}; expected candidates of fields that all of them read"
        )
    return problems
