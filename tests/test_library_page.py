"""The page of `omit-hf browse`: what it draws, and its command."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from browser import HOSTILE, Elements
from commands import run
from datasets import Dataset
from pages import copied, save_library
from PIL import Image

from omit_hf.demo import library_page
from omit_hf.library import PictureLibrary


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scenes, processor):
    return save_library(tmp_path_factory.mktemp("library"), scenes, processor)


@pytest.fixture(scope="module")
def demo(folder):
    return library_page.Demo(str(folder / "photos.lance"))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_the_wall_is_what_the_library_finds(demo):
    hits = demo.library.search("a red star", library_page.WALL)
    html = Elements(library_page.wall(demo.search("a red star", ""), len(demo.library)))
    tiles = html.all("button")
    assert [tile["data-key"] for tile in tiles] == [hit.metadata["key"] for hit in hits]
    assert [tile["aria-label"] for tile in tiles] == [
        f"{rank}: {Path(hit.path).name}, score {hit.score:.3f}" for rank, hit in enumerate(hits, start=1)
    ]
    assert [image["src"] for image in html.all("img")] == [f"thumbnails/{hit.metadata['digest']}" for hit in hits]
    assert [tile["tabindex"] for tile in tiles] == ["0", *["-1"] * (library_page.WALL - 1)]


def test_nothing_of_a_name_or_a_sentence_becomes_html(demo):
    for hit in demo.library.search(HOSTILE, 99):
        drawn = library_page.tile(hit, 1), library_page.picture_of(hit), library_page.words_of(hit, HOSTILE)
        for html in map(Elements, drawn):
            assert not {tag for tag, _ in html.found} & {"script", "a", "x"}
            assert not any(name.startswith("on") for _, attributes in html.found for name in attributes)
            assert all(image["src"].startswith("thumbnails/") for image in html.all("img"))


def test_a_picture_that_is_pointed_at_has_the_words_of_its_hit(demo):
    hits = demo.library.search("two blue circles", 99)
    hit = demo.explain(hits[7].metadata["key"], "two blue circles")
    assert (hit.path, hit.score) == (hits[7].path, pytest.approx(hits[7].score, abs=1e-6))
    assert [(word.text, word.box) for word in hit.words] == [(word.text, word.box) for word in hits[7].words]
    assert demo.explain("0" * 32, "two blue circles") is None
    with pytest.raises(ValueError, match=r"There is no such picture\."):
        demo.explain("' OR true OR key = '", "two blue circles")


def test_thumbnails_are_small_and_upright(folder, tmp_path):
    """Of a photo that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 8, 3), dtype=np.uint8))
    photo.resize((800, 500)).save(tmp_path / "photo.jpg", exif=exif)
    PictureLibrary(tmp_path / "photos.lance", folder / "omit").add(tmp_path / "photo.jpg", progress=False)
    demo = library_page.Demo(str(tmp_path / "photos.lance"))
    [hit] = demo.library.search("a star")
    digest = hit.metadata["digest"]
    assert demo.thumbnail(digest) is None  # no search has found it yet
    demo.search("a star", "")
    content = demo.thumbnail(digest)
    assert Image.open(io.BytesIO(content)).size == (160, 256)
    assert len(content) < 20_000
    assert library_page.scaled(hit.path, digest, 768).size == (480, 768)


def test_what_is_gone_is_said(folder, tmp_path):
    target = copied(folder, tmp_path)
    demo = library_page.Demo(str(target / "photos.lance"))
    hits = demo.search("a red star", "")
    Path(hits[0].path).unlink()
    Image.new("RGB", (9, 9)).save(hits[1].path)
    html = library_page.wall(hits, 31)
    assert html.count("no longer there") == 3  # two tiles, and what the page says where a thumbnail fails
    for hit in hits[:2]:
        assert demo.thumbnail(hit.metadata["digest"]) is None
        assert "no longer there" in library_page.picture_of(hit)
        assert len(Elements(library_page.picture_of(hit)).all("rect")) == hit.features.embeds.shape[1]
    assert demo.thumbnail(hits[2].metadata["digest"])


def test_no_more_pictures_are_known_than_were_found_last(folder, monkeypatch):
    monkeypatch.setattr(library_page, "MOST_KNOWN", 3)
    demo = library_page.Demo(str(folder / "photos.lance"))
    hits = demo.search("a red star", "")
    assert list(demo.paths) == [hit.metadata["digest"] for hit in hits[-3:]]


def test_sentences_and_filters_have_limits(demo):
    with pytest.raises(ValueError, match="The sentence has 201 characters; expected at most 200"):
        demo.search("a" * 201, "")
    with pytest.raises(ValueError, match="The filter has 501 characters; expected at most 500"):
        demo.search("a", "a" * 501)


def test_the_command_line(folder, monkeypatch, tmp_path, capsys):
    def browse(*arguments):
        return run(capsys, "browse", *arguments)[0]

    launched = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: launched.update(options))
    monkeypatch.delenv("LIBRARY", raising=False)
    assert browse() == 2
    assert browse(folder / "photos.lance", "--port", "8123") == 0
    assert (launched["server_name"], launched["server_port"], launched["share"]) == (None, 8123, False)
    assert not launched.get("allowed_paths")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("LIBRARY", "~/photos.lance")
    assert browse("--model", folder / "omit") == 0
    assert re.match("error: The library .* was made with", browse("--model", folder / "ot"))
    PictureLibrary(tmp_path / "captions.lance", folder / "omit", of="captions").add(["a star"], progress=False)
    assert re.match("error: .* is a library of captions", browse(tmp_path / "captions.lance"))
    regions = Dataset.from_dict({"region_features": np.ones((2, 3, 10), np.float32).tolist(), "image_id": ["a", "b"]})
    PictureLibrary(tmp_path / "regions.lance", folder / "regions").add(regions, progress=False)
    assert re.match("error: The model of .* takes precomputed regions", browse(tmp_path / "regions.lance"))
    assert browse(tmp_path / "none").startswith("error: There is no library at")
