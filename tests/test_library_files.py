"""Picture files of every kind in a library: odd names, links, what cannot be read, what moves and vanishes."""

import os
import shutil

import pytest

from omit_hf.library import PictureLibrary
from omit_hf.library.files import find_pictures

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
