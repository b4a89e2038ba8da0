"""The parts of every drawing: a picture, a word over it, a heat map, and axes and labels at fixed places.

Lengths are in inches, so that nothing overlaps, whatever the picture's shape or the caption's length. More mass is
darker, on a paler picture. The colours are viridis: colour-blind eyes tell them apart, and they fall from light to
dark, so that a grey print shows the same.
"""

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from PIL import Image

from omit_hf.alignment import WordAlignment
from omit_hf.modeling.pictures_omit import rgb_picture
from omit_hf.visualization.fonts import families

# Without viridis's palest fifth, which is lighter than a pale picture and would not darken it.
COLOURS = ListedColormap(colormaps["viridis_r"](np.linspace(0.2, 1, 256)), "dark viridis")
OPACITY = 0.85  # of the darkest cell; the picture shows through
BAR, BAR_REST, PALE = "#31688e", "0.85", "0.45"
FONT, SMALLEST_FONT = 10, 6.5
PANEL = 1.6  # side of a square panel; others have the same area
TITLE, UNDER, GAP = 0.24, 0.16, 0.12  # above a panel, below it, and to the next
SCALE_WIDTH = 1.1
BOXES = 3  # the best regions of a word
SHOWN_PIXELS = 800  # on a side of a picture, of which a figure may hold dozens
FAINTEST = 0.05  # share of a word's mass, below which a box is not drawn


def shown_picture(picture: Image.Image | None, alignment: WordAlignment) -> Image.Image | None:
    """Shrink the aligned picture to the size at which it is shown.

    Raises:
        ValueError: if its size is not that of the alignment.
    """
    if picture is None:
        return None
    picture = rgb_picture(picture)
    if picture.size != (alignment.width, alignment.height):
        raise ValueError(
            f"The picture has {picture.width} x {picture.height} pixels, and the aligned one {alignment.width} x "
            f"{alignment.height}; expected the same one."
        )
    picture = picture.copy()
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    return picture


def panel_size(alignment: WordAlignment) -> tuple[float, float]:
    """Compute width and height of a panel; very tall or wide pictures leave room for a title too."""
    ratio = min(4.0, max(0.4, alignment.width / alignment.height))
    return PANEL * ratio**0.5, PANEL / ratio**0.5


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes of some size at a distance from the figure's top left corner."""
    across, down = figure.get_size_inches()
    axis = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axis.set_axis_off()
    return axis


def fitted(text: str, width: float, size: float = FONT, ending: str = "") -> tuple[str, float]:
    """Fit a text and its ending into a width, in a smaller font or with the text cut; also returns the font size."""
    points, whole = 72 * width, text + ending
    size = max(SMALLEST_FONT, min(size, size * points / max(1e-6, _text_width(whole, size))))
    while _text_width(whole, size) > 1.001 * points and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
        whole = text + ending
    return whole, size


def _text_width(text: str, size: float) -> float:
    """Measure the width of a text in points; a dollar sign is no mathematics."""
    font = FontProperties(family=families(text), size=size)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]


def write(axis: Axes, text: str, width: float, color: str = "black", ending: str = "") -> None:
    """Write the title of some axes, no wider than allowed."""
    text, size = fitted(text, width, ending=ending)
    axis.set_title(text, fontsize=size, fontfamily=families(text), color=color, pad=4, parse_math=False)


def heat_map(axis: Axes, values: np.ndarray, extent: tuple | None = None) -> None:
    """Draw cells with values from 0 (transparent) to 1 (darkest)."""
    opacity = OPACITY * np.sqrt(values)
    axis.imshow(values, extent=extent, cmap=COLOURS, vmin=0, vmax=1, alpha=opacity, interpolation="nearest")


def tiles(axis: Axes, values: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Draw a heat map whose columns and rows lie between the edges x and y, which need not be evenly spaced."""
    if all(np.allclose(np.diff(edges), np.diff(edges)[0]) for edges in (x, y)):
        heat_map(axis, values, (x[0], x[-1], y[-1], y[0]))
    else:
        axis.pcolormesh(x, y, values, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY * np.sqrt(values), linewidth=0)


def colour_scale(figure: Figure, top: float, highest: float, label: str) -> None:
    """Draw a strip of the heat map's colours at the left, with the value of the darkest."""
    axis = place(figure, GAP, top, SCALE_WIDTH, 0.1)
    axis.set_axis_on()
    heat_map(axis, np.linspace(0, 1, 256)[None], (0, highest, 0, 1))
    axis.set_aspect("auto")
    axis.set_yticks([])
    digits = 0 if highest > 0.1 else 1
    names = ["0", f"{50 * highest:.{digits}f}%", f"{100 * highest:.{digits}f}%"]
    axis.set_xticks([0, highest / 2, highest], names, fontsize=7)
    axis.tick_params(length=2, pad=1)
    axis.set_xlabel(label, fontsize=7, labelpad=1)
    for spine in axis.spines.values():
        spine.set_linewidth(0.4)


def picture_panel(
    axis: Axes, picture: Image.Image | None, alignment: WordAlignment, title: str, width: float, ending: str = ""
) -> None:
    """Draw the picture as it is, with its regions outlined."""
    _frame(axis, alignment)
    if picture is None:
        axis.add_patch(_outline((0, 0, alignment.width, alignment.height), facecolor="0.95", edgecolor="0.6"))
    else:
        axis.imshow(picture, extent=(0, alignment.width, alignment.height, 0))
    for box in () if alignment.boxes is None or alignment.grid is not None else alignment.boxes:
        axis.add_patch(_outline(box, edgecolor="white", linewidth=1.2, alpha=0.7))
        axis.add_patch(_outline(box, edgecolor="black", linewidth=0.5, alpha=0.7))
    write(axis, title, width, ending=ending)


def word_panel(
    axis: Axes,
    picture: Image.Image | None,
    alignment: WordAlignment,
    word: int,
    highest: float,
    size: tuple[float, float],
) -> None:
    """Draw where a word's mass comes from, darker for more, and a bar for the share that comes from fragments.

    Args:
        picture: drawn pale; None for an empty frame.
        word: number of the word.
        highest: share of a word's mass that gets the darkest colour.
        size: size of the axes.
    """
    _frame(axis, alignment)
    extent = (0, alignment.width, alignment.height, 0)
    if picture is None:
        axis.add_patch(_outline((0, 0, alignment.width, alignment.height), facecolor="0.97", edgecolor="0.75"))
    else:
        axis.imshow(np.asarray(picture.convert("L")), extent=extent, cmap="gray", vmin=-380, vmax=255)
    mass = alignment.mass[:, word]
    if alignment.grid is not None:
        tiles(axis, mass.reshape(alignment.grid) / highest, *alignment.tiles())
        _frame(axis, alignment)  # what a processor pads lies outside of it
    else:
        _boxes(axis, alignment, mass, highest)
    name = alignment.words[word] if alignment.known[word] else f"{alignment.words[word]} (unknown)"
    if alignment.plan is None:  # without transport there is no mass that could be unmatched
        write(axis, name, size[0])
    else:
        matched = float(alignment.matched[word])
        write(axis, name, size[0], "black" if matched >= 0.5 else PALE, f"  {matched:.0%}")
        _bar(axis, alignment, matched, size)


def _frame(axis: Axes, alignment: WordAlignment) -> None:
    axis.set_aspect("equal")
    axis.set_xlim(0, alignment.width)
    axis.set_ylim(alignment.height, 0)


def _boxes(axis: Axes, alignment: WordAlignment, mass: np.ndarray, highest: float) -> None:
    """The best regions of a word, the best one with its share."""
    if alignment.boxes is None:
        raise ValueError(
            "The boxes of the regions are not known, so words cannot be drawn where they are; give boxes, [K, 4] in "
            "pixels, or draw the plan, which needs none."
        )
    best = [region for region in np.argsort(-mass, kind="stable")[:BOXES] if mass[region] >= FAINTEST]
    for region in reversed(best):
        strength = float(mass[region] / highest)
        box, width = alignment.boxes[region], 0.8 + 2.2 * strength
        halo = [withStroke(linewidth=width + 1.6, foreground="white")]
        axis.add_patch(_outline(box, facecolor=BAR, edgecolor="none", alpha=0.3 * strength))
        axis.add_patch(
            _outline(
                box,
                edgecolor=COLOURS(0.3 + 0.7 * strength),
                linewidth=width,
                alpha=0.6 + 0.4 * strength,
                path_effects=halo,
            )
        )
    if best:
        x0, y0 = alignment.boxes[best[0]][:2]
        label = axis.text(x0, y0, f"{mass[best[0]]:.0%}", fontsize=7, va="top", color="black", clip_on=True)
        label.set_path_effects([withStroke(linewidth=2, foreground="white")])


def _outline(box, **style) -> Rectangle:
    x0, y0, x1, y1 = box
    return Rectangle((x0, y0), x1 - x0, y1 - y0, **{"facecolor": "none", **style})


def _bar(axis: Axes, alignment: WordAlignment, share: float, size: tuple[float, float]) -> None:
    pixels = max(alignment.width / size[0], alignment.height / size[1])  # an inch
    top, thickness = alignment.height + 0.05 * pixels, 0.06 * pixels
    for length, color in ((1, BAR_REST), (share, BAR)):
        bar = Rectangle((0, top), alignment.width * length, thickness, color=color, linewidth=0, clip_on=False)
        axis.add_patch(bar)
