"""A sentence over a picture: a panel a word."""

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
    """Draw where a model moves the mass of each word of a sentence: `draw_words` of `word_alignment`.

    Args:
        model: `OmitModel` with a head that aligns words with fragments.
        processor: its `OmitProcessor`.
        picture: a PIL image; None, where the model takes regions and there is none.
        sentence: a caption.
        options: `regions`, `boxes` and `matching`; see `word_alignment`.

    Raises:
        ValueError: as `word_alignment` does, and for regions without boxes.
    """
    return draw_words(word_alignment(model, processor, picture, sentence, **options), picture)


def draw_words(alignment: WordAlignment, picture: Image.Image | None = None) -> Figure:
    """The picture, then a panel a word: dark where the fragments are that the word's mass comes from.

    Cells are a heat map; of regions the best three are drawn as boxes, bolder for more mass, with the share of the
    best. All panels have one scale, so a word without a counterpart stays pale. The bar under a panel, and the number,
    tell how much of the word's mass comes from fragments; the rest comes from the image's dustbin. The title of a word
    is grey where that is the greater part. Heads that do not transport have neither bar nor number.

    Args:
        alignment: from `word_alignment`.
        picture: the one that was aligned; None for an empty frame.

    Raises:
        ValueError: for regions without boxes, or a picture of another size.
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
