"""Draws a sentence over a picture: a panel per word."""

import math

from matplotlib.figure import Figure
from PIL import Image

from omit_hf.alignment import WordAlignment, word_alignment
from omit_hf.visualization.panels import (
    GAP,
    TITLE,
    UNDER,
    colour_scale,
    panel_size,
    picture_panel,
    place,
    shown_picture,
    word_panel,
)

ACROSS = 14.0  # inches
MOST_PANELS = 8  # side by side
FOOT = 0.42  # of the scale of colours
SCALE = "of a word's mass"


def explain(model, processor, picture=None, sentence: str = "", **options) -> Figure:
    """Draw where the words of a sentence get their mass from: `draw_words` of `word_alignment`.

    Args:
        model: `OmitModel` with a head that aligns words with fragments.
        processor: its `OmitProcessor`.
        picture: a PIL image; None if the model takes regions and there is no picture.
        sentence: the text to align.
        options: `regions`, `boxes` and `matching`; see `word_alignment`.

    Raises:
        ValueError: as `word_alignment` does, and for regions without boxes.
    """
    return draw_words(word_alignment(model, processor, picture, sentence, **options), picture)


def draw_words(alignment: WordAlignment, picture: Image.Image | None = None) -> Figure:
    """Draw the picture, then a panel per word: fragments that give the word more mass are darker.

    Cells are a heat map. Of regions the best three are drawn as boxes, bolder for more mass, with the share of the
    best. All panels share one scale, so a word without a counterpart stays pale. The bar and the number under a panel
    show how much of the word's mass comes from fragments; the rest comes from the image's dustbin. A word's title is
    grey if the dustbin gives more than half. Heads without a plan have neither bar nor number.

    Args:
        alignment: alignment from `word_alignment`.
        picture: the picture that was aligned; None for an empty frame.

    Raises:
        ValueError: if regions have no boxes, or the picture has another size.
    """
    picture = shown_picture(picture, alignment)
    width, height = size = panel_size(alignment)
    panels = len(alignment.words) + 1
    across = min(panels, MOST_PANELS, max(1, int((ACROSS - GAP) / (width + GAP))))
    rows = math.ceil(panels / across)
    across = math.ceil(panels / rows)
    each = TITLE + height + UNDER + GAP
    figure = Figure(figsize=(across * (width + GAP) + GAP, rows * each + FOOT))
    highest = max(float(alignment.mass.max()), 1e-12)
    for number in range(panels):
        row, column = divmod(number, across)
        axis = place(figure, GAP + column * (width + GAP), row * each + TITLE, width, height)
        if number == 0:
            picture_panel(axis, picture, alignment, f"similarity {alignment.similarity:.2f}", width)
        else:
            word_panel(axis, picture, alignment, number - 1, highest, size)
    colour_scale(figure, rows * each, highest, SCALE)
    return figure
