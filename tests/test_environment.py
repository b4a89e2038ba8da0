import importlib
import subprocess

import torch

from omit_hf.cards import environment

module = importlib.import_module("omit_hf.cards.environment")  # whose name the function has taken


def test_the_commit_is_that_of_the_package_and_of_no_checkout_around_it(tmp_path, monkeypatch):
    """As where a wheel is installed into a virtual environment within somebody's project."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    installed = tmp_path / ".venv" / "omit_hf" / "cards" / "environment.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    (tmp_path / "theirs.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    monkeypatch.setattr(module, "__file__", str(installed))
    assert environment()["commit"] is None  # in no checkout at all
    for command in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    assert environment()["commit"] is None
    for command in (["add", str(installed)], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert environment()["commit"] == head[:12]


def test_the_device_is_the_one_that_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    assert environment()["device"] == "a GPU, None"
    assert environment(device=torch.device("cuda", 1))["device"] == "a GPU, cuda:1"
    assert "GPU" not in environment(device=torch.device("cpu"))["device"]
