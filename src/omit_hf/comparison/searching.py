"""The equal search: the same trials for every method, judged on the validation split."""

import itertools

from omit_hf.comparison.plan import Comparison, Grid, Run, matters
from omit_hf.comparison.running import Runner, check_folders, metrics_of


def search_settings(comparison: Comparison, grids: list[Grid], runner: Runner) -> list[dict]:
    """Try the candidates of every method of these grids, and choose those of the highest validation RSUM.

    Of candidates that are as good, the first is chosen. A trial's model is never tested.

    Returns:
        A dict per method: `group` (the fields that define it), `chosen` (fields and values), `validation_rsum` (of the
        best trial) and `trials` (names of its runs → RSUM). A method whose trials all failed is left out.
    """
    found = [{"group": group, "chosen": {}, "trials": {}} for group in comparison.groups(grids)]
    for stage in comparison.search.stages:
        candidates = [_candidates(comparison, stage, each) for each in found]
        trials = [
            [comparison.trial(each["group"], c) for c in tried] for each, tried in zip(found, candidates, strict=True)
        ]
        runs = [run for row in trials for run in row]
        check_folders(runs)
        runner.run(runs, "Search")
        for each, tried, row in zip(found, candidates, trials, strict=True):
            scores = [_rsum(run) for run in row]
            each["trials"] |= {run.name: score for run, score in zip(row, scores, strict=True)}
            best = max((score for score in scores if score is not None), default=None)
            if best is not None:
                each |= {"chosen": tried[scores.index(best)], "validation_rsum": best}
    return [each for each in found if "validation_rsum" in each]


def _candidates(comparison: Comparison, stage: list[str], found: dict) -> list[dict]:
    """The settings that a stage tries, with what the stages before it chose."""
    values = comparison.fields_of(found["group"])
    names = [name for name in stage if matters(name, values)]
    lists = [comparison.search.candidates[name] for name in names]
    return [{**found["chosen"], **dict(zip(names, each, strict=True))} for each in itertools.product(*lists)]


def _rsum(run: Run) -> float | None:
    metrics = metrics_of(run)
    return None if metrics is None else metrics["validation"]["rsum"]
