import pytest
from comparisons import QuickRunner, comparison, launches

from omit_hf.comparison import search_settings
from omit_hf.comparison.running import metrics_of

CANDIDATES = {"learning_rate": [0.01, 0.02, 0.04], "logit_scale_init_value": [2.0, 3.0, 4.0]}
GRIDS = {"methods": {"matching": ["omit", "ot", "mean"], "seeds": [0]}}


def searched(tmp_path, **search):
    plan = comparison(tmp_path, grids=GRIDS, search={"candidates": CANDIDATES, **search})
    runner = QuickRunner(tmp_path / "runs")
    return plan, runner, search_settings(plan, plan.grids, runner)


@pytest.mark.parametrize("product", [False, True])
def test_the_best_of_equally_many_is_chosen(tmp_path, product):
    plan, runner, found = searched(tmp_path, product=product, seed=5)
    assert {each["group"]["matching"]: tuple(each["chosen"].values()) for each in found} == {
        "omit": (0.01, 3.0),
        "ot": (0.02, 2.0),
        "mean": (0.04, 4.0),
    }
    for each in found:
        assert len(each["trials"]) == plan.trials(each["group"]) == (9 if product else 6)
        assert each["validation_rsum"] == max(each["trials"].values())
    assert len(launches(tmp_path)) == sum(len(each["trials"]) for each in found)
    assert search_settings(plan, plan.grids, QuickRunner(tmp_path / "runs")) == found  # without a launch
    assert len(launches(tmp_path)) == sum(len(each["trials"]) for each in found)
    assert all(name.endswith("_seed5") for each in found for name in each["trials"])
    runs = plan.runs(plan.grids[0], found)
    assert [(run.name, run.recipe.learning_rate, run.recipe.logit_scale_init_value) for run in runs] == [
        ("omit_seed0", 0.01, 3.0),
        ("ot_seed0", 0.02, 2.0),
        ("mean_seed0", 0.04, 4.0),
    ]
    assert all(run.recipe.test for run in runs)


def test_trials_are_not_tested_and_take_the_overrides(tmp_path):
    plan, _, found = searched(tmp_path, overrides={"num_epochs": 1})
    for each in found:
        metrics = metrics_of(plan.trial(each["group"], each["chosen"]))
        assert metrics["test"] is None
        assert (metrics["recipe"]["num_epochs"], metrics["recipe"]["test"]) == (1, False)
    assert plan.runs(plan.grids[0], found)[0].recipe.num_epochs == 2


def test_of_equals_the_first_is_chosen(tmp_path):
    plan = comparison(tmp_path, grids=GRIDS, search={"candidates": {"weight_decay": [0.3, 0.1, 0.2]}})
    found = search_settings(plan, plan.grids, QuickRunner(tmp_path / "runs"))
    assert [each["chosen"] for each in found] == [{"weight_decay": 0.3}] * 3


def test_a_trial_that_fails_is_not_chosen(tmp_path):
    plan = comparison(tmp_path, grids=GRIDS, search={"candidates": {"learning_rate": [9.0, 0.02]}})
    runner = QuickRunner(tmp_path / "runs")
    found = search_settings(plan, plan.grids, runner)
    assert [each["chosen"] for each in found] == [{"learning_rate": 0.02}] * 3
    assert [sum(score is None for score in each["trials"].values()) for each in found] == [1, 1, 1]
    assert set(runner.failed) == {f"search/{name}_learning_rate-9_seed0" for name in ("omit", "ot", "mean")}


def test_a_method_whose_trials_all_fail_is_not_run(tmp_path):
    plan = comparison(tmp_path, grids=GRIDS, search={"candidates": {"learning_rate": [9.0]}})
    found = search_settings(plan, plan.grids, QuickRunner(tmp_path / "runs"))
    assert found == []
    assert plan.runs(plan.grids[0], found) == []


def test_an_old_trial_of_another_recipe_is_not_taken(tmp_path):
    searched(tmp_path)
    with pytest.raises(ValueError, match=r"finished run in .*search/omit.* has another recipe:\n  num_epochs: was 2"):
        searched(tmp_path, overrides={"num_epochs": 1})
