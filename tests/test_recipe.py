import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from tiny import tiny_recipe

from omit_hf import OmitConfig
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.training import (
    Recipe,
    data_of_model,
    own_recipes,
    parse_recipe,
    read_recipe_file,
    recipe_types,
    train,
    write_recipe_file,
)
from omit_hf.training.recipe_files import recipe_text

OF_CONFIG = ("projection_dim", "matching", "regularization", "num_iterations", "dustbin", "marginals", "backend")
OF_CONFIG += ("score", "global_weight", "text_pooling", "loss", "margin", "logit_scale_init_value")

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


def test_an_unknown_field_is_told_in_a_line_of_some_length(tmp_path):
    (tmp_path / "recipe.yaml").write_text("'': 1", encoding="utf-8")
    with pytest.raises(ValueError, match="unknown field ''; expected some of .*num_epochs.* …$") as caught:
        read_recipe_file(tmp_path / "recipe.yaml")
    assert len(str(caught.value)) - len(str(tmp_path)) < 800


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rte: 1", "unknown field 'learning_rte'; did you mean 'learning_rate'?"),
        ("colour: red", "unknown field 'colour'; expected some of .*learning_rate"),
        ("- a\n- b", "holds list; expected fields"),
        ("a: [", "is no YAML"),
        ("learning_rate: fast", "learning_rate is 'fast'; expected a number"),
        ("matching: emd", "matching is 'emd'; expected one of 'omit', 'ot'"),
        ("matching: [omit]", r"matching is \['omit'\]; expected str"),
        (f"matching: {'x' * 1000}", r"matching is 'x{79}; expected one of 'omit', 'ot'"),
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
        ("data_options: '[1]'", r"data_options is '\[1\]'; expected JSON with names and values in {}"),
        (
            "data_options: '" + "[" * 100_000 + "'",
            r"data_options is '\[{78}…; expected JSON \(values nested too deep",
        ),
        ("num_epochs: 1.5", "num_epochs is 1.5; expected int"),
        ("freeze_text: 3", "freeze_text is 3; expected bool"),
        ("decay_epochs: [1.5]", r"decay_epochs is \[1.5\]; expected list\[int\]"),
        ("num_epochs: many", "recipe.yaml: num_epochs is 'many'; expected a number"),
        ("max_steps: x", "max_steps is 'x'; expected int or None"),
        ("loss: hinge", "loss is 'hinge'; expected one of triplet, infonce"),
        ("text_pooling: max", "text_pooling is 'max'; expected one of mean, cls, last or None"),
        (f"num_epochs: {'x' * 1000}", r"num_epochs is 'x{78}…; expected a number"),
        (f"learning_rate: {'x' * 1000}", r"learning_rate is 'x{78}…; expected a number"),
        (f"{'x' * 1000}: 1", r"unknown field 'x{79}; expected"),
        (f"decay_epochs: {[-1] * 1000}", r"decay_epochs is \[[-1, ]{78}…; expected epochs"),
        (f"text_config: {{model_type: {'x' * 1000}}}", r"model_type 'x{78}…; expected 'omit_bigru'"),
        ("vision_config: {model_type: [1]}", r"vision_config has model_type \[1\]; expected a name"),
        (f"vision_config: {{model_type: {'x' * 1000}}}", r"vision_config has model_type 'x{78}…; expected a name"),
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
    assert "x" * 100 not in error
    assert "validator" not in error  # the message alone, not how it came about


def test_properties_of_a_configuration_are_fields_too():
    vision = {"model_type": "resnet", "out_features": ["stage1"], "num_labels": 3, "depths": [1, 1, 1, 1]}
    assert Recipe(**tiny_recipe(vision_config=vision)).vision_config == vision


def test_a_recipe_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["nowhere.yaml"])
    assert "No recipe at nowhere.yaml; expected a file or a name. `omit-hf recipes` lists " in capsys.readouterr().err
    for name in ("scene", "scenes.yml"):
        with pytest.raises(FileNotFoundError, match=f"No recipe at {name}; did you mean scenes"):
            read_recipe_file(name)


def test_a_recipe_of_the_package_has_a_name(tmp_path, monkeypatch):
    assert own_recipes().keys() == {file.stem for file in FILES}
    monkeypatch.chdir(tmp_path)  # where no such file is
    assert parse_recipe(["flickr30k_clip", "--data", "mine.json"]).output_dir == "outputs/flickr30k_clip"
    assert read_recipe_file("scenes") == read_recipe_file(FILES[0].with_name("scenes.yaml"))
    (tmp_path / "scenes").write_text("seed: 7")  # a file goes before
    assert read_recipe_file("scenes") == {"seed": 7}


def test_a_comparison_is_no_recipe():
    with pytest.raises(ValueError, match="compare_scenes is a comparison, which `omit-hf compare` runs"):
        read_recipe_file("compare_scenes")


def test_an_unknown_option(file, capsys):
    with pytest.raises(SystemExit):
        parse_recipe([file, "--learn_rate", "1"])
    assert "unrecognized arguments: --learn_rate" in capsys.readouterr().err


@pytest.mark.parametrize("name", OF_CONFIG)
def test_a_field_of_the_configuration_is_as_it_is_there(name):
    [own] = [each for each in fields(Recipe) if each.name == name]
    [there] = [each for each in fields(OmitConfig) if each.name == name]
    if name == "text_pooling":  # which the tokenizer suggests
        assert (own.default, recipe_types()[name]) == (None, there.type | None)
    else:
        assert own.default == there.default
        assert recipe_types()[name] == (float if there.type == float | int else there.type)
    documented = " ".join(OmitConfig.__doc__.split())
    assert own.metadata["help"].split(" By default what")[0][1:] in documented


def test_what_the_configuration_gets():
    values = Recipe(**tiny_recipe(matching="ot", text_pooling="cls")).config_values()
    assert set(values) == set(OF_CONFIG)
    assert (values["matching"], values["text_pooling"], values["projection_dim"]) == ("ot", "cls", 16)
    assert "text_pooling" not in Recipe(**tiny_recipe()).config_values()


def test_help_has_the_groups_and_the_heads(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    shown = capsys.readouterr().out
    groups = re.findall(r"^(\w+):$", shown, flags=re.MULTILINE)
    assert groups == ["options", "data", "model", "loss", "optimisation", "run"]
    assert f"--matching {{{','.join(MATCHING)}}}" in shown
    for name, head in MATCHING.items():
        assert f"{name} {head.title}: {head.summary}" in " ".join(shown.split())


def test_a_head_that_is_added_can_be_chosen(monkeypatch):
    monkeypatch.setitem(MATCHING, "another", MATCHING["mean"])
    options = ["--clip_model", "clip", "--matching"]
    assert parse_recipe([*options, "another"]).matching == "another"
    with pytest.raises(SystemExit):
        parse_recipe([*options, "other"])


def test_fields_are_written_in_the_order_of_the_groups():
    names = list(asdict(Recipe(**tiny_recipe())))
    first = ["data", "clip_model", "projection_dim", "text_pooling", "loss", "margin", "all_negatives_epochs"]
    first += ["logit_scale_init_value", "num_epochs", "mixed_precision", "output_dir", "cpu_threads"]
    assert [name for name in names if name in first] == first
    assert names[-1] == "cpu_threads"
    assert names == list(recipe_types())


def test_the_first_thing_that_is_wrong_is_that_of_the_first_group():
    """Types before values, and then data, model, loss, optimisation and run."""
    wrong = {"caption_noise": 2.0, "text_model": "bert", "all_negatives_epochs": -1, "warmup_steps": -1, "seed": -1}
    kinds = {"cpu_threads": "x", "margin": -1.0, **wrong, "cache_states": True}
    for name in list(kinds):
        with pytest.raises(ValueError, match=name):
            Recipe(**tiny_recipe(**kinds))
        del kinds[name]
    Recipe(**tiny_recipe())


def test_a_recipe_that_was_changed_is_checked_again(tmp_path):
    recipe = Recipe(**tiny_recipe(output_dir=str(tmp_path / "run")))
    recipe.num_epochs = 0
    with pytest.raises(ValueError, match="num_epochs is 0; expected at least 1"):
        train(recipe)
    assert not (tmp_path / "run").exists()


def test_a_value_that_occurs_twice_is_written_twice(tmp_path):
    shared = {"size": [1, 2]}
    text = recipe_text({"data_options": shared, "image_processor": shared})
    (tmp_path / "recipe.yaml").write_text(text)
    assert read_recipe_file(tmp_path / "recipe.yaml") == {"data_options": shared, "image_processor": shared}


@pytest.mark.parametrize("text", ["data: &a [1]\ndata_options: *a", "[" * 10_000, "#" * 2**21, "data: \x1b[2J"])
def test_a_recipe_of_others_that_would_cost_much(tmp_path, text):
    """Beside a model, where evaluate.py and app.py read it."""
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="recipe.yaml (has|is) ") as caught:
        data_of_model(tmp_path)
    assert str(caught.value).isprintable()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def test_the_home_folder(home, tmp_path):
    options = {"image_folder": "~/pictures", "parts": [{"folder": "~/more"}], "exclude": "a~", "number": 1}
    values = tiny_recipe(data="~/dataset.json", data_options=options, output_dir="~/run", word_vectors="~/glove.txt")
    write_recipe_file(Recipe(**tiny_recipe()), tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    for recipe in (Recipe(**values), parse_recipe([str(tmp_path / "mine.yaml")])):
        assert (recipe.data, recipe.output_dir) == (f"{home}/dataset.json", f"{home}/run")
        expected = {"image_folder": f"{home}/pictures", "parts": [{"folder": f"{home}/more"}]}
        assert recipe.data_options == {**expected, "exclude": "a~", "number": 1}
        # Opened with the home folder in its place, and written without.
        assert (recipe.cache_folder, recipe.word_vectors) == ("~/.cache/omit_hf", "~/glove.txt")


def test_the_home_folder_on_the_command_line(home, tmp_path):
    (tmp_path / "home").mkdir()
    write_recipe_file(Recipe(**tiny_recipe()), tmp_path / "home" / "mine.yaml")
    options = ["--output_dir=~/run", "--data_options", '{"image_folder": "~/pictures"}', "--cache_folder", "~/states"]
    recipe = parse_recipe(["~/mine.yaml", *options])
    assert (recipe.output_dir, recipe.cache_folder) == (f"{home}/run", f"{home}/states")
    assert recipe.data_options == {"image_folder": f"{home}/pictures"}


def test_backbones_in_the_home_folder(home):
    both = {"vision_config": None, "image_processor": None, "text_config": None}
    recipe = Recipe(**tiny_recipe(**both, vision_model="~/resnet", text_model="~/bert"))
    assert (recipe.vision_model, recipe.text_model) == (f"{home}/resnet", f"{home}/bert")
    assert Recipe(**tiny_recipe(**both, clip_model="~/clip")).clip_model == f"{home}/clip"


def test_other_variables_of_the_environment_stay(home):
    assert Recipe(**tiny_recipe(output_dir="$HOME/run")).output_dir == "$HOME/run"


@pytest.mark.parametrize("text", ["seed: 1\nmargin: 0.1\nseed: 2\n", '{"seed": 1, "seed": 1}'])
def test_a_field_twice(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="recipe.yaml has the name seed twice; expected it once, in line"):
        read_recipe_file(tmp_path / "recipe.yaml")
    for options in ('{"train_size": 1, "train_size": 2}', '{"columns": {"a": 1, "a": 1}}'):
        with pytest.raises(ValueError, match="data_options is .*; expected JSON .the name .* stands twice"):
            Recipe(**tiny_recipe(data_options=options))


@pytest.mark.parametrize("kind", ["x" * 80, "a\nerror: b", "/dev/zero", "\u202ea"])
def test_a_kind_of_model_that_is_none(kind):
    with pytest.raises(
        ValueError, match="vision_config: model_type is .*; expected one that transformers knows"
    ) as caught:
        Recipe(**tiny_recipe(vision_config={"model_type": kind}))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250  # and not a list of all that there are


@pytest.mark.parametrize(
    "name", ["a\u2028b", "a\x85b", "a\u2029b", "a\rb", "a\r\nb", "a\nb", "a\ufeffb", " a ", "a: b", "\u202e"]
)
def test_any_text_is_written_as_it_is(tmp_path, name):
    recipe = Recipe(
        **tiny_recipe(output_dir=name, data_options={name: [name]}, cache_folder=f"{name}/{'c ' * 80}{name}")
    )
    write_recipe_file(recipe, tmp_path / "recipe.yaml")
    assert Recipe(**read_recipe_file(tmp_path / "recipe.yaml")) == recipe
