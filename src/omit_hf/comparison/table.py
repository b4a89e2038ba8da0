"""Summarises the figures of a grid, for JSON and as a Markdown table."""

import json
import statistics
from dataclasses import asdict

from omit_hf.comparison.plan import Comparison, Grid
from omit_hf.comparison.running import metrics_of
from omit_hf.comparison.spread import paired, spread

METRICS = {
    "rsum": "RSUM",
    "i2t_r1": "i2t R@1",
    "t2i_r1": "t2i R@1",
    "i2t_map": "i2t mAP",
    "t2i_map": "t2i mAP",
}
COSTS = ("trained_parameters", "training_seconds", "scoring_seconds_per_million", "peak_memory")
REFERENCE = "omit"


def summary(comparison: Comparison, grid: Grid, found: list[dict] | None = None) -> dict:
    """Summarise the figures of a grid's finished runs.

    Args:
        comparison, grid: the comparison and its grid.
        found: choices of the search, from `search_settings`; None without a search.

    Returns:
        `grid` (its name), `fields`, `seeds`, `search` and `rows`. A row has `labels`, `seeds` (of its finished runs),
        `metrics` (each a `Spread` over the seeds), `difference` (of the RSUM to `omit`, paired by seed; see
        `reference`), `trained_parameters`, `training_seconds`, `scoring_seconds_per_million` (pairs) and
        `peak_memory` (bytes), the last three means over the seeds, and `runs`, their names. What was not measured is
        None.
    """
    runs = comparison.runs(grid, found)
    rows = []
    for labels in comparison.rows(grid):
        own = {run.recipe.seed: run for run in runs if run.labels == labels}
        rows.append({"labels": labels, **_figures({s: run for s, run in own.items() if metrics_of(run) is not None})})
    by_seed = [
        dict(zip(row["seeds"], row["metrics"]["rsum"]["values"], strict=True)) if row["seeds"] else {} for row in rows
    ]
    for row, scores in zip(rows, by_seed, strict=True):
        other = reference(comparison, rows, row)
        difference = None if other is None else paired(scores, by_seed[other])
        row["difference"] = difference and asdict(difference)
    search = None
    if found is not None:
        groups = [comparison.group_of(row["labels"]) for row in rows]
        search = {**asdict(comparison.search), "found": [each for each in found if each["group"] in groups]}
    return {"grid": grid.name, "fields": grid.fields, "seeds": grid.seeds, "search": search, "rows": rows}


def reference(comparison: Comparison, rows: list[dict], row: dict) -> int | None:
    """The row that another is compared with: `omit` with the same other fields or, for a row of `omit`, `omit` with
    those of the base recipe. A field that a row does not have counts as the base recipe's."""
    base = comparison.base
    names = {"matching", *(name for each in rows for name in each["labels"])}

    def whole(labels: dict) -> dict:
        return {name: labels.get(name, base[name]) for name in names}

    own = whole({} if whole(row["labels"])["matching"] == REFERENCE else row["labels"])
    wanted = {**own, "matching": REFERENCE}
    return next((n for n, each in enumerate(rows) if each is not row and whole(each["labels"]) == wanted), None)


def _figures(runs: dict) -> dict:
    """What a row's finished runs, by seed, have measured."""
    metrics = [metrics_of(run) for run in runs.values()]
    if not metrics:
        return {"seeds": [], "runs": [], "metrics": {}, "environments": []} | dict.fromkeys(COSTS)
    measured = [name for name in metrics[0]["test"] if all(name in each["test"] for each in metrics)]
    # Runs of before the time was taken have none.
    timed = [each for each in metrics if each.get("scoring_seconds") and each.get("scored_pairs")]
    scoring = [each["scoring_seconds"] / each["scored_pairs"] for each in timed]
    return {
        "seeds": list(runs),
        "runs": [run.name for run in runs.values()],
        "metrics": {name: asdict(spread([each["test"][name] for each in metrics])) for name in measured},
        "trained_parameters": metrics[0]["trained_parameters"],
        "training_seconds": statistics.fmean(each["training_seconds"] for each in metrics),
        "scoring_seconds_per_million": 1e6 * statistics.fmean(scoring) if scoring else None,
        "peak_memory": statistics.fmean(each["peak_memory"] for each in metrics),
        "environments": _unique(each["environment"] for each in metrics),
    }


def _unique(values) -> list:
    found = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def markdown(found: dict) -> str:
    """Format a summary as a table, with notes below."""
    rows = found["rows"]
    fields = list(found["fields"])
    measured = [name for name in METRICS if any(name in row["metrics"] for row in rows)]
    compared = any(row["difference"] for row in rows)
    titles = [*fields, "seeds", *(METRICS[name] for name in measured)]
    if compared:
        titles.insert(len(fields) + 2, f"RSUM − {REFERENCE}")
    titles += ["trained parameters", "training (s)", "scoring (s / 10⁶ pairs)", "peak memory (GiB)"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [text(row["labels"][name]) if name in row["labels"] else "–" for name in fields]
        cells.append(str(len(row["seeds"])))
        cells += [plus_minus(row["metrics"].get(name)) for name in measured]
        if compared:
            cells.insert(len(fields) + 2, difference(row["difference"]))
        parameters, training, scoring, memory = (row[name] for name in COSTS)
        cells.append("–" if parameters is None else f"{parameters:,}")
        cells.append("–" if training is None else f"{training:.0f}")
        cells.append("–" if scoring is None else f"{scoring:.3g}")
        cells.append("–" if memory is None else f"{memory / 2**30:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes(found)])


def notes(found: dict) -> list[str]:
    """List what a reader of the table must know."""
    rows, search = found["rows"], found["search"]
    lines = ["Mean ± standard deviation over the seeds, on the test split."]
    if any(row["difference"] for row in rows):
        lines[0] += (
            f" Differences are paired by seed, to `{REFERENCE}` with the same other fields (a row of `{REFERENCE}`: to "
            "that with the base recipe's), in brackets with their 95 % t-interval where there are three seeds or more, "
            "each for itself."
        )
    if any(len(row["labels"]) < len(found["fields"]) for row in rows):
        lines[0] += " – is a field that the method does not have."
    missing = sum(len(found["seeds"]) - len(row["seeds"]) for row in rows)
    if missing:
        lines.append(f"{missing} runs are missing: they failed, or have not been run.")
    if search is not None:
        tried = ", ".join(f"{name} of {' '.join(map(text, each))}" for name, each in search["candidates"].items())
        how = "all combinations" if search["product"] else "one field after the other"
        other = "".join(f", {name} {text(value)}" for name, value in search["overrides"].items())
        lines.append(f"Settings by an equal search on validation RSUM ({how}, seed {search['seed']}{other}): {tried}.")
        for each in search["found"]:
            name = " ".join(text(value) for value in each["group"].values())
            chosen = ", ".join(f"{field} {text(value)}" for field, value in each["chosen"].items())
            failed = sum(score is None for score in each["trials"].values())
            lines.append(
                f"- {name}: {chosen} (validation RSUM {each['validation_rsum']:.1f}, {len(each['trials'])} trials"
                + (f", of which {failed} failed)" if failed else ")")
            )
    return lines


def plus_minus(value: dict | None) -> str:
    if value is None:
        return "–"
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.1f}"
    return f"{value['mean']:.1f}{deviation}"


def difference(value: dict | None) -> str:
    if value is None:
        return "–"
    deviation = "" if value["deviation"] is None else f" ± {value['deviation']:.1f}"
    interval = "" if value["interval"] is None else " [{:+.1f}, {:+.1f}]".format(*value["interval"])
    return f"{value['mean']:+.1f}{deviation}{interval}"


def text(value) -> str:
    """Format a field's value for a table."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    return f"`{value}`" if isinstance(value, str) else str(value)
