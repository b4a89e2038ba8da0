"""Does the mass of a phrase's words lie in the box of what the phrase names? And do the dustbins get the rest?

The scores are functions of arrays: the mass that a phrase's words get from each cell, where the cells lie, and the
boxes. A cell is a fragment of the image: of a grid, or a precomputed region.
"""

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from omit_hf.alignment.cells import centre_inside, share_inside
from omit_hf.alignment.split import AlignedPair, Aligner, check_mass

PHRASE_SCORES = {
    "pointing": "pointing game",
    "mass_inside": "mass inside the box",
    "auc": "AUC of the cells",
}
DUSTBIN_SCORES = {
    "unnamed_words": "words of no phrase: from the dustbin",
    "named_words": "words of phrases: from the dustbin",
    "background_cells": "background cells: to the dustbin",
    "object_cells": "cells of objects: to the dustbin",
    "named_cells": "cells of named objects: to the dustbin",
}


# --- of one phrase ----------------------------------------------------------------------------------------------------


def pointing_game(mass: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the cell with the most mass is inside. Where several have it, all of them must be.

    Args:
        mass: that the phrase's words get from each cell, [K].
        inside: whether a cell's centre lies in the box, bool [K]; see `centre_inside`.

    Example:
        >>> pointing_game(np.array([0.1, 0.3, 0.3]), np.array([False, True, False]))
        False
    """
    return bool(inside[mass == mass.max()].all())


def mass_inside(mass: np.ndarray, share: np.ndarray) -> float:
    """The share of a phrase's mass that lies in the box; 0 for a phrase without any.

    Args:
        mass: that the phrase's words get from each cell, [K].
        share: of each cell's area that lies in the box, [K]: its mass counts by as much; see `share_inside`.

    Example:
        >>> mass_inside(np.array([0.2, 0.1, 0.1]), np.array([1.0, 0.5, 0.0]))
        0.625
    """
    total = mass.sum()
    return float(mass / total @ share) if total > 0 else 0.0


def ranking_auc(mass: np.ndarray, inside: np.ndarray) -> float:
    """The chance that a cell inside has more mass than one outside, ties counting half: the area under the ROC curve.

    Args:
        mass: that the phrase's words get from each cell, [K].
        inside: whether a cell's centre lies in the box, bool [K].

    Returns:
        From 0 to 1; NaN where all cells are inside, or none.

    Example:
        >>> ranking_auc(np.array([0.3, 0.1, 0.1]), np.array([True, True, False]))
        0.75
    """
    others = np.sort(mass[~inside])
    if len(others) in (0, len(mass)):
        return float("nan")
    below, at_most = (np.searchsorted(others, mass[inside], side) for side in ("left", "right"))
    return float((below + at_most).mean() / 2 / len(others))


def phrase_scores(mass: np.ndarray, cells: np.ndarray, boxes: np.ndarray) -> dict[str, float]:
    """The three scores of a phrase, each with its chance level and an oracle.

    Chance is the expectation for an alignment that prefers no cell: one whose values are dealt out to the cells at
    random. The oracle is the most that any alignment reaches on these cells, all of its mass being on the cells of the
    box: less than 1 where no cell's centre (or no whole cell) lies in the box, because it is small.

    Args:
        mass: that the phrase's words get from each cell, [K], at least 0.
        cells: their rectangles, [K, 4].
        boxes: of what the phrase names, [N, 4]; in any of them is inside.

    Returns:
        `pointing`, `mass_inside` and `auc`, and the same with `_chance` and `_oracle`, from 0 to 1. `auc` is NaN where
        all centres lie in the box, or none.

    Raises:
        ValueError: for shapes that do not fit, or mass that is negative or no number.
    """
    mass = np.asarray(mass, dtype=np.float64)
    if mass.ndim != 1 or len(mass) == 0 or np.shape(cells) != (len(mass), 4):
        raise ValueError(f"mass has shape {mass.shape} and cells {np.shape(cells)}; expected [K] and [K, 4], K from 1.")
    if np.ndim(boxes) != 2 or np.shape(boxes)[1] != 4 or len(boxes) == 0:
        raise ValueError(f"boxes has shape {np.shape(boxes)}; expected [N, 4], at least one box.")
    check_mass(mass, "mass")
    share, inside = share_inside(cells, boxes), centre_inside(cells, boxes)
    auc = ranking_auc(mass, inside)
    defined = 0 * auc  # NaN where it is
    return {
        "pointing": float(pointing_game(mass, inside)),
        "pointing_chance": float(inside.mean()),
        "pointing_oracle": float(inside.any()),
        "mass_inside": mass_inside(mass, share),
        "mass_inside_chance": float(share.mean()),
        "mass_inside_oracle": float(share.max()),
        "auc": auc,
        "auc_chance": 0.5 + defined,
        "auc_oracle": 1 + defined,
    }


def phrase_words(caption: str, offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """Which words of a caption have a character in a span; spaces do not count.

    Args:
        caption: the text.
        offsets: the characters that each word stands for, from its first to before its last, [L, 2]: the
            `offset_mapping` of a fast tokenizer. Special tokens and padding have none, (0, 0).
        start, end: the span, likewise.

    Returns:
        Bool [L].

    Example:
        >>> phrase_words("a red  star", np.array([[0, 0], [0, 1], [2, 5], [5, 11]]), 0, 6).tolist()
        [False, True, True, False]
    """
    found = np.zeros(len(offsets), dtype=bool)
    for word, (first, last) in enumerate(np.asarray(offsets)):
        found[word] = bool(caption[max(first, start) : min(last, end)].strip())
    return found


# --- of the dustbins --------------------------------------------------------------------------------------------------


def dustbin_share(plan: np.ndarray, words: np.ndarray) -> tuple[float, float, float, float]:
    """How much of some words' mass comes from the image's dustbin; of the transpose, how much of some cells' mass goes
    to the text's.

    Args:
        plan: [K + 1, L + 1], dustbins first; K and L valid fragments.
        words: the chosen ones, bool [L].

    Returns:
        The share, from 0 to 1; that of a plan without preferences, the product of this one's marginals; and the least
        and the most that a plan with the same marginals can have, which the dustbin's own mass limits. NaN where the
        words are none or have no mass.

    Example:
        >>> plan = np.array([[0.1, 0.1, 0.0], [0.2, 0.1, 0.5]])  # one cell, two words
        >>> [round(each, 3) for each in dustbin_share(plan, np.array([True, False]))]
        [0.5, 0.2, 0.0, 1.0]
    """
    chosen = np.concatenate([[False], words])
    columns, given = plan.sum(axis=0), plan[0]
    mass, rest, dustbin = columns[chosen].sum(), columns[~chosen].sum(), given.sum()
    if not mass > 0:
        return (float("nan"),) * 4
    share, chance = given[chosen].sum() / mass, dustbin / columns.sum()
    return float(share), float(chance), float(max(0, dustbin - rest) / mass), float(min(1, dustbin / mass))


def dustbin_scores(
    plan: np.ndarray,
    unnamed: np.ndarray,
    named: np.ndarray,
    cells: np.ndarray,
    boxes: np.ndarray,
    named_boxes: np.ndarray,
) -> dict[str, float]:
    """What the dustbins get of words and of cells, each with chance level and oracle.

    The oracle is the most that the dustbin's mass allows for `unnamed_words` and `background_cells`, which have no
    counterpart, and the least that it allows for the others.

    Args:
        plan: of an image and its caption, [K + 1, L + 1], dustbins first.
        unnamed: words of no phrase, bool [L].
        named: words of phrases with a box, bool [L].
        cells: rectangles, [K, 4].
        boxes: of all objects of the image, [N, 4]; a cell that touches none is background.
        named_boxes: of the objects that the caption names, [M, 4].

    Returns:
        `unnamed_words`, `named_words`, `background_cells`, `object_cells` and `named_cells`, and the same with
        `_chance` and `_oracle`, from 0 to 1; NaN where there are none.
    """
    objects = share_inside(cells, boxes) > 0
    groups = {
        "unnamed_words": (plan, unnamed, True),
        "named_words": (plan, named, False),
        "background_cells": (plan.T, ~objects, True),
        "object_cells": (plan.T, objects, False),
        "named_cells": (plan.T, share_inside(cells, named_boxes) > 0, False),
    }
    scores = {}
    for name, (side, chosen, unmatched) in groups.items():
        share, chance, least, most = dustbin_share(side, chosen)
        scores |= {name: share, f"{name}_chance": chance, f"{name}_oracle": most if unmatched else least}
    return scores


# --- of a model on a split --------------------------------------------------------------------------------------------


def evaluate_alignment(
    model, processor, split: Dataset, *, batch_size: int = 32, progress: bool = True
) -> dict[str, float]:
    """Alignment scores of a model: of every image with its own captions, not of all pairs.

    A phrase's mass from a cell is the sum over its words; a sub-word is a word, and belongs to a phrase where it shares
    a character with it. Where a phrase names several boxes, in any of them is inside. `unnamed_words` are those that no
    phrase holds, punctuation included where the tokenizer has a token for it.

    The cells of a grid are taken to divide evenly what the image processor shows of the picture. Where a backbone's
    cells look elsewhere, as those of padded convolutions with strides do by up to half a cell, the scores suffer. Of an
    alignment that has a single cell a word (`maxsim`, `chan`) the other cells tie, and the AUC says little.

    Args:
        model: `OmitModel` whose head aligns; put into evaluation mode meanwhile.
        processor: `OmitProcessor` with a fast tokenizer.
        split: in the schema of `omit_hf.data`, with `width`, `height`, `boxes` and `phrases`: of Scenes, or from
            `load_entities`. Of precomputed regions, also `region_boxes` [K, 4], in the same pixels.
        batch_size: images encoded at once, with their captions.
        progress: show a progress bar.

    Returns:
        The scores of `phrase_scores`, a mean over phrases (`phrases`; of `auc`, over those where it is defined,
        `auc_phrases`), and of heads with dustbins those of `dustbin_scores`, a mean over captions; each with `_chance`
        and `_oracle`, all in percent. And `skipped_phrases`: those of whose words the tokenizer leaves none.

    Raises:
        ValueError: if the head does not align, the tokenizer is slow, a column is missing, phrases or boxes do not fit
            their captions and pictures (all are listed), no phrase has a box, the cells cannot be located, or an
            alignment holds NaN.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    aligner = Aligner(model, processor, split)
    rows: list[dict[str, float]] = []
    skipped = 0
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(aligner), desc="Aligning", disable=not progress, leave=False) as bar:
            for start in range(0, len(aligner), batch_size):
                numbers = range(start, min(start + batch_size, len(aligner)))
                for pair in aligner.pairs(numbers):
                    scores, without_words = pair_scores(pair)
                    rows += scores
                    skipped += without_words
                bar.update(len(numbers))
    finally:
        model.train(was_training)
    phrases = [row["auc"] for row in rows if "auc" in row]
    if not phrases:
        raise ValueError("No phrase of the split names a box, or the tokenizer leaves nothing of it; expected some.")
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    means = {name: 100 * float(np.nanmean(each)) for name, each in values.items() if not np.isnan(each).all()}
    counts = {"phrases": len(phrases), "auc_phrases": int(np.isfinite(phrases).sum()), "skipped_phrases": skipped}
    return {**means, **counts}


def pair_scores(pair: AlignedPair) -> tuple[list[dict[str, float]], int]:
    """The scores of each phrase with a box and, where the head has dustbins, theirs; and how many phrases with a box
    have no word."""
    scores, skipped = [], 0
    named, held = (np.zeros(len(pair.offsets), dtype=bool) for _ in range(2))
    for phrase in pair.phrases:
        words = phrase_words(pair.caption, pair.offsets, phrase.start, phrase.end)
        held |= words
        if len(phrase.boxes) and words.any():
            named |= words
            scores.append(phrase_scores(pair.alignment[:, words].sum(axis=1), pair.cells, phrase.boxes))
        elif len(phrase.boxes):
            skipped += 1
    if pair.plan is not None:
        unnamed = phrase_words(pair.caption, pair.offsets, 0, len(pair.caption)) & ~held
        named_boxes = np.concatenate([np.empty((0, 4)), *(phrase.boxes for phrase in pair.phrases)])
        scores.append(dustbin_scores(pair.plan, unnamed, named, pair.cells, pair.boxes, named_boxes))
    return scores, skipped


def alignment_table(metrics: dict[str, float]) -> str:
    """Alignment scores as a Markdown table, with chance level and oracle beside each."""
    lines = ["| score (%) | model | chance | oracle |", "|---|---|---|---|"]
    for name, label in {**PHRASE_SCORES, **DUSTBIN_SCORES}.items():
        if name in metrics:
            cells = " | ".join(f"{metrics[key]:.1f}" for key in (name, f"{name}_chance", f"{name}_oracle"))
            lines.append(f"| {label} | {cells} |")
    notes = f"{metrics['phrases']} phrases"
    if metrics["auc_phrases"] < metrics["phrases"]:
        notes += f", {metrics['auc_phrases']} of them with cells both in the box and out of it, for the AUC"
    if metrics["skipped_phrases"]:
        notes += f"; {metrics['skipped_phrases']} more of which the tokenizer leaves nothing"
    return "\n".join([*lines, "", f"{notes}."])
