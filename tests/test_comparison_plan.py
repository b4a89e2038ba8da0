import pytest
from comparisons import comparison
from tiny import tiny_recipe

from omit_hf.comparison import Search, comparison_of
from omit_hf.comparison.plan import slug
from omit_hf.training import Recipe


def labels_of(plan, name):
    grid = next(grid for grid in plan.grids if grid.name == name)
    return [tuple(labels.values()) for labels in plan.rows(grid)]


def test_a_field_that_a_method_does_not_have_makes_no_runs(tmp_path):
    grids = {
        "dustbin": {
            "matching": ["omit", "ot", "mean"],
            "dustbin": ["global", "scalar"],
            "marginals": ["uniform", "norm"],
        },
        "loss": {"loss": ["triplet", "infonce"], "margin": [0.1, 0.2], "logit_scale_init_value": [1.0, 2.0, 3.0]},
    }
    plan = comparison(tmp_path, grids=grids)
    omit = [("omit", dustbin, marginals) for dustbin in ("global", "scalar") for marginals in ("uniform", "norm")]
    assert labels_of(plan, "dustbin") == [*omit, ("ot", "uniform"), ("ot", "norm"), ("mean",)]
    triplet, infonce = [("triplet", m) for m in (0.1, 0.2)], [("infonce", s) for s in (1.0, 2.0, 3.0)]
    assert labels_of(plan, "loss") == triplet + infonce
    run = plan.run({"matching": "ot", "marginals": "norm"}, 4)
    assert (run.recipe.matching, run.recipe.marginals, run.recipe.dustbin, run.recipe.seed) == (
        "ot",
        "norm",
        "global",
        4,
    )


def test_a_run_of_two_grids_is_one(tmp_path):
    grids = {
        "methods": {"matching": ["omit", "mean"]},
        "regularization": {"regularization": [0.1, 0.02], "seeds": [1]},
        "size": {"projection_dim": [16, 32], "seeds": [1]},
    }
    plan = comparison(tmp_path, grids=grids)
    runs = [run for grid in plan.grids for run in plan.runs(grid)]
    by_name = {}
    for run in runs:
        assert by_name.setdefault(run.name, run.recipe) == run.recipe
    expected = ["omit_seed0", "omit_seed1", "omit_seed2", "mean_seed0", "mean_seed1", "mean_seed2"]
    expected += ["omit_regularization-0.1_seed1", "omit_projection_dim-32_seed1"]
    assert list(by_name) == expected
    assert len(runs) == 6 + 2 + 2


def test_overrides_and_settings(tmp_path):
    settings = {"matching": {"mean": {"num_epochs": 7}}, "regularization": {"0.1": {"num_iterations": 9}}}
    grids = {"all": {"matching": ["omit", "mean"], "regularization": [0.02, "1e-1"]}}
    plan = comparison(tmp_path, overrides={"batch_size": 5, "weight_decay": "1e-3"}, settings=settings, grids=grids)
    found = {run.name: run.recipe for run in plan.runs(plan.grids[0])}
    assert {(each.batch_size, each.weight_decay) for each in found.values()} == {(5, 1e-3)}
    assert [found[f"{name}_seed0"].num_epochs for name in ("omit", "mean")] == [2, 7]
    assert found["omit_seed0"].num_iterations == 3
    assert found["omit_regularization-0.1_seed0"].num_iterations == 9


@pytest.mark.parametrize("name", ["resume", "overwrite_output_dir"])
def test_every_run_begins_anew_and_is_tested(tmp_path, name):
    """Whatever the recipe does when it is trained by itself."""
    recipe = Recipe(**tiny_recipe(**{name: True}, test=False))
    plan = comparison_of(recipe, ["omit"], [0], tmp_path)
    [run] = plan.runs(plan.grids[0])
    assert (run.recipe.resume, run.recipe.overwrite_output_dir, run.recipe.test) == (False, False, True)
    plan.search = Search({"learning_rate": [0.1]})
    trial = plan.trial({"matching": "omit"}, {"learning_rate": 0.1})
    assert (trial.recipe.resume, trial.recipe.overwrite_output_dir, trial.recipe.test) == (False, False, False)


@pytest.mark.parametrize(
    ("product", "candidates", "trials"),
    [
        (False, {"learning_rate": [0.01, 0.02]}, 2),
        (False, {"learning_rate": [0.01, 0.02], "logit_scale_init_value": [1.0, 2.0, 3.0]}, 5),
        (False, {"logit_scale_init_value": [1.0, 2.0, 3.0], "learning_rate": [0.01, 0.02]}, 4),  # 0.01 is the recipe's
        (True, {"learning_rate": [0.01, 0.02], "logit_scale_init_value": [1.0, 2.0, 3.0]}, 6),
    ],
)
def test_trials_are_counted(tmp_path, product, candidates, trials):
    plan = comparison(tmp_path, search={"candidates": candidates, "product": product})
    assert [plan.trials(group) for group in plan.groups(plan.grids)] == [trials, trials]


def test_groups_are_those_of_per(tmp_path):
    grids = {"all": {"matching": ["omit", "ot"], "projection_dim": [16, 32], "regularization": [0.1, 0.2]}}
    search = {"candidates": {"learning_rate": [0.1]}, "per": ["matching", "projection_dim"]}
    plan = comparison(tmp_path, grids=grids, search=search)
    assert [tuple(each.values()) for each in plan.groups(plan.grids)] == [
        (m, d) for m in ("omit", "ot") for d in (16, 32)
    ]
    trial = plan.trial({"matching": "ot", "projection_dim": 32}, {"learning_rate": 0.1})
    assert trial.name == "search/ot_learning_rate-0.1_projection_dim-32_seed0"
    assert (trial.recipe.test, trial.recipe.projection_dim, trial.recipe.learning_rate) == (False, 32, 0.1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.05, "0.05"),
        (1e-05, "1e-05"),
        ("google-bert/bert-base", "google-bert-bert-base"),
        (True, "True"),
        ("../x", "x"),
    ],
)
def test_slug(value, expected):
    assert slug(value) == expected


def test_slug_of_a_configuration_depends_on_its_content():
    one, two = {"model_type": "vit", "hidden_size": 8}, {"model_type": "vit", "hidden_size": 16}
    assert slug(one) == slug(dict(reversed(one.items()))) != slug(two)
    assert slug(one).startswith("vit-")
