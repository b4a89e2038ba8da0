import json
import os
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXT, tiny_config

from omit_hf import OmitConfig, OmitModel
from omit_hf.data import ImageTextInputs
from omit_hf.evaluation import evaluate_split, same_side_similarity, scoring

EVALUATE = Path(__file__).parents[1] / "examples" / "evaluate.py"


@torch.no_grad()
def test_all_pairs_are_scored_in_their_order(scenes, scenes_model, processor):
    metrics, similarity = evaluate_split(scenes_model, processor, scenes["test"], batch_size=3, progress=False)
    assert similarity.shape == (8, 40)
    inputs = ImageTextInputs(scenes["test"], processor)
    whole = scenes_model(**inputs.images(range(8)), **inputs.texts(range(40)))
    np.testing.assert_allclose(similarity, whole.similarity, atol=1e-5)
    assert {"rsum", "i2t_map", "t2i_map", "i2t_map_at_r", "t2i_r_precision"} <= metrics.keys()


@torch.no_grad()
@pytest.mark.parametrize("matching", typing.get_args(OmitConfig.__dataclass_fields__["matching"].type))
@pytest.mark.parametrize("side", ["image", "text"])
def test_one_side_is_scored_in_both_roles(scenes, processor, matching, side):
    torch.manual_seed(0)
    config = tiny_config(matching=matching, text_config={**TEXT, "vocab_size": len(processor.tokenizer)})
    model = OmitModel(config).eval()
    similarity = same_side_similarity(model, processor, scenes["test"], side, batch_size=3, progress=False)
    inputs = ImageTextInputs(scenes["test"], processor)
    if side == "image":
        features = model.get_image_features(**inputs.images(range(8)))
    else:
        features = model.get_text_features(**inputs.texts(range(40)))
    one_way = model.similarity(features, features)
    np.testing.assert_allclose(similarity, (one_way + one_way.T) / 2, atol=2e-5)
    np.testing.assert_array_equal(similarity, similarity.T)


def test_no_such_side(scenes, scenes_model, processor):
    with pytest.raises(ValueError, match="side is 'both'; expected 'image' or 'text'"):
        same_side_similarity(scenes_model, processor, scenes["test"], "both")


def test_batches_and_tiles_do_not_change_the_scores(scenes, scenes_model, processor):
    def similarity(batch_size, memory_budget):
        options = {"batch_size": batch_size, "memory_budget": memory_budget, "progress": False}
        return evaluate_split(scenes_model, processor, scenes["test"], **options)[1]

    whole = similarity(40, 2**30)
    for batch_size, memory_budget in ((7, 2**16), (1, 1)):
        np.testing.assert_allclose(similarity(batch_size, memory_budget), whole, atol=2e-5)


def test_encoding_and_scoring_are_timed_apart(scenes, scenes_model, processor, monkeypatch):
    clock = [0.0]

    def lasting(seconds, function):
        def timed(*args, **options):
            clock[0] += seconds
            return function(*args, **options)

        return timed

    monkeypatch.setattr(scoring.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(scoring, "encode_split", lasting(5, scoring.encode_split))
    monkeypatch.setattr(scoring, "score_split", lasting(3, scoring.score_split))
    seconds = {}
    evaluate_split(scenes_model, processor, scenes["test"], progress=False, seconds=seconds)
    assert seconds == {"encoding": 5, "scoring": 3}


def test_the_model_comes_back_in_its_mode(scenes, scenes_model, processor):
    scenes_model.train()
    evaluate_split(scenes_model, processor, scenes["validation"], progress=False)
    assert scenes_model.training
    scenes_model.vision_encoder.encode = fails
    with pytest.raises(RuntimeError, match="broken"):
        evaluate_split(scenes_model, processor, scenes["validation"], progress=False)
    assert scenes_model.training


def fails(*_, **__):
    raise RuntimeError("broken")


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"memory_budget": -1}])
def test_sizes_below_one(scenes, scenes_model, processor, options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; expected at least 1"):
        evaluate_split(scenes_model, processor, scenes["validation"], progress=False, **options)


def test_without_all_true_pairs_there_is_no_map(scenes, scenes_model, processor):
    split = scenes["test"].remove_columns("relevant_captions")
    metrics, _ = evaluate_split(scenes_model, processor, split, progress=False)
    assert "i2t_map" not in metrics
    assert "rsum" in metrics


def evaluate(*command) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [str(part) for part in (sys.executable, *command)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)


def test_two_processes_measure_what_one_does(published, tmp_path):
    one = evaluate(EVALUATE, published, "--json", tmp_path / "one.json")
    assert one.returncode == 0, one.stderr
    assert "RSUM" in one.stdout
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", 0]
    two = evaluate(*launch, EVALUATE, published, "--json", tmp_path / "two.json")
    assert two.returncode == 0, two.stderr
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--split", "testing"], 1, "error: split is 'testing'; expected one of train, validation, test"),
        (["--data_options", "[1]"], 2, "--data_options: '[1]' is list; expected names and values in {}"),
        (["--cpu_threads", "-1"], 1, "error: cpu_threads is -1; expected at least 0"),
        (
            ["--data_options", '{"test_sise": 3}'],
            1,
            "error: load_scenes, which reads 'scenes', has no option 'test_sise'",
        ),
        (["--data_options", "{"], 2, "--data_options: '{' is no JSON"),
    ],
)
def test_wrong_options(published, options, status, message):
    result = evaluate(EVALUATE, published, *options)
    assert result.returncode == status
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_vocabulary_that_does_not_fit(scenes, processor):
    model = OmitModel(tiny_config(text_config={**TEXT, "vocab_size": 10}))
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, and the text encoder 'omit_bigru' embeds 10"):
        evaluate_split(model, processor, scenes["test"])


def test_a_checkpoint_whose_configuration_is_not_valid(published):
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "num_iterations": 0}))
    result = evaluate(EVALUATE, published)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "error: num_iterations is 0; expected at least 1."
