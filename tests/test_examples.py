import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from tiny import PROGRAMS, tiny_recipe

import omit_hf_command
from omit_hf import OmitModel
from omit_hf.comparison import running
from omit_hf.training import Recipe, write_recipe_file

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def example(name, *arguments, cwd=ROOT, encoding="utf-8", **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", **environment}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding=encoding, timeout=240)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    write_recipe_file(Recipe(**tiny_recipe()), folder / "tiny.yaml")
    arguments = [folder / "tiny.yaml", "--matching", "omit", "mean", "--seeds", "0", "1"]
    arguments += ["--output_dir", folder / "runs", "--num_epochs", "1", "--jobs", "2"]
    return folder / "runs", arguments, example("compare.py", *arguments)


def test_compare_prints_a_row_a_method(compared):
    folder, _, result = compared
    assert result.returncode == 0, result.stderr[-2000:]
    header, _, *rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert header.startswith("| matching | seeds | RSUM | RSUM − omit | i2t R@1 | t2i R@1 | i2t mAP | t2i mAP |")
    assert [re.match(r"\| `(\w+)` \| 2 \| [\d.]+ ± [\d.]+ \|", row).group(1) for row in rows] == ["omit", "mean"]
    assert (folder / "table.md").read_text().strip() in result.stdout
    runs = sorted(each.name for each in folder.glob("*_seed*"))
    assert runs == ["mean_seed0", "mean_seed1", "omit_seed0", "omit_seed1"]


def test_compare_does_not_repeat_a_run(compared):
    folder, arguments, first = compared
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")}
    again = example("compare.py", *arguments)
    assert again.stdout == first.stdout
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")} == before


def test_compare_with_a_file_finds_the_runs_of_the_same_recipe(compared):
    """Two grids, for which nothing has to be trained, and their tables, figures and plots."""
    folder, arguments, _ = compared
    grids = {"both": {"matching": ["mean", "omit"]}, "one": {"regularization": [0.02], "seeds": [1]}}
    content = {"recipe": "tiny.yaml", "overrides": {"num_epochs": 1}, "seeds": [0, 1], "grids": grids}
    file = folder.parent / "comparison.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")}
    result = example("compare.py", file, "--output_dir", folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")} == before
    for name in ("both", "one"):
        assert (folder / f"{name}.md").read_text().strip() in result.stdout
    [_, omit] = json.loads((folder / "both.json").read_text())["rows"]
    measured = [json.loads((folder / f"omit_seed{seed}" / "metrics.json").read_text()) for seed in (0, 1)]
    assert omit["metrics"]["rsum"]["values"] == [each["test"]["rsum"] for each in measured]
    assert omit["scoring_seconds_per_million"] > 0
    assert Image.open(folder / "both_cost.png").width > 500
    assert {json.loads(line)["run"] for line in (folder / "runs.jsonl").read_text().splitlines()} == {
        f"{name}_seed{seed}" for name in ("omit", "mean") for seed in (0, 1)
    }
    only = example("compare.py", file, "--output_dir", folder, "--only", "one", "--no_plots")
    assert "| regularization | seeds |" in only.stdout
    assert "| matching |" not in only.stdout
    for options, message in (
        (["--only", "two"], "error: only is two; expected some of both, one."),
        (["--seeds", "3"], "error: --seeds cannot be given with a comparison; its file says it."),
        (["--margin", "3"], "error: --margin 3 cannot be given with a comparison; put it into its overrides."),
    ):
        failed = example("compare.py", file, "--output_dir", folder, *options)
        assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, message)


def test_compare_without_matplotlib_has_its_tables(compared, monkeypatch, capsys):
    """Given by the command; nothing has to be trained."""
    folder, arguments, first = compared
    monkeypatch.delitem(sys.modules, "omit_hf.comparison.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    omit_hf_command.main(["compare", *map(str, arguments)])
    out, error = capsys.readouterr()
    assert out == first.stdout
    [line] = [line for line in error.splitlines() if line.startswith("No plots: ")]
    assert line.endswith("pip install 'omit-hf[plot]', or --no_plots.")


def test_compare_names_the_run_that_failed(compared):
    """A learning rate that ends in NaN; the other run is there already."""
    folder, arguments, _ = compared
    grids = {"rates": {"learning_rate": [0.01, 1e30], "seeds": [0]}}
    content = {"recipe": "tiny.yaml", "overrides": {"num_epochs": 1}, "grids": grids}
    file = folder.parent / "failing.yaml"
    file.write_text(yaml.safe_dump(content))
    result = example("compare.py", file, "--output_dir", folder)
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: omit_learning_rate-1e+30_seed0: exit status 1; see ")
    assert "error: The loss is NaN" in Path(line.split("see ")[1]).read_text()
    assert "| 0.01 | 1 |" in result.stdout
    assert "| 1e+30 | 0 | – |" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "7"], "error: --seed cannot be given, since it is set for each run; see --seeds"),
        (["--overwrite-output-dir"], "error: --overwrite-output-dir cannot be given"),
        (["--resume=true"], "error: --resume=true cannot be given"),
        (["--no_test"], "error: --no_test cannot be given"),
        (["--max_steps", "3"], "error: The comparison: the base recipe has max_steps, which leaves a run unfinished"),
        (["--seeds", "0", "0"], "error: The comparison: seeds is 0 0; expected each of them once"),
        (["--matching", "ot", "ot"], "error: The comparison: matching is ot ot; expected each of them once"),
        (["--only", "methods"], "error: --only is for the grids of a comparison, and this is a recipe"),
        (["--jobs", "0"], "error: jobs is 0; expected at least 1"),
        (["--learn_rate", "1"], "unrecognized arguments: --learn_rate 1"),
        (["--matching", "magic"], "magic"),
        (["--margin", "0.3"], r"error: The finished run in .*omit_seed0 has another recipe(.|\n)*margin: was 0.05"),
    ],
)
def test_compare_with_bad_options(compared, monkeypatch, capsys, options, message):
    """Seen before any run starts, even where all are there already."""
    folder, arguments, _ = compared
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["compare.py", *map(str, arguments), *options])
    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(running, "Popen", None)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / "compare.py"), run_name="__main__")
    assert re.search(message, f"{caught.value} {capsys.readouterr().err}")
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


def test_explain_draws_a_scene_and_a_picture(compared, tmp_path):
    model = compared[0] / "omit_seed0"
    result = example("explain.py", model, "scenes:1", "--output", tmp_path / "scene.png")
    assert result.returncode == 0, result.stderr[-2000:]
    assert Image.open(tmp_path / "scene.png").width > 500
    Image.new("L", (96, 64), 100).save(tmp_path / "mine.png")
    result = example("explain.py", model, tmp_path / "mine.png", "a red star", "--output", tmp_path / "mine.svg")
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "mine.svg").read_text().startswith("<?xml")


SCRIPTS = [file for file in EXAMPLES.rglob("*.py") if not (file.parent / "__init__.py").is_file()]


def test_help():
    """On a console that knows ASCII alone. Every script ends in what sees to that, and to a pipe that is closed."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, str(PROGRAMS / "show_helps.py"), *map(str, sorted(SCRIPTS))]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=240)
    assert result.returncode == 0, result.stderr[-2000:]
    shown = {Path(each["script"]): each for each in map(json.loads, result.stdout.splitlines())}
    assert shown.keys() == set(SCRIPTS)
    for script, each in shown.items():
        assert (each["status"], "Traceback" in each["stderr"]) == (0, False), (script, each["stderr"][-2000:])
        assert f"usage: {script.name}" in each["stdout"]
        assert each["stdout"].isascii(), script
        assert "    run_script(main" in script.read_text(encoding="utf-8").split('if __name__ == "__main__":')[1], (
            script
        )


def test_help_of_training_on_a_windows_code_page():
    result = example("train.py", "--help", encoding="cp1252", PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert result.returncode == 0
    assert "\\u03bb of the entropic transport" in result.stdout


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_console_decides_over_results(compared, tmp_path, encoding):
    """An arrow is in the table and in what explain.py says."""
    model, console = compared[0] / "omit_seed0", {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = example("evaluate.py", model, "--markdown", tmp_path / "table.md", **console)
    assert result.returncode == 0, result.stderr[-2000:]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| image → text |" in table
    assert result.stdout == table.replace("→", "\\u2192")
    result = example("explain.py", model, "scenes:1", "--output", tmp_path / "scene.png", **console)
    assert result.returncode == 0, result.stderr[-2000:]
    assert " \\u2192 " in result.stdout


def test_the_kill_campaign():
    """A dozen of its cases; each is a training that is stopped, and three that come after it."""
    result = example("reliability/kill_campaign.py", "--sample", "12", "--jobs", "2")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-2000:]}"
    assert "\n12 trainings stopped, 36 started after them, 0 finds, " in result.stdout


def test_prepare_emoji_without_resvg_builds_nothing(tmp_path):
    (tmp_path / "resvg_py.py").write_text("raise ImportError")
    result = example("prepare_emoji.py", "emoji", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "pip install 'omit-hf[emoji]'" in result.stderr
    assert not (tmp_path / "emoji").exists()


def test_prepare_emoji_says_why_it_cannot_fetch(tmp_path):
    (tmp_path / "resvg_py.py").touch()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such registry >&2\nexit 7\n")
    npm.chmod(0o755)
    result = example("prepare_emoji.py", "emoji", cwd=tmp_path, PYTHONPATH=str(tmp_path), PATH=str(tmp_path))
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: npm pack emojibase-data")
    assert line.endswith("failed with exit status 7. no such registry")
    assert "Traceback" not in result.stderr


def test_prepare_emoji_keeps_names_that_can_be_checked(tmp_path):
    prepare = runpy.run_path(str(EXAMPLES / "prepare_emoji.py"))
    shortcodes = {
        "hot face": ["hot"],
        "face with medical mask": ["mask", "medical_mask"],
        "face": ["visage"],  # a hot face is one
        "person running": ["runner"],  # a man running is one
        "man running": ["running_man"],
        "pencil": ["pencil2", "lead_pencil", "pencil_lead", "memo"],
        "note": ["memo"],
        "tiger face": ["tiger"],
    }
    concepts = [
        {
            "hexcode": label,
            "label": label,
            "files": {vendor: f"{label}_{vendor}.png" for vendor in ("noto", "fluent3d")},
        }
        for label in shortcodes
    ]
    concepts[-1]["files"].pop("noto")
    sources = SimpleNamespace(shortcodes=[shortcodes])
    prepare["write_cutouts"](tmp_path / "cutouts.jsonl", sources, concepts)
    lines = [json.loads(line) for line in (tmp_path / "cutouts.jsonl").read_text().splitlines()]
    assert {line["concept"]: line["names"] for line in lines} == {
        "hot face": ["hot face", "hot"],
        "face with medical mask": ["face with medical mask", "mask", "medical mask"],
        "man running": ["man running"],
        "pencil": ["pencil", "lead pencil", "memo"],
        "note": ["note", "memo"],
        "tiger face": ["tiger face", "tiger"],
    }
    assert [line["style"] for line in lines] == 5 * ["noto"] + 6 * ["fluent3d"]
    assert lines[-1]["file"] == "tiger face_fluent3d.png"


def python_blocks(file) -> list[str]:
    return re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.DOTALL)


PAGES = [file.relative_to(ROOT) for file in sorted((ROOT / "docs").rglob("*.md")) if python_blocks(file)]


@pytest.mark.parametrize("page", [Path("README.md"), *PAGES], ids=str)
def test_the_code_of_the_documentation_runs(page, compared, tmp_path, monkeypatch):
    """In a folder where the model and the picture are that the text speaks of. A block of `py` is not run."""
    shutil.copytree(compared[0] / "omit_seed0", tmp_path / "outputs" / "scenes")
    Image.new("RGB", (96, 96), "red").save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(ROOT / page)
    assert blocks
    names = {}
    for block in blocks:
        exec(block, names)  # the blocks of a page go on from one another
    if "out" in names:
        assert names["out"].similarity.shape == (1, 2)


def test_the_documentation_says_what_it_does_not_run():
    """A comment before each block of `py` tells why."""
    for file in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        blocks = re.findall(r"^(.*)\n```py$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert all(re.fullmatch("<!-- Not run .+ -->", line) for line in blocks), file


def test_the_code_of_a_card_runs(compared, tmp_path, monkeypatch):
    folder = compared[0] / "omit_seed0"
    (tmp_path / "omit_seed0").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 96), "red").save("picture.png")
    [block] = python_blocks(folder / "README.md")
    exec(block, {})


def test_the_commands_of_the_readme_are_those_of_ci():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    for command in re.findall(r"^make \w+$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE):
        assert command in readme


def test_a_trained_checkpoint_has_no_pickle_in_it(compared):
    folder = compared[0] / "omit_seed0"
    top = {file.name for file in folder.iterdir() if file.is_file()}
    assert not {name for name in top if name.endswith((".bin", ".pt", ".pkl", ".pth"))}
    assert OmitModel.from_pretrained(folder).dtype == torch.float32


def test_the_benchmark_of_similarity_prints_its_tables(compared):
    result = example("benchmarks/similarity.py", "--widths", "8", "--images", "16", "--repeats", "1", "--threads", "1")
    assert result.returncode == 0, result.stderr[-2000:]
    titles = re.findall(r"\*\*(.*?),", result.stdout)
    assert titles == ["Forward", "Forward and backward", "Forward and backward"]
    for method in ("OMIT", r"\(a\) plain", r"\(b\) product alone", "OMIT, int8 product", r"\(d\) POT, batched"):
        assert re.search(rf"^\| {method} \| \d+ \(\d+–\d+\) \| [\d.]+ \|", result.stdout, flags=re.MULTILINE)
    result = example("benchmarks/similarity.py", "--model", compared[0] / "omit_seed0")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| float32 |" in result.stdout
    assert "100.0% |" in result.stdout
