"""Metrics of retrieval in plain loops, one query at a time."""

import math

import numpy as np


def naive_metrics(similarity, index):
    """One query at a time; a tie with a negative counts against the positive."""
    image_ranks, text_ranks = [], []
    for i, row in enumerate(similarity):
        own = [t for t in range(len(row)) if index[t] == i]
        if own:
            best = max(row[t] for t in own)
            image_ranks.append(1 + sum(row[t] >= best for t in range(len(row)) if t not in own))
    for t, i in enumerate(index):
        text_ranks.append(1 + sum(similarity[o][t] >= similarity[i][t] for o in range(len(similarity)) if o != i))
    metrics = {}
    for way, ranks in (("i2t", image_ranks), ("t2i", text_ranks)):
        for k in (1, 5, 10):
            metrics[f"{way}_r{k}"] = 100 * (sum(rank <= k for rank in ranks) / len(ranks))
        metrics[f"{way}_medr"], metrics[f"{way}_meanr"] = float(np.median(ranks)), sum(ranks) / len(ranks)
    metrics["rsum"] = sum(metrics[f"{way}_r{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10))
    return metrics


def naive_average_precision(scores, relevant):
    order = sorted(range(len(scores)), key=lambda n: (-scores[n], relevant[n]))
    found = []
    for place, n in enumerate(order, 1):
        if relevant[n]:
            found.append((len(found) + 1) / place)
    return math.fsum(found) / len(found)


def naive_precision_at_r(way, queries):
    """mAP@R and R-precision of (scores, relevant) pairs; sums are rounded once."""
    average, precision = [], []
    for scores, relevant in queries:
        order = sorted(range(len(scores)), key=lambda n: (-scores[n], relevant[n]))
        count, hits, found = sum(relevant), 0, []
        for place in range(1, count + 1):
            if relevant[order[place - 1]]:
                hits += 1
                found.append(hits / place)
        average.append(math.fsum(found) / count)
        precision.append(hits / count)
    return {
        f"{way}_map_at_r": 100 * (math.fsum(average) / len(queries)),
        f"{way}_r_precision": 100 * (math.fsum(precision) / len(queries)),
    }
