"""The words of a sentence as buttons, and the picture whose cells they light, as HTML.

Whatever comes from the visitor, a file or the tokenizer goes through `escape`.
"""

import base64
import io
import itertools
from html import escape

from PIL import Image

from omit_hf.alignment import WordAlignment

MOST_SHOWN = 768  # pixels of a picture's longer side on a page


def picture_with_cells(frame: dict, href: str | None) -> str:
    """A picture with a cell over each fragment, whose opacity the page sets; what the model does not see is dim.

    Args:
        frame: the fields of `WordAlignment` that locate the cells of a grid, as in `EncodedPicture.frame`.
        href: where the picture is; None to show the cells alone.
    """
    width, height, (x0, y0, x1, y1) = frame["width"], frame["height"], frame["area"]
    x, y = WordAlignment("", 0, [], [], *[None] * 2, **frame).tiles()
    cells = "".join(
        f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" height="{bottom - top:.2f}"/>'
        for top, bottom in itertools.pairwise(y)
        for left, right in itertools.pairwise(x)
    )
    picture = "" if href is None else f'<image href="{escape(href)}" width="{width}" height="{height}"/>'
    unseen = f"M0 0H{width}V{height}H0Z M{x0:.2f} {y0:.2f}H{x1:.2f}V{y1:.2f}H{x0:.2f}Z"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="--sides: {width / height:.4f}" role="img" '
        f'aria-label="The picture, {width} by {height} pixels">{picture}'
        f'<path class="unseen" fill-rule="evenodd" d="{unseen}"/><g class="cells">{cells}</g></svg>'
        '<p class="status" role="status" aria-live="polite"></p>'
    )


def data_url(picture: Image.Image, most: int = MOST_SHOWN) -> str:
    """A picture within a page, its longer side of at most so many pixels."""
    picture = picture.copy()
    picture.thumbnail((most, most))
    file, kind = io.BytesIO(), "png" if max(picture.size) <= 128 else "jpeg"
    picture.save(file, kind, **({} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def sentence_block(title: str, alignment: WordAlignment, sentence: str) -> str:
    """A sentence: its score, a button a word, and what its dustbins took."""
    highest = max(float(alignment.mass.max()), 1e-12)
    words = "".join(_word_button(alignment, number, highest) for number in range(len(alignment.words)))
    if alignment.has_dustbins:
        of_words, of_picture, of_cells = _dustbin_shares(alignment)
        where = button(
            "where",
            "show which cells",
            f"Cells in the dustbin: {of_picture:.0%} of the picture's mass. Lit cells found no word.",
            of_cells,
            1.0,
        )
        dustbins = (
            f'To the dustbins went <b data-of="words" data-share="{of_words:.6f}">{of_words:.0%}</b> of the words’ '
            f'mass and <b data-of="picture" data-share="{of_picture:.6f}">{of_picture:.0%}</b> of the picture’s: '
            f"{where}."
        )
    else:
        dustbins = f"This model matches with <code>{escape(alignment.matching)}</code>, which has no dustbins."
    return (
        f'<section class="sentence" aria-label="{escape(sentence)}"><h2>{escape(title)}'
        f'<output data-similarity="{alignment.similarity:.6f}">score {alignment.similarity:.3f}</output></h2>'
        f'<div class="words" role="group" aria-label="Words">{words}</div><p class="dustbins">{dustbins}</p></section>'
    )


def button(kind: str, content: str, tells: str, shares, highest: float, label: str = "", matched=None) -> str:
    """A button that lights the cells by their shares, of which `highest` is the brightest."""
    numbers = " ".join(f"{share:.4f}".rstrip("0").rstrip(".") for share in shares)
    label = f' aria-label="{escape(label)}"' if label else ""
    matched = "" if matched is None else f' data-matched="{matched:.6f}"'
    return (
        f'<button type="button" class="{kind}" aria-pressed="false"{label}{matched} data-tells="{escape(tells)}" '
        f'data-highest="{highest:.6f}" data-shares="{numbers}">{content}</button>'
    )


def message(text: str, kind: str = "hint") -> str:
    """A text in the place of what it is about; `error` is also read aloud."""
    role = ' role="alert"' if kind == "error" else ""
    return f'<p class="{kind}"{role}>{escape(text)}</p>'


def _word_button(alignment: WordAlignment, number: int, highest: float) -> str:
    word, mass, matched = alignment.words[number], alignment.mass[:, number], float(alignment.matched[number])
    row, column = divmod(int(mass.argmax()), alignment.grid[1])
    place = f"row {row + 1}, column {column + 1}"
    name = f'<span class="name">{escape(word)}</span>'
    tells = f"“{word}”: most of its mass, {mass.max():.0%}, comes from {place}"
    label = f"{word}, most from {place}"
    if alignment.has_dustbins:
        name += f'<span class="bar"><i style="width:{matched:.1%}"></i></span><span class="share">{matched:.0%}</span>'
        tells = f"“{word}”: {matched:.0%} of its mass comes from the picture, {mass.max():.0%} from {place} alone"
        tells += f"; {1 - matched:.0%} from the dustbin"
        label = f"{word}, {matched:.0%} from the picture"
    if not alignment.known[number]:
        tells, label = f"{tells}. The model does not know this word", f"{label}, not in the vocabulary"
    kind = "word" if alignment.known[number] else "word unknown"
    return button(kind, name, f"{tells}.", mass, highest, label, matched if alignment.has_dustbins else None)


def _dustbin_shares(alignment: WordAlignment) -> tuple:
    """Of a plan with dustbins: the share of all words' mass that is the image dustbin's; the share of all cells' mass
    that goes to the text dustbin; and that of each cell's own, [K]."""
    plan = alignment.plan
    of_cells = plan[1:, 0] / plan[1:].sum(axis=1).clip(1e-12)
    return float(plan[0, 1:].sum() / plan[:, 1:].sum()), float(plan[1:, 0].sum() / plan[1:].sum()), of_cells
