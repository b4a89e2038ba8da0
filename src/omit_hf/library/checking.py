"""How many of the best items two stages find, against scoring everything, and how many candidates that takes."""

import time
from dataclasses import dataclass

import torch

from omit_hf.library.ranking import Query, best, rank_items
from omit_hf.library.stores import Store

COUNTS = (50, 100, 200, 400, 800, 1600, 3200)


@dataclass
class Check:
    """The overlap of two stages with scoring everything.

    Args:
        k: of the best that are compared.
        queries: how many, and `kind`, what they were.
        overlap: by number of candidates, the share of the exact best k that were found, on average.
        candidates: the smallest number with at least the share that was asked for; the largest if none has it.
        milliseconds: of a query by number of candidates, median.
        exact_milliseconds: of scoring everything, on average.
    """

    k: int
    queries: int
    kind: str
    overlap: dict[int, float]
    candidates: int
    milliseconds: dict[int, float]
    exact_milliseconds: float

    def __str__(self) -> str:
        lines = [f"| candidates | of the best {self.k} | ms a query |", "|---|---|---|"]
        lines += [
            f"| {count} | {share:.1%} | {self.milliseconds[count]:.0f} |" for count, share in self.overlap.items()
        ]
        return "\n".join([*lines, f"| all | 100.0% | {self.exact_milliseconds:.0f} |"])


def check_candidates(queries: list[Query], kind: str, store: Store, k: int, share: float) -> Check:
    """Compare the best k of all counts of candidates with those of all items. `store` has a `scan` beside its methods.

    Raises:
        ValueError: for no query, k below 1, or a share outside (0, 1].
    """
    if not queries:
        raise ValueError("There is no query; expected at least one.")
    if k < 1 or not 0 < share <= 1:
        raise ValueError(f"k is {k} and share is {share}; expected k from 1, and a share above 0 and at most 1.")
    started = time.perf_counter()
    exact = [([], torch.zeros(0))] * len(queries)
    for ids, items in store.scan():
        for number, query in enumerate(queries):
            old_ids, old_scores = exact[number]
            exact[number] = best(old_ids + ids, torch.cat([old_scores, query.scores(items)]), k)[:2]
    exact_milliseconds = 1000 * (time.perf_counter() - started) / len(queries)

    found: dict[int, list[float]] = {}
    seconds: dict[int, list[float]] = {}
    for query, (wanted, _) in zip(queries, exact, strict=True):
        words = query.words()
        for count in COUNTS:
            started = time.perf_counter()
            ids = store.candidates(*words, None, count).ids
            ranked = rank_items(query, store, ids, k).ids
            seconds.setdefault(count, []).append(time.perf_counter() - started)
            found.setdefault(count, []).append(len(set(ranked) & set(wanted)) / len(wanted))
            if len(ids) < count:
                break
    overlap = {count: sum(shares) / len(shares) for count, shares in found.items()}
    chosen = next((count for count, value in overlap.items() if value >= share), max(overlap))
    milliseconds = {count: 1000 * sorted(times)[len(times) // 2] for count, times in seconds.items()}
    return Check(k, len(queries), kind, overlap, chosen, milliseconds, exact_milliseconds)
