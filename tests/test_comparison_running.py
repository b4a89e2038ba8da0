import threading
import time
from pathlib import Path

import psutil
import pytest
from comparisons import QuickRunner, comparison, launches, rows_of
from filelock import FileLock
from tiny import PROGRAMS

from omit_hf.comparison import Runner, check_folders
from omit_hf.comparison.running import metrics_of
from omit_hf.ownership import LOCK_FILE
from omit_hf.training import usable_cores

BOTH = {"methods": {"matching": ["omit", "mean"], "seeds": [0, 1]}}


def runs_of(plan):
    return [run for grid in plan.grids for run in plan.runs(grid)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_each_run_once(tmp_path, jobs):
    grids = {**BOTH, "again": {"matching": ["mean", "ot"], "seeds": [0]}}
    runs = runs_of(comparison(tmp_path, grids=grids))
    QuickRunner(tmp_path / "runs", jobs).run(runs, "Runs")
    expected = ["mean_seed0", "mean_seed1", "omit_seed0", "omit_seed1", "ot_seed0"]
    assert sorted(launches(tmp_path)) == expected
    runner = QuickRunner(tmp_path / "runs", jobs)
    runner.run(runs, "Runs")  # and never again
    assert sorted(launches(tmp_path)) == expected
    assert runner.failed == {}
    rows = rows_of(tmp_path / "runs")
    assert sorted(rows) == expected
    row = rows["omit_seed1"]
    assert {name: row[name] for name in ("status", "matching", "seed", "trained_parameters", "peak_memory")} == {
        "status": "finished",
        "matching": "omit",
        "seed": 1,
        "trained_parameters": 1000,
        "peak_memory": 2**30,
    }
    assert row["test_rsum"] == metrics_of(runs[1])["test"]["rsum"]
    assert (tmp_path / "runs" / "logs" / "omit_seed1.log").exists()


def test_an_interrupted_run_goes_on(tmp_path):
    [run] = runs_of(comparison(tmp_path, grids={"a": {"matching": ["omit"], "seeds": [0]}}))
    QuickRunner(tmp_path / "runs").run([run], "Runs")
    (run.folder / "metrics.json").unlink()
    check_folders([run])
    QuickRunner(tmp_path / "runs").run([run], "Runs")
    lines = (tmp_path / "runs" / "launches.txt").read_text().splitlines()
    assert [line.split()[-1] == "--resume" for line in lines] == [False, True]


def test_a_failing_run_stops_no_other(tmp_path):
    grids = {"a": {"learning_rate": [9.0, 0.01], "seeds": [0, 1]}}
    runs = runs_of(comparison(tmp_path, grids=grids))
    runner = QuickRunner(tmp_path / "runs")
    runner.run(runs, "Runs")
    runner.run(runs, "Runs")  # a failure is not tried again for another grid of the same command
    assert len(launches(tmp_path)) == 4
    assert set(runner.failed) == {"omit_learning_rate-9_seed0", "omit_learning_rate-9_seed1"}
    reason = runner.failed["omit_learning_rate-9_seed0"]
    assert reason.startswith("exit status 1; see ")
    assert "it diverged" in Path(reason.split("see ")[1]).read_text()
    rows = rows_of(tmp_path / "runs")
    assert [rows[run.name]["status"] for run in runs] == ["failed", "failed", "finished", "finished"]
    again = QuickRunner(tmp_path / "runs")
    again.run(runs, "Runs")  # but of another
    assert len(launches(tmp_path)) == 6


def test_two_commands_in_one_folder(tmp_path):
    """They would train the same run at once, and each lose the other's rows."""
    runs = runs_of(comparison(tmp_path, grids=BOTH))
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / LOCK_FILE), pytest.raises(BlockingIOError, match="Another comparison is running"):
        QuickRunner(tmp_path / "runs").run(runs, "Runs")
    assert launches(tmp_path) == []
    QuickRunner(tmp_path / "runs").run(runs, "Runs")
    assert len(launches(tmp_path)) == 4


def test_a_run_that_leaves_no_metrics_has_failed(tmp_path):
    runs = runs_of(comparison(tmp_path, grids=BOTH))
    nothing = tmp_path / "nothing.py"
    nothing.touch()
    runner = QuickRunner(tmp_path / "runs", script=nothing)
    runner.run(runs, "Runs")
    assert len(runner.failed) == 4
    assert runner.failed["omit_seed0"].startswith("it ended without metrics.json; see ")


@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_a_folder_of_another_recipe(tmp_path, state):
    runs = runs_of(comparison(tmp_path, grids=BOTH))
    QuickRunner(tmp_path / "runs").run(runs, "Runs")
    if state == "interrupted":
        for run in runs:
            (run.folder / "metrics.json").unlink()
    check_folders(runs)
    check_folders(runs_of(comparison(tmp_path, grids=BOTH, overrides={"cpu_threads": 5})))  # of no effect
    with pytest.raises(
        ValueError, match=f"The {state} run in .*omit_seed0 has another recipe:\n  num_epochs: was 2"
    ) as e:
        check_folders(runs_of(comparison(tmp_path, grids=BOTH, overrides={"num_epochs": 3})))
    assert str(e.value).count("has another recipe") == 4
    assert "choose another --output_dir" in str(e.value)


def test_cores_are_shared_unless_the_recipe_says(tmp_path):
    for threads, expected in ((0, max(1, usable_cores() // 2)), (3, None)):
        plan = comparison(tmp_path, grids=BOTH, overrides={"cpu_threads": threads})
        command = Runner(tmp_path, jobs=2).command(runs_of(plan)[0], Path("recipe.yaml"))
        assert ("--cpu_threads" in command) == (expected is not None)
        assert expected is None or command[command.index("--cpu_threads") + 1] == str(expected)
    with pytest.raises(ValueError, match="jobs is 0; expected at least 1"):
        Runner(tmp_path, jobs=0)


def test_stopping_ends_what_runs_and_begins_nothing(tmp_path):
    runs = runs_of(comparison(tmp_path, grids=BOTH))
    runner = QuickRunner(tmp_path / "runs", 2, PROGRAMS / "train_forever.py")
    thread = threading.Thread(target=runner.run, args=(runs, "Runs"))
    thread.start()
    files = [Path(f"{run.folder}.pid") for run in runs[:2]]
    deadline = time.monotonic() + 60
    while not all(file.exists() and file.read_text().endswith(" ") for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = [int(file.read_text()) for file in files]
    runner.stop()
    thread.join(60)
    assert not thread.is_alive()
    for pid in children:
        deadline = time.monotonic() + 60
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not Path(f"{runs[2].folder}.pid").exists()
