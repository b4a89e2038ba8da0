"""Draws the transport plan, with both dustbins and the marginals."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from omit_hf.alignment import WordAlignment
from omit_hf.visualization.fonts import families
from omit_hf.visualization.panels import BAR, GAP, colour_scale, fitted, heat_map, place, shown_picture

ROW, THUMBNAIL = 0.34, 0.32
WIDEST_COLUMN, NARROWEST_COLUMN, ACROSS = 0.5, 0.34, 11.0
LABELS, HEAD, BARS, APART = 1.15, 1.0, 0.9, 0.1
BAR_LENGTH = 0.65  # of the space that bars and numbers share
DARK = 0.55  # share of the highest mass, above which numbers are white
SMALLEST_NUMBER = 0.07  # share of it, below which there are none


def draw_plan(alignment: WordAlignment, picture: Image.Image | None = None, fragments: int = 12) -> Figure:
    """Draw the plan as a matrix: a column per word, a row per image fragment, in per cent of the whole mass.

    The dustbins are the first row and the first column, set apart. Shows the fragments that give most to some word,
    ordered by that word; the last row sums the rest. Bars show the mass of every row and column, and ticks on them the
    marginals: columns hold theirs exactly, rows in the limit of many iterations.

    Args:
        alignment: alignment from `word_alignment`, by a head with a plan.
        picture: the picture that was aligned; adds a thumbnail of the fragment beside its row.
        fragments: number of fragments to show, at least one.

    Raises:
        ValueError: if the head has no plan, `fragments` is below 1, or the picture has another size.
    """
    if alignment.plan is None:
        raise ValueError(
            f"matching is {alignment.matching!r}, which has no transport plan; 'omit' and 'ot' have one. Draw the "
            "words of this one."
        )
    if fragments < 1:
        raise ValueError(f"fragments is {fragments}; expected at least 1.")
    dustbins = int(alignment.has_dustbins)
    shown, others = chosen_fragments(alignment.mass, fragments)
    # Blocks that are set apart, of rows or columns with a name and the numbers in the plan that they add up.
    rows = [[("image dustbin", [0])]] * dustbins
    rows.append([(_fragment_name(alignment, each), [dustbins + each]) for each in shown.tolist()])
    rows += [[(f"{len(others)} others", (dustbins + others).tolist())]] if len(others) else []
    columns = [[("text dustbin", [0])]] * dustbins
    columns.append([(word, [dustbins + number]) for number, word in enumerate(alignment.words)])

    values = [[_sums(alignment.plan, block, across) for across in columns] for block in rows]
    highest = max(float(each.max()) for line in values[: dustbins + 1] for each in line)
    width = min(WIDEST_COLUMN, max(NARROWEST_COLUMN, ACROSS / alignment.plan.shape[1]))
    left = GAP + LABELS + THUMBNAIL
    right = left + alignment.plan.shape[1] * width + len(columns) * APART
    bottom = HEAD + sum(map(len, rows)) * ROW + len(rows) * APART
    figure = Figure(figsize=(right + BARS + GAP, bottom + BARS + GAP))
    picture = shown_picture(picture, alignment)

    row_most = max(alignment.plan.sum(axis=1).max(), alignment.row_marginals.max())
    column_most = alignment.column_marginals.max()
    top = HEAD
    for block, line in zip(rows, values, strict=True):
        tall, x = len(block) * ROW, left
        for across, cells in zip(columns, line, strict=True):
            axis = place(figure, x, top, len(across) * width, tall)
            _cells(axis, cells, highest, summed=len(block[0][1]) > 1)
            if top == HEAD:
                _column_names(axis, [name for name, _ in across])
            x += len(across) * width + APART
        _row_names(figure, block, top)
        if picture is not None and alignment.places() is not None:
            _thumbnails(figure, block, top, picture, alignment)
        every = [("", list(range(alignment.plan.shape[1])))]
        masses = _sums(alignment.plan, block, every)[:, 0]
        marginals = [alignment.row_marginals[numbers].sum() for _, numbers in block]
        _bars(place(figure, x, top, BARS, tall), masses, marginals, row_most)
        top += tall + APART
    note = place(figure, x, 0, BARS, HEAD - 0.1)
    note.text(0, 0, "mass in %\n| marginal", fontsize=7, va="bottom")
    x = left
    for across in columns:
        axis = place(figure, x, bottom, len(across) * width, BARS)
        masses = [alignment.plan[:, numbers].sum() for _, numbers in across]
        marginals = [alignment.column_marginals[numbers].sum() for _, numbers in across]
        _bars(axis, masses, marginals, column_most, upright=True)
        x += len(across) * width + APART
    colour_scale(figure, bottom + 0.2, highest, "of the whole mass")
    return figure


def chosen_fragments(mass: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose the fragments to show.

    Args:
        mass: share of a word's mass that comes from a fragment, [K, L].
        count: how many to show. If a single fragment would be left over, it is shown too.

    Returns:
        The fragments that give the greatest share of some word's mass, ordered by that word and then by the share; and
        the others, in their order.
    """
    if len(mass) <= count + 1:
        count = len(mass)
    best, word = mass.max(axis=1), mass.argmax(axis=1)
    chosen = np.argsort(-best, kind="stable")[:count]
    chosen = chosen[np.lexsort((-best[chosen], word[chosen]))]
    return chosen, np.setdiff1d(np.arange(len(mass)), chosen)


Block = list[tuple[str, list[int]]]


def _sums(plan: np.ndarray, rows: Block, columns: Block) -> np.ndarray:
    return np.array([[plan[np.ix_(each, those)].sum() for _, those in columns] for _, each in rows])


def _fragment_name(alignment: WordAlignment, fragment: int) -> str:
    if alignment.grid is None:
        return f"region {fragment + 1}"
    row, column = divmod(fragment, alignment.grid[1])
    return f"row {row + 1}, col {column + 1}"


def _cells(axis: Axes, cells: np.ndarray, highest: float, summed: bool) -> None:
    """Draw cells of the matrix, with their mass in per cent unless it is small; sums have no colour."""
    rows, columns = cells.shape
    digits = 1 if highest >= 0.02 else 2
    if not summed:
        heat_map(axis, cells / highest, (0, columns, rows, 0))
    axis.set(xlim=(0, columns), ylim=(rows, 0), aspect="auto")
    axis.add_patch(Rectangle((0, 0), columns, rows, facecolor="none", edgecolor="0.6", linewidth=0.6, clip_on=False))
    for row, column in np.argwhere(cells >= SMALLEST_NUMBER * highest):
        value = cells[row, column]
        color = "white" if value > DARK * highest and not summed else "black"
        text = f"{100 * value:.{digits}f}"
        axis.text(column + 0.5, row + 0.5, text, color=color, fontsize=6.5, ha="center", va="center")


def _column_names(axis: Axes, names: list[str]) -> None:
    for number, name in enumerate(names):
        text, size = fitted(name, (HEAD - 0.1) / np.sin(np.pi / 3) - 0.1, 9)
        axis.text(
            number + 0.4,
            -0.25,
            text,
            fontsize=size,
            fontfamily=families(text),
            rotation=60,
            rotation_mode="anchor",
            ha="left",
            va="center",
            parse_math=False,
        )


def _row_names(figure: Figure, block: Block, top: float) -> None:
    axis = place(figure, GAP, top, LABELS, len(block) * ROW)
    axis.set_ylim(len(block), 0)
    for row, (name, _) in enumerate(block):
        text, size = fitted(name, LABELS - 0.1, 9)
        axis.text(0.95, row + 0.5, text, fontsize=size, ha="right", va="center")


def _thumbnails(figure: Figure, block: Block, top: float, picture: Image.Image, alignment: WordAlignment) -> None:
    """Draw thumbnails of a block's single fragments."""
    places, dustbins = alignment.places(), int(alignment.has_dustbins)
    for row, (_, numbers) in enumerate(block):
        if len(numbers) > 1 or numbers[0] < dustbins:
            continue
        axis = place(figure, GAP + LABELS, top + row * ROW + 0.02, THUMBNAIL - 0.04, ROW - 0.04)
        x0, y0, x1, y1 = places[numbers[0] - dustbins]
        axis.imshow(picture, extent=(0, alignment.width, alignment.height, 0))
        axis.set_xlim(x0, max(x1, x0 + 1))
        axis.set_ylim(max(y1, y0 + 1), y0)


def _bars(axis: Axes, masses, marginals, most: float, upright: bool = False) -> None:
    """Draw bars of masses with numbers in per cent and ticks at the marginals; sums are too large and get only
    numbers."""
    count = len(masses)
    axis.set_xlim((0, count) if upright else (0, 1))
    axis.set_ylim((1, 0) if upright else (count, 0))
    for number, (mass, marginal) in enumerate(zip(masses, marginals, strict=True)):
        middle, text = number + 0.5, f"{100 * mass:.1f}"
        if max(mass, marginal) > 1.001 * most:
            axis.text(0, middle, f"{text} of {100 * marginal:.1f}", fontsize=6.5, va="center")
            continue
        length, tick = BAR_LENGTH * mass / most, BAR_LENGTH * marginal / most
        end = max(length, tick) + 0.05
        if upright:
            axis.add_patch(Rectangle((number + 0.2, 0), 0.6, length, color=BAR, linewidth=0))
            axis.plot([number + 0.12, number + 0.88], [tick, tick], color="black", linewidth=1.4)
            axis.text(middle, end, text, fontsize=6.5, ha="center", va="top")
        else:
            axis.add_patch(Rectangle((0, number + 0.2), length, 0.6, color=BAR, linewidth=0))
            axis.plot([tick, tick], [number + 0.12, number + 0.88], color="black", linewidth=1.4)
            axis.text(end, middle, text, fontsize=6.5, va="center")
