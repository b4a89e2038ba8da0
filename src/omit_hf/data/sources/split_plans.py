"""Which splits of a source make ours."""

from collections.abc import Iterable, Sequence

from omit_hf.data.schema import SPLIT_NAMES, SPLITS, chosen_splits, listed
from omit_hf.parsing import shown


def split_plan(
    what: object, found: Iterable[str], splits: dict | None, only: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """Which of the splits found make each of ours.

    Args:
        what: the source, for messages.
        found: names in the source.
        splits: ours → theirs, or a list of theirs; by default by their usual names, such as `val` and `restval`.
        only: those of ours that are wanted; by default all that are found.

    Raises:
        ValueError: if a name is unknown and may be that of a split that is wanted, is not found or serves twice; or
            there is no split that is wanted.
    """
    plan = _whole_plan(list(found), splits, only)
    return {ours: plan[ours] for ours in chosen_splits(what, plan, only)}


def _whole_plan(found: list[str], splits: dict | None, only: Sequence[str] | None) -> dict[str, list[str]]:
    if splits is None:
        unknown = [name for name in found if name not in SPLIT_NAMES]
        ours = {SPLIT_NAMES[name] for name in found if name in SPLIT_NAMES}
        if unknown and not (only is not None and set(only) <= ours):
            raise ValueError(
                f"splits {listed(unknown)} are unknown; map them with the option splits: {{train: …, validation: …, "
                f"test: …}}. The source has {listed(found)}."
            )
        usual = [name for name in SPLIT_NAMES if name in found]
        return {ours: theirs for ours in SPLITS if (theirs := [name for name in usual if SPLIT_NAMES[name] == ours])}
    plan = {}
    for ours, theirs in splits.items():
        plan[ours] = [theirs] if isinstance(theirs, str) else theirs
        if not isinstance(plan[ours], list | tuple) or not all(isinstance(name, str) for name in plan[ours]):
            raise ValueError(
                f"splits maps {ours} to {shown(theirs)}; expected a name of the source, or a list of them."
            )
    named = [name for theirs in plan.values() for name in theirs]
    if not plan.keys() <= set(SPLITS) or not plan:
        raise ValueError(f"splits maps {listed(plan) or 'nothing'}; expected some of {', '.join(SPLITS)}.")
    if not set(named) <= set(found):
        raise ValueError(f"splits names {listed(sorted(set(named) - set(found)))}; the source has {listed(found)}.")
    if len(set(named)) < len(named):
        raise ValueError(f"splits names {listed(sorted({name for name in named if named.count(name) > 1}))} twice.")
    return plan
