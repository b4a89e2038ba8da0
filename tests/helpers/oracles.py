"""Independent computations in float64, one pair at a time, in plain loops; and how far float32 may be from them."""

import math

import numpy as np

from omit_hf import sinkhorn
from omit_hf.modeling.sinkhorn_omit import row_similarity


def score_bound(size, product_size, entries, regularization, single=True):
    """How far a score may be from the truth: 2e-6/λ of `size` in single precision, and the rounding of the product.

    `size` is Σ P |S|, `product_size` is Σ P Σ_d |v_d| |t_d|, sums of so many `entries`. Where a cosine cancels it is
    only known to the rounding of its product, which is of the second and not of |S|: no product in float32 comes below
    that, the reference's neither, so eight units of it are granted (of 164 000 random pairs of one fragment, none erred
    by more than 4.9). What is below the type's smallest number, no entry can hold.
    """
    epsilon, unit, smallest = (2e-6, 2**-24, 2**-149) if single else (1e-11, 2**-53, 2**-1074)
    return epsilon / regularization * size + 8 * unit * product_size + smallest * entries


def score_bounds(rows_and_mass, regularization, num_iterations, num_dustbins, single=True, scale=None):
    """[`score_bound`] of every pair, [B_i, B_t]; takes the float64 tensors of `transport_similarity` in their order.

    `scale` stands for 1/λ in the bound, where [`logarithms`] are larger.
    """
    image_rows, mu, text_rows, nu = rows_and_mass
    similarity = row_similarity(image_rows, text_rows)
    plan = sinkhorn(similarity, mu, nu, regularization, num_iterations)
    fragments = plan[..., num_dustbins:, num_dustbins:]
    size, product_size = (
        (fragments * each[..., num_dustbins:, num_dustbins:].abs()).sum((-2, -1))
        for each in (similarity, row_similarity(image_rows.abs(), text_rows.abs()))
    )
    return score_bound(size, product_size, plan[0, 0].numel(), 1 / (scale or 1 / regularization), single)


def logarithms(mu, nu, regularization):
    """The largest logarithm that transport has in hand, in the place of 1/λ where masses are far from even.

    A float32 holds a logarithm, S/λ or that of a mass, to so many parts of itself: a bound of 2e-6/λ says of the first
    what it must of their sum.
    """
    return 1 / regularization - sum(np.log(each[each > 0].min(initial=1)) for each in map(np.asarray, (mu, nu)))


def log_domain_plan(similarity, mu, nu, regularization, num_iterations):
    """`textbook_plan` where exp(−C/λ) or a mass has no float64 to hold it: the logarithms of what scales the plan."""
    with np.errstate(divide="ignore"):
        log_mu, log_nu = np.log(mu), np.log(nu)
    exponent, b = similarity / regularization, np.where(nu > 0, 0.0, -np.inf)
    for _ in range(num_iterations):
        a = log_mu - np.logaddexp.reduce(exponent + b, axis=1)
        b = log_nu - np.logaddexp.reduce(exponent + a[:, None], axis=0)
    return np.exp(exponent + a[:, None] + b)


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


def pair_score(
    matching,
    image,
    text,
    regularization,
    num_iterations,
    marginals="uniform",
    dustbin="global",
    bins=None,
    score="local",
    global_weight=0,
):
    """Score of one image and one caption; each a dict of numpy arrays `embeds` (valid ones alone), `norms`, `pooled`.

    `bins` holds the two learned dustbin vectors, or the learned similarity. Returns the score, and the sizes of
    [`score_bound`].
    """
    mu = fragment_shares(marginals, image["embeds"], image["norms"], image["pooled"], text["pooled"])
    nu = fragment_shares(marginals, text["embeds"], text["norms"], text["pooled"], image["pooled"])
    if matching == "ot":
        v, t = image["embeds"], text["embeds"]
        similarity = [[float(a @ b) for b in t] for a in v]
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
        first = 0 if score == "augmented" else 1
        pairs = [(k, l) for k in range(first, len(v)) for l in range(first, len(t))]
    if not len(image["embeds"]) or not len(text["embeds"]):
        pairs, global_weight = [], 0
    total = sum(plan[k][l] * similarity[k][l] for k, l in pairs)
    size = sum(plan[k][l] * abs(similarity[k][l]) for k, l in pairs)
    likeness = float(image["pooled"] @ text["pooled"])
    total = (1 - global_weight) * total + global_weight * likeness
    product_size = sum(plan[k][l] * float(abs(v[k]) @ abs(t[l])) for k, l in pairs)
    product_size += global_weight * float(abs(image["pooled"]) @ abs(text["pooled"]))
    return total, size, product_size, len(pairs)
