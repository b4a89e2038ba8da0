"""examples/evaluate.py with protocols, saved similarities and model cards."""

import errno
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sources
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from tiny import tiny_recipe

from omit_hf.data import load_karpathy
from omit_hf.evaluation import (
    SplitPairs,
    ensemble,
    evaluate_split,
    load_similarity,
    pairs_metrics,
    same_side_similarity,
    split_similarity,
)
from omit_hf.evaluation.protocols import prepare
from omit_hf.ownership import FolderLock

EVALUATE = Path(__file__).parents[1] / "examples" / "evaluate.py"
CARD = "---\nlibrary_name: transformers\nlicense: apache-2.0\n---\n\n# A model\n\nText.\n"


@pytest.fixture(autouse=True)
def accelerate_begins_anew(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def evaluate(monkeypatch, capsys):
    """Runs the script in this process; gives what it prints, or the error that it ends with."""

    def run(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--cpu_threads", "1"])
        try:
            runpy.run_path(str(EVALUATE), run_name="__main__")
        except SystemExit as error:
            return str(error.code) if isinstance(error.code, str) else capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.fixture
def scenes_split(published):
    from omit_hf.data import load_scenes

    return load_scenes(**tiny_recipe()["data_options"])["test"]


@pytest.fixture
def coco(tmp_path):
    """Karpathy's JSON with its images, and the files of Crisscrossed Captions for its three test images."""
    file, options = sources.karpathy(tmp_path)
    content = json.loads(file.read_text())
    for entry in content["images"]:
        for number, sentence in enumerate(entry["sentences"]):
            sentence["sentid"] = 10 * entry["cocoid"] + number
    file.write_text(json.dumps(content))
    image = "COCO_val2014_{:012d}.jpg".format
    caption = "COCO_val2014:sentid:{}".format
    for name, columns, first, second in (
        ("sits_test", "caption,image", caption(93), image(10)),
        ("sis_test", "image1,image2", image(9), image(11)),
        ("sts_test", "caption1,caption2", caption(93), caption(110)),
    ):
        (tmp_path / f"{name}.csv").write_text(f"{columns},agg_score,sampling_method\n{first},{second},4.5,any\n")
    return file, options, ["--data", file, "--data_options", json.dumps(options), "--annotations", tmp_path]


def test_the_default_is_retrieval(evaluate, published, scenes_split, scenes_model, processor, tmp_path):
    files = ["--json", tmp_path / "m.json", "--markdown", tmp_path / "m.md"]
    printed = evaluate(published, *files, "--save_similarity", tmp_path / "s.safetensors")
    similarity, pairs = load_similarity(tmp_path / "s.safetensors")
    _, in_memory = evaluate_split(scenes_model, processor, scenes_split, progress=False)
    np.testing.assert_allclose(similarity, in_memory, rtol=0, atol=1e-5)
    expected = pairs_metrics(similarity, pairs)  # of these scores, since captions that tie may change places
    assert json.loads((tmp_path / "m.json").read_text()) == pytest.approx(expected)
    assert {"i2t_map", "i2t_map_at_r", "t2i_r_precision"} <= expected.keys()
    assert (tmp_path / "m.md").read_text() == printed
    assert "| direction | R@1 | R@5 | R@10 | median rank | mean rank | mAP | mAP@R | R-precision |" in printed


def test_a_protocol_gives_json_a_table_and_entries_of_a_card(evaluate, published, scenes_split, tmp_path):
    (published / "README.md").write_text(CARD)
    files = ["--json", tmp_path / "m.json", "--markdown", tmp_path / "m.md", "--card", published / "README.md"]
    printed = evaluate(published, "--protocol", "exhaustive", *files, "--save_similarity", tmp_path / "s.safetensors")
    similarity, pairs = load_similarity(tmp_path / "s.safetensors")
    assert pairs == SplitPairs.of(scenes_split)
    result = prepare("exhaustive", pairs)(similarity)
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["exhaustive"]["metrics"] == result.metrics
    assert content["exhaustive"]["dataset"] == "scenes, all true pairs, annotated or not"
    assert (tmp_path / "m.md").read_text() == printed == result.markdown()
    card = ModelCard((published / "README.md").read_text())
    assert {each.metric_type: each.metric_value for each in card.data.eval_results} == {
        name: round(value, 2) for name, value in result.metrics.items()
    }
    assert {(each.dataset_type, each.dataset_split) for each in card.data.eval_results} == {("exhaustive", "test")}
    assert card.data.license == "apache-2.0"
    assert card.text == "\n# A model\n\nText.\n"
    assert not list(tmp_path.glob(".*partial"))


def test_cxc_from_pictures_to_figures(evaluate, coco, published, scenes_model, processor, tmp_path):
    file, options, arguments = coco
    printed = evaluate(published, *arguments, "--protocol", "cxc", "--json", tmp_path / "m.json")
    split = load_karpathy(file, **options)["test"]
    among = {
        f"{side}_similarity": same_side_similarity(scenes_model, processor, split, side) for side in ("image", "text")
    }
    measure = prepare("cxc", SplitPairs.of(split), tmp_path)
    expected = measure(split_similarity(scenes_model, processor, split), **among)
    assert json.loads((tmp_path / "m.json").read_text())["cxc"]["metrics"] == pytest.approx(expected.metrics)
    for direction in ("image → text", "text → image", "image → image", "text → text"):
        assert f"| {direction} |" in printed
    some = evaluate(published, *arguments, "--protocol", "cxc", "--tasks", "t2i", "i2i")
    assert ("| text → image |" in some, "| image → image |" in some, "| text → text |" in some) == (True, True, False)


def test_cxc_by_two_processes(coco, published, evaluate, tmp_path):
    arguments = [published, *coco[2], "--protocol", "cxc", "--batch_size", "2", "--json"]
    evaluate(*arguments, tmp_path / "one.json")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    command = [str(part) for part in (sys.executable, *launch, EVALUATE, *arguments, tmp_path / "two.json")]
    result = subprocess.run(command, env={**os.environ}, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one == two
    assert len(one["cxc"]["metrics"]) == 20


def test_an_ensemble_needs_no_model(evaluate, published, coco, tmp_path):
    file, options, arguments = coco
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for batch_size, similarity in enumerate(files, 1):
        evaluate(published, *arguments[:4], "--batch_size", batch_size, "--save_similarity", similarity)
    printed = evaluate(
        "--ensemble", *files, "--json", tmp_path / "m.json", "--save_similarity", tmp_path / "3.safetensors"
    )
    mean, pairs = ensemble(files)
    assert pairs == SplitPairs.of(load_karpathy(file, **options)["test"])
    assert json.loads((tmp_path / "m.json").read_text()) == pairs_metrics(mean, pairs)
    assert "RSUM" in printed
    np.testing.assert_array_equal(load_similarity(tmp_path / "3.safetensors")[0], mean)
    table = evaluate("--ensemble", *files, "--protocol", "cxc", "--annotations", tmp_path)
    assert "| text → image |" in table
    assert "| image → image |" not in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--protocol", "flickr30k_1k"],
            "error: There are 6 images of 5 to 5 captions; flickr30k_1k expects 1000 of 5",
        ),
        (["--protocol", "coco_5k"], "error: There are 6 images of 5 to 5 captions; coco_5k and coco_1k expect 5000"),
        (
            ["--protocol", "cxc"],
            "error: cxc needs annotations; expected a folder with dataset_coco.json and the files of",
        ),
        (
            ["--protocol", "cxc", "--annotations", "."],
            "error: . has no sis_test.csv, sits_test.csv, sts_test.csv; expected",
        ),
        (["--protocol", "eccv", "--annotations", "."], "error: No annotations at dataset_coco.json"),
        (
            ["--protocol", "exhaustive", "--split", "validation"],
            "error: The split is 'validation'; exhaustive expects 'test'",
        ),
        (["--protocol", "coco"], "argument --protocol: invalid choice: 'coco'"),
        (["--tasks", "i2i"], "error: --tasks is given without --protocol cxc; leave it out."),
        (["--card", "README.md"], "error: --card is given without --protocol; expected one, to name the results by."),
        (["--protocol", "exhaustive", "--card", "none.md"], "error: [Errno 2] No such file or directory: 'none.md'"),
        (["--json", "none/m.json"], "error: There is no folder none for m.json; make it first."),
        (
            ["--save_similarity", "s.npz"],
            "error: The similarity's file is s.npz; expected a name that ends with .safet",
        ),
        (["--ensemble", "a.safetensors"], "error: A model and --ensemble are both given; expected one of them."),
    ],
)
def test_what_cannot_be_measured(evaluate, published, monkeypatch, options, message):
    """And nothing is scored in vain."""
    monkeypatch.chdir(published)
    monkeypatch.setattr("omit_hf.command_line.evaluate.split_similarity", None)
    before = sorted(published.iterdir())
    assert message in evaluate(published, *options)
    assert sorted(published.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: Neither a model nor --ensemble is given; expected one of them."),
        (
            ["--ensemble", "a.safetensors"],
            "error: No similarity at a.safetensors; evaluate.py --save_similarity writes",
        ),
        (
            ["--ensemble", "a.safetensors", "--data", "scenes"],
            "error: --data is given with --ensemble, whose files hold",
        ),
        (
            ["--ensemble", "a.safetensors", "--protocol", "cxc", "--tasks", "t2t", "i2t"],
            "error: --tasks has t2t, which need a model; --ensemble has i2t and t2i alone.",
        ),
    ],
)
def test_what_no_ensemble_can_do(evaluate, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in evaluate(*arguments)


def test_a_card_that_is_none(evaluate, published):
    (published / "README.md").write_text("# A model\n")
    message = evaluate(published, "--protocol", "exhaustive", "--card", published / "README.md")
    assert message.startswith("error: The model card does not begin with metadata between two lines of ---")
    assert (published / "README.md").read_text() == "# A model\n"


@pytest.mark.parametrize("option", ["--card", "--json", "--markdown", "--save_similarity"])
def test_a_run_that_another_command_writes_into(published, tmp_path, evaluate, option, monkeypatch):
    """It is refused before anything is scored, and nothing is changed; a model is read beside anything."""
    monkeypatch.setattr("omit_hf.command_line.evaluate.split_similarity", None)
    (published / "checkpoints").mkdir()
    (published / "README.md").write_text(CARD)
    file = published / {"--card": "README.md", "--save_similarity": "all.safetensors"}.get(option, "new.txt")
    before = {each.name: each.stat().st_mtime_ns for each in published.iterdir()}
    with FolderLock(published, "training"):
        message = evaluate(published, option, file, *(["--protocol", "exhaustive"] if option == "--card" else []))
    assert message.startswith(f"error: Another training is running in {published}: process {os.getpid()} on ")
    assert {each.name: each.stat().st_mtime_ns for each in published.iterdir()} == before


def test_an_evaluation_owns_the_run_that_it_writes_into(published, evaluate, monkeypatch):
    (published / "checkpoints").mkdir()
    held = []

    def score(*arguments, **options):
        with pytest.raises(BlockingIOError, match="Another evaluation is running"):
            FolderLock(published, "training").acquire()
        held.append(1)
        return split_similarity(*arguments, **options)

    monkeypatch.setattr("omit_hf.command_line.evaluate.split_similarity", score)
    assert "RSUM" in evaluate(published, "--json", published / "validation.json")
    assert held
    assert json.loads((published / "validation.json").read_text())["rsum"] > 0
    assert not [each.name for each in published.iterdir() if each.name.startswith(".")]


def test_results_that_cannot_be_written_are_printed(published, evaluate, tmp_path, monkeypatch, capsys):
    """A disk that became full while it was scored."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "m.json")

    monkeypatch.setattr("omit_hf.command_line.evaluate.write_atomically", full)
    message = evaluate(published, "--json", tmp_path / "m.json")
    assert message == "error: [Errno 28] No space left on device: 'm.json'"
    assert "RSUM" in capsys.readouterr().out


def test_outputs_that_cannot_be_written_are_known_before(published, evaluate, tmp_path, monkeypatch):
    monkeypatch.setattr("omit_hf.command_line.evaluate.split_similarity", None)
    (tmp_path / "folder").mkdir()
    assert evaluate(published, "--json", tmp_path / "folder").endswith("is a folder; expected the name of a file.")
    monkeypatch.setattr("omit_hf.training.checkpoints.os.access", lambda *_: False)  # root may write anywhere
    assert evaluate(published, "--json", tmp_path / "m.json").endswith("read-only; choose another one.")
