"""Plots of a grid, to be read in black and white and by the colour-blind too."""

from pathlib import Path

from omit_hf.comparison.table import METRICS
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.writing import appears_when_complete

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError as error:
    raise ImportError("The plots need matplotlib: pip install 'omit-hf[plot]', or --no_plots.") from error

# Okabe and Ito's colours, and a grey; the pale ones last.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (4, 1, 1, 1)), (0, (2, 2)))
AXES = {"regularization": "λ", "caption_noise": "share of shuffled captions"}
RATIO_FOR_LOGARITHM = 10


def plots(found: dict) -> dict[str, Figure]:
    """The plots that a grid gives: its metrics against each numeric field of three values or more, a line a method, and
    where methods alone vary, cost against quality.

    Args:
        found: as `summary` gives it.

    Returns:
        Figures by a name: the field's, or `cost`.
    """
    figures = {}
    for name, values in found["fields"].items():
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if numeric and len(values) > 2 and set(found["fields"]) <= {name, "matching"}:
            figures[name] = curve(found, name)
    if list(found["fields"]) == ["matching"] and any(row.get("scoring_seconds_per_million") for row in found["rows"]):
        figures["cost"] = cost(found)
    return figures


def save_plots(found: dict, folder: Path) -> list[Path]:
    """Write the plots of a grid as `<grid>_<plot>.png` and `.svg`.

    Returns:
        The files.
    """
    files = []
    for name, figure in plots(found).items():
        for kind in ("png", "svg"):
            files.append(folder / f"{found['grid']}_{name}.{kind}")
            with appears_when_complete(files[-1]) as partial:
                figure.savefig(partial, format=kind, dpi=200)
    return files


def curve(found: dict, field: str, metrics: tuple[str, ...] = ("i2t_r1", "t2i_r1", "rsum")) -> Figure:
    """Metrics against a numeric field, with a band of ± one deviation over the seeds (as the paper's Figure 3).

    A method that does not have the field is a level line.
    """
    values = sorted(found["fields"][field])
    figure = Figure(figsize=(3.4 * len(metrics), 3.2), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    lines: dict[str, list[dict]] = {}
    for row in found["rows"]:
        if row["seeds"]:
            lines.setdefault(row["labels"].get("matching", ""), []).append(row)
    for panel, metric in zip(panels, metrics, strict=True):
        for method, rows in lines.items():
            points = sorted((row["labels"][field], row["metrics"][metric]) for row in rows if field in row["labels"])
            if not points:
                points = [(value, rows[0]["metrics"][metric]) for value in (values[0], values[-1])]
            at = [value for value, _ in points]
            mean = [each["mean"] for _, each in points]
            low, high = (
                [m + sign * (e["deviation"] or 0) for m, (_, e) in zip(mean, points, strict=True)] for sign in (-1, 1)
            )
            style = style_of(method)
            panel.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
            panel.plot(at, mean, label=method or None, **style)
        if values[0] > 0 and values[-1] / values[0] >= RATIO_FOR_LOGARITHM:
            panel.set_xscale("log")
        panel.set_xticks(values, [f"{value:g}" for value in values])
        panel.tick_params(axis="x", labelsize="small")
        panel.minorticks_off()
        panel.set_xlabel(AXES.get(field, field))
        panel.set_ylabel(METRICS.get(metric, metric))
        panel.grid(alpha=0.3)
    if any(lines):
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    return figure


def cost(found: dict) -> Figure:
    """Scoring time a million pairs against RSUM, a point a method, with bars of ± one deviation over the seeds."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    panel = figure.subplots()
    for row in found["rows"]:
        if row["seeds"] and row["scoring_seconds_per_million"]:
            rsum, style = row["metrics"]["rsum"], style_of(row["labels"]["matching"])
            point = (row["scoring_seconds_per_million"], rsum["mean"])
            panel.errorbar(*point, yerr=rsum["deviation"] or 0, capsize=3, **{**style, "linestyle": "none"})
            panel.annotate(
                row["labels"]["matching"], point, xytext=(7, 4), textcoords="offset points", fontsize="small"
            )
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.margins(x=0.15, y=0.1)
    panel.set_xlabel("scoring, seconds a million pairs")
    panel.set_ylabel("RSUM")
    panel.grid(alpha=0.3)
    return figure


def style_of(method: str) -> dict:
    """Colour, marker and dashes of a method, the same in every plot."""
    number = list(MATCHING).index(method) if method in MATCHING else 0
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markeredgecolor": "black",
        "markeredgewidth": 0.5,
        "markersize": 6,
    }
