"""The command `omit-hf`: its help, `recipes`, `completion` and `train`; the others have tests of their own."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import process, run
from tiny import tiny_recipe

import omit_hf
import omit_hf_command
from omit_hf import command_line
from omit_hf.command_line.printing import columns, one_line
from omit_hf.comparison import Runner
from omit_hf.training import Recipe, own_recipes, read_recipe_file, write_recipe_file

# --- the frame --------------------------------------------------------------------------------------------------------


def test_help_needs_no_package():
    code = "import sys, omit_hf_command\ntry: omit_hf_command.main([])\nfinally: print('omit_hf' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
    for name, does in omit_hf_command.COMMANDS.items():
        assert f"  {name:18}  {does}\n" in out


@pytest.mark.parametrize("command", omit_hf_command.COMMANDS)
def test_help_of_a_command_has_examples(capsys, command):
    status, out = run(capsys, command, "--help")
    assert status == 0
    assert out.startswith(f"usage: omit-hf {command} ")
    assert f"\n    omit-hf {command} " in out
    assert "default: None" not in out


def test_every_command_is_a_module_and_every_module_with_options_a_command():
    files = Path(command_line.__file__).parent.glob("*.py")
    modules = {file.stem for file in files if "\ndef build_parser(" in file.read_text()}
    assert modules == {name.replace("-", "_") for name in omit_hf_command.COMMANDS}


def test_help_needs_no_extra():
    """Nor does completion, which asks every command for its options."""
    hidden = ("matplotlib", "gradio", "lancedb", "onnx", "tensorboard", "numba", "triton", "ray")
    code = f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\nimport omit_hf_command\n"
    code += "omit_hf_command.main(['completion', 'bash'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for name in omit_hf_command.COMMANDS:
        assert f"{name} " in result.stdout


def test_a_command_that_is_none(capsys):
    assert run(capsys, "find", "a star")[0] == 2
    assert run(capsys, "--version") == (0, "omit-hf 0.1.0\n")


def test_help_into_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "omit_hf_command", "--help"], stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("command", "hidden", "message"),
    [
        (("explain", "model", "scenes:1"), "matplotlib", "omit_hf.visualization needs matplotlib: pip install"),
        (("app", "model"), "gradio", "The page in the browser needs Gradio: pip install 'omit-hf[demo]'."),
        (("search", "a star", "--library", "x.lance"), "lancedb", "omit_hf.library needs LanceDB: pip install"),
        (("browse", "x.lance"), "lancedb", "omit_hf.library needs LanceDB: pip install 'omit-hf[library]'."),
    ],
)
def test_the_extra_that_is_the_job_is_named(capsys, monkeypatch, command, hidden, message):
    for name in list(sys.modules):
        if name.startswith(("omit_hf.visualization", "omit_hf.demo", "omit_hf.library")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(omit_hf, "visualization", raising=False)
    monkeypatch.setitem(sys.modules, hidden, None)
    assert run(capsys, *command)[0].startswith(f"error: {message}")


# --- recipes and completion -------------------------------------------------------------------------------------------


def test_recipes_are_listed_with_what_they_are(capsys):
    status, out = run(capsys, "recipes")
    assert status == 0
    listed = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert listed.keys() == own_recipes().keys()
    assert listed["flickr30k_clip"] == "Flickr30K: CLIP, fine-tuned"
    for file in own_recipes().values():
        assert file.read_text(encoding="utf-8").split("\n", 1)[0].endswith(".")  # its first line is a sentence


def test_a_recipe_is_printed_as_a_start_for_another(capsys, tmp_path):
    status, out = run(capsys, "recipes", "scenes")
    (tmp_path / "mine.yaml").write_text(out)
    assert (status, read_recipe_file(tmp_path / "mine.yaml")) == (0, read_recipe_file("scenes"))
    assert run(capsys, "recipes", "scene")[0].startswith("error: No recipe at scene; did you mean scenes?")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (("ev",), "evaluate evaluate-alignment"),
        (("train", "sc"), "scenes"),
        (("train", "compare_"), ""),  # which is no recipe
        (("compare", "compare_s"), "compare_scenes"),
        (("train", "scenes", "--marg"), "--marginals --margin"),
        (("train", "scenes", "--matching", "m"), "maxsim mean"),
        (("evaluate", "--batch"), "--batch_size"),
        (("evaluate", "outputs/scenes", "--protocol", "coco_1"), "coco_1k"),
        (("completion", "z"), "zsh"),
        (("nothing", "x"), ""),
    ],
)
def test_bash_completes(completion, typed, expected):
    words = " ".join(map(shlex.quote, ("omit-hf", *typed)))
    call = f"COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _omit_hf omit-hf {shlex.quote(typed[-1])} "
    call += f"{shlex.quote(('omit-hf', *typed)[-2])}; echo ${{COMPREPLY[*]}}"
    result = subprocess.run(["bash", "-c", f"{completion}\n{call}"], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == (f"{expected}\n", "")


@pytest.fixture(scope="module")
def completion():
    return process("completion", "bash", text=True).stdout


def test_completion_of_zsh_is_that_of_bash(capsys, completion):
    assert run(capsys, "completion", "zsh")[1].endswith(f"bashcompinit && bashcompinit\n{completion}")
    assert run(capsys, "completion", "fish")[0] == 2


# --- train ------------------------------------------------------------------------------------------------------------


def test_accelerate_launches_the_command(tmp_path):
    """Two processes, as `accelerate launch -m omit_hf train` starts them."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    write_recipe_file(Recipe(**tiny_recipe(max_steps=1)), tmp_path / "tiny.yaml")
    command = [*launcher, "-m", "omit_hf", "train", "tiny.yaml"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Stopped at step 1 (max_steps)" in result.stdout
    [progress] = (tmp_path / "outputs" / "tiny" / "checkpoints").glob("step-*/progress.json")
    assert json.loads(progress.read_text())["num_processes"] == 2


def test_a_training_that_diverges_is_one_line(capsys, tmp_path, own_cache):
    write_recipe_file(Recipe(**tiny_recipe(learning_rate=1e30)), tmp_path / "tiny.yaml")
    status, _ = run(capsys, "train", tmp_path / "tiny.yaml", "--output_dir", tmp_path / "run")
    assert status.startswith("error: The loss is NaN at step ")
    assert run(capsys, "train", "scenes", "--learn_rate", 1)[0] == 2


# --- compare ----------------------------------------------------------------------------------------------------------


def test_a_comparison_that_is_interrupted_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    def interrupted(self, runs, title):
        assert [run.name for run in runs] == ["ot_seed3"]
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupted)
    with pytest.raises(SystemExit, match="130"):
        omit_hf_command.main(["compare", "scenes", "--matching", "ot", "--seeds", "3", "--output_dir", str(tmp_path)])
    assert capsys.readouterr().err == "Interrupted; start again to go on from there.\n"


# --- printing ---------------------------------------------------------------------------------------------------------


def test_columns():
    assert columns([("a", "1"), ("longer", "10")], right=[1]) == "a        1\nlonger  10"


def test_a_text_on_one_line():
    assert one_line("plain é 👩\u200d🚀") == "plain é 👩\u200d🚀"
    assert one_line("a\r\n\t\x1b[31m\u2028\u202e\udcff") == r"a\r\n\t\x1b[31m\u2028\u202e\udcff"


TRAIN = str(Path(__file__).parents[1] / "examples" / "train.py")


@pytest.mark.skipif(sys.platform != "linux", reason="the variable is of GNU's OpenMP")
@pytest.mark.parametrize(
    ("command", "chosen", "expected"),
    [
        (["-m", "omit_hf", "train"], {}, "30000"),
        (["-m", "omit_hf_command", "train"], {"GOMP_SPINCOUNT": "7"}, "7"),
        ([TRAIN], {}, "30000"),
        ([TRAIN], {"OMP_WAIT_POLICY": "PASSIVE"}, "0"),
    ],
)
def test_threads_spin_shortly_unless_the_user_chose(command, chosen, expected):
    """OpenMP itself tells, once torch has loaded it: a variable that came too late it would not have."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**clean, **chosen, "OMP_DISPLAY_ENV": "verbose"}
    command = [sys.executable, *command, "--help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in ended.stderr
