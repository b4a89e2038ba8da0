"""A comparison: one base recipe, and grids of the few fields in which its runs differ."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from omit_hf.cards.heads import LOSS_FIELDS
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.training import Recipe

RUN_FIELDS = ("seed", "output_dir", "resume", "overwrite_output_dir", "test")  # set for each run
FRESH = {"resume": False, "overwrite_output_dir": False, "test": True}
# Of fields that only some heads or losses read: which of them do.
READ_BY_HEADS = {each for head in MATCHING.values() for each in head.fields}
READ_BY_LOSSES = {each for fields in LOSS_FIELDS.values() for each in fields}


@dataclass
class Grid:
    """All combinations of some fields' values, each with several seeds.

    Args:
        name: name of its table.
        fields: the fields that vary → their values.
        seeds: seeds of every combination.
    """

    name: str
    fields: dict[str, list]
    seeds: list[int]


@dataclass
class Search:
    """An equal search for the settings of every method, judged by RSUM on the validation split alone.

    Args:
        candidates: fields → values to try.
        overrides: other fields that differ in a trial, such as fewer epochs.
        seed: seed of all trials.
        product: try all combinations; otherwise one field after another, and keep the best value for the next.
        per: fields whose values are tuned separately, `matching` and perhaps encoders.
    """

    candidates: dict[str, list]
    overrides: dict = field(default_factory=dict)
    seed: int = 0
    product: bool = False
    per: list[str] = field(default_factory=lambda: ["matching"])

    @property
    def stages(self) -> list[list[str]]:
        """The fields that are tried together, one list after the other."""
        return [list(self.candidates)] if self.product else [[name] for name in self.candidates]


@dataclass
class Run:
    """One training of a comparison.

    Args:
        name: its folder's, within that of the comparison.
        recipe: what it trains.
        labels: the fields that tell it from other runs, of those that mean something to it.
    """

    name: str
    recipe: Recipe
    labels: dict

    @property
    def folder(self) -> Path:
        return Path(self.recipe.output_dir)


@dataclass
class Comparison:
    """Everything that a comparison runs.

    Args:
        base: all fields of a recipe, which every run shares but for what its grid, `settings` and `search` set.
        grids: a table each.
        output_dir: folder of the runs and tables.
        settings: by field and value (as text), other fields that such runs need.
        search: the equal search for settings, if any.
    """

    base: dict
    grids: list[Grid]
    output_dir: Path
    settings: dict[str, dict[str, dict]] = field(default_factory=dict)
    search: Search | None = None

    def fields_of(self, labels: dict, *more: dict) -> dict:
        """All fields of the recipe of a combination; `more` are set last, and go before."""
        values = {**self.base, **labels}
        for name, settings in self.settings.items():
            values |= settings.get(str(values[name]), {})
        for each in more:
            values |= each
        return values

    def rows(self, grid: Grid) -> list[dict]:
        """The combinations that differ: a field that a head or loss does not read is left out of them."""
        rows = []
        for combination in itertools.product(*grid.fields.values()):
            labels = dict(zip(grid.fields, combination, strict=True))
            values = self.fields_of(labels)
            labels = {name: value for name, value in labels.items() if matters(name, values)}
            if labels not in rows:
                rows.append(labels)
        return rows

    def runs(self, grid: Grid, found: list[dict] | None = None) -> list[Run]:
        """All runs of a grid, but for those whose search found nothing.

        Args:
            grid: of this comparison.
            found: what the search chose: for each `group` what is `chosen`; None without a search.
        """
        tuned = [(labels, self.tuned(labels, found)) for labels in self.rows(grid)]
        return [self.run(labels, seed, chosen) for labels, chosen in tuned if chosen is not None for seed in grid.seeds]

    def tuned(self, labels: dict, found: list[dict] | None) -> dict | None:
        """What the search chose for a combination; None where it found nothing."""
        if found is None:
            return {}
        return next((each["chosen"] for each in found if each["group"] == self.group_of(labels)), None)

    def run(self, labels: dict, seed: int, tuned: dict | None = None) -> Run:
        """A run of a combination, with what the search chose for it."""
        name = "_".join([*self.name_of(labels), f"seed{seed}"])
        own = {**FRESH, "seed": seed, "output_dir": str(self.output_dir / name)}
        values = self.fields_of(labels, tuned or {}, own)
        return Run(name, Recipe(**values), labels)

    def trial(self, group: dict, candidate: dict) -> Run:
        """A run of the search."""
        labels = {**group, **candidate}
        name = "_".join(["search/" + self.name_of(group)[0], *self.name_of(labels)[1:], f"seed{self.search.seed}"])
        own = {**FRESH, "seed": self.search.seed, "output_dir": str(self.output_dir / name), "test": False}
        return Run(name, Recipe(**self.fields_of(group, candidate, self.search.overrides, own)), labels)

    def name_of(self, labels: dict) -> list[str]:
        """The parts of a run's name: its method, and each field that is not the base recipe's."""
        differ = {name: value for name, value in labels.items() if name != "matching" and value != self.base[name]}
        method = str(labels.get("matching", self.base["matching"]))
        return [method, *(f"{name}-{slug(value)}" for name, value in sorted(differ.items()))]

    def group_of(self, labels: dict) -> dict:
        """The fields by which a combination's settings are searched."""
        return {name: self.fields_of(labels)[name] for name in self.search.per}

    def groups(self, grids: Iterable[Grid]) -> list[dict]:
        """All that the search tunes for these grids, each once."""
        groups = []
        for grid in grids:
            for group in map(self.group_of, self.rows(grid)):
                if group not in groups:
                    groups.append(group)
        return groups

    def trials(self, group: dict) -> int:
        """How many different runs the search makes for a group."""
        values, count = self.fields_of(group), 0
        for stage in self.search.stages:
            sizes = {name: len(self.search.candidates[name]) for name in stage if matters(name, values)}
            # One that a stage before has run already, where nothing of this one was changed.
            known = count > 0 and all(values[name] in self.search.candidates[name] for name in sizes)
            count += math.prod(sizes.values()) - known if sizes else 0
        return count


def matters(name: str, values: dict) -> bool:
    """Whether the head and the loss of a recipe's values read a field."""
    if name in READ_BY_HEADS:
        head = MATCHING.get(str(values["matching"]))
        return head is None or name in head.fields
    if name in READ_BY_LOSSES:
        return name in LOSS_FIELDS.get(str(values["loss"]), ())
    return True


def slug(value) -> str:
    """A value as a part of a folder's name."""
    if isinstance(value, dict):
        text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)  # names as text, or they have no order
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{value.get('model_type', 'options')}-{digest}"
    if isinstance(value, float):
        return f"{value:g}"
    return re.sub(r"[^\w.-]+", "-", str(value)).strip("-.")
