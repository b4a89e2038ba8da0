"""Checkpoints where omit_hf is not installed: they bring their code with them."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tiny import CODE, PROGRAMS, REGIONS, TEXT, tiny_config, tiny_recipe
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, BertConfig
from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from omit_hf import OmitConfig, OmitModel, OmitProcessor, modeling
from omit_hf.training import Recipe, train

FOLDER = Path(modeling.__file__).parent
FILES = sorted(FOLDER.glob("*_omit.py"))
ENTRIES = {
    "AutoConfig": "configuration_omit.OmitConfig",
    "AutoModel": "modeling_omit.OmitModel",
    "AutoModelForZeroShotImageClassification": "modeling_omit.OmitModel",
    "AutoProcessor": "processing_omit.OmitProcessor",
}
ALLOWED = {"torch", "transformers", "huggingface_hub", "tokenizers", "PIL", *sys.stdlib_module_names}
TEXTS = ["a red circle", "a small blue star and a ring", "two of them"]
HUB_ID, COMMIT = "user/tiny-omit", "0123456789abcdef0123456789abcdef01234567"
STRANGER = PROGRAMS / "load_without_the_package.py"


def without_the_package(folder: Path, program: Path, stdin: str, **environment) -> subprocess.CompletedProcess:
    """Run a program in a folder, in a Python that finds no omit_hf."""
    poison = folder / "poison" / "omit_hf"
    poison.mkdir(parents=True)
    (poison / "__init__.py").write_text("raise ImportError('omit_hf is not installed')")
    environment = {**os.environ, "PYTHONPATH": str(poison.parent), **environment}
    return subprocess.run(
        [sys.executable, "-P", program], cwd=folder, env=environment, input=stdin, capture_output=True, text=True
    )


def hub_cache(folder: Path, cache: Path) -> None:
    """Lay a checkpoint out as a download from the Hub does: blobs, and a snapshot of links to them."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for each in (repository / "refs", repository / "blobs", snapshot):
        each.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, repository / "blobs" / f"{number:040x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040x}")


def trained(folder: Path) -> tuple[Path, Path]:
    """The best model of a training that was interrupted after its first epoch, and the result of going on."""
    recipe = tiny_recipe(output_dir=str(folder / "run"))
    for options in ({"max_steps": 4}, {"resume": True}):
        AcceleratorState._reset_state(True)
        train(Recipe(**recipe, **options))
        for best in (folder / "run" / "checkpoints").glob("best-*"):
            shutil.copytree(best, folder / "best-of.epoch-1")
    AcceleratorState._reset_state(True)
    return folder / "best-of.epoch-1", folder / "run"


def save(model, processor, folder: Path) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def entries(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["auto_map"]


def code(folder: Path) -> set[str]:
    return {file.name for file in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def jobs(folder, processor) -> list[tuple]:
    """Checkpoints, what to show them (None for the picture), and where the stranger is to save them again."""
    torch.manual_seed(0)
    regions = torch.randn(2, 5, REGIONS["feature_size"])
    words = {**TEXT, "vocab_size": len(processor.tokenizer)}
    vocabulary = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **vocabulary)
    by_regions = OmitModel(tiny_config(vision_config=REGIONS, text_config=words))
    plain = save(OmitModel(tiny_config(text_config=words)), processor, folder / "plain")
    hub_cache(plain, folder / "cache")
    shutil.copytree(plain, folder / "zero")
    best, result = trained(folder)
    return [
        (plain, None, folder / "again"),
        (save(by_regions, OmitProcessor(tokenizer=processor.tokenizer), folder / "regions"), regions, None),
        (save(OmitModel(tiny_config(text_config=bert, dustbin="learned")), processor, folder / "bert"), None, None),
        (best, None, None),
        (result, None, folder / "run-again"),
        (HUB_ID, None, None),
    ]


@pytest.fixture(scope="module")
def stranger(folder, jobs) -> dict:
    Image.new("RGB", (96, 96), "red").save(folder / "picture.png")
    told = [(str(path), None if each is None else each.tolist(), again and str(again)) for path, each, again in jobs]
    done = without_the_package(
        folder,
        STRANGER,
        json.dumps([told, TEXTS, COMMIT]),
        HF_HUB_OFFLINE="1",
        HF_HUB_CACHE=str(folder / "cache"),
        HF_MODULES_CACHE=str(folder / "modules"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


def scores(path: Path, regions=None, backend="reference") -> torch.Tensor:
    """What the package gives by a backend, [images, texts]; a stranger has the reference alone."""
    model, processor = OmitModel.from_pretrained(path, backend=backend), OmitProcessor.from_pretrained(path)
    images = {"images": str(path.parent / "picture.png")} if regions is None else {"regions": regions}
    with torch.inference_mode():
        return model(**processor(text=TEXTS, **images)).logits_per_image


def test_without_the_package_scores_are_the_same(stranger, jobs, folder):
    """From folders, from results of training, from a Hub cache; with each of our own parts, and with none."""
    for (path, regions, _), found in zip(jobs, stranger["found"][: len(jobs)], strict=True):
        expected = scores(folder / "plain" if path == HUB_ID else path, regions)
        assert torch.equal(torch.tensor(found["logits"]), expected), path
        fast = scores(folder / "plain" if path == HUB_ID else path, regions, "auto")
        torch.testing.assert_close(fast, expected, rtol=0, atol=1e-4)
        assert found["module"].startswith("transformers_modules."), path


def test_without_the_package_nothing_runs_unasked(stranger):
    assert len(stranger["refused"]) == 3
    assert all("trust_remote_code=True" in message for message in stranger["refused"])
    assert stranger["executed"] == []


def test_without_the_package_nothing_is_warned_of(stranger):
    assert stranger["stderr"] == ""


def test_without_the_package_pictures_are_classified(stranger, folder):
    assert stranger["labels"] == scores(folder / "plain")[0].softmax(-1).tolist()


def test_what_is_saved_without_the_package_is_whole_again(stranger, folder):
    """For whoever saved it, for us, and saved by us once more; by whichever Auto class it was loaded."""
    *_, again, zero = stranger["found"]
    assert again["logits"] == zero["logits"] == stranger["found"][0]["logits"]
    for name, source in (("again", "plain"), ("run-again", "run"), ("zero-again", "plain")):
        assert code(folder / name) == CODE
        assert entries(folder / name) == ENTRIES
        assert torch.equal(scores(folder / name), scores(folder / source))
    ours = OmitModel.from_pretrained(folder / "again"), OmitProcessor.from_pretrained(folder / "again")
    last = save(*ours, folder / "last")
    assert code(last) == CODE
    assert entries(last) == ENTRIES
    for name in (*CODE, "model.safetensors", "processor_config.json"):
        assert (last / name).read_bytes() == (folder / "plain" / name).read_bytes(), name


@pytest.mark.parametrize("trust", [None, False, True])
def test_with_the_package_the_code_of_a_checkpoint_is_not_run(
    scenes_model, processor, tmp_path, monkeypatch, trust, caplog
):
    save(scenes_model, processor, tmp_path)
    for name in CODE:
        (tmp_path / name).write_text("raise AssertionError('the code of the checkpoint was run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust the code"))
    options = {} if trust is None else {"trust_remote_code": trust}
    assert type(AutoConfig.from_pretrained(tmp_path, **options)) is OmitConfig
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        model = auto_class.from_pretrained(tmp_path, **options)
        assert type(model) is OmitModel
        assert type(model.config) is OmitConfig
    assert type(AutoProcessor.from_pretrained(tmp_path, **options)) is OmitProcessor
    assert type(AutoModel.from_config(model.config, **options)) is OmitModel
    assert not caplog.records


def test_what_a_checkpoint_says_and_holds(scenes_model, processor, tmp_path):
    save(scenes_model, processor, tmp_path)
    assert entries(tmp_path) == ENTRIES
    for name in ("processor_config.json", "tokenizer_config.json"):
        auto_map = json.loads((tmp_path / name).read_text())["auto_map"]
        assert auto_map == {"AutoProcessor": ENTRIES["AutoProcessor"]}
    assert code(tmp_path) == CODE
    for file in FILES:
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_configuration_alone(tmp_path):
    """It says no more than it holds."""
    tiny_config().save_pretrained(tmp_path)
    assert code(tmp_path) >= {"configuration_omit.py", "matching_omit.py"}  # whose table of heads it checks
    assert "modeling_omit.py" not in code(tmp_path)
    assert entries(tmp_path) == {"AutoConfig": ENTRIES["AutoConfig"]}


class Renamed(OmitModel):
    """As somebody may derive from the model."""


def test_a_class_of_ones_own_is_told_for_both_kinds_of_model(tmp_path):
    Renamed(tiny_config()).save_pretrained(tmp_path)
    for auto_class in ("AutoModel", "AutoModelForZeroShotImageClassification"):
        assert entries(tmp_path)[auto_class] == "test_remote_code.Renamed"


class TestTheRulesOfTheFolder:
    """transformers copies what a text search finds, so files keep to forms that it and Python read alike."""

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
    def test_imports(self, file):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tried = {each for node in ast.walk(tree) if isinstance(node, ast.Try) for each in ast.walk(node)}
        relative = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"line {node.lineno}: of a folder above"
                assert node.module, f"line {node.lineno}: from . import, which is not copied"
                assert (FOLDER / f"{node.module}.py") in FILES, f"line {node.lineno}: of {node.module}"
                assert "*" not in {name.name for name in node.names}
                relative.add(node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
                roots = {module.split(".")[0] for module in modules}
                assert "omit_hf" not in roots, f"line {node.lineno}: of the package"
                assert node in tried or roots <= ALLOWED, f"line {node.lineno}: {roots - ALLOWED} may be missing"
            elif isinstance(node, ast.Name):
                assert node.id not in ("__import__", "importlib"), f"line {node.lineno}"
        assert set(get_relative_imports(file)) == relative  # nothing is missed, nor found in a docstring

    def test_every_file_travels_and_nothing_else(self):
        travels = set()
        for entry in {entry.split(".")[0] for entry in ENTRIES.values()}:
            travels |= {FOLDER / f"{entry}.py", *map(Path, get_relative_import_files(FOLDER / f"{entry}.py"))}
        assert travels == set(FILES)
        assert {file for file in FOLDER.iterdir() if file.suffix == ".py"} == {*FILES, FOLDER / "__init__.py"}
        assert not [each for each in FOLDER.iterdir() if each.is_dir() and each.name != "__pycache__"]
