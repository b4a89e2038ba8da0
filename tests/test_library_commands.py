"""`omit-hf index` and `omit-hf search`."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import process, run
from PIL import Image
from tiny import TEXT, tiny_config

from omit_hf import OmitModel
from omit_hf.library import PictureLibrary
from omit_hf.library import library as library_module

ODD = ("a 'quoted' \"name\".png", "two\nlines.png", "\u202egnp.redro.png", "👩\u200d🚀.png", "%s {0} \\n.png", "-k.png")


@pytest.fixture(scope="module")
def model(tmp_path_factory, processor):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    OmitModel(tiny_config(text_config={**TEXT, "vocab_size": len(processor.tokenizer)})).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, model, scenes):
    """A library of 24 pictures, of which 12 were taken in 2021, and what making it printed."""
    home = tmp_path_factory.mktemp("home")
    (home / "pictures" / "trips").mkdir(parents=True)
    for number, row in enumerate(scenes["train"]):
        exif = Image.Exif()
        exif[0x8769] = {0x9003: f"{2021 if number % 2 else 2010}:05:01 12:00:00"}
        row["image"].save(home / "pictures" / "trips" / f"{number:02}.png", exif=exif)
    return home, PictureLibrary(home / "photos.lance", model).add(home / "pictures", progress=False)


# --- index ------------------------------------------------------------------------------------------------------------


def counts(out: str) -> dict[str, int]:
    rows = [line.rsplit(maxsplit=1) for line in out.splitlines()[:7]]
    return {name: int(count) for name, count in rows}


def test_index_makes_and_updates(capsys, tmp_path, monkeypatch, model, scenes):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    for number, row in enumerate(scenes["test"]):
        row["image"].save(tmp_path / "pictures" / f"{number}.png")
    for number in range(12):
        (tmp_path / "pictures" / f"broken\n{number:02}.png").write_bytes(b"no picture")
    status, out = run(capsys, "index", "~/pictures", "--library=~/photos.lance", "--model", model, "--check")
    assert status == 0
    zeros = dict.fromkeys(("replaced", "moved", "removed", "unchanged"), 0)
    assert counts(out) == {"added": 8, **zeros, "unreadable": 12, "in the library": 8}
    assert "pictures a second)" in out
    named = [line for line in out.splitlines() if "broken" in line]
    assert len(named) == 10
    assert named[0].endswith(r"broken\n00.png: it is no picture in a format that Pillow reads")
    assert "\n  and 2 more\n" in out
    assert out.endswith("Every search scores all 8 pictures, and finds the best.\n")

    (tmp_path / "pictures" / "0.png").rename(tmp_path / "pictures" / "moved.png")
    (tmp_path / "pictures" / "1.png").unlink()
    status, out = run(capsys, "index", "~/pictures", "--library", "~/photos.lance", "--sync")
    assert status == 0
    changed = {"added": 0, "replaced": 0, "moved": 1, "removed": 1, "unchanged": 6, "unreadable": 12}
    assert counts(out) == {**changed, "in the library": 7}


def test_index_checks_what_an_index_finds(capsys, made, monkeypatch, tmp_path, model):
    home, _ = made
    monkeypatch.setattr(library_module, "MEMORY", 0)
    status, out = run(
        capsys, "index", home / "pictures", "--library", tmp_path / "p.lance", "--model", model, "--check"
    )
    assert status == 0
    assert "| candidates | of the best 10 | ms a query |" in out
    assert "Searches look at 50 candidates; measured with 24 pieces of its own items." in out


def test_index_says_what_is_wrong(capsys, tmp_path, model):
    library = ("--library", tmp_path / "photos.lance")
    assert run(capsys, "index", tmp_path / "none", *library)[0].startswith("error: There is no library at ")
    (tmp_path / "empty").mkdir()
    status, _ = run(capsys, "index", tmp_path / "empty", *library, "--model", model)
    assert status.startswith("error: There is no picture in ")
    status, _ = run(capsys, "index", tmp_path / "none", *library, "--model", model)
    assert status.startswith("error: There is no file or folder ")
    status, _ = run(capsys, "index", tmp_path / "empty", *library, "--model", model, "--batch_size", "0")
    assert status == "error: batch_size is 0; expected a whole number from 1."


def test_index_that_is_interrupted_goes_on(tmp_path, model, scenes):
    """By SIGINT, as of Ctrl-C, once the first transaction is there."""
    (tmp_path / "pictures").mkdir()
    for number in range(3000):
        scenes["train"][number % 24]["image"].save(tmp_path / "pictures" / f"{number}.bmp")
    command = [sys.executable, "-m", "omit_hf", "index", tmp_path / "pictures", "--library", tmp_path / "p.lance"]
    running = subprocess.Popen([*command, "--model", model], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not list((tmp_path / "p.lance").glob("items_*.lance/data/*")) and time.monotonic() < until:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, errors = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    there = int(errors.split("The library has ")[1].split()[0])
    assert 0 < there < 3000
    assert errors.endswith("the same command goes on.\n")
    assert "Traceback" not in errors
    assert len(PictureLibrary(tmp_path / "p.lance")) == there


# --- search -----------------------------------------------------------------------------------------------------------


def test_search_prints_a_table(capsys, made):
    home, _ = made
    status, out = run(capsys, "search", "a red star", "--library", home / "photos.lance", "--k", 3)
    hits = PictureLibrary(home / "photos.lance").search("a red star", k=3)
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["rank", "score", "path"],
        *([str(rank), f"{hit.score:.4f}", hit.path] for rank, hit in enumerate(hits, start=1)),
    ]


def test_search_prints_json(capsys, made):
    home, _ = made
    # Flags before the sentence must not take it for their value.
    status, out = run(capsys, "search", "--json", "--exact", "a red star", "--library", home / "photos.lance", "--k", 2)
    assert status == 0
    found = json.loads(out)
    hits = PictureLibrary(home / "photos.lance").search("a red star", k=2)
    assert found["proven"] is True
    for row, hit in zip(found["hits"], hits, strict=True):
        assert (row["score"], row["path"]) == (hit.score, hit.path)
        assert row["metadata"] == {**hit.metadata, "taken": hit.metadata["taken"].isoformat()}
        assert [(each["text"], each["matched"], tuple(each["box"])) for each in row["words"]] == [
            (word.text, word.matched, word.box) for word in hit.words
        ]


def test_search_with_a_filter(capsys, made):
    home, _ = made
    search = ("search", "a red star", "--library", home / "photos.lance", "--k", 99, "--where")
    _, out = run(capsys, *search, "year >= 2020")
    assert sorted(int(line[-6:-4]) for line in out.splitlines()[1:]) == list(range(1, 24, 2))
    assert run(capsys, *search, "year > 2030") == (0, "Nothing was found among what meets 'year > 2030'.\n")
    status, out = run(capsys, *search, "year > 2030", "--json")
    assert (status, json.loads(out)) == (0, {"proven": True, "hits": []})
    assert run(capsys, *search, "year >")[0].startswith("error: where is 'year >', which is no filter: ")


def test_search_explains_the_best_hit(capsys, made, tmp_path, monkeypatch):
    home, _ = made
    monkeypatch.setenv("HOME", str(tmp_path))
    search = ("search", "~ a red star", "--library", home / "photos.lance")
    for name in ("words.png", "words.svg", "words.pdf"):
        status, out = run(capsys, *search, "--explain", f"~/{name}")
        assert status == 0
        assert out.endswith(f"The words over the best: {tmp_path / name}\n")
        assert (tmp_path / name).stat().st_size > 1000
    assert Image.open(tmp_path / "words.png").width > 300
    assert run(capsys, *search, "--explain", "~/w.gif")[0].startswith("error: The output is ")
    assert run(capsys, *search, "--explain", "~/none/w.png")[0].startswith("error: There is no folder ")
    status, out = run(capsys, *search, "--explain", "~/none.png", "--where", "year > 2030")
    assert (status, out[:17], (tmp_path / "none.png").exists()) == (0, "Nothing was found", False)


def test_search_by_a_picture(capsys, made):
    home, _ = made
    picture = home / "pictures" / "trips" / "07.png"
    search = ("search", "--library", home / "photos.lance", "--image")
    _, out = run(capsys, *search, picture, "--json")
    assert json.loads(out)["hits"][0]["words"] is None
    hits = PictureLibrary(home / "photos.lance").search_image(picture)
    assert [row["path"] for row in json.loads(out)["hits"]] == [hit.path for hit in hits]
    assert run(capsys, *search, home / "none.png")[0].startswith("error: There is no file ")
    assert run(capsys, *search, picture, "--explain", "w.png")[0] == 2
    assert run(capsys, *search, picture, "a red star")[0] == 2
    assert run(capsys, *search[:3])[0] == 2


def test_search_in_captions(capsys, model, made, tmp_path):
    library = PictureLibrary(tmp_path / "captions.lance", model, of="captions")
    library.add(["a red star", "two\nblue circles"], progress=False)
    picture = made[0] / "pictures" / "trips" / "07.png"
    _, out = run(capsys, "search", "--image", picture, "--library", library.path)
    assert sorted(line.split(maxsplit=2)[2] for line in out.splitlines()[1:]) == ["a red star", r"two\nblue circles"]
    status, _ = run(capsys, "search", "a red star", "--library", library.path)
    assert status.endswith("is one of captions, which pictures find; expected --image.")


def test_search_says_what_is_wrong(capsys, made, tmp_path):
    home, _ = made
    search = ("search", "a red star", "--library")
    assert run(capsys, *search, tmp_path / "none")[0].startswith("error: There is no library at ")
    assert run(capsys, *search, home / "photos.lance", "--k", 0)[0] == "error: k is 0; expected a whole number from 1."
    assert run(capsys, "search", " ", "--library", home / "photos.lance")[0].startswith("error: The sentence is ' '; ")


def test_an_index_that_proves_nothing_says_so(capsys, made, tmp_path, monkeypatch, model):
    monkeypatch.setattr(library_module, "MEMORY", 0)
    PictureLibrary(tmp_path / "p.lance", model).add(made[0] / "pictures", progress=False)
    search = ("search", "a red star", "--library", tmp_path / "p.lance")
    assert "Found by the index; another picture may score as high, and --exact scores all." in run(capsys, *search)[1]
    assert "Found by the index" not in run(capsys, *search, "--exact")[1]


def test_any_file_name_on_any_console(capsys, tmp_path, model, scenes):
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(ODD):
        scenes["train"][number]["image"].save(tmp_path / "pictures" / name)
    library = PictureLibrary(tmp_path / "p.lance", model)
    assert library.add(tmp_path / "pictures", progress=False).added == len(ODD)
    search = ("search", "a red star", "--library", tmp_path / "p.lance")
    plain = process(*search, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (plain.returncode, plain.stderr) == (0, b"")
    names = {line.rsplit(b"/", 1)[1] for line in plain.stdout.splitlines()[1:]}
    assert rb"two\nlines.png" in names
    assert rb"\u202egnp.redro.png" in names
    assert rb"\U0001f469\u200d\U0001f680.png" in names
    found = json.loads(run(capsys, *search, "--json")[1])
    assert {os.path.basename(hit["path"]) for hit in found["hits"]} == set(ODD)


def test_a_pipe_that_is_closed_early(made):
    read, write = os.pipe()
    os.close(read)
    search = ("search", "a red star", "--library", made[0] / "photos.lance", "--json")
    result = process(*search, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")
