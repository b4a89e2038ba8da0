"""Alignments of words by a plan that is written down."""

import numpy as np

from omit_hf.alignment import WordAlignment


def alignment(plan, words=("left", "star"), **options) -> WordAlignment:
    """Of a plan with dustbins first; a grid of one row by default."""
    plan = np.array(plan, dtype=float)
    mass = plan[1:, 1:] / plan[:, 1:].sum(axis=0)
    where = {"grid": (1, len(mass)), "area": (0, 0, 80, 40)} | options
    return WordAlignment(
        matching="omit",
        similarity=0.25,
        words=list(words),
        known=[True] * len(words),
        mass=mass,
        matched=mass.sum(axis=0),
        width=80,
        height=40,
        plan=plan,
        row_marginals=np.full(len(plan), 1 / len(plan)),
        column_marginals=plan.sum(axis=0),
        **where,
    )
