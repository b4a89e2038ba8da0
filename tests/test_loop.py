import errno
import json
import math
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import miniatures
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from runs import TRAIN, contents, finish, launch, log_of, names, run, start
from safetensors.torch import load_file
from tiny import CODE, PROGRAMS, tiny_recipe
from transformers import AutoTokenizer

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import ImageTextInputs, load_image_text, shuffle_captions
from omit_hf.evaluation import evaluate_split
from omit_hf.training import Recipe, loop, read_recipe_file, trackers, train, write_recipe_file
from omit_hf.training.building import build_model
from omit_hf.training.checkpoints import begin_output_dir
from omit_hf.training.losses import StepLosses
from omit_hf.training.optimisation import set_learning_rate

PROGRAM = PROGRAMS / "evaluate_a_run.py"
SLOW_RANK = PROGRAMS / "slow_rank.py"
DROPOUT = {"text_config": {**tiny_recipe()["text_config"], "dropout": 0.3}}


@pytest.fixture(autouse=True)
def accelerate_begins_anew():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "tiny"
    return folder, run(folder, num_epochs=4, checkpoint_steps=3, tensorboard=True)


def test_what_a_run_leaves(trained):
    folder, metrics = trained
    left = {"README.md", "config.json", "metrics.json", "model.safetensors", "processor_config.json", "recipe.yaml"}
    left |= {"tokenizer.json", "tokenizer_config.json", "train_log.jsonl", "checkpoints", "logs"}
    assert set(names(folder)) == left | CODE
    assert names(folder / "checkpoints") == ["step-00000015", "step-00000016"]  # rotated, and no best beside them
    assert list((folder / "logs").rglob("events.out.tfevents.*"))
    assert metrics == json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 16
    assert [line["step"] for line in log_of(folder)] == list(range(1, 17))
    assert [line["epoch"] for line in log_of(folder)] == [step // 4 for step in range(16)]
    assert log_of(folder)[-1]["loss"] < log_of(folder)[0]["loss"]


def test_where_cells_look_is_kept_for_whoever_cannot_measure_it(trained):
    model = OmitModel.from_pretrained(trained[0])
    kept = model.config.fragment_boxes
    assert list(kept) == ["96 x 96"]
    model.config.fragment_boxes = None
    model.fragment_boxes(96, 96)
    assert model.config.fragment_boxes == kept


def test_scoring_is_timed(trained):
    _, metrics = trained
    assert metrics["scored_pairs"] == 6 * 30
    assert 0 < metrics["scoring_seconds"] <= metrics["test_seconds"] + 0.05


def test_without_a_test(tmp_path, monkeypatch):
    """The test split is not even looked at, and there is no card of what was not tested."""
    seen = []
    monkeypatch.setattr(
        loop, "evaluate_split", lambda *args, **options: seen.append(len(args[2])) or evaluate_split(*args, **options)
    )
    metrics = run(tmp_path, num_epochs=1, test=False)
    assert seen == [4]  # validation alone, whose size it is
    assert metrics["test"] is metrics["test_seconds"] is metrics["scoring_seconds"] is metrics["scored_pairs"] is None
    assert metrics["validation"]["rsum"] > 0
    assert "metrics.json" in names(tmp_path)
    assert "README.md" not in names(tmp_path)
    assert OmitModel.from_pretrained(tmp_path)


def test_the_best_epoch_is_kept(trained):
    folder, metrics = trained
    progress = json.loads((folder / "checkpoints" / "step-00000016" / "progress.json").read_text())
    assert len(progress["validations"]) == 4
    assert metrics["validation"]["rsum"] == max(each["rsum"] for each in progress["validations"])
    data = load_image_text("scenes", **tiny_recipe()["data_options"])
    model, processor = OmitModel.from_pretrained(folder), OmitProcessor.from_pretrained(folder)
    assert evaluate_split(model, processor, data["validation"])[0] == pytest.approx(metrics["validation"])


def test_another_process_reproduces_the_metrics_without_the_training_code(trained, tmp_path):
    folder, metrics = trained
    command = [sys.executable, PROGRAM, str(folder), json.dumps(tiny_recipe()["data_options"])]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == pytest.approx(metrics["test"], abs=1e-9)


def test_a_complete_run_is_not_repeated(trained):
    folder, metrics = trained
    before = (folder / "train_log.jsonl").read_bytes()
    assert run(folder, num_epochs=4, checkpoint_steps=3, resume=True) == metrics
    assert (folder / "train_log.jsonl").read_bytes() == before


def test_the_same_seed_gives_the_same_model(tmp_path):
    first, second, other = (run(tmp_path / str(n), seed=seed, **DROPOUT) for n, seed in enumerate((3, 3, 4)))
    assert first["test"] == second["test"]
    assert log_of(tmp_path / "0") == log_of(tmp_path / "1") != log_of(tmp_path / "2")
    weights = [(tmp_path / str(n) / "model.safetensors").read_bytes() for n in range(3)]
    assert weights[0] == weights[1] != weights[2]
    assert other["recipe"]["seed"] == 4


def test_every_epoch_has_its_own_order(tmp_path):
    run(tmp_path, loss="infonce", learning_rate=1e-12)  # so that the same batches would have the same losses
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert losses[:4] != pytest.approx(losses[4:], rel=1e-4)


AUGMENTED = {"caption_noise": 0.3, "word_augmentation": 0.4, "image_crop": 0.5, "image_flip": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 2},
        {"loss": "triplet"},
        AUGMENTED,
        {**AUGMENTED, "num_workers": 2},
        {"unfreeze_epochs": [1, 2]},
        {"vision_config": {"model_type": "resnet", **miniatures.VISION["resnet"]}, "freeze_batch_norm": True},
    ],
)
def test_stopped_and_resumed_is_as_if_never_stopped(tmp_path, options):
    options = {"num_epochs": 3, **DROPOUT, **options}
    steps = 6 if "unfreeze_epochs" in options else 3  # in the second epoch, or in the first
    whole = run(tmp_path / "whole", **options)
    stopped = run(tmp_path / "parts", max_steps=steps, **options)
    assert stopped["steps"] == steps
    assert not (tmp_path / "parts" / "metrics.json").exists()
    parts = run(tmp_path / "parts", resume=True, **options)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert parts["test"] == whole["test"]
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_killed_in_mid_epoch_and_resumed(tmp_path):
    """And no second training comes into the folder before that."""
    options = {"num_epochs": 3, "checkpoint_steps": 4, "log_steps": 1, **DROPOUT}
    options["data_options"] = {**tiny_recipe()["data_options"], "train_size": 36}  # 18 steps an epoch
    run(tmp_path / "whole", **options)
    process = launch(tmp_path / "killed", **options)
    log = tmp_path / "killed" / "train_log.jsonl"
    limit = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < 23:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)  # as slow as it needs to be
    before, owner = contents(tmp_path / "killed"), f"process {process.pid} on .*, since 20"
    for way in ({}, {"resume": True}, {"overwrite_output_dir": True}):
        with pytest.raises(BlockingIOError, match=f"Another training is running in .*: {owner}"):
            run(tmp_path / "killed", **way, **options)
    assert contents(tmp_path / "killed") == before
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    reached = len(log_of(tmp_path / "killed"))
    assert 23 <= reached < 36, "killed in the second epoch, or the test shows nothing"
    finish(launch(tmp_path / "killed", **options))
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_augmentation_is_the_same_with_other_workers(tmp_path):
    """It depends on seed, epoch and pair alone; and it is there, another one in every epoch."""
    run(tmp_path / "alone", **AUGMENTED)
    run(tmp_path / "workers", num_workers=2, **AUGMENTED)
    assert log_of(tmp_path / "alone") == log_of(tmp_path / "workers")
    frozen = {"num_epochs": 2, "learning_rate": 1e-12, "loss": "infonce", "batch_size": 40}  # one batch, of all pairs
    run(tmp_path / "plain", **frozen)
    run(tmp_path / "augmented", **frozen, **AUGMENTED)
    plain, augmented = ([line["loss"] for line in log_of(tmp_path / name)] for name in ("plain", "augmented"))
    assert plain[0] == pytest.approx(plain[1], rel=1e-5)
    assert len({round(loss, 4) for loss in (plain[0], *augmented)}) == 3


@pytest.mark.parametrize("moved", [0, 1, 5])
def test_a_run_that_is_stopped_while_it_publishes_goes_on(tmp_path, trained, monkeypatch, moved):
    """Also where some files of the best model are at the top already, and the rest loads no more."""
    replace, done = os.replace, []

    def stop(source, target):
        if Path(source).parent.name.startswith("best-") and not Path(source).name.startswith("."):
            if len(done) == moved:
                raise KeyboardInterrupt
            done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", num_epochs=1)
    assert len(done) == moved
    run(tmp_path / "run", num_epochs=1, resume=True)
    assert set(names(tmp_path / "run")) == set(names(trained[0])) - {"logs"}
    assert not list((tmp_path / "run" / "checkpoints").glob("best-*"))
    assert OmitModel.from_pretrained(tmp_path / "run").config.fragment_boxes  # measured before anything was moved


def backbone_at(folder, step) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    prefix = "vision_encoder.backbone."
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def test_noisy_captions_are_of_the_training_split_alone(tmp_path, monkeypatch):
    """The loss takes a caption to be of the image that it was given to, and no other split is touched."""
    seen, measured = [], []

    def spied_inputs(split, *arguments):
        seen.append((split["captions"][:], ImageTextInputs(split, *arguments)))
        return seen[-1][1]

    def spied_evaluation(model, processor, split, **options):
        measured.append(split["captions"][:])
        return evaluate_split(model, processor, split, **options)

    monkeypatch.setattr("omit_hf.training.loop.ImageTextInputs", spied_inputs)
    monkeypatch.setattr("omit_hf.training.loop.evaluate_split", spied_evaluation)
    metrics = run(tmp_path / "run", caption_noise=0.4, seed=3, num_epochs=1)
    clean = load_image_text("scenes", **tiny_recipe()["data_options"])
    [(captions, inputs)] = seen
    assert captions == shuffle_captions(clean["train"], 0.4, seed=3)["captions"][:]
    strangers = [c for row, own in zip(captions, clean["train"]["captions"], strict=True) for c in row if c not in own]
    assert len(strangers) == 16  # of 40
    assert inputs.pairs(range(40))["image_ids"].tolist() == [n // 5 for n in range(40)]
    assert measured == [clean["validation"]["captions"][:], clean["test"]["captions"][:]]
    assert metrics["recipe"]["caption_noise"] == 0.4
    assert "40% of the captions were given to other images" in (tmp_path / "run" / "README.md").read_text()


def test_too_few_captions_to_move(tmp_path):
    with pytest.raises(ValueError, match="A share of 0.03 of 40 captions is 1 to move, of which 1 are of one image"):
        run(tmp_path / "run", caption_noise=0.03)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_progressive_unfreezing(tmp_path, processes):
    """Frozen at first, then the last stage learns, then the one before it, the embeddings never; on two processes as
    on one."""
    options = {"unfreeze_epochs": [1, 2], "num_epochs": 3, "keep_checkpoints": 9, "learning_rate": 1e-3}
    options["data_options"] = {**tiny_recipe()["data_options"], "train_size": 16}  # 4 steps an epoch
    finish(launch(tmp_path / "run", processes, batch_size=20 // processes, **options))
    states = [backbone_at(tmp_path / "run", step) for step in (4, 8, 12)]
    fresh = backbone_of_a_new_model(options)
    previous, learnt = fresh, []
    for state in states:
        learnt.append({name for name in state if not torch.equal(state[name], previous[name])})
        previous = state
    assert learnt[0] == set()
    assert learnt[1] == {name for name in fresh if name.startswith("encoder.stages.1.")}
    assert learnt[2] == {name for name in fresh if name.startswith("encoder.stages.")}
    if processes == 2:
        finish(launch(tmp_path / "one", batch_size=20, **options))
        for name, expected in backbone_at(tmp_path / "one", 12).items():
            difference = (states[-1][name] - expected).norm() / expected.norm().clamp_min(1e-3)
            assert difference < 1e-4, name


def backbone_of_a_new_model(options) -> dict[str, torch.Tensor]:
    recipe = Recipe(**tiny_recipe(**options))
    set_seed(recipe.seed)
    model, _ = build_model(recipe, load_image_text("scenes", **recipe.data_options)["train"])
    return model.vision_encoder.backbone.state_dict()


def test_more_stages_than_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"unfreeze_epochs has 4 stages, .* ConvNextModel has 3"):
        run(tmp_path / "run", unfreeze_epochs=[1, 1, 1, 1])


def test_word_vectors_are_where_the_embeddings_start(tmp_path, capsys):
    """And they are in the checkpoint as the embedding's weights, without the file."""
    vectors = {"red": [1.0] * 8, "circle": [-1.0] * 8}
    lines = [f"{word} {' '.join(map(str, vector))}\n" for word, vector in {**vectors, "zebra": [5.0] * 8}.items()]
    (tmp_path / "glove.txt").write_text("".join(lines))
    options = {"word_vectors": str(tmp_path / "glove.txt"), "num_epochs": 1, "learning_rate": 1e-12}
    metrics = run(tmp_path / "run", **options)
    tokenizer = OmitProcessor.from_pretrained(tmp_path / "run").tokenizer
    assert metrics["word_vectors"] == {"words": len(tokenizer) - 2, "found": 2}
    assert f"2 of the vocabulary's {len(tokenizer) - 2} words" in capsys.readouterr().out
    (tmp_path / "glove.txt").unlink()
    weights = OmitModel.from_pretrained(tmp_path / "run").text_encoder.backbone.embeddings.weight
    for word, vector in vectors.items():
        torch.testing.assert_close(weights[tokenizer.convert_tokens_to_ids(word)], torch.tensor(vector))
    assert weights[tokenizer.convert_tokens_to_ids("blue")].abs().max() <= 0.1  # as it would begin without


def test_word_vectors_of_another_dimension(tmp_path):
    (tmp_path / "glove.txt").write_text("red 1 2 3\n")
    with pytest.raises(ValueError, match="have 3 numbers a word; expected 8, the embedding_size of text_config"):
        run(tmp_path / "run", word_vectors=str(tmp_path / "glove.txt"))


def test_speed_and_memory_are_measured(tmp_path, monkeypatch, capsys):
    slow = ImageTextInputs.pairs

    def pairs(self, numbers):
        time.sleep(0.1)
        return slow(self, numbers)

    monkeypatch.setattr(ImageTextInputs, "pairs", pairs)
    run(tmp_path, max_steps=3)
    metrics = run(tmp_path, resume=True)
    pairs_per_second = 8 * 10 / metrics["training_seconds"]  # both parts' steps
    assert metrics["pairs_per_second"] == pytest.approx(pairs_per_second, rel=0.2)
    assert 0.8 / metrics["training_seconds"] * 0.8 < metrics["waiting_for_data"] < 1
    assert 2**27 < metrics["peak_memory"] < 2**35
    shown = capsys.readouterr().out
    assert f"Trained on {metrics['pairs_per_second']:.1f} pairs/s, waiting for data" in shown
    assert f"peak memory {metrics['peak_memory'] / 2**30:.2f} GiB (process)" in shown


@pytest.mark.parametrize("loss", ["infonce", "triplet"])
def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, loss):
    # With seed 0 two captions tie to within rounding, which then decides which of them comes first.
    options = {"loss": loss, "num_epochs": 5, "learning_rate": 1e-3, "seed": 1}
    options["data_options"] = {**tiny_recipe()["data_options"], "train_size": 16}  # 4 steps an epoch
    finish(launch(tmp_path / "two", processes=2, batch_size=10, **options))
    finish(launch(tmp_path / "one", batch_size=20, **options))
    weights = [load_file(tmp_path / name / "checkpoints/step-00000020/model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        difference = (weights[1][name] - expected).norm() / expected.norm().clamp_min(1e-3)
        assert difference < 1e-4, name
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert metrics["environment"]["processes"] == 2
    model, processor = OmitModel.from_pretrained(tmp_path / "two"), OmitProcessor.from_pretrained(tmp_path / "two")
    test = load_image_text("scenes", **options["data_options"])["test"]
    assert evaluate_split(model, processor, test)[0] == pytest.approx(metrics["test"])


def test_mixed_precision(tmp_path):
    metrics = run(tmp_path / "bf16", mixed_precision="bf16")
    assert all(math.isfinite(line["loss"]) for line in log_of(tmp_path / "bf16"))
    assert OmitModel.from_pretrained(tmp_path / "bf16").dtype == torch.float32
    assert metrics["steps"] == 8


def test_gradient_accumulation_makes_fewer_steps(tmp_path):
    assert run(tmp_path / "run", gradient_accumulation_steps=4, num_epochs=3)["steps"] == 3


def test_cached_states_train_as_live_ones(tmp_path):
    frozen = {"freeze_vision": True, "freeze_text": True, "cache_folder": str(tmp_path / "states")}
    live = run(tmp_path / "live", **frozen)
    cached = run(tmp_path / "cached", cache_states=True, **frozen)
    for ours, theirs in zip(log_of(tmp_path / "cached"), log_of(tmp_path / "live"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert cached["trained_parameters"] == live["trained_parameters"] < live["parameters"]
    before, after = OmitModel.from_pretrained(tmp_path / "live"), OmitModel.from_pretrained(tmp_path / "cached")
    for ours, theirs in zip(
        before.vision_encoder.backbone.parameters(), after.vision_encoder.backbone.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_cached_states_of_clip_train_as_live_ones(tmp_path, kind):
    clip = {"vision_config": None, "text_config": None, "image_processor": None}
    clip["projection_dim"] = {"clip": 24, "siglip": 16}[kind]
    clip["clip_model"] = str(miniatures.save_clip(kind, tmp_path / kind))
    frozen = {"freeze_vision": True, "freeze_text": True, "cache_folder": str(tmp_path / "states")}
    run(tmp_path / "live", **clip, **frozen)
    run(tmp_path / "cached", cache_states=True, **clip, **frozen)
    losses = [[line["loss"] for line in log_of(tmp_path / name)] for name in ("cached", "live")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="The loss is NaN at step"):
        run(tmp_path / "run", learning_rate=1e30)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("log_steps", "trained"), [(1, 2), (3, 3), (10, 4)])
def test_a_loss_that_is_no_number_stops_within_log_steps(tmp_path, monkeypatch, log_steps, trained):
    """The second step's; an epoch has four, and no checkpoint is made of what came of it."""
    ended, end_step = [], StepLosses.end_step

    def spoil(self, **values):
        end_step(self, **values)
        ended.append(values["step"])
        if values["step"] == 2:
            self.means[-1] = self.means[-1] * float("nan")

    monkeypatch.setattr(StepLosses, "end_step", spoil)
    with pytest.raises(FloatingPointError, match="The loss is NaN at step 2;"):
        run(tmp_path / "run", log_steps=log_steps)
    assert len(ended) == trained
    checkpoints = tmp_path / "run" / "checkpoints"
    assert not checkpoints.exists() or not names(checkpoints)


def test_losses_are_read_as_often_as_they_are_logged(tmp_path, monkeypatch):
    reads, read = [], StepLosses.read
    monkeypatch.setattr(StepLosses, "read", lambda self: reads.append(len(self.steps)) or read(self))
    run(tmp_path / "run", num_epochs=2, log_steps=3)
    assert reads == [3, 1, 2, 2]  # four steps an epoch, whose end is logged too
    run(tmp_path / "each", num_epochs=2, log_steps=1)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "each")


def test_an_output_folder_that_is_not_empty(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty. Choose another one, or set resume"):
        run(tmp_path)
    with pytest.raises(FileExistsError, match="holds no run of ours, so it is not emptied"):
        run(tmp_path, overwrite_output_dir=True)
    with pytest.raises(FileExistsError, match="which is a file; expected a folder"):
        run(tmp_path / "notes.txt")
    with pytest.raises(FileExistsError, match=r"notes.txt is a file; expected a folder to make it in"):
        run(tmp_path / "notes.txt" / "run")
    assert names(tmp_path) == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr("omit_hf.training.checkpoints.os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="output_dir is .*run, but .* cannot be written to; choose another one"):
        run(tmp_path / "run")


def test_overwriting_that_is_cut_off_can_be_repeated(tmp_path, monkeypatch):
    run(tmp_path / "run", num_epochs=1)

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("omit_hf.training.checkpoints.write_recipe_file", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", seed=1, overwrite_output_dir=True)
    assert names(tmp_path / "run") == ["checkpoints", "recipe.yaml"]
    assert run(tmp_path / "run", seed=1, num_epochs=1, overwrite_output_dir=True)["recipe"]["seed"] == 1


def test_a_recipe_alone_makes_no_run(tmp_path):
    """Somebody's own recipe.yaml, in the folder that they work in."""
    (tmp_path / "recipe.yaml").write_text("data: scenes")
    with pytest.raises(FileExistsError, match="holds no run of ours, so it is not emptied"):
        run(tmp_path, overwrite_output_dir=True)
    assert (tmp_path / "recipe.yaml").read_text() == "data: scenes"


def test_without_tensorboard_a_run_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    run(tmp_path / "run", max_steps=2, tensorboard=True)
    assert capsys.readouterr().out.count("No TensorBoard logs: pip install 'omit-hf[train]'") == 1
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2]
    assert "logs" not in names(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run", max_steps=3, tensorboard=True, resume=True)
    assert "logs" in names(tmp_path / "run")


def test_overwriting_begins_anew(tmp_path):
    run(tmp_path / "run", num_epochs=1, tensorboard=True)
    before = contents(tmp_path / "run")
    metrics = run(tmp_path / "run", seed=1, overwrite_output_dir=True)
    assert metrics["recipe"]["seed"] == 1
    assert [line["step"] for line in log_of(tmp_path / "run")] == list(range(1, 9))
    assert "logs" not in names(tmp_path / "run")  # of the run before
    assert before.keys() & contents(tmp_path / "run").keys()
    run(tmp_path / "run", seed=1, resume=True)  # the recipe that is kept does not say to overwrite again


def test_what_a_run_does_not_write_is_not_overwritten(tmp_path):
    run(tmp_path / "run", max_steps=3)
    (tmp_path / "run" / "plan.png").write_text("mine")
    (tmp_path / "run" / "checkpoints" / "mine").mkdir()
    before = contents(tmp_path / "run")
    with pytest.raises(FileExistsError, match=r"holds what no run writes, checkpoints/mine, plan.png; move it away"):
        run(tmp_path / "run", overwrite_output_dir=True)
    assert contents(tmp_path / "run") == before


FAILURES = [
    ({"data": "nowhere"}, "data source 'nowhere' is unknown"),
    ({"batch_size": 64}, "40 training pairs make no batch of 64 for each of 1 processes"),
    ({"image_processor": {"image_processor_type": "Tokenizer"}}, "image_processor_type 'Tokenizer'"),
    (
        {"image_processor": {"image_processor_type": "ViTImageProcessor", "do_resise": False}},
        "image_processor has the unknown field 'do_resise'; did you mean 'do_resize'?",
    ),
    ({"min_word_count": 999}, "No word occurs 999 times"),
    ({"text_config": {"model_type": "omit_bigru", "hidden_size": 0}}, "makes no model: hidden_size is 0; expected at"),
    ({"data_options": {"train_sise": 8}}, "load_scenes.* no option 'train_sise'; did you mean 'train_size'?"),
]


@pytest.mark.parametrize(("options", "message"), FAILURES, ids=[message[:20] for _, message in FAILURES])
def test_a_start_that_fails_leaves_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_no_output_folder():
    with pytest.raises(ValueError, match="output_dir is None; expected a folder"):
        train(Recipe(**tiny_recipe()))


def test_what_comes_into_the_folder_meanwhile_is_kept(tmp_path, monkeypatch):
    """Such as another run with the same output_dir."""

    def build(*arguments):
        run_of_another = Recipe(**tiny_recipe(output_dir=str(tmp_path / "run")))
        begin_output_dir(run_of_another)
        return build_model(*arguments)

    monkeypatch.setattr("omit_hf.training.loop.build_model", build)
    with pytest.raises(FileExistsError, match="is not empty"):
        run(tmp_path / "run", seed=1)
    assert read_recipe_file(tmp_path / "run" / "recipe.yaml")["seed"] == 0


def test_a_start_that_fails_overwrites_nothing(tmp_path):
    run(tmp_path / "run", max_steps=3)
    before = contents(tmp_path / "run")
    for options, message in FAILURES:
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", overwrite_output_dir=True, **options)
    assert contents(tmp_path / "run") == before


def test_resuming_what_is_not_this_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no run to resume in"):
        run(tmp_path / "run", resume=True)
    run(tmp_path / "run", max_steps=3)
    with pytest.raises(ValueError, match=r"has another recipe(.|\n)*margin: was 0.05, is 0.1") as caught:
        run(tmp_path / "run", margin=0.1, keep_checkpoints=5, resume=True)
    assert "keep_checkpoints" not in str(caught.value)  # which may change
    progress = next((tmp_path / "run" / "checkpoints").glob("step-*/progress.json"))
    progress.write_text(progress.read_text().replace('"num_processes": 1', '"num_processes": 4'))
    with pytest.raises(ValueError, match="written by 4 processes, and this run has 1; resume with as many"):
        run(tmp_path / "run", resume=True)


def test_resuming_with_another_vocabulary(tmp_path):
    """The captions changed on disk; their number of words did not."""
    file, images = miniatures.karpathy(tmp_path / "data")
    options = {"data": str(file), "data_options": {"image_folder": str(images)}}
    run(tmp_path / "run", max_steps=1, **options)
    captions = file.read_text()
    file.write_text(captions.replace("circle", "blob"))
    with pytest.raises(ValueError, match="was trained with another vocabulary: the training captions"):
        run(tmp_path / "run", resume=True, **options)
    file.write_text(captions)
    assert run(tmp_path / "run", resume=True, **options)["epochs"] == 2


def test_data_that_make_no_batch(tmp_path):
    with pytest.raises(ValueError, match="40 training pairs make no batch of 64 for each of 1 processes"):
        run(tmp_path / "run", batch_size=64)


def test_the_script_with_a_backbone_whose_configuration_is_not_valid(tmp_path, monkeypatch):
    (tmp_path / "backbone").mkdir()
    (tmp_path / "backbone" / "config.json").write_text('{"model_type": "convnext", "depths": "many"}')
    options = tiny_recipe(vision_config=None, image_processor=None, vision_model=str(tmp_path / "backbone"))
    write_recipe_file(Recipe(**options), tmp_path / "recipe.yaml")
    arguments = ["train.py", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="^error: Field 'depths' .*many"):
        runpy.run_path(str(TRAIN), run_name="__main__")
    assert not (tmp_path / "run").exists()


def test_the_script_ends_with_one_line_and_a_status(tmp_path):
    process = launch(tmp_path / "run", data_options={"train_size": "many"})
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in output
    assert output.splitlines()[-1] == "error: train_size is 'many'; expected at least 1 image, as an integer."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("late", [0, 1])
def test_two_processes_of_which_one_is_late(tmp_path, late):
    """Tested or not, stopped and resumed, with cached states or without: nobody deletes what the other reads."""
    frozen = {"freeze_vision": True, "cache_states": True, "cache_folder": str(tmp_path / "states")}
    trainings = {
        "tested": {},
        "untested": {"test": False},
        "parts": {"max_steps": 3, **DROPOUT, **frozen},
        "parts-resumed": {"resume": True, **DROPOUT, **frozen},
        "parts-complete": {"resume": True, **DROPOUT, **frozen},
        "whole": {**DROPOUT, **frozen},
    }
    files = []
    for name, options in trainings.items():
        files.append(tmp_path / f"{name}.yaml")
        options |= {"output_dir": str(tmp_path / name.split("-")[0]), "batch_size": 5, "checkpoint_steps": 3}
        write_recipe_file(Recipe(**tiny_recipe(**options)), files[-1])
    finish(start([str(SLOW_RANK), str(late), *map(str, files)], processes=2))
    tests = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["test"]
        for name in ("tested", "untested", "parts", "whole")
    }
    assert tests["tested"] is not None
    assert tests["untested"] is None
    assert tests["parts"] == tests["whole"]
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    for name in tests:
        assert names(tmp_path / name / "checkpoints") == ["step-00000006", "step-00000008"]
        assert not [each for each in names(tmp_path / name) if each.startswith(".")]
        assert OmitModel.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_validation_that_fails_loses_nothing(tmp_path, monkeypatch, epoch):
    """Whatever is wrong with it, and even if it fails again: the steps are there, and it is what is repeated."""
    options = {"num_epochs": 3, **DROPOUT}
    whole = run(tmp_path / "whole", **options)
    calls = []

    def fails_twice(*arguments, **settings):
        calls.append(1)
        if len(calls) in (epoch, epoch + 1):
            raise MemoryError("of the validation")
        return evaluate_split(*arguments, **settings)

    monkeypatch.setattr(loop, "evaluate_split", fails_twice)
    for attempt in range(2):
        with pytest.raises(MemoryError):
            run(tmp_path / "parts", resume=attempt > 0, **options)
        assert [line["step"] for line in log_of(tmp_path / "parts")] == list(range(1, 4 * epoch + 1))
        assert names(tmp_path / "parts" / "checkpoints")[-1] == f"step-{4 * epoch:08d}"
    steps = []
    monkeypatch.setattr(loop, "set_learning_rate", lambda *each: steps.append(each[2]) or set_learning_rate(*each))
    parts = run(tmp_path / "parts", resume=True, **options)
    assert steps == list(range(4 * epoch, 12))  # none of them was made again
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert {name: parts[name] for name in ("test", "validation", "best_epoch")} == {
        name: whole[name] for name in ("test", "validation", "best_epoch")
    }
    assert names(tmp_path / "parts") == names(tmp_path / "whole")
    assert names(tmp_path / "parts" / "checkpoints") == names(tmp_path / "whole" / "checkpoints")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("parts", "whole")]
    assert weights[0] == weights[1]


def test_a_model_that_cannot_be_saved_is_validated_again(tmp_path, monkeypatch):
    """A disk that is full just then."""
    whole = run(tmp_path / "whole")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(loop, "save_model", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*best-00000004'"):
            run(tmp_path / "parts")
    assert names(tmp_path / "parts" / "checkpoints") == ["step-00000004"]
    assert run(tmp_path / "parts", resume=True)["validation"] == whole["validation"]


def test_the_log_is_unique_and_ordered_after_any_history(tmp_path):
    whole = run(tmp_path / "whole", num_epochs=3)
    assert run(tmp_path / "parts", num_epochs=3, max_steps=5)["steps"] == 5
    file = tmp_path / "parts" / "train_log.jsonl"
    lines = file.read_text().splitlines()
    torn = [lines[0][:9], "", "null", "7", '{"epoch": 0}', '{"step": "five"}', "\ufffd"]
    file.write_text("\n".join([*lines[2:], *lines[:4], *torn, lines[-1], '{"step": 6, "lo']))
    assert run(tmp_path / "parts", num_epochs=3, resume=True, max_steps=7)["steps"] == 7
    assert run(tmp_path / "parts", num_epochs=3, resume=True)["test"] == whole["test"]
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")


@pytest.mark.parametrize("cut", ["empty", "locked", "checkpoints", "recipe half written"])
def test_a_run_that_was_killed_before_it_had_a_recipe(tmp_path, cut):
    """Every way goes on, but for --resume in an empty folder, which may be the wrong one."""
    ways = ({}, {"overwrite_output_dir": True}, {"resume": True})
    for way in ways[: 2 if cut == "empty" else 3]:
        folder = tmp_path / "-".join(["run", *way])
        folder.mkdir()
        if cut != "empty":
            (folder / ".lock").touch()
            (folder / ".lock.json").write_text('{"purpose": "train')
        if cut in ("checkpoints", "recipe half written"):
            (folder / "checkpoints").mkdir()
        if cut == "recipe half written":
            (folder / ".recipe.yaml.partial").write_text("data: sce")
        run(folder, num_epochs=1, **way)
        assert not [each for each in names(folder) if each.startswith(".")]
        assert read_recipe_file(folder / "recipe.yaml")["resume"] is False
    if cut == "empty":
        (tmp_path / "resumed").mkdir()
        with pytest.raises(FileNotFoundError, match="There is no run to resume in .*; leave out resume to begin one"):
            run(tmp_path / "resumed", resume=True)
        assert names(tmp_path / "resumed") == []


def test_a_checkpoint_that_was_not_rotated_away_in_time(tmp_path, monkeypatch):
    """A kill between the last checkpoint and the deletion of the one before it, after which none is saved any more."""
    whole = run(tmp_path / "whole", keep_checkpoints=1, checkpoint_steps=3)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(loop, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", keep_checkpoints=2, checkpoint_steps=3)
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000003", "step-00000004"]
    run(tmp_path / "run", keep_checkpoints=1, checkpoint_steps=3, resume=True, max_steps=4)
    assert names(tmp_path / "run" / "checkpoints") == ["best-00000004", "step-00000004"]
    assert run(tmp_path / "run", keep_checkpoints=1, checkpoint_steps=3, resume=True)["test"] == whole["test"]
    shutil.copytree(tmp_path / "run/checkpoints/step-00000008", tmp_path / "run/checkpoints/step-00000006")
    run(tmp_path / "run", keep_checkpoints=1, checkpoint_steps=3, resume=True)
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000008"]


def test_a_run_that_is_complete_has_no_stale_model(tmp_path):
    """Killed between the metrics and the end, as by an earlier version."""
    metrics = run(tmp_path / "run", num_epochs=1)
    for name in ("best-00000004", ".best-00000004.partial", ".best-00000004.old.partial"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        (tmp_path / "run" / "checkpoints" / name / "model.safetensors").touch()
    (tmp_path / "run" / ".README.md.partial").touch()
    assert run(tmp_path / "run", num_epochs=1, resume=True) == metrics
    assert names(tmp_path / "run" / "checkpoints") == ["step-00000004"]
    assert ".README.md.partial" not in names(tmp_path / "run")


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_captions_that_are_longer_than_the_text_encoder_reads(tmp_path, kind):
    """Of a tokenizer that knows no limit: they are cut, in training as in what loads the model."""
    options = {"text_model": None, "text_config": None}
    if kind == "clip":
        options |= {"clip_model": str(miniatures.save_clip("clip", tmp_path / kind)), "projection_dim": 24}
        options |= {"vision_config": None, "image_processor": None}
        limit = 66
    else:
        options["text_model"] = str(miniatures.save_text("bert", tmp_path / kind, max_position_embeddings=40))
        limit = 40
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / kind)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path / kind)
    data = load_image_text("scenes", **tiny_recipe()["data_options"])
    assert max(len(tokenizer(row[0])["input_ids"]) for row in data["train"]["captions"]) > 40
    metrics = run(tmp_path / "run", num_epochs=1, test=True, **options)
    model, processor = OmitModel.from_pretrained(tmp_path / "run"), OmitProcessor.from_pretrained(tmp_path / "run")
    assert processor.tokenizer.model_max_length == limit
    assert processor(text=["ab " * 100])["input_ids"].shape == (1, limit)
    processor = OmitProcessor(processor.image_processor, tokenizer)  # without the limit
    assert evaluate_split(model, processor, data["test"])[0] == metrics["test"]
