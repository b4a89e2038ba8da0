"""Scores of an alignment: the words of a phrase should get their mass from the box of what it names, and the dustbins
should get the rest.

The scores are functions of arrays: the mass that a phrase's words get from every cell, the cells' rectangles, and the
boxes. Here a cell is any image fragment: of a grid, or a precomputed region.
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
    """Tell whether the cell with the most mass is inside. If several tie, all of them must be.

    Args:
        mass: mass that the phrase's words get from every cell, [K].
        inside: true where a cell's centre lies in the box, bool [K]; see `centre_inside`.

    Example:
        >>> pointing_game(np.array([0.1, 0.3, 0.3]), np.array([False, True, False]))
        False
    """
    return bool(inside[mass == mass.max()].all())


def mass_inside(mass: np.ndarray, share: np.ndarray) -> float:
    """Compute the share of a phrase's mass that lies in the box; 0 for a phrase without mass.

    Args:
        mass: mass that the phrase's words get from every cell, [K].
        share: share of a cell's area that lies in the box, [K]; the same share of its mass counts. See `share_inside`.

    Example:
        >>> mass_inside(np.array([0.2, 0.1, 0.1]), np.array([1.0, 0.5, 0.0]))
        0.625
    """
    total = mass.sum()
    return float(mass / total @ share) if total > 0 else 0.0


def ranking_auc(mass: np.ndarray, inside: np.ndarray) -> float:
    """Compute the area under the ROC curve: the chance that a cell inside has more mass than one outside. Ties count
    half.

    Args:
        mass: mass that the phrase's words get from every cell, [K].
        inside: true where a cell's centre lies in the box, bool [K].

    Returns:
        A number from 0 to 1; NaN if all cells are inside, or none.

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
    """Compute the three scores of a phrase, with chance levels and oracles.

    Chance is the expected score of an alignment that prefers no cell: its values are dealt to the cells at random. The
    oracle is the highest score that any alignment reaches on these cells, with all of its mass on the cells of the box.
    It is below 1 if the box is too small to hold a cell's centre (or a whole cell).

    Args:
        mass: mass that the phrase's words get from every cell, [K], at least 0.
        cells: rectangles of the cells, [K, 4].
        boxes: boxes of what the phrase names, [N, 4]; a cell in any of the boxes counts.

    Returns:
        `pointing`, `mass_inside` and `auc`, and the same with `_chance` and `_oracle`, from 0 to 1. `auc` is NaN if all
        centres lie in the boxes, or none.

    Raises:
        ValueError: if shapes do not fit, or mass is negative or not a number.
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
    """Find the words of a caption that have a character in a span; spaces do not count.

    Args:
        caption: the text.
        offsets: first character of every word and the one after its last, [L, 2]: the `offset_mapping` of a fast
            tokenizer. Special tokens and padding have (0, 0).
        start, end: first character of the span and the one after its last.

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
    """Compute the share of some words' mass that comes from the image's dustbin.

    Given the transposed plan, it computes the share of some cells' mass that goes to the caption's dustbin.

    Args:
        plan: [K + 1, L + 1], dustbins first; K and L valid fragments.
        words: the chosen words, bool [L].

    Returns:
        Four numbers from 0 to 1: the share; the share in a plan without preferences, the product of the marginals; and
        the least and the greatest share of any plan with these marginals, which the dustbin's mass limits. NaN if no
        word is chosen or the words have no mass.

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
    """Compute the dustbins' share of the mass of words and of cells, with chance levels and oracles.

    `unnamed_words` and `background_cells` have no counterpart, so their oracle is the greatest share that the dustbin's
    mass allows. For the others it is the least.

    Args:
        plan: plan of an image and its caption, [K + 1, L + 1], dustbins first.
        unnamed: words outside all phrases, bool [L].
        named: words of phrases with a box, bool [L].
        cells: rectangles of the cells, [K, 4].
        boxes: boxes of all objects of the image, [N, 4]; a cell that touches no box is background.
        named_boxes: boxes of the objects that the caption names, [M, 4].

    Returns:
        `unnamed_words`, `named_words`, `background_cells`, `object_cells` and `named_cells`, and the same with
        `_chance` and `_oracle`, from 0 to 1; NaN for a group that is empty.
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
    """Measure the alignment scores of a model: every image with its own captions, not all pairs.

    The mass of a phrase from a cell is the sum over its words. A sub-word counts as a word; it belongs to a phrase if
    they share a character. If a phrase names several boxes, a cell in any of the boxes counts. `unnamed_words` are the
    words outside all phrases, and punctuation if the tokenizer has a token for it.

    The cells of a grid are where they look, as `OmitModel.fragment_boxes` measures it; they may overlap. A head that
    aligns a word with a single cell (`maxsim`, `chan`) leaves all other cells tied, so its AUC says little.

    Args:
        model: `OmitModel` whose head aligns; in evaluation mode for the duration of the call.
        processor: `OmitProcessor` with a fast tokenizer.
        split: split in the schema of `omit_hf.data`, with `width`, `height`, `boxes` and `phrases`: Scenes, or the
            result of `load_entities`. Precomputed regions also need `region_boxes` [K, 4], in the same pixels.
        batch_size: images encoded at once, with their captions.
        progress: show a progress bar.

    Returns:
        The scores of `phrase_scores`, averaged over phrases. Their number is `phrases`; `auc_phrases` counts those with
        a defined `auc`. For heads with dustbins also the scores of `dustbin_scores`, averaged over captions. All have
        `_chance` and `_oracle` and are in percent. `skipped_phrases` counts phrases for which the tokenizer has no
        token.

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
    """Score every phrase with a box and, if the head has them, the dustbins; count the phrases with a box but no
    word."""
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
    """Format alignment scores as a Markdown table, with chance levels and oracles."""
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
