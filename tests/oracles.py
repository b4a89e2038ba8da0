"""Independent computations in float64, one pair at a time, in plain loops."""

import math

import numpy as np


def textbook_plan(similarity, mu, nu, regularization, num_iterations):
    """The plan exp(−C/λ), rescaled in place: rows to μ, columns to ν, n times. Rows and columns without mass stay 0."""
    rows, columns = len(mu), len(nu)
    plan = [
        [math.exp((similarity[k][l] - 1) / regularization) if mu[k] > 0 and nu[l] > 0 else 0.0 for l in range(columns)]
        for k in range(rows)
    ]
    for _ in range(num_iterations):
        for k in range(rows):
            total = sum(plan[k])
            if total > 0:
                plan[k] = [entry * mu[k] / total for entry in plan[k]]
        for l in range(columns):
            total = sum(plan[k][l] for k in range(rows))
            if total > 0:
                for k in range(rows):
                    plan[k][l] *= nu[l] / total
    return np.array(plan).reshape(rows, columns)


def shares(weights):
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else [0.0 for _ in weights]


def softmax(values):
    top = max(values, default=0.0)
    return shares([math.exp(value - top) for value in values])


def fragment_shares(kind, fragments, norms, own_pooled, other_pooled):
    """The mass of each of one item's valid fragments, before a dustbin takes its part."""
    if kind == "uniform":
        return shares([1.0 for _ in fragments])
    if kind == "norm":
        return shares(list(norms))
    pooled = own_pooled if kind == "self_global" else other_pooled
    return softmax([float(fragment @ pooled) for fragment in fragments])


def pair_score(matching, image, text, regularization, num_iterations, marginals="uniform", dustbin="global", bins=None):
    """Score of one image and one caption; each a dict of numpy arrays `embeds` (valid ones alone), `norms`, `pooled`.

    `bins` holds the two learned dustbin vectors, or the learned similarity. Returns the score, and Σ P·|S|, which it is
    compared to.
    """
    mu = fragment_shares(marginals, image["embeds"], image["norms"], image["pooled"], text["pooled"])
    nu = fragment_shares(marginals, text["embeds"], text["norms"], text["pooled"], image["pooled"])
    if matching == "ot":
        similarity = [[float(v @ t) for t in text["embeds"]] for v in image["embeds"]]
        plan = textbook_plan(similarity, mu, nu, regularization, num_iterations)
        pairs = [(k, l) for k in range(len(mu)) for l in range(len(nu))]
    else:
        image_bin, text_bin = bins if dustbin == "learned" else (image["pooled"], text["pooled"])
        v, t = [image_bin, *image["embeds"]], [text_bin, *text["embeds"]]
        similarity = [[float(a @ b) for b in t] for a in v]
        if dustbin == "scalar":
            for k in range(len(v)):
                for l in range(len(t)):
                    if k == 0 or l == 0:
                        similarity[k][l] = float(bins)
        mu = [1 / len(v), *(share * (1 - 1 / len(v)) for share in mu)]
        nu = [1 / len(t), *(share * (1 - 1 / len(t)) for share in nu)]
        plan = textbook_plan(similarity, mu, nu, regularization, num_iterations)
        pairs = [(k, l) for k in range(1, len(v)) for l in range(1, len(t))]
    score = sum(plan[k][l] * similarity[k][l] for k, l in pairs)
    return score, sum(plan[k][l] * abs(similarity[k][l]) for k, l in pairs)
