"""What users give a library that it cannot take: a clear error or a defined result, and nothing half-written."""

import json
import os
import resource
import shutil
import subprocess
import sys

import lancedb
import numpy as np
import pytest
import torch
from tiny import PROGRAMS, TEXT, tiny_config

from omit_hf import OmitModel
from omit_hf.library import PictureLibrary, filters
from omit_hf.library.lance import SETTINGS


def row_counts(library) -> int:
    return len({row["key"] for row in library.store.metadata()})


@pytest.fixture
def made(scenes_model, processor, tmp_path):
    """A library without items."""
    return PictureLibrary(tmp_path / "photos.lance", scenes_model, processor)


def test_a_folder_without_pictures_leaves_nothing(made, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    for source, error in (
        (tmp_path / "empty", "There is no picture in"),
        (tmp_path / "nowhere", "There is no file or folder"),
        ([], "The source is"),
        ("", "The source is"),
        (3, "The source is"),
        ([3], "The source is"),
    ):
        for method in (made.add, made.sync):
            with pytest.raises((ValueError, FileNotFoundError), match=error):
                method(source, progress=False)
    assert not os.path.exists(made.path)
    for batch_size in (0, -1, 2.0, True, "3"):
        with pytest.raises(ValueError, match="batch_size is"):
            made.add(tmp_path, batch_size=batch_size)


def test_a_library_of_another_layout_is_refused(library):
    database = lancedb.connect(library.path)
    settings = json.loads(database.open_table(SETTINGS).to_arrow()["json"][0].as_py())
    wrong = ({"odd": 1}, {"width": "16"}, {"candidates": True}, {"table": None}, {"model": ["x" * 10_000]})
    layouts = [({"version": 2}, "layout 2"), ({"version": None}, "layout None")]
    for changed, error in [*layouts, *((each, "damaged: they are .{1,90}$") for each in wrong)]:
        content = json.dumps(settings | changed)
        database.create_table(SETTINGS, [{"json": content}], mode="overwrite")
        with pytest.raises(ValueError, match=error):
            PictureLibrary(library.path)
        with pytest.raises(ValueError, match=error):
            library.search("a red star")
    twice = json.dumps(settings)[:-1] + ', "width": 3}'
    for rows in ([{"json": "["}], [{"json": "3"}], [{"theme": "dark"}], [{"json": "[" * 100_000}], [{"json": twice}]):
        database.create_table(SETTINGS, rows, mode="overwrite")
        with pytest.raises(ValueError, match="another program"):
            PictureLibrary(library.path)
    database.create_table(SETTINGS, [{"json": json.dumps(settings)}], mode="overwrite")
    assert len(PictureLibrary(library.path)) == 24
    database.drop_table(settings["table"])
    with pytest.raises(ValueError, match="lacks its table"):
        PictureLibrary(library.path)


def test_a_place_with_something_else_is_refused(scenes_model, processor, pictures, tmp_path):
    lancedb.connect(tmp_path / "other").create_table("songs", [{"title": "x"}])
    (tmp_path / "file").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    for place, error in (("other", "something else"), ("pictures", "something else"), ("file", "is a file")):
        with pytest.raises((ValueError, NotADirectoryError), match=error):
            PictureLibrary(tmp_path / place, scenes_model, processor)
        with pytest.raises((ValueError, NotADirectoryError), match=error):
            PictureLibrary(tmp_path / place)
    with pytest.raises(ValueError, match="There is no library at"):
        PictureLibrary(tmp_path / "nowhere")
    for place in ("", " ", 3, "two\nlines", "surrogate\udcff"):
        with pytest.raises(ValueError, match="The path is"):
            PictureLibrary(place, scenes_model, processor)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    for place in ("empty", "it's 100% #1? 🐈 [x]"):
        library = PictureLibrary(tmp_path / place, scenes_model, processor)
        library.add(pictures / "00.png", progress=False)
        assert len(PictureLibrary(tmp_path / place)) == 1
    assert len(PictureLibrary((tmp_path / "empty").as_uri())) == 1


@pytest.mark.parametrize("matching", ["mean", "gpo", "pem"])
def test_a_model_without_fragments_is_refused(matching, processor, tmp_path):
    model = OmitModel(tiny_config(matching=matching, text_config={**TEXT, "vocab_size": len(processor.tokenizer)}))
    with pytest.raises(ValueError, match=f"'{matching}', which pools fragments into one vector"):
        PictureLibrary(tmp_path / "x", model, processor)
    assert not (tmp_path / "x").exists()


def test_a_model_that_is_none_is_refused(scenes_model, tmp_path, library):
    with pytest.raises(ValueError, match="without its processor"):
        PictureLibrary(tmp_path / "x", scenes_model)
    for bad in (3, torch.nn.Linear(2, 2), ["a"]):
        with pytest.raises(ValueError, match="The model is"):
            PictureLibrary(tmp_path / "x", bad)
    with pytest.raises(ValueError, match="of is 'songs'"):
        PictureLibrary(tmp_path / "x", scenes_model, of="songs")
    with pytest.raises(ValueError, match="is one of pictures"):
        PictureLibrary(library.path, of="captions")
    unnamed = PictureLibrary(library.path)
    assert len(unnamed) == 24
    with pytest.raises(ValueError, match="a model that had no name"):
        unnamed.search("a red star")


def test_a_model_that_moved_is_named(published, pictures, tmp_path):
    PictureLibrary(tmp_path / "photos.lance", published).add(pictures, progress=False)
    shutil.move(published, tmp_path / "moved")
    library = PictureLibrary(tmp_path / "photos.lance")
    with pytest.raises(OSError, match="model' of the library .* cannot be loaded"):
        library.search("a red star")
    assert len(PictureLibrary(tmp_path / "photos.lance", tmp_path / "moved").search("a red star", k=3)) == 3


def test_wrong_storage_options(scenes_model, processor):
    own = {"aws_endpoint": "http://127.0.0.1:9", "allow_http": "true", "aws_region": "us-east-1"}
    own |= {"aws_access_key_id": "a", "aws_secret_access_key": "b", "client_max_retries": "0"}
    for address, options in (("s3://nobody/x", own), ("s3://nobody/x", {"aws_region": 3}), ("zz://nobody/x", None)):
        with pytest.raises(OSError, match="cannot be opened; see its name and storage_options"):
            PictureLibrary(address, scenes_model, processor, storage_options=options)


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def largest_file():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [8, 2000, 20_000])
def test_a_full_disk(size, library, pictures, scenes, scenes_model, processor, largest_file):
    for number, row in enumerate(scenes["test"]):
        row["image"].save(pictures / f"new{number}.png")
    wanted = [(hit.path, hit.score) for hit in library.search("a red star", k=24)]
    other = PictureLibrary(f"{library.path}-other", scenes_model, processor)
    largest_file(size)
    for update in (lambda: library.sync(pictures, progress=False), lambda: other.add(pictures, progress=False)):
        with pytest.raises(OSError, match=r"photos\.lance"):
            update()
    largest_file(resource.RLIM_INFINITY)
    again = PictureLibrary(library.path, scenes_model, processor)
    assert [(hit.path, hit.score) for hit in again.search("a red star", k=24)] == wanted
    assert again.sync(pictures, progress=False).added == len(scenes["test"])
    assert other.add(pictures, progress=False).added == 24 + len(scenes["test"])
    assert row_counts(again) == row_counts(other) == 24 + len(scenes["test"])


def test_a_read_only_disk(library, pictures, scenes_model, processor):
    """Nothing is written while searching, and what writes says why it cannot."""
    wanted = [(hit.path, hit.score) for hit in library.search("a red star")]
    script = PROGRAMS / "search_read_only.py"
    command = [sys.executable, script, library.path, pictures]
    scenes_model.save_pretrained(f"{library.path}-model")
    processor.save_pretrained(f"{library.path}-model")
    result = subprocess.run([*command, f"{library.path}-model"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["hits"] == [list(hit) for hit in wanted]
    refused = ("add", "sync", "remove", "compact", "reencode", "check")
    assert found["errors"] == dict.fromkeys(refused, "PermissionError")
    assert found["unchanged"]


def test_one_writes_and_all_search(library, pictures, scenes_model, processor):
    with subprocess.Popen(
        [sys.executable, PROGRAMS / "hold_a_folder.py", library.path, "0", ""], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline()
        for write in (
            lambda: library.add(pictures),
            lambda: library.sync(pictures),
            lambda: library.remove("true"),
            library.compact,
            library.check,
            lambda: library.reencode(scenes_model, processor),
        ):
            with pytest.raises(BlockingIOError, match=f"process {holder.pid} on .*search it meanwhile"):
                write()
        assert len(library.search("a red star", k=24)) == 24
        holder.kill()
    assert library.add(pictures, progress=False).unchanged == 24


@pytest.mark.parametrize("k", [0, -1, True, False, 1.0, "3", None, float("nan")])
def test_k_is_a_whole_number(library, k):
    with pytest.raises(ValueError, match="k is .*; expected a whole number from 1"):
        library.search("a red star", k=k)
    if k is not None:
        with pytest.raises(ValueError, match="candidates is .*; expected a whole number from 1"):
            library.search("a red star", candidates=k)


def test_k_above_the_number(library):
    hits = library.search("a red star", k=10**12)
    assert len(hits) == 24
    assert hits.proven


def test_sentences_that_are_none(library):
    for sentence in ("", " ", "\n\t\u3000", None, 3, ["a red star"], b"a red star"):
        with pytest.raises(ValueError, match="expected a text of at least one word"):
            library.search(sentence)
    with pytest.raises(ValueError, match="surrogate"):
        library.search("a red \ud83d star")
    with pytest.raises(ValueError, match="20001 tokens; expected at most 512"):
        library.search("red" + " star" * 20_000)
    assert len(library.search("red" + " star" * 500, k=3)) == 3
    assert len(library.search("🐈 ‮ 'quoted' \"--;\0", k=3)) == 3


def test_a_sentence_longer_than_the_model_takes(library):
    library.processor.tokenizer.model_max_length = 8
    assert len(library.search("a red star left of a ring", k=3)) == 3
    with pytest.raises(ValueError, match="9 tokens; expected at most 8"):
        library.search("a red star left of a ring at all")


FILTERS = ["CAST(path AS INT) = 3", "1/0 = 1", "regexp_match(path, '((')", "path", "key IN (SELECT key FROM items)"]
FILTERS += ["", "year >", "nothing = 3", "width > 1; DROP x", "width = 1) OR (1=1", "width = 64 rest", "1", "'", "--"]
FILTERS += ["year = 1 /* x */", "id = 1", "rows = 3", "sleep(3)", "\0", "year = 'a\0'", "path = '\ud800'", " ", "()"]
FILTERS += [" OR ".join(["year = 1"] * 10_000), "(" * 500 + "true" + ")" * 500, 3, None.__class__, ["year = 1"]]


@pytest.mark.parametrize("where", FILTERS, ids=lambda where: f"{where!s:.30}")
@pytest.mark.parametrize("memory", [2**30, 0], ids=["in_memory", "from_disk"])
def test_what_is_no_filter(where, memory, library, monkeypatch):
    monkeypatch.setattr("omit_hf.library.library.MEMORY", memory)
    for use in (library.search, lambda _, where: library.remove(where)):
        with pytest.raises(ValueError, match="which is no filter"):
            use("a red star", where=where)
    assert len(library) == 24


def test_a_long_filter_ends_no_process(library):
    most = (filters.MOST_CHARACTERS - 20) // len("1=1or ")
    assert len(library.search("a red star", k=30, where="1=1or " * most + "true")) == 24


def test_pictures_that_are_no_query(library, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for picture in (tmp_path / "text.png", str(tmp_path / "nowhere.png"), 3, None, np.full((8, 8), np.nan)):
        with pytest.raises((ValueError, OSError), match=r"images\[0\]"):
            library.search_image(picture)
    assert len(library.search_image(str(next(iter(library.search("a red star"))).path), k=2)) == 2


def test_an_empty_library(library, made, scenes_model, processor, tmp_path):
    library.remove("true")
    for hits in (library.search("a red star"), library.search("a red star", where="year > 3", exact=True)):
        assert hits == []
        assert hits.proven
    with pytest.raises(ValueError, match="no filter"):
        library.search("a red star", where="nothing = 1")
    library.compact()
    never = PictureLibrary(tmp_path / "never", scenes_model, processor)
    for use in (lambda: never.search("x"), never.compact, never.check, lambda: never.remove("true")):
        with pytest.raises(ValueError, match="is empty"):
            use()
    assert len(never) == 0
    assert never.unreadable == {}
