import json
import math

import pytest
from comparisons import QuickRunner, comparison

from omit_hf.comparison import markdown, search_settings, summary


def made(tmp_path, missing=(), **content):
    tmp_path.mkdir(exist_ok=True)
    plan = comparison(tmp_path, **content)
    runner = QuickRunner(tmp_path / "runs")
    found = search_settings(plan, plan.grids, runner) if plan.search else None
    runs = [run for grid in plan.grids for run in plan.runs(grid, found)]
    runner.run([run for run in runs if run.name not in missing], "Runs")
    return plan, found


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]


def test_figures_by_hand(tmp_path):
    """The stand-in's RSUM at the recipe's settings, where each seed adds 4."""
    base = {"omit": 300 - 10 * abs(2.6592 - 3) - 8, "mean": 300 - 1000 * 0.03 - 10 * abs(2.6592 - 4) - 8}
    plan, _ = made(tmp_path)
    found = summary(plan, plan.grids[0])
    omit, mean = found["rows"]
    assert omit["metrics"]["rsum"]["mean"] == pytest.approx(base["omit"] + 4)
    assert omit["metrics"]["rsum"]["deviation"] == pytest.approx(4)
    assert omit["metrics"]["rsum"]["values"] == pytest.approx([base["omit"] + 4 * seed for seed in range(3)])
    assert omit["difference"] is None
    assert mean["difference"]["values"] == pytest.approx([base["mean"] - base["omit"]] * 3)
    assert mean["difference"]["deviation"] == pytest.approx(0, abs=1e-9)
    assert mean["seeds"] == [0, 1, 2]
    assert mean["runs"] == ["mean_seed0", "mean_seed1", "mean_seed2"]
    assert (mean["trained_parameters"], mean["peak_memory"], mean["training_seconds"]) == (1000, 2**30, 11)
    assert mean["scoring_seconds_per_million"] == pytest.approx(500)
    assert mean["environments"] == [{"device": "a machine"}]
    assert json.loads(json.dumps(found))["rows"][1]["difference"]["mean"] == mean["difference"]["mean"]

    table = markdown(found)
    header, _, first, second = cells(table)
    assert header == [
        *("matching", "seeds", "RSUM", "RSUM − omit", "i2t R@1", "t2i R@1", "trained parameters", "training (s)"),
        *("scoring (s / 10⁶ pairs)", "peak memory (GiB)"),
    ]
    assert first == ["`omit`", "3", "292.6 ± 4.0", "–", "51.0 ± 1.0", "40.0 ± 0.0", "1,000", "11", "500", "1.00"]
    assert second[2:4] == ["252.6 ± 4.0", "-40.0 ± 0.0 [-40.0, -40.0]"]
    assert "paired by seed, to `omit`" in table
    assert "search" not in table


def test_missing_seeds_are_said_and_pairs_are_of_the_others(tmp_path):
    plan, _ = made(tmp_path, missing={"omit_seed0", "mean_seed2"})
    found = summary(plan, plan.grids[0])
    assert [row["seeds"] for row in found["rows"]] == [[1, 2], [0, 1]]
    assert len(found["rows"][1]["difference"]["values"]) == 1
    assert "2 runs are missing" in markdown(found)
    assert cells(markdown(found))[3][1] == "2"


def test_nothing_yet(tmp_path):
    plan = comparison(tmp_path)
    found = summary(plan, plan.grids[0])
    assert [row["seeds"] for row in found["rows"]] == [[], []]
    assert cells(markdown(found))[2] == ["`omit`", "0", "–", "–", "–", "–"]
    assert "6 runs are missing" in markdown(found)


def test_what_is_compared_with_what(tmp_path):
    grids = {
        "a": {"matching": ["omit", "ot", "mean"], "dustbin": ["scalar", "global"], "marginals": ["uniform", "norm"]},
        "b": {"regularization": [0.1, 0.02]},
        "c": {"matching": ["ot", "mean"]},
        "d": {"matching": ["omit", "mean"], "projection_dim": [16, 32]},
    }
    plan, _ = made(tmp_path, grids=grids, seeds=[0])

    def references(number):
        found = summary(plan, plan.grids[number])
        rsum = {tuple(row["labels"].values()): row["metrics"]["rsum"]["mean"] for row in found["rows"]}
        return rsum, {tuple(row["labels"].values()): row["difference"] for row in found["rows"]}

    rsum, different = references(0)
    assert different["omit", "global", "uniform"] is None  # the recipe's own
    assert different["ot", "norm"]["mean"] == pytest.approx(rsum["ot", "norm"] - rsum["omit", "global", "norm"])
    assert different["omit", "scalar", "norm"] is not None
    assert different[("mean",)]["mean"] == pytest.approx(rsum[("mean",)] - rsum["omit", "global", "uniform"])
    rsum, different = references(1)
    assert different[(0.02,)] is None
    assert different[(0.1,)]["mean"] == pytest.approx(rsum[(0.1,)] - rsum[(0.02,)]) == pytest.approx(8)
    assert set(references(2)[1].values()) == {None}
    assert "RSUM − omit" not in markdown(summary(plan, plan.grids[2]))
    rsum, different = references(3)
    assert different["mean", 32]["mean"] == pytest.approx(rsum["mean", 32] - rsum["omit", 32])


def test_what_omit_does_not_have_counts_as_the_base_recipe_s(tmp_path):
    """As the margin, which one of the losses alone has."""
    grids = {"a": {"matching": ["omit", "mean"], "loss": ["infonce", "triplet"], "margin": [0.05, 0.2]}}
    plan, _ = made(tmp_path, grids=grids, seeds=[0])
    rows = summary(plan, plan.grids[0])["rows"]
    rsum = {tuple(row["labels"].values()): row["metrics"]["rsum"]["mean"] for row in rows}
    different = {tuple(row["labels"].values()): row["difference"] for row in rows}
    assert different["omit", "infonce"] is None  # the recipe's own
    assert different["mean", "infonce"]["mean"] == pytest.approx(rsum["mean", "infonce"] - rsum["omit", "infonce"])
    assert different["omit", "triplet", 0.2] is not None


def test_a_field_that_a_row_does_not_have_is_a_dash(tmp_path):
    plan, _ = made(tmp_path, grids={"a": {"matching": ["omit", "mean"], "regularization": [0.02, 0.1]}}, seeds=[0])
    table = markdown(summary(plan, plan.grids[0]))
    assert [row[:2] for row in cells(table)[2:]] == [["`omit`", "0.02"], ["`omit`", "0.1"], ["`mean`", "–"]]
    assert "– is a field that the method does not have" in table


def test_the_table_says_what_was_searched(tmp_path):
    search = {
        "candidates": {"learning_rate": [0.01, 0.04], "logit_scale_init_value": [3, 4]},
        "overrides": {"num_epochs": 1},
        "seed": 3,
    }
    plan, found = made(tmp_path, search=search)
    table = markdown(summary(plan, plan.grids[0], found))
    assert "equal search on validation RSUM (one field after the other, seed 3, num_epochs 1)" in table
    assert "learning_rate of 0.01 0.04, logit_scale_init_value of 3 4." in table
    assert "- `omit`: learning_rate 0.01, logit_scale_init_value 3 (validation RSUM 292.0, 4 trials)" in table
    assert "- `mean`: learning_rate 0.04, logit_scale_init_value 4 (validation RSUM 292.0, 4 trials)" in table
    plan, found = made(tmp_path / "b", search={"candidates": {"learning_rate": [9.0, 0.01]}})
    assert "2 trials, of which 1 failed)" in markdown(summary(plan, plan.grids[0], found))


def test_runs_of_before_the_time_was_taken(tmp_path):
    plan, _ = made(tmp_path, seeds=[0])
    for file in (tmp_path / "runs").rglob("metrics.json"):
        metrics = json.loads(file.read_text())
        del metrics["scoring_seconds"], metrics["scored_pairs"]
        file.write_text(json.dumps(metrics))
    found = summary(plan, plan.grids[0])
    assert [row["scoring_seconds_per_million"] for row in found["rows"]] == [None, None]
    assert [row[-2] for row in cells(markdown(found))[2:]] == ["–", "–"]
    assert not math.isnan(found["rows"][0]["metrics"]["rsum"]["mean"])
