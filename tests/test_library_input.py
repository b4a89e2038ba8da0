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
from datasets import Dataset, Features, Image, List, Value
from tiny import PROGRAMS, REGIONS, TEXT, tiny_config

from omit_hf import OmitModel, OmitProcessor
from omit_hf.library import PictureLibrary, filters
from omit_hf.library.files import find_pictures
from omit_hf.library.lance import SETTINGS

WEIRD = [
    'it\'s "quoted"',
    "two\nlines",
    "emoji 🐈‍⬛",
    "rtl \u202e gnp",
    "a" * 240,
    " ",
    "%41#?*[x]",
    "ünï cödé",
    "\\back",
]


def row_counts(library) -> int:
    return len({row["key"] for row in library.store.metadata()})


@pytest.fixture
def made(scenes_model, processor, tmp_path):
    """A library without items."""
    return PictureLibrary(tmp_path / "photos.lance", scenes_model, processor)


@pytest.fixture
def regions_library(scenes, processor, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(vision_config=REGIONS, text_config={**TEXT, "vocab_size": len(processor.tokenizer)})
    model = OmitModel(config).eval()
    return PictureLibrary(tmp_path / "regions.lance", model, OmitProcessor(None, processor.tokenizer))


def regions(counts, **columns) -> Dataset:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(count, 10)).astype(np.float32).tolist() for count in counts]
    return Dataset.from_dict({"region_features": rows, "image_id": [f"r{n}" for n in range(len(counts))], **columns})


def rows_of(scenes, count: int = 4, **columns) -> Dataset:
    data = Dataset.from_dict({"image": list(scenes["train"]["image"][:count])}, features=Features(image=Image()))
    for name, values in {"image_id": [f"p{number}" for number in range(count)], **columns}.items():
        data = data.add_column(name, list(values))
    return data


# --- places -----------------------------------------------------------------------------------------------------------


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
    for changed, error in (({"version": 2}, "layout 2"), ({"version": None}, "layout None"), ({"odd": 1}, "damaged")):
        content = json.dumps(settings | changed)
        database.create_table(SETTINGS, [{"json": content}], mode="overwrite")
        with pytest.raises(ValueError, match=error):
            PictureLibrary(library.path)
        with pytest.raises(ValueError, match=error):
            library.search("a red star")
    for rows in ([{"json": "["}], [{"json": "3"}], [{"theme": "dark"}]):
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


# --- files ------------------------------------------------------------------------------------------------------------


def test_names_of_every_kind(made, scenes, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for number, name in enumerate(WEIRD):
        scenes["train"][number]["image"].save(folder / f"{name}.png")
    made.add(folder, progress=False)
    hits = made.search("a red star", k=100)
    assert {hit.path for hit in hits} == {str(folder / f"{name}.png") for name in WEIRD}
    assert all(hit.picture().size == (hit.metadata["width"], hit.metadata["height"]) for hit in hits)
    assert len(made.search("a red star", where="path LIKE '%it''s \"quoted\".png'")) == 1
    (folder / f"{WEIRD[0]}.png").rename(folder / f"{WEIRD[1]} too.png")
    (folder / f"{WEIRD[2]}.png").unlink()
    report = made.sync(folder, progress=False)
    assert (report.moved, report.removed, report.unchanged) == (1, 1, len(WEIRD) - 2)


def test_names_that_are_no_text(made, scenes, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    scenes["train"][0]["image"].save(folder / "good.png")
    bad = os.fsencode(folder) + b"/b\xe4d.png"
    shutil.copy(folder / "good.png", bad)
    for _ in range(2):
        report = made.sync(folder, progress=False)
        assert report.unreadable == {f"{folder}/b\\xe4d.png": "its name is no UTF-8; rename it"} == made.unreadable
        assert len(made) == 1
    with pytest.raises(OSError, match=r"b\\xe4d.png: its name is no UTF-8"):
        find_pictures([folder])
    os.rename(bad, folder / "bad.png")
    assert made.sync(folder, progress=False).added == 1
    assert made.unreadable == {}


def test_links_and_loops(made, scenes, tmp_path):
    folder = tmp_path / "linked"
    (folder / "real").mkdir(parents=True)
    scenes["train"][0]["image"].save(folder / "real" / "0.png")
    scenes["train"][1]["image"].save(tmp_path / "outside.png")
    (folder / "real" / "up").symlink_to(folder)
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"x")
    assert made.add(folder, progress=False).added == 2
    assert {hit.path for hit in made.search("a star")} == {f"{folder}/real/0.png", f"{folder}/link.png"}


def test_what_cannot_be_read_is_named_and_stays(library, pictures, monkeypatch):
    """A folder that may not be listed hides its pictures; they are not gone."""
    scandir = os.scandir
    hidden = str(pictures / "more")

    def refuse(place="."):
        if str(place) == hidden:
            raise PermissionError(13, "Permission denied", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    report = library.sync(pictures, progress=False)
    assert report.unreadable == {hidden: "Permission denied"} == library.unreadable
    assert (report.removed, report.unchanged, len(library)) == (0, 12, 24)
    with pytest.raises(PermissionError):
        library.sync(hidden, progress=False)
    monkeypatch.undo()
    assert library.sync(pictures, progress=False).unchanged == 24
    assert library.unreadable == {}


def test_pictures_that_cannot_be_read(made, pictures, scenes):
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "text.jpg").write_text("no picture")
    (pictures / "cut.png").write_bytes((pictures / "00.png").read_bytes()[:200])
    scenes["train"][0]["image"].resize((3, 3)).save(pictures / "tiny.png")
    report = made.add(pictures, progress=False)
    assert report.added == 24
    assert {os.path.basename(path) for path in report.unreadable} == {"empty.png", "text.jpg", "cut.png", "tiny.png"}
    assert "takes at least" in report.unreadable[str(pictures / "tiny.png")]
    assert made.unreadable == report.unreadable
    assert made.add(pictures, progress=False).unreadable == report.unreadable
    shutil.copy(pictures / "00.png", pictures / "text.jpg")
    (pictures / "empty.png").unlink()
    report = made.sync(pictures, progress=False)
    assert report.added == 1
    assert {os.path.basename(path) for path in made.unreadable} == {"cut.png", "tiny.png"}
    (pictures / "00.png").write_bytes(b"torn")
    report = made.sync(pictures, progress=False)
    assert (report.removed, len(made)) == (0, 25)
    assert str(pictures / "00.png") in made.unreadable


def test_pictures_that_change_while_they_are_read(made, pictures, monkeypatch):
    """Of files that vanish after they were listed, and after they were opened."""
    from omit_hf.library import library as library_module

    def find_and_lose(*arguments):
        found = find_pictures(*arguments)
        (pictures / "00.png").unlink()
        return found

    monkeypatch.setattr(library_module, "find_pictures", find_and_lose)
    report = made.add(pictures, progress=False)
    assert report.added == 23
    assert list(report.unreadable) == [str(pictures / "00.png")]
    monkeypatch.undo()
    stat = os.stat

    def vanish(path, *arguments, **options):
        if str(path).endswith("02.png") and os.path.lexists(path):
            os.unlink(path)
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", vanish)
    report = made.sync(pictures, progress=False)
    assert (report.removed, report.unchanged) == (1, 22)
    assert made.unreadable == {}


def test_pictures_that_change_before_they_are_drawn(library, pictures):
    hits = {os.path.basename(hit.path): hit for hit in library.search("a red star", k=24)}
    (pictures / "00.png").unlink()
    shutil.copy(pictures / "04.png", pictures / "02.png")
    (pictures / "04.png").write_bytes(b"no picture")
    (pictures / "06.png").unlink()
    (pictures / "06.png").mkdir()
    for name, kind, said in (
        ("00.png", FileNotFoundError, "no longer there"),
        ("02.png", ValueError, "has changed since"),
        ("04.png", ValueError, "has changed since"),
        ("06.png", FileNotFoundError, "no longer there"),
    ):
        for use in (hits[name].picture, hits[name].draw):
            with pytest.raises(kind, match=said):
                use()
        assert hits[name].words
    assert hits["08.png"].draw().axes


def test_equal_pictures_that_move(made, pictures):
    for number in range(4):
        shutil.copy(pictures / "00.png", pictures / f"copy{number}.png")
    made.add(pictures, progress=False)
    keys = {row["key"] for row in made.store.metadata(columns=["key"])}
    (pictures / "sub").mkdir()
    for number in range(3):
        (pictures / f"copy{number}.png").rename(pictures / "sub" / f"{number}.png")
    for number in range(3, 6):
        shutil.copy(pictures / "00.png", pictures / "sub" / f"{number}.png")
    report = made.sync(pictures, progress=False)
    assert (report.moved, report.added, report.removed, report.unchanged) == (3, 3, 0, 25)
    assert keys < {row["key"] for row in made.store.metadata(columns=["key"])}
    assert row_counts(made) == len(made) == 31


def test_a_picture_that_moves_over_another(library, pictures):
    (pictures / "00.png").replace(pictures / "02.png")
    report = library.sync(pictures, progress=False)
    assert (report.replaced, report.moved, report.removed, report.unchanged) == (1, 0, 1, 22)
    ids = [row["id"] for row in library.store.metadata(columns=["id"])]
    assert len(ids) == len(set(ids)) == 23
    assert all(hit.picture() for hit in library.search("a red star", k=24))


def test_touched_pictures_are_unchanged(library, pictures):
    os.utime(pictures / "00.png", ns=(1, 1))
    assert library.sync(pictures, progress=False).unchanged == 24
    assert {row["modified"] for row in library.store.metadata(library.store.matching("path LIKE '%/00.png'"))} == {1}


# --- queries ----------------------------------------------------------------------------------------------------------


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


# --- rows of data sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows", "key", "path", "fragments", "id", "digest", "bytes", "norms", "grid"])
def test_columns_with_our_names(name, made, scenes):
    with pytest.raises(ValueError, match=f"column '{name}', which the library fills itself; rename it"):
        made.add(rows_of(scenes, **{name: [1, 2, 3, 4]}), progress=False)
    assert len(made) == 0


@pytest.mark.parametrize("name", ["_rowid", "_distance", "a.b", " ", "back`tick", "two\nlines"])
def test_columns_with_odd_names(name, made, scenes):
    with pytest.raises(ValueError, match="a name that LanceDB does not take"):
        made.add(rows_of(scenes, **{name: [1, 2, 3, 4]}), progress=False)
    assert len(made) == 0


def test_columns_of_every_kind(made, scenes):
    data = rows_of(
        scenes,
        label=[1, 2, 3, 4],
        Title=["a", None, "", "it's"],
        nested=[{"x": [1, 2], "y": {"z": "a"}}, {"x": [], "y": None}, None, {"x": None, "y": {"z": None}}],
        phrases=[[{"text": "a", "boxes": [1]}], [], None, [{"text": None, "boxes": []}]],
        nothing=[None] * 4,
        score=[0.5, float("nan"), None, float("inf")],
        year=[2019, 2020, None, 2021],
        width=[1, 1, 1, 1],
    )
    made.add(data, progress=False)
    hits = {hit.id: hit for hit in made.search("a red star")}
    for number, row in enumerate(data.remove_columns(["image", "nothing", "width"])):
        found = hits[f"p{number}"].metadata
        assert str({name: found.get(name) for name in row if name != "image_id"}) == str(
            {name: value for name, value in row.items() if name != "image_id"}
        )
        assert found["width"] == scenes["train"][number]["image"].width
        assert "nothing" not in found
    assert [hit.id for hit in made.search("a red star", where="year >= 2020 AND Title = 'it''s'")] == ["p3"]
    assert made.add(data, progress=False).unchanged == 4
    assert made.add(rows_of(scenes, nothing=["x"] * 4), progress=False).changed == 4


def test_pictures_are_no_metadata(made, scenes):
    data = rows_of(scenes).add_column("mask", [None] * 4).cast_column("mask", Image())
    with pytest.raises(ValueError, match="'mask' holds Image, which is no metadata"):
        made.add(data, progress=False)


def test_columns_that_change_their_type(made, scenes):
    made.add(rows_of(scenes, label=[1, 2, 3, 4], text=["a"] * 4), progress=False)
    before = made.store.metadata()
    for column in ({"label": ["a", "b", "c", "d"]}, {"label": [0.5] * 4}, {"text": [1] * 4}, {"year": ["x"] * 4}):
        data = rows_of(scenes, 4, **column).remove_columns("image_id")
        with pytest.raises(ValueError, match=f"column '{next(iter(column))}' of the data is"):
            made.add(data, progress=False)
    with pytest.raises(ValueError, match="column 'captions' of the data is"):
        made.add(rows_of(scenes, captions=["a"] * 4), progress=False)
    assert made.store.metadata() == before
    assert made.add(rows_of(scenes, label=[1.0, 2.0, 3.0, 4.0]), progress=False).unchanged == 4


def test_ids(made, scenes):
    """Of numbers, missing ones, and those that are there twice."""
    with pytest.raises(ValueError, match="Rows 1 and 3 have the same image_id, 7"):
        made.add(rows_of(scenes, image_id=[0, 7, 2, 7]), progress=False)
    assert len(made) == 0
    data = rows_of(scenes, image_id=[0, 1, 2, 3])
    assert made.add(data, progress=False).added == 4
    assert {hit.id for hit in made.search("a star")} == {"0", "1", "2", "3"}
    assert made.add(data, progress=False).unchanged == 4
    nameless = rows_of(scenes, image_id=[None, "", None, ""], tag=["a", "b", "c", "d"])
    twice = Dataset.from_list([*nameless, *nameless], features=nameless.features)
    report = made.add(twice, progress=False)
    assert (report.added, report.unchanged, len(made)) == (4, 4, 8)
    report = made.add(twice.remove_columns("image_id"), progress=False)
    assert (report.added, report.unchanged, report.changed) == (0, 8, 0)


def test_metadata_of_rows_are_kept_up_to_date(made, scenes):
    data = rows_of(scenes, label=[1, 2, 3, 4], captions=[["a"], ["b"], [], ["c", "d"]])
    made.add(data, progress=False)
    before = {hit.id: hit.score for hit in made.search("a red star")}
    changed = rows_of(scenes, label=[1, 20, None, 4], captions=[["a"], ["b"], ["new"], ["c", "d"]], extra=[1, 2, 3, 4])
    report = made.add(changed.select([0, 1, 2]), progress=False)
    assert (report.added, report.replaced, report.changed, report.unchanged) == (0, 0, 3, 0)
    rows = {row["id"]: (row["label"], row["captions"], row["extra"]) for row in made.store.metadata()}
    wanted = {"p0": (1, ["a"], 1), "p1": (20, ["b"], 2), "p2": (None, ["new"], 3), "p3": (4, ["c", "d"], None)}
    assert rows == wanted
    assert {hit.id: hit.score for hit in made.search("a red star")} == before
    assert made.add(changed.select([0, 1, 2]), progress=False).unchanged == 3


def test_rows_without_pictures(made, scenes):
    empty = Dataset.from_dict({"image": [], "image_id": []}, features=Features(image=Image(), image_id=Value("string")))
    assert made.add(empty, progress=False).added == 0
    with pytest.raises(ValueError, match="takes pictures, and the source has text; expected image"):
        made.add(Dataset.from_dict({"text": ["a"]}), progress=False)
    with pytest.raises(ValueError, match="takes pictures, and the source has region_features"):
        made.add(Dataset.from_dict({"region_features": [[[1.0]]]}), progress=False)
    stored = [{"bytes": b"text", "path": None}, {"bytes": None, "path": "/no/x.png"}]
    data = Dataset.from_dict({"image": [None, *stored]}, features=Features(image=Image()))
    report = made.add(data, progress=False)
    assert list(report.unreadable) == ["row 0", "row 1", "row 2"]
    assert report.unreadable["row 0"] == "it has no picture"
    assert len(made) == 0
    assert made.unreadable == {}
    made.add(rows_of(scenes).with_format("torch"), progress=False)
    assert len(made) == 4


def test_regions_of_any_number(regions_library, scenes, pictures):
    boxes = [[[0, 0, 8 + x, 9] for x in range(count)] for count in (3, 1, 5)]
    regions_library.add(regions((3, 1, 5), boxes=boxes), progress=False)
    regions_library.add(regions((4, 3, 1, 5)).select([0]).map(lambda row: {"image_id": "plain"}), progress=False)
    hits = {hit.id: hit for hit in regions_library.search("a red star")}
    assert len(hits) == 4
    for number, count in enumerate((3, 1, 5)):
        hit = hits[f"r{number}"]
        assert hit.features.embeds.shape == (1, count, 16)
        assert all(word.box in {tuple(map(float, box)) for box in boxes[number]} for word in hit.words)
        with pytest.raises(ValueError, match="was a row of a data set"):
            hit.draw()
    assert hits["plain"].features.embeds.shape == (1, 4, 16)
    assert {word.box for word in hits["plain"].words} == {None}
    query = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    assert regions_library.search_image(query, k=1)[0].id == "r0"
    for bad in (query[None], query[:, :4], query * np.nan, np.zeros((0, 10), np.float32), "text"):
        with pytest.raises((ValueError, TypeError)):
            regions_library.search_image(bad)
    with pytest.raises(ValueError, match="takes precomputed regions, and the source has image"):
        regions_library.add(pictures, progress=False)


def test_regions_that_do_not_fit(regions_library):
    data = regions((2, 2, 2, 2, 2)).to_list()
    data[0]["region_features"][1][3] = float("nan")
    data[1]["region_features"] = [row[:4] for row in data[1]["region_features"]]
    data[2]["region_features"] = []
    data[3]["region_features"] = None
    features = Features(region_features=List(List(Value("float32"))), image_id=Value("string"))
    report = regions_library.add(Dataset.from_list(data, features=features), progress=False)
    assert report.added == 1
    assert set(report.unreadable) == {"r0", "r1", "r2", "r3"} == set(regions_library.unreadable)
    assert "NaN" in report.unreadable["r0"]
    assert "expected [B, K, 10]" in report.unreadable["r1"]
    report = regions_library.add(regions((2, 3), boxes=[[[0, 0, 1, 1]], [[0, 0, 1, 1]] * 3]), progress=False)
    assert "expected 2 x 4 numbers" in report.unreadable["r0"]
    assert regions_library.add(regions((2,)), progress=False).added == 1
    assert "r0" not in regions_library.unreadable


def test_a_model_that_gives_nan(scenes_model, processor, pictures, tmp_path):
    torch.nn.init.constant_(scenes_model.vision_encoder.projection.weight, float("nan"))
    library = PictureLibrary(tmp_path / "x", scenes_model, processor)
    report = library.add(pictures, progress=False)
    assert report.added == 0
    assert set(report.unreadable.values()) == {"the model gives NaN or infinity for it"}


def test_captions_that_are_none(scenes_model, processor, tmp_path, scenes):
    library = PictureLibrary(tmp_path / "captions.lance", scenes_model, processor, of="captions")
    for source in ("a red star", [], ["a", ""], ["a", None], [3], ["\ud83d"], None, Dataset.from_dict({"text": ["a"]})):
        with pytest.raises(ValueError, match="expected"):
            library.add(source, progress=False)
    assert not (tmp_path / "captions.lance").exists()
    report = library.add(["a red star", "a ring", "a red star", "🐈"], progress=False)
    assert (report.added, len(library)) == (3, 3)
    assert library.add(("a ring", "a blue ring"), progress=False).added == 1
    with pytest.raises(ValueError, match="use search_image"):
        library.search("a red star")
    with pytest.raises(ValueError, match="sync compares folders"):
        library.sync(tmp_path)
    assert len(library.search_image(scenes["train"][0]["image"], k=10)) == 4
