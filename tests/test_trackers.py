import json
import os
import subprocess
import sys

import pytest
from runs import TRAIN, names, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_recipe

from omit_hf.training import Recipe, trackers, write_recipe_file


def recipe(**options) -> Recipe:
    return Recipe(**tiny_recipe(**options))


def scalars(folder) -> EventAccumulator:
    """All that TensorBoard shows of a run but its hyperparameters."""
    [file] = (folder / "logs" / "omit-hf").glob("events*")
    events = EventAccumulator(str(file))
    events.Reload()
    return events


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tensorboard": True}, ["tensorboard"]),
        ({"tensorboard": False}, []),  # as older recipes have it
        ({"report_to": "none"}, []),
        ({"report_to": []}, []),
        ({"report_to": "trackio"}, ["trackio"]),
        ({"report_to": ["wandb", "tensorboard", "wandb"]}, ["wandb", "tensorboard"]),
    ],
)
def test_what_a_recipe_asks_for(options, expected):
    assert trackers.asked_trackers(recipe(**options)) == expected


def test_all_are_those_that_are_installed(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["mlflow", "tensorboard"])
    assert trackers.asked_trackers(recipe(report_to="all")) == ["mlflow", "tensorboard"]
    assert trackers.installed_trackers(["mlflow"]) == (["mlflow"], [])
    found, lines = trackers.installed_trackers(["comet_ml", "tensorboard", "wandb"])
    assert found == ["tensorboard"]
    assert lines == [
        "No comet_ml logs: pip install comet-ml brings it; train_log.jsonl has all of it.",
        "No Weights & Biases logs: pip install wandb brings it; train_log.jsonl has all of it.",
    ]


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("tensorbord", "report_to has 'tensorbord'; expected some of aim, all, .*tensorboard, trackio, wandb"),
        (["none", "wandb"], "expected 'none' alone, or trackers"),
    ],
)
def test_a_wrong_tracker_ends_before_the_run(tmp_path, report_to, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", report_to=report_to)
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_losses_recipe_test_and_card(tmp_path):
    metrics = run(tmp_path / "run", report_to="tensorboard", num_epochs=1)
    events = scalars(tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert [each.value for each in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)
    assert [each.step for each in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Scalars("validation/rsum")[0].value == pytest.approx(metrics["validation"]["rsum"])
    assert events.Scalars("test/rsum")[0].value == pytest.approx(metrics["test"]["rsum"])
    [card] = [tag for tag in events.Tags()["tensors"] if tag.startswith("card")]
    assert events.Tensors(card)[0].tensor_proto.string_val[0].decode() == (tmp_path / "run/README.md").read_text()
    [written] = (tmp_path / "run/logs").rglob("hparams.yml")
    assert "learning_rate: 0.01" in written.read_text()
    assert str(tmp_path) not in written.read_text()


def test_trackio_follows_a_run_and_its_resumption_without_a_network(tmp_path):
    """In processes of their own, since trackio reads where its files go as it is imported."""
    write_recipe_file(recipe(report_to="trackio", project="matching", run_name="first"), tmp_path / "mine.yaml")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(TRAIN), str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "run")]
    for more in (["--max_steps", "3"], ["--resume"]):
        subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=True)
    assert "logs" not in names(tmp_path / "run")
    code = (
        "import json, trackio\n"
        "[run] = trackio.Api().runs('matching')\n"
        "rows = trackio.SQLiteStorage.get_logs('matching', run.name)\n"
        "print(json.dumps([run.name, run.config, rows], default=str))"
    )
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    name, config, rows = json.loads(printed.stdout.splitlines()[-1])
    assert name == "first"
    assert (config["batch_size"], config["learning_rate"]) == (10, 0.01)
    assert json.loads(config["data_options"]) == {"train_size": 8, "validation_size": 4, "test_size": 6}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/train_log.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == pytest.approx(losses)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [row["test/rsum"] for row in rows if "test/rsum" in row] == [pytest.approx(metrics["test"]["rsum"])]
    assert any("card" in row for row in rows)
