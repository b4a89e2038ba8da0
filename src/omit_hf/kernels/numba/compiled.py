"""Compiled code of the Numba backend: the iterations of pairs, and their gradient; `transport.py` calls it.

A caption with all the images of a block is the unit of work: its E fits the cache of a core. Images are innermost, so
that every inner loop becomes vector instructions. The mathematics is that of `tiled/transport.py`.
"""

import math

import numba
import numpy as np

# What lets sums be done in vectors; that NaN and infinity exist stays true.
FAST = {"contract", "reassoc", "nsz", "arcp"}
LOG2_E, LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
TAYLOR = tuple(np.float32(1 / math.factorial(degree)) for degree in range(8))


def compiled(function=None, **options):
    """`numba.njit`, kept on disk where there is a place for it."""
    if function is None:
        return lambda function: compiled(function, **options)
    options |= {"nogil": True, "fastmath": FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return numba.njit(**options)(function)


@compiled(parallel=True)
def write_scores(workers, similarity, starts, mu, nu, num_iterations, num_dustbins, smallest, largest, scores):
    """Write Σ P S/λ over the fragments of each pair.

    Args:
        workers: how many captions are in hand at a time, each with its own memory.
        similarity: S/λ, float32 [W, R, I], at most 60 in absolute value.
        starts: where each caption's words begin, and the last one's end, [T + 1].
        mu, nu: [1 or T, R, I] and [W, I].
        num_iterations: n.
        num_dustbins: how many rows are dustbins.
        smallest, largest: what every sum must lie between.
        scores: [T, I], written.

    Returns:
        How many sums do not.
    """
    outside = np.zeros(workers, np.int64)
    for worker in numba.prange(workers):
        buffers = _buffers(num_iterations, starts, similarity)
        for t in range(np.int64(worker), len(scores), workers):
            words = slice(starts[t], starts[t + 1])
            outside[worker] += _iterate(similarity[words], mu[t % len(mu)], nu[words], smallest, largest, *buffers)
            _score(similarity[words], num_dustbins, scores[t], *buffers)
    return outside.sum()


@compiled(parallel=True)
def write_gradients(
    workers,
    similarity,
    starts,
    mu,
    nu,
    num_iterations,
    num_dustbins,
    smallest,
    largest,
    scale,
    weight,
    gradient,
    grad_mu,
    grad_nu,
):
    """Write the gradients of Σ weight · score over the pairs, by way of the n iterations.

    Args:
        workers … largest: as in `write_scores`.
        scale: 1/λ.
        weight: λ times what comes in, [T, I].
        gradient: with respect to S, [W, R, I], written.
        grad_mu, grad_nu: [T, R, I] and [W, I], written.

    Returns:
        How many sums are outside.
    """
    outside = np.zeros(workers, np.int64)
    for worker in numba.prange(workers):
        buffers = _buffers(num_iterations, starts, similarity)
        for t in range(np.int64(worker), len(weight), workers):
            words = slice(starts[t], starts[t + 1])
            outside[worker] += _iterate(similarity[words], mu[t % len(mu)], nu[words], smallest, largest, *buffers)
            _gradient(
                similarity[words], mu[t % len(mu)], num_dustbins, scale, weight[t],
                gradient[words], grad_mu[t], grad_nu[words], *buffers,
            )  # fmt: skip
    return outside.sum()


@compiled
def _buffers(num_iterations, starts, similarity):
    """Memory for E, a, b and the sums of one caption, as many words as the longest has."""
    words, regions, images = np.diff(starts).max(), similarity.shape[1], similarity.shape[2]
    a = np.empty((num_iterations, regions, images), np.float32)
    b = np.empty((num_iterations + 1, words, images), np.float32)
    return np.empty((words, regions, images), np.float32), a, b, np.empty_like(a), np.empty_like(b[1:])


@compiled
def _exponential(exponent, result):
    """result = exp(exponent), as 2^n times a Taylor series in what is left; for a result that is a normal float32."""
    for c in range(exponent.shape[0]):
        for r in range(exponent.shape[1]):
            for i in range(exponent.shape[2]):
                power = np.rint(exponent[c, r, i] * LOG2_E)
                rest = exponent[c, r, i] - power * LN_2  # at most ln 2 / 2
                series = TAYLOR[7]
                for degree in range(6, -1, -1):
                    series = series * rest + TAYLOR[degree]
                result[c, r, i] = series * np.int32((np.int32(power) + 127) << 23).view(np.float32)


@compiled
def _iterate(similarity, mu, nu, smallest, largest, kernel, a, b, row_sums, column_sums):
    """The iterations of one caption: write E, a_1 … a_n, b_0 … b_n and the sums that each divides by."""
    words, regions, images = similarity.shape
    _exponential(similarity, kernel)
    outside = 0
    row_sums[:] = 0
    column_sums[:] = 0
    for c in range(words):
        for i in range(images):
            b[0, c, i] = nu[c, i] > 0
        _add_to_rows(kernel[c], b[0, c], row_sums[0])
    for step in range(len(a)):
        for r in range(regions):
            for i in range(images):
                outside += not (smallest <= row_sums[step, r, i] <= largest)
                a[step, r, i] = mu[r, i] / row_sums[step, r, i]
        for c in range(words):  # while its part of E is in the nearest cache, a column serves the next iteration's rows
            _add_to_column(kernel[c], a[step], column_sums[step, c])
            for i in range(images):
                outside += not (smallest <= column_sums[step, c, i] <= largest)
                b[step + 1, c, i] = nu[c, i] / column_sums[step, c, i]
            if step + 1 < len(a):
                _add_to_rows(kernel[c], b[step + 1, c], row_sums[step + 1])
    return outside


@compiled
def _add_to_rows(entries, factor, sums):
    """sums[r, i] += entries[r, i] factor[i]"""
    for r in range(entries.shape[0]):
        for i in range(entries.shape[1]):
            sums[r, i] += entries[r, i] * factor[i]


@compiled
def _add_to_column(entries, factor, sums):
    """sums[i] += Σ_r entries[r, i] factor[r, i]"""
    for r in range(entries.shape[0]):
        for i in range(entries.shape[1]):
            sums[i] += entries[r, i] * factor[r, i]


@compiled
def _score(similarity, num_dustbins, scores, kernel, a, b, row_sums, column_sums):
    words, regions, images = similarity.shape
    a, b, totals = a[-1], b[-1], column_sums[0, 0]  # the sums have served
    scores[:] = 0
    for c in range(num_dustbins, words):
        totals[:] = 0
        for r in range(num_dustbins, regions):
            for i in range(images):
                totals[i] += kernel[c, r, i] * similarity[c, r, i] * a[r, i]
        for i in range(images):
            scores[i] += totals[i] * b[c, i]


@compiled
def _gradient(
    similarity, mu, num_dustbins, scale, weight, gradient, grad_mu, grad_nu, kernel, a, b, row_sums, column_sums
):
    words, regions, images = similarity.shape
    steps = len(a)
    row_grads, column_grads = np.empty_like(row_sums), np.empty_like(column_sums)  # r̄ and c̄ of each iteration
    grad_a, (grad_b, mean, rest, excess, mass) = np.zeros_like(a[0]), np.empty((5, images), np.float32)
    grad_mu[:] = 0
    zero = np.float32(0)  # of rows without mass, which play no part: their E, and what it multiplies, may overflow

    # score = λ Σ a E b (S/λ) with b = ν / Eᵀ a, as in `TiledTransport.gradient`; `mean` is made twice, too.
    for c in range(words):
        mean[:] = 0
        for _ in range(2 if c >= num_dustbins else 0):
            rest[:] = 0
            for r in range(regions):
                for i in range(images):
                    counted = similarity[c, r, i] if r >= num_dustbins else zero
                    rest[i] += kernel[c, r, i] * a[steps - 1, r, i] * (counted - mean[i])
            for i in range(images):
                mean[i] += rest[i] / column_sums[steps - 1, c, i] if b[steps, c, i] != 0 else zero
        for i in range(images):
            grad_nu[c, i] = mean[i] * weight[i]
            column_grads[steps - 1, c, i] = -grad_nu[c, i] * b[steps, c, i]
            rest[i] = weight[i] * b[steps, c, i]
        for r in range(regions):
            for i in range(images):
                counted = similarity[c, r, i] if c >= num_dustbins and r >= num_dustbins else zero
                grad_a[r, i] += kernel[c, r, i] * (counted - mean[i]) * rest[i]

    for step in range(steps - 1, -1, -1):
        excess[:] = 0  # Σ μ·share, which is 0 but for rounding
        mass[:] = 0
        for r in range(regions):  # a = μ / r, r = E b
            for i in range(images):
                grad_a[r, i] /= row_sums[step, r, i]
                excess[i] += mu[r, i] * grad_a[r, i] if a[step, r, i] != 0 else zero
                mass[i] += mu[r, i]
        for r in range(regions):
            for i in range(images):
                share = grad_a[r, i] - excess[i] / mass[i]
                grad_mu[r, i] += share
                row_grads[step, r, i] = -share * a[step, r, i] if a[step, r, i] != 0 else zero
        grad_a[:] = 0
        for c in range(words if step > 0 else 0):  # b = ν / c, c = Eᵀ a
            grad_b[:] = 0
            _add_to_column(kernel[c], row_grads[step], grad_b)
            for i in range(images):
                share = grad_b[i] / column_sums[step - 1, c, i]
                grad_nu[c, i] += share
                column_grads[step - 1, c, i] = -share * b[step, c, i] if b[step, c, i] != 0 else zero
            _add_to_rows(kernel[c], column_grads[step - 1, c], grad_a)

    for c in range(words):
        gradient[c] = 0
        if c >= num_dustbins:
            for r in range(num_dustbins, regions):
                for i in range(images):
                    gradient[c, r, i] = (
                        (similarity[c, r, i] + np.float32(1)) * weight[i] * a[steps - 1, r, i] * b[steps, c, i]
                    )
        for step in range(steps):
            for r in range(regions):
                for i in range(images):
                    gradient[c, r, i] += (
                        a[step, r, i] * column_grads[step, c, i] + row_grads[step, r, i] * b[step, c, i]
                    )
        for r in range(regions):
            for i in range(images):
                gradient[c, r, i] *= kernel[c, r, i] * scale
