import time
from pathlib import Path

import pytest
import yaml
from comparisons import comparison, written
from tiny import tiny_recipe

from omit_hf.comparison import comparison_of, is_comparison, read_comparison, selected
from omit_hf.training import Recipe

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
METHODS = {"methods": {"matching": ["omit", "mean"]}}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("compare_*.yaml")), ids=lambda file: file.stem)
def test_every_comparison_is_one(file, tmp_path):
    assert is_comparison(file)
    plan = read_comparison(file, tmp_path)
    if plan.search is not None:
        assert len({plan.trials(group) for group in plan.groups(plan.grids)}) == 1


def test_the_grids_of_scenes(tmp_path):
    """With the methods that there are."""
    content = yaml.safe_load((CONFIGS / "compare_scenes.yaml").read_text())
    content["recipe"] = str(CONFIGS / content["recipe"])
    content["grids"]["methods"]["matching"] = ["omit", "ot", "mean"]
    content["grids"].pop("noise", None)
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    plan = read_comparison(tmp_path / "a.yaml", tmp_path)
    rows = {grid.name: len(plan.rows(grid)) for grid in plan.grids}
    expected = {"methods": 3, "regularization": 14, "dustbin_marginals": 3 * 4 + 4, "global_weight": 4, "backend": 3}
    assert rows == expected
    runs = {run.name for grid in plan.grids for run in plan.runs(grid)}
    # omit and ot as the recipe has them are in the first three
    assert len(runs) == 3 * (3 + 14 - 2 + 16 - 2 + 4 - 1 + 3)


def test_the_recipe_is_found_from_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    plan = comparison(tmp_path)
    assert plan.base["projection_dim"] == 16
    assert is_comparison(tmp_path / "compare.yaml")
    assert not is_comparison(tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {}}, "unknown field 'grid'; did you mean 'grids'"),
        ({"recipe": None}, "recipe is None; expected the file of the base recipe"),
        ({"recipe": "other.yaml"}, "No recipe at .*other.yaml"),
        (
            {"overrides": {"learn_rate": 1}},
            "overrides has the unknown field 'learn_rate'; did you mean 'learning_rate'",
        ),
        ({"overrides": {"seed": 1}}, "overrides has seed, which is set for each run; leave it out"),
        ({"overrides": {"max_steps": 1}}, "overrides has max_steps, which leaves a run unfinished; set num_epochs"),
        ({"overrides": {"learning_rate": "fast"}}, "overrides: learning_rate is 'fast'; expected a number"),
        ({"overrides": [1]}, r"overrides is \[1\]; expected names and values"),
        ({"overrides": {"matching": "ot"}}, "matching is set by both overrides and a grid; expected one of them"),
        ({"overrides": {"batch_size": 1}}, "methods: batch_size is 1; expected at least 2"),
        ({"grids": {}}, "grids is empty; expected at least one"),
        ({"grids": {"../a": {"matching": ["ot"]}}}, "the name of grid ../a is no file's; expected letters"),
        ({"grids": {"a": 3}}, "grid a is 3; expected names and values"),
        ({"grids": {"a": {"matching": []}}}, r"grid a: matching is \[\]; expected a list of values"),
        ({"grids": {"a": {"matching": "omit"}}}, "grid a: matching is 'omit'; expected a list of values"),
        ({"grids": {"a": {"matching": ["ot", "ot"]}}}, "grid a: matching is ot ot; expected each of them once"),
        ({"grids": {"a": {"regularization": [1, "1e0"]}}}, r"regularization is 1.0 1.0; expected each of them once"),
        ({"grids": {"a": {"depth": [1]}}}, "grid a has the unknown field 'depth'"),
        ({"grids": {"a": {"seed": [1]}}}, "grid a has seed, which is set for each run"),
        ({"grids": {"a": {"matching": ["magic"]}}}, "a: .*magic"),
        (
            {"grids": {"a": {"regularization": [0.1, -1]}}},
            "a: regularization is -1.0; expected a number greater than 0",
        ),
        (
            {"grids": {"a": {"text_pooling": ["mean"], "seeds": [1.5]}}},
            r"seeds of grid a is \[1.5\]; expected a list of int",
        ),
        (
            {"grids": {"a": {"cache_folder": ["a/b", "a-b"]}}},
            "another run has the name omit_cache_folder-a-b_seed0 too",
        ),
        ({"seeds": []}, r"seeds of grid methods is \[\]; expected a list of integers"),
        ({"seeds": [0, 0]}, "seeds of grid methods is 0 0; expected each of them once"),
        ({"seeds": [-1]}, "methods: seed is -1; expected an integer from 0"),
        (
            {"settings": {"matching": {"ot": {}}}},
            "settings are for matching ot, which no grid has; expected some of mean, omit",
        ),
        ({"settings": {"matching": {"mean": {"depth": 1}}}}, "settings of matching mean has the unknown field 'depth'"),
        ({"settings": {"matching": {"mean": {"matching": "ot"}}}}, "matching is set by both a grid and settings"),
        ({"search": {}}, "search has no candidates; expected fields and lists of values to try"),
        (
            {"search": {"candidates": {"margin": []}}},
            r"candidates of search: margin is \[\]; expected a list of values",
        ),
        ({"search": {"candidate": {}}}, "search has the unknown field 'candidate'; did you mean 'candidates'"),
        ({"search": {"candidates": {"matching": ["ot"]}}}, "matching is set by both a grid and search"),
        (
            {"search": {"candidates": {"learning_rate": [-1]}}},
            "search: learning_rate is -1.0; expected a number greater",
        ),
        ({"search": {"candidates": {"learning_rate": [1]}, "seed": "x"}}, "seed of search is 'x'; expected int"),
        (
            {"search": {"candidates": {"learning_rate": [1]}, "per": ["loss"]}},
            "per of search has 'loss'; expected fields",
        ),
        (
            {"search": {"candidates": {"learning_rate": [1]}, "per": []}},
            "per of search lacks 'matching', so one method would be tuned for all",
        ),
        (
            {"search": {"candidates": {"learning_rate": [1]}, "overrides": {"learning_rate": 1}}},
            "learning_rate is among both the candidates and the overrides of search",
        ),
        (
            {"search": {"candidates": {"regularization": [0.1, 0.2]}}},
            "search has not as many trials for each: omit 2, mean 0; expected candidates of fields that all of",
        ),
        ({"search": {"candidates": {"learning_rate": [1]}, "per": 3}}, "per of search is 3; expected list"),
        ({"search": {"candidates": {"learning_rate": [1]}, "per": [["a"]]}}, r"per of search has \['a'\]; expected"),
        ({"grids": {"a\x1b\n": 3}}, r"the name of grid 'a\\x1b\\n' is no file's"),
        ({"recipe": "a\x1b"}, r"recipe is 'a\\x1b'; expected the file of the base recipe"),
        ({"grids": {"a": {"matching": [{"ot": 1}]}}}, r"a: matching is \{'ot': 1\}; expected"),
        ({"grids": {"a": {"a\n": 1}}}, r"grid a: 'a\\n' is 1; expected a list of values"),
        (
            {"grids": {"a": {"image_processor": [{"size": 1, 2: 3}], "learning_rate": [-1]}}},
            "learning_rate is -1.0; expected a number",
        ),
        ({"overrides": ["x" * 1000]}, r"overrides is \['x{77}…; expected names and values"),
        ({"grids": {"a": {"seeds": ["x" * 1000]}}}, r"seeds of grid a is \['x{77}…; expected a list of integers"),
        ({"grids": {"a": {"matching": "x" * 1000}}}, r"matching is 'x{78}…; expected a list of values"),
        ({"grids": {"a": {"x" * 1000: [1]}}}, r"grid a has the unknown field 'x{79};"),
        ({"settings": {"matching": {"x" * 1000: {}}}}, r"settings are for matching x{79}…, which no grid has"),
        ({"search": {"candidates": {"margin": [0.1]}}}, "not as many trials for each: omit 0, mean 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, message):
    file = written(tmp_path, **content)
    with pytest.raises((ValueError, OSError), match=message):
        read_comparison(file, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_all_that_is_wrong_is_listed(tmp_path):
    file = written(tmp_path, overrides={"depth": 1, "seed": 2}, seeds=[0, 0], grids={"a": {"matching": []}})
    with pytest.raises(ValueError, match="4 problems:(.|\n)*depth(.|\n)*seed,(.|\n)*matching is(.|\n)*seeds of grid a"):
        read_comparison(file, tmp_path / "runs")


@pytest.mark.parametrize("text", ["a: [", "- 1"])
def test_no_mapping(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a.yaml (is no YAML|holds list; expected fields)"):
        is_comparison(tmp_path / "a.yaml")


@pytest.mark.parametrize("text", ["a: &a [1]\nb: *a", "[" * 10_000, "#" * 2**21])
def test_files_that_would_cost_much(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    for read in (is_comparison, lambda file: read_comparison(file, tmp_path)):
        with pytest.raises(ValueError, match="a.yaml (has an anchor|has values nested|is larger)"):
            read(tmp_path / "a.yaml")


def test_the_recipe_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    file = written(tmp_path, recipe="~/base.yaml")
    (tmp_path / "tiny.yaml").rename(tmp_path / "home" / "base.yaml")
    assert read_comparison(file, tmp_path / "runs").base["projection_dim"] == 16


def test_grids_by_name(tmp_path):
    plan = comparison(tmp_path, grids={**METHODS, "size": {"projection_dim": [8]}})
    assert [grid.name for grid in selected(plan, None)] == ["methods", "size"]
    assert [grid.name for grid in selected(plan, ["size"])] == ["size"]
    with pytest.raises(ValueError, match=r"only is sizes; expected some of methods, size\."):
        selected(plan, ["size", "sizes"])


def test_a_recipe_with_methods(tmp_path):
    recipe = Recipe(**tiny_recipe())
    plan = comparison_of(recipe, ["mean", "omit"], [3], tmp_path)
    assert [run.name for run in plan.runs(plan.grids[0])] == ["mean_seed3", "omit_seed3"]
    with pytest.raises(ValueError, match="magic"):
        comparison_of(recipe, ["magic"], [3], tmp_path)
    with pytest.raises(ValueError, match="the base recipe has max_steps, which leaves a run unfinished"):
        comparison_of(Recipe(**tiny_recipe(max_steps=3)), ["omit"], [3], tmp_path)
    with pytest.raises(ValueError, match="seeds is 3 3; expected each of them once"):
        comparison_of(recipe, ["omit"], [3, 3], tmp_path)


def test_a_name_twice(tmp_path):
    file = written(tmp_path)
    file.write_text(file.read_text() + "seeds: [7]\n")
    with pytest.raises(ValueError, match="compare.yaml has the name seeds twice; expected it once, in line"):
        read_comparison(file, tmp_path)


SIXTY = [n / 1000 for n in range(1, 61)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"grids": {"a": {"margin": SIXTY, "learning_rate": [*SIXTY]}}},
            "grid a is of 1.08e.04 runs; expected at most 2000",
        ),
        (
            {"grids": {"a": {"margin": SIXTY}}, "seeds": list(range(40))},
            "grid a is of 2400 runs; expected at most 2000",
        ),
        (
            {"search": {"product": True, "candidates": {"learning_rate": SIXTY, "weight_decay": [*SIXTY]}}},
            "search is of 3600 runs; expected at most 2000",
        ),
        (
            {"grids": {"a": {"margin": [0.5] * 15_000}}},
            r"grid a: margin is .*; expected a list of values of at most 2000",
        ),
        ({"seeds": list(range(15_000))}, "seeds of grid methods is .*; expected a list of integers"),
    ],
    ids=["grid", "seeds", "search", "values", "many seeds"],
)
def test_more_runs_than_anybody_trains(tmp_path, content, message):
    """Each was looked at, which took from minutes to for ever."""
    file, began = written(tmp_path, **content), time.process_time()
    with pytest.raises(ValueError, match=f"compare.yaml: .*{message}"):
        read_comparison(file, tmp_path)
    assert time.process_time() - began < 5


def test_comparisons_and_their_recipes_have_names(tmp_path):
    """Of those that come with the package; a file beside the comparison goes by its own."""
    by_name, by_file = (read_comparison(each, tmp_path) for each in ("compare_scenes", CONFIGS / "compare_scenes.yaml"))
    assert by_name == by_file
    (tmp_path / "mine.yaml").write_text("recipe: scenes\ngrids: {methods: {matching: [omit, ot]}}")
    assert read_comparison(tmp_path / "mine.yaml", tmp_path).base["projection_dim"] == by_name.base["projection_dim"]
    (tmp_path / "mine.yaml").write_text("recipe: scene.yaml\ngrids: {methods: {matching: [omit, ot]}}")
    with pytest.raises(FileNotFoundError, match="did you mean scenes"):
        read_comparison(tmp_path / "mine.yaml", tmp_path)
