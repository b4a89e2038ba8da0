"""The report on a GPU's kernels, tried in Triton's interpreter on sizes whose figures mean nothing."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "gpu_report.sh"


def report(folder, *arguments: str) -> tuple[subprocess.CompletedProcess, dict]:
    command = ["bash", SCRIPT, "--device", "cpu", "--tiny", "true", "--output", folder, *arguments]
    environment = os.environ | {"PYTHON": sys.executable, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done, json.loads((folder / "gpu_report.json").read_text())


def test_every_part_is_reported(tmp_path):
    done, found = report(tmp_path, "--parts", "races", "coco", "query")
    assert done.returncode == 0, done.stderr
    assert found["parts"]["races"]["rows"][0] == {"check": "2 runs are equal to the last bit", "result": "yes"}
    assert found["parts"]["coco"]["rows"][0]["pairs"] == 16
    page = (tmp_path / "gpu_report.md").read_text()
    assert done.stdout.strip() == page.strip()
    assert all(f"## {name}, " in page for name in ("races", "coco", "query"))


def test_a_part_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    module = importlib.import_module("gpu_report")
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.exit('the card is gone')")
    monkeypatch.setattr(module, "__file__", str(broken))
    part = module.run_part("coco", module.Arguments(device="cpu"))
    assert part["rows"] == []
    assert part["failed"] == ["all: status 1: the card is gone"]
    page = module.as_markdown({"environment": {}, "parts": {"coco": part}})
    assert "**Failed**, all: status 1: the card is gone" in page


def test_without_the_package_it_says_why(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho 'Traceback' >&2\necho 'No module named triton' >&2\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PYTHON": str(tmp_path / "python")}
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "has no omit-hf with Triton (No module named triton). Install it: pip install" in done.stderr
