"""Mean, deviation and paired differences over seeds."""

import math
import statistics
from dataclasses import dataclass


@dataclass
class Spread:
    """The spread of a figure over the seeds.

    Args:
        mean: mean of the values.
        deviation: standard deviation of a sample (n − 1); None for one value.
        interval: 95 % confidence interval of the mean by Student's t; None for fewer than three values.
        values: one per seed.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    values: list[float]


def spread(values: list[float]) -> Spread:
    """Compute mean, deviation and interval of values.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> found = spread([1.0, 2.0, 3.0])
        >>> found.mean, found.deviation, [round(bound, 2) for bound in found.interval]
        (2.0, 1.0, [-0.48, 4.48])
    """
    if not values:
        raise ValueError("values is empty; expected at least one.")
    mean, interval = statistics.fmean(values), None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    if len(values) > 2:
        half = student_quantile(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
        interval = (mean - half, mean + half)
    return Spread(mean, deviation, interval, list(values))


def paired(values: dict[int, float], reference: dict[int, float]) -> Spread | None:
    """Compute the differences to a reference, over the seeds that both have; None if there are none.

    Args:
        values, reference: seeds → figures.
    """
    seeds = [seed for seed in values if seed in reference]
    return spread([values[seed] - reference[seed] for seed in seeds]) if seeds else None


def student_probability(t: float, freedom: int) -> float:
    """Probability of a value up to t ≥ 0 under Student's t, exact for whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    total, term = 0.0, cosine if freedom % 2 else 1.0
    for k in range(1 + freedom % 2, freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + sine * total)
    return (1 + inside) / 2


def student_quantile(probability: float, freedom: int) -> float:
    """The value ≥ 0 up to which Student's t has this probability, by bisection.

    Raises:
        ValueError: for a probability outside [0.5, 1) or less than one degree of freedom.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"probability {probability} and freedom {freedom}; expected 0.5 to below 1, and at least 1.")
    low, high = 0.0, 1.0
    while student_probability(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_probability(middle, freedom) < probability else (low, middle)
    return high
