"""The package as users get it: a wheel, and an editable install, imported from another folder."""

import configparser
import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from tiny import PROGRAMS

import omit_hf

ROOT = Path(__file__).parents[1]


def imported(folder: Path, **environment: str) -> list[str]:
    command = [sys.executable, PROGRAMS / "import_the_package.py"]
    environment = {**os.environ, **environment}
    out = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the tracked and new files alone, so that an old build/ cannot mend it."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        source, target = ROOT / name, folder / "source" / name
        if name and source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "."]
    subprocess.run([*build, "./source"], cwd=folder, check=True)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {file for file in (ROOT / "src").rglob("*") if file.suffix == ".py" or file.name == "py.typed"}
    expected = {str(file.relative_to(ROOT / "src")) for file in sources}
    for package, folder in (("modeling", ROOT / "modeling"), ("recipes", ROOT / "examples" / "configs")):
        expected |= {f"omit_hf/{package}/{file.name}" for file in folder.iterdir() if file.is_file()}
    assert inside == expected


def test_the_wheel_imports_from_another_folder(wheel, tmp_path):
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    package, modeling, name = imported(tmp_path, PYTHONPATH=str(target))
    assert Path(package) == target / "omit_hf" / "__init__.py"
    assert Path(modeling) == target / "omit_hf" / "modeling" / "modeling_omit.py"
    assert name == "OmitModel"


def test_the_wheel_brings_the_command(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    [entries] = tmp_path.glob("omit_hf-*.dist-info/entry_points.txt")
    assert entries.read_text().split() == ["[console_scripts]", "omit-hf", "=", "omit_hf_command:main"]
    code = "from omit_hf_command import __file__, main; print(__file__); main(['--version'])"
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [str(tmp_path / "omit_hf_command.py"), f"omit-hf {omit_hf.__version__}"]


def test_the_wheel_brings_the_recipes(wheel, tmp_path):
    """In a folder without the clone: they are listed, and a training begins with one."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()

    def omit_hf_command(*arguments):
        command = [sys.executable, "-m", "omit_hf", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "ACCELERATE_USE_CPU": "true"}
        options = {"cwd": tmp_path / "work", "capture_output": True, "text": True, "timeout": 240}
        return subprocess.run(command, env=environment, **options)

    listed = omit_hf_command("recipes")
    assert listed.returncode == 0, listed.stderr
    files = (ROOT / "examples" / "configs").glob("*.yaml")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == sorted(file.stem for file in files)
    sizes = '{"train_size": 30, "validation_size": 2, "test_size": 2}'
    trained = omit_hf_command("train", "scenes", "--data_options", sizes, "--max_steps", "1")
    assert trained.returncode == 0, trained.stderr
    assert "Stopped at step 1 (max_steps)" in trained.stdout
    assert (tmp_path / "work" / "outputs" / "scenes" / "recipe.yaml").is_file()


def test_the_editable_install_imports_from_another_folder(tmp_path):
    origin = json.loads(distribution("omit-hf").read_text("direct_url.json"))
    assert origin["dir_info"]["editable"], "make test installs the package in editable mode"
    package, modeling, _ = imported(tmp_path)
    assert Path(package) == ROOT / "src" / "omit_hf" / "__init__.py"
    assert Path(modeling).resolve() == ROOT / "modeling" / "modeling_omit.py"


def test_the_version_is_told_once():
    assert distribution("omit-hf").version == omit_hf.__version__


def test_python_is_as_new_as_the_pinned_packages_need():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    oldest = settings["options"]["python_requires"].removeprefix(">=")
    pinned = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    installed = {each.metadata["Name"]: each.metadata["Requires-Python"] for each in distributions()}
    assert {"torch", "transformers", "numpy"} <= installed.keys() & set(pinned)
    for package in set(pinned) & installed.keys():  # some are of an extra
        needed = installed[package]
        assert needed is None or SpecifierSet(needed).contains(f"{oldest}.0"), f"{package} needs Python {needed}"


def test_importing_the_package_leaves_training_and_plotting_alone(tmp_path):
    command = [sys.executable, PROGRAMS / "list_modules.py"]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
