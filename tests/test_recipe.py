import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from tiny import tiny_recipe

from omit_hf.training import Recipe, parse_recipe, read_recipe_file, write_recipe_file

CONFIGS = sorted((Path(__file__).parents[1] / "examples" / "configs").glob("*.yaml"))


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
        ("colour: red", "unknown field 'colour'; --help lists the fields"),
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
        ("{resume: true, overwrite_output_dir: true}", "resume and overwrite_output_dir are both on; expected one"),
        ("text_model: bert", "both of text_model and text_config is given; expected one"),
        ("vision_config: null", "neither of vision_model and vision_config is given; expected one"),
        ("text_config: {model_type: bert}", "model_type 'bert'; expected 'omit_bigru'.* give text_model"),
        ("vision_config: {hidden_sizes: [2]}", "vision_config has no model_type"),
        ("image_processor: null", "vision_config is given without image_processor"),
        ("cache_states: true", "cache_states is on, but no backbone is frozen"),
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


def test_a_recipe_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["nowhere.yaml"])
    assert "No recipe at nowhere.yaml; examples/configs has some" in capsys.readouterr().err


def test_an_unknown_option(file, capsys):
    with pytest.raises(SystemExit):
        parse_recipe([file, "--learn_rate", "1"])
    assert "unrecognized arguments: --learn_rate" in capsys.readouterr().err
