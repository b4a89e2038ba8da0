"""Draws several methods on one picture and sentence: a row per method, a column per word."""

import math
from collections.abc import Sequence
from difflib import SequenceMatcher

from matplotlib.figure import Figure
from PIL import Image

from omit_hf.alignment import WordAlignment
from omit_hf.visualization import panels
from omit_hf.visualization.words import ACROSS, FOOT, MOST_PANELS, SCALE

APART = 0.25  # between blocks of words


def draw_comparison(
    alignments: Sequence[WordAlignment], names: Sequence[str], picture: Image.Image | None = None
) -> Figure:
    """Draw the alignments of one picture and sentence by several methods, side by side.

    The columns are the words of the first alignment; many words wrap into several blocks. Panels are those of
    `draw_words` and share one scale. If a method's tokenizer lacks a word, its panel says so.

    Args:
        alignments: alignments from `word_alignment`, at least one.
        names: a name per alignment, written above its picture.
        picture: the picture that was aligned; None for an empty frame.

    Raises:
        ValueError: if there is no alignment, the number of names differs, pictures have other sizes, or regions have no
            boxes.
    """
    if not alignments or len(alignments) != len(names):
        raise ValueError(f"There are {len(alignments)} alignments and {len(names)} names; expected as many, from one.")
    first = alignments[0]
    sizes = sorted({(each.width, each.height) for each in alignments})
    if len(sizes) > 1:
        raise ValueError(f"The alignments are of pictures of the sizes {sizes}; expected those of one picture.")
    picture = panels.shown_picture(picture, first)
    width, height = size = panels.panel_size(first)
    words = len(first.words)
    across = min(words, MOST_PANELS - 1, max(1, int((ACROSS - panels.GAP) / (width + panels.GAP)) - 1))
    blocks = math.ceil(words / across)
    across = math.ceil(words / blocks)
    each = panels.TITLE + height + panels.UNDER + panels.GAP
    block_height = len(alignments) * each + APART
    figure = Figure(figsize=((across + 1) * (width + panels.GAP) + panels.GAP, blocks * block_height + FOOT - APART))
    highest = max(max(float(each.mass.max()) for each in alignments), 1e-12)
    for row, (alignment, name) in enumerate(zip(alignments, names, strict=True)):
        own = _same_words(first.words, alignment.words)
        for number in range(words):
            block, column = divmod(number, across)
            top = block * block_height + row * each + panels.TITLE
            if column == 0:
                axis = panels.place(figure, panels.GAP, top, width, height)
                panels.picture_panel(axis, picture, alignment, name, width, f"  {alignment.similarity:.2f}")
            axis = panels.place(figure, panels.GAP + (column + 1) * (width + panels.GAP), top, width, height)
            if own[number] is None:
                panels.write(axis, first.words[number], width, panels.PALE, ": no such word")
            else:
                panels.word_panel(axis, picture, alignment, own[number], highest, size)
    panels.colour_scale(figure, blocks * block_height - APART, highest, SCALE)
    return figure


def _same_words(words: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Find every word among others, in order: its number there, or None."""
    found: list[int | None] = [None] * len(words)
    matcher = SequenceMatcher(None, *([each.casefold() for each in side] for side in (words, others)), autojunk=False)
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            found[block.a + step] = block.b + step
    return found
