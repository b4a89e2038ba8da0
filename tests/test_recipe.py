import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from tiny import tiny_recipe

from omit_hf.training import Recipe, parse_recipe, read_recipe_file, write_recipe_file

FILES = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))
CONFIGS = [file for file in FILES if not file.stem.startswith("compare_")]  # which hold grids of recipes


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe()))
    return str(file)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_recipe_is_one(config):
    recipe = parse_recipe([str(config)])
    assert recipe.output_dir == f"outputs/{config.stem}"


def test_there_are_recipes():
    assert {"scenes", "emoji_vendor"} <= {config.stem for config in CONFIGS}


def test_the_command_line_overrides_the_file(file):
    recipe = parse_recipe(
        [file, "--matching", "ot", "--learning_rate", "1e-2", "--decay_epochs", "1", "2", "--tensorboard", "false"]
        + ["--data_options", '{"train_size": 7}', "--mixed_precision", "bf16", "--freeze_text"]
    )
    assert (recipe.matching, recipe.learning_rate, recipe.decay_epochs) == ("ot", 0.01, [1, 2])
    assert (recipe.tensorboard, recipe.freeze_text) == (False, True)
    assert recipe.data_options == {"train_size": 7}
    assert recipe.mixed_precision == "bf16"
    assert recipe.batch_size == tiny_recipe()["batch_size"]  # the file's
    assert recipe.weight_decay == 1e-4  # neither's


def test_a_recipe_without_a_file(file):
    options = ["--vision_config", '{"model_type": "resnet"}', "--image_processor", "{}", "--text_model", "bert"]
    recipe = parse_recipe(options)
    assert recipe.vision_config == {"model_type": "resnet"}
    assert recipe.output_dir == "outputs/omit"


def test_written_and_read_again(tmp_path):
    recipe = Recipe(**tiny_recipe(data_options={"train_size": 5}, decay_epochs=[3], output_dir="somewhere"))
    write_recipe_file(recipe, tmp_path / "recipe.yaml")
    assert Recipe(**read_recipe_file(tmp_path / "recipe.yaml")) == recipe


def test_numbers_as_yaml_reads_them(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1e-3\nmargin: 1\n")
    assert read_recipe_file(tmp_path / "recipe.yaml") == {"learning_rate": 0.001, "margin": 1.0}


def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for each in fields(Recipe):
        assert f"--{each.name}" in shown
        assert " ".join(each.metadata["help"].split()[:3]) in " ".join(shown.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1", "unknown field 'learning_rte'; did you mean 'learning_rate'?"),
        ("colour: red", "unknown field 'colour'; expected some of .*learning_rate"),
        ("- a\n- b", "holds list; expected fields"),
        ("a: [", "is no YAML"),
        ("learning_rate: fast", "learning_rate is 'fast'; expected a number"),
        ("num_epochs: many", "num_epochs"),
        ("matching: emd", "matching"),
        ("freeze_text: 3", "freeze_text"),
        ("decay_epochs: 3", "decay_epochs"),
        ("num_epochs: 0", "num_epochs is 0; expected at least 1"),
        ("learning_rate: -1", "learning_rate is -1.0; expected a number greater than 0"),
        ("batch_size: 1", "expected at least 2, or there are no negatives"),
        ("max_steps: 0", "max_steps is 0; expected at least 1"),
        ("regularization: .nan", "regularization is nan; expected a number greater than 0"),
        ("num_iterations: 0", "num_iterations is 0; expected at least 1"),
        ("margin: -1", "margin is -1.0; expected a number not below 0"),
        ("logit_scale_init_value: .nan", "logit_scale_init_value is nan; expected a number not above ln 100"),
        ("weight_decay: .nan", "weight_decay is nan; expected a number not below 0"),
        ("vision_lr_factor: -1", "vision_lr_factor is -1.0; expected a number not below 0"),
        ("text_lr_factor: .inf", "text_lr_factor is inf; expected a number not below 0"),
        ("learning_rate: .inf", "learning_rate is inf; expected a number greater than 0"),
        ("max_grad_norm: .nan", "max_grad_norm is nan; expected a number greater than 0"),
        ("decay_factor: 1.5", "decay_factor is 1.5; expected a number above 0, up to 1"),
        ("decay_epochs: [2, -1]", r"decay_epochs is \[2, -1\]; expected epochs from 0"),
        ("seed: -1", r"seed is -1; expected an integer from 0 to 2\*\*32 - 1"),
        ("seed: 4294967296", "seed is 4294967296; expected an integer"),
        ("num_workers: -1", "num_workers is -1; expected at least 0"),
        ("cpu_threads: -1", "cpu_threads is -1; expected at least 0"),
        ("warmup_steps: -5", "warmup_steps is -5; expected at least 0"),
        ("all_negatives_epochs: -1", "all_negatives_epochs is -1; expected at least 0"),
        ("output_dir: ''", "output_dir is empty; expected a folder"),
        (
            "text_config: {model_type: omit_bigru, hiden_size: 3}",
            "field 'hiden_size'; did you mean 'hidden_size'",
        ),
        ("vision_config: {model_type: resnet, dephts: [1]}", "unknown field 'dephts'; did you mean 'depths'"),
        ("vision_config: {model_type: resnet, validate: 1}", "unknown field 'validate'"),
        ("vision_config: {model_type: resnt}", "vision_config: .*resnt"),
        ("{resume: true, overwrite_output_dir: true}", "resume and overwrite_output_dir are both on; expected one"),
        ("text_model: bert", "both of text_model and text_config is given; expected one"),
        (
            "vision_config: null",
            "neither of vision_model and vision_config is given; expected one of them, or clip_model",
        ),
        (
            "clip_model: clip",
            "clip_model, which is for both sides, and vision_config, text_config are given; expected one",
        ),
        ("text_config: {model_type: bert}", "model_type 'bert'; expected 'omit_bigru'.* give text_model"),
        ("vision_config: {hidden_sizes: [2]}", "vision_config has no model_type"),
        ("image_processor: null", "vision_config is given without image_processor"),
        ("cache_states: true", "cache_states is on, but no backbone is frozen"),
        ("{text_config: null, text_model: bert, word_vectors: glove.txt}", "word_vectors is given without text_config"),
        ("word_augmentation: 1", "word_augmentation is 1.0; expected a share from 0 to below 1"),
        ("caption_noise: 1", "caption_noise is 1.0; expected a share from 0 to below 1"),
        ("image_crop: 0", "image_crop is 0.0; expected a share above 0"),
        ("unfreeze_epochs: [2, 1]", r"unfreeze_epochs is \[2, 1\]; expected epochs from 0 in ascending order"),
        ("unfreeze_epochs: [-1]", r"unfreeze_epochs is \[-1\]; expected epochs from 0"),
        ("{unfreeze_epochs: [1], freeze_vision: true}", "unfreeze_epochs and freeze_vision are given; expected one"),
        (
            "{cache_states: true, freeze_text: true, word_augmentation: 0.2}",
            "word_augmentation has no effect on cached states",
        ),
        ("{cache_states: true, freeze_vision: true, image_flip: true}", "image_flip have no effect on cached states"),
        (
            "{vision_config: {model_type: omit_region}, freeze_vision: true, image_crop: 0.5}",
            "freeze_vision, image_processor, image_crop: of no use to omit_region",
        ),
        ("data_options: '{'", "data_options is '{'; expected JSON"),
    ],
)
def test_a_wrong_recipe(tmp_path, capsys, content, message):
    recipe = {**tiny_recipe()}
    try:
        change = yaml.safe_load(content)
        content = yaml.safe_dump({**recipe, **change}) if isinstance(change, dict) else content
    except yaml.YAMLError:
        pass
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(SystemExit) as caught:
        parse_recipe([str(tmp_path / "recipe.yaml")])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "validator" not in error  # the message alone, not how it came about


def test_properties_of_a_configuration_are_fields_too():
    vision = {"model_type": "resnet", "out_features": ["stage1"], "num_labels": 3, "depths": [1, 1, 1, 1]}
    assert Recipe(**tiny_recipe(vision_config=vision)).vision_config == vision


def test_a_recipe_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["nowhere.yaml"])
    assert "No recipe at nowhere.yaml; examples/configs has some" in capsys.readouterr().err


def test_an_unknown_option(file, capsys):
    with pytest.raises(SystemExit):
        parse_recipe([file, "--learn_rate", "1"])
    assert "unrecognized arguments: --learn_rate" in capsys.readouterr().err
