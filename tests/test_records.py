"""metrics.json and progress.json of others, of another version, or damaged."""

import json
import re
from dataclasses import asdict

import pytest
from comparisons import QuickRunner, comparison
from tiny import tiny_recipe

from omit_hf.comparison.running import check_folders, metrics_of, read_rows
from omit_hf.comparison.table import summary
from omit_hf.ownership import FolderLock
from omit_hf.training import Recipe, loop, write_recipe_file
from omit_hf.training.checkpoints import TrainingLog
from omit_hf.training.records import Progress, read_metrics, read_progress

METRICS = {
    "test": {"rsum": 300.0, "i2t_r1": 50.0},
    "validation": {"rsum": 310},
    "best_epoch": 0,
    "epochs": 2,
    "trained_parameters": 10,
    "training_seconds": 1.5,
    "peak_memory": 2**30,
    "scoring_seconds": None,
    "splits": {"test": {"images": 6, "captions": 30}},
    "recipe": {"test": True, "data_options": {"a": [1]}},
    "environment": {"commit": None, "cores": 2, "device": "a machine"},
}
PROGRESS = Progress(
    epoch=2,
    step=8,
    seconds=1.5,
    best_rsum=310.0,
    best_epoch=1,
    best_step=8,
    validations=[{"rsum": 300}, {"rsum": 310.0}],
)
NO_JSON = [
    (b"", "Expecting value"),
    (b"[" * 100_000, "nested too deep"),
    (b'{"a": 1, "a": 1}', "the name a stands twice"),
]


def wrong(what, value):
    return rf"is not what a run writes: {re.escape(what)} is {value}; expected"


@pytest.mark.parametrize(("content", "message"), NO_JSON)
@pytest.mark.parametrize("read", [read_metrics, read_progress])
def test_what_is_no_json(tmp_path, read, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json is no JSON: .*{message}"):
        read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="a.json is not what a run writes: it is .1.; expected an object"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": None}, wrong("validation", "None")),
        ({"validation": {"i2t_r1": 1}}, wrong("validation", r"\{'i2t_r1': 1\}")),
        ({"validation": {"rsum": "300"}}, wrong("validation.rsum", "'300'")),
        ({"validation": {"rsum": True}}, wrong("validation.rsum", "True")),
        ({"test": {"rsum": float("nan")}}, wrong("test.rsum", "nan")),
        ({"test": {"rsum": 1, "a\nb": 10**400}}, wrong(r"test.'a\nb'", "10+…")),
        ({"recipe": []}, wrong("recipe", r"\[\]")),
        ({"recipe": {"test": False}}, wrong("test", ".*") + " null, as the recipe has test off"),
        ({"environment": {"device": ["a"]}}, wrong("environment.device", r"\['a'\]")),
        ({"trained_parameters": 1.5}, wrong("trained_parameters", "1.5")),
        ({"peak_memory": -1}, wrong("peak_memory", "-1")),
        ({"scoring_seconds": "1"}, wrong("scoring_seconds", "'1'")),
        ({"scored_pairs": 2**64}, wrong("scored_pairs", str(2**64))),
        ({"splits": {"test": {"images": 3}}}, wrong("splits.test", ".*")),
        ({"splits": []}, wrong("splits", r"\[\]")),
    ],
)
def test_metrics_that_are_none(tmp_path, changes, message):
    (tmp_path / "metrics.json").write_text(json.dumps({**METRICS, **changes}))
    with pytest.raises(ValueError, match=f"^{tmp_path}/metrics.json {message}") as caught:
        read_metrics(tmp_path / "metrics.json")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["test", "validation", "recipe", "environment", "best_epoch", "peak_memory"])
def test_metrics_that_lack_something(tmp_path, name):
    (tmp_path / "metrics.json").write_text(json.dumps({each: value for each, value in METRICS.items() if each != name}))
    with pytest.raises(ValueError, match=wrong("missing", rf"\['{name}'\]")):
        read_metrics(tmp_path / "metrics.json")


def test_metrics(tmp_path):
    """As they are, with a byte-order mark too, and as a run writes them that was not tested."""
    (tmp_path / "metrics.json").write_text("\ufeff" + json.dumps({**METRICS, "mine": [1]}))
    assert read_metrics(tmp_path / "metrics.json") == {**METRICS, "mine": [1]}
    untested = {**METRICS, "test": None, "recipe": {"test": False}}
    (tmp_path / "metrics.json").write_text(json.dumps(untested))
    assert read_metrics(tmp_path / "metrics.json") == untested


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "8"}, wrong("step", "'8'")),
        ({"step": -1}, wrong("step", "-1")),
        ({"best_step": True}, wrong("best_step", "True")),
        ({"seconds": float("inf")}, wrong("seconds", "inf")),
        ({"vocabulary": 3}, wrong("vocabulary", "3")),
        ({"num_processes": [1] * 1000}, wrong("num_processes", r"\[1, .*…")),
        ({"validations": {"rsum": 1}}, wrong("validations", ".*")),
        ({"validations": [{"rsum": 300}, {"rsum": None}]}, wrong("validations[1].rsum", "None")),
        ({"epoch": 4}, wrong("validations", "'of 2 epochs'")),
        ({"best_epoch": 2}, wrong("best_epoch", "2")),
        ({"best_epoch": -1}, wrong("best_epoch", "-1")),
        ({"weather": "fine"}, wrong("more than that", r"\['weather'\]")),
    ],
)
def test_progress_that_is_none(tmp_path, changes, message):
    (tmp_path / "progress.json").write_text(json.dumps({**asdict(PROGRESS), **changes}))
    with pytest.raises(ValueError, match=f"^{tmp_path}/progress.json {message}") as caught:
        read_progress(tmp_path / "progress.json")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("progress", [Progress(), PROGRESS])
def test_progress(tmp_path, progress):
    (tmp_path / "progress.json").write_text(json.dumps(asdict(progress)))
    assert read_progress(tmp_path / "progress.json") == progress
    without = {name: value for name, value in asdict(progress).items() if name != "step"}
    (tmp_path / "progress.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match=wrong("missing", r"\['step'\]")):
        read_progress(tmp_path / "progress.json")


@pytest.mark.parametrize("content", ["{", "[]", '{"recipe": {}}'])
def test_all_that_reads_metrics_names_them(tmp_path, content):
    plan = comparison(tmp_path, grids={"one": {"matching": ["omit"], "seeds": [0]}})
    runs = plan.runs(plan.grids[0])
    QuickRunner(tmp_path / "runs").run(runs, "Runs")
    assert metrics_of(runs[0])["peak_memory"] == 2**30
    (runs[0].folder / "metrics.json").write_text(content)
    recipe = Recipe(**tiny_recipe(output_dir=str(tmp_path / "run"), resume=True))
    write_recipe_file(recipe, (tmp_path / "run").mkdir() or tmp_path / "run" / "recipe.yaml")
    (tmp_path / "run" / "metrics.json").write_text(content)
    for read in (
        lambda: metrics_of(runs[0]),
        lambda: check_folders(runs),
        lambda: QuickRunner(tmp_path / "runs").run(runs, "Runs"),
        lambda: summary(plan, plan.grids[0]),
        lambda: loop.enter(recipe, tmp_path / "run", FolderLock(tmp_path / "run", "training")),
    ):
        with pytest.raises(ValueError, match="metrics.json is no"):
            read()


def test_figures_that_one_seed_lacks(tmp_path):
    plan = comparison(tmp_path, grids={"one": {"matching": ["omit"], "seeds": [0, 1]}})
    runs = plan.runs(plan.grids[0])
    QuickRunner(tmp_path / "runs").run(runs, "Runs")
    metrics = metrics_of(runs[1])
    del metrics["test"]["i2t_r1"]
    metrics["scored_pairs"] = 0
    (runs[1].folder / "metrics.json").write_text(json.dumps(metrics))
    [row] = summary(plan, plan.grids[0])["rows"]
    assert set(row["metrics"]) == {"rsum", "t2i_r1"}
    assert row["scoring_seconds_per_million"] == 500


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no row of a run .Expecting property name"),
        ("[]", r"line 2 is no row of a run .it is \[\]"),
        ('{"status": "finished"}', "line 2 is no row of a run .it is {'status': 'finished'}.; expected an object with"),
        ('{"run": 3}', "line 2 is no row"),
        ('{"run": "a", "run": "b"}', "line 2 is no row of a run .the name run stands twice"),
        ("[" * 100_000, "line 2 is no row of a run .values nested too deep"),
    ],
)
def test_rows_that_are_none(tmp_path, line, message):
    file = tmp_path / "runs.jsonl"
    file.write_text(f'{{"run": "omit_seed0"}}\n{line}\n{{"run": "omit_seed1"}}\n')
    with pytest.raises(ValueError, match=f"runs.jsonl {message}"):
        read_rows(file)
    file.write_text('\ufeff{"run": "omit_seed0", "seed": 0}\n')
    assert read_rows(file) == {"omit_seed0": {"run": "omit_seed0", "seed": 0}}


def test_lines_of_the_log_that_are_none(tmp_path):
    lines = ['\ufeff{"step": 1}', "[" * 100_000, '{"step": 1e999}', f'{{"step": {10**400}}}', '{"step": 2, "step": 1}']
    (tmp_path / "train_log.jsonl").write_text("\n".join([*lines, '{"step": 2}', '{"step": 3}']) + "\n")
    TrainingLog(tmp_path, 2)
    assert (tmp_path / "train_log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
