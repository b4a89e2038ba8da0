"""`omit-hf inspect`, as examples/inspect_data.py."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
import sources
from PIL import Image

from omit_hf.data import load_image_text

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def inspect(monkeypatch, capsys):
    """Runs inspect_data.py in this process, which spares importing everything for each of its tests."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["inspect_data.py", *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / "inspect_data.py"), run_name="__main__")
            code = None
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        error = code if isinstance(code, str) else ""  # which Python prints when it exits
        return subprocess.CompletedProcess(arguments, int(code is not None), shown.out, shown.err + error)

    return run


def test_inspect_data(tmp_path, inspect):
    folder, _ = sources.image_folder(tmp_path / "data")
    result = inspect(folder, "--samples", 2, "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| train | 6 | 30 | 5 / 5.0 / 5 | 5 / 5.0 / 5 | 14 |" in result.stdout
    assert len(re.findall(r"^test: test/\d+.png$", result.stdout, flags=re.MULTILINE)) == 2
    assert "  - a lime picture, number 0" in result.stdout or "  - a navy picture, number 0" in result.stdout
    assert "Opened all images; 0 cannot be used.\nNo problem found." in result.stdout
    assert Image.open(tmp_path / "sheet.png").size == (900, 340)


def test_inspect_data_lists_all_problems(tmp_path, inspect):
    folder, _ = sources.image_folder(tmp_path / "data")
    (folder / "train" / "3.png").write_bytes(b"broken")
    result = inspect(folder, "--unreadable", tmp_path / "bad.txt")
    assert result.returncode == 1
    assert "error: 1 problem:\ntrain image 3 (train/3.png): cannot be read: cannot identify image" in result.stderr
    assert (tmp_path / "bad.txt").read_text() == "train/3.png\n"
    options = ["--data_options", json.dumps({"exclude": str(tmp_path / "bad.txt")})]
    assert inspect(folder, *options).returncode == 0
    assert inspect(folder, "--quick").returncode == 0
    with (folder / "train" / "metadata.jsonl").open("a") as file:
        file.writelines(f'{{"file_name": "gone{n}.png", "text": "a"}}\n' for n in range(30))
    result = inspect(folder)
    assert result.returncode == 1
    assert result.stderr.count(" is missing") == 30  # of which a message shows 20
    assert "Traceback" not in result.stderr


def test_inspect_data_counts_the_captions_that_a_text_model_cuts(tmp_path, inspect):
    folder, _ = sources.image_folder(tmp_path / "data")
    miniatures.save_text("roberta", tmp_path / "roberta", max_position_embeddings=28)
    result = inspect(folder, "--quick", "--text_model", tmp_path / "roberta")
    assert result.returncode == 0, result.stderr[-2000:]
    lengths = [len(caption) + 2 for caption in captions_of(folder)]  # a token a letter, and two
    cut = sum(length > 26 for length in lengths)
    assert 0 < cut < len(lengths)
    assert f"{cut} of {len(lengths)} captions have more than the 26 tokens that {tmp_path}/roberta" in result.stdout
    assert f" reads, and are cut; the longest has {max(lengths)}." in result.stdout


def captions_of(folder) -> list[str]:
    data = load_image_text(folder)
    return [caption for rows in data.values() for captions in rows["captions"] for caption in captions]


def test_inspect_data_writes_before_it_prints(tmp_path):
    """As where its output goes to `head`, which has seen enough."""
    folder, _ = sources.image_folder(tmp_path / "data")
    (folder / "train" / "3.png").write_bytes(b"broken")
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        str(EXAMPLES / "inspect_data.py"),
        str(folder),
        "--unreadable",
        str(tmp_path / "bad.txt"),
    ]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=240)
    os.close(write)
    assert (tmp_path / "bad.txt").read_text() == "train/3.png\n"
    assert "Traceback" not in result.stderr
    assert "Broken pipe" not in result.stderr


def test_inspect_data_shows_regions(tmp_path, inspect):
    folder, _ = sources.regions(tmp_path)
    result = inspect(folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "  regions [4, 8]" in result.stdout
    result = inspect(folder, "--sheet", tmp_path / "sheet.png")
    assert "error: --sheet draws pictures, and the data have none" in result.stderr


def test_inspect_data_shows_compositions(tmp_path, inspect):
    folder = sources.cutouts(tmp_path / "cutouts")
    sizes = json.dumps({"train_size": 4, "validation_size": 2, "test_size": 2})
    result = inspect(folder, "--data_options", sizes, "--sheet", tmp_path / "sheet.png")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| train | 4 | 20 | 5 / 5.0 / 5 |" in result.stdout
    assert "\ntest: compositions-0-test-00001\n  - " in result.stdout
    assert "No problem found." in result.stdout
    assert (tmp_path / "sheet.png").is_file()
