"""The page of `omit-hf app`: what it draws, and its command."""

import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_pictures import FILES
from broken_pictures import PICTURE as WHOLE
from browser import HOSTILE, Elements
from commands import run
from miniatures import save_clip, text_tokenizer
from pages import oracle, save_models
from PIL import Image
from tiny import lay_evenly
from transformers import CLIPImageProcessor

import omit_hf_command
from omit_hf import OmitModel, OmitProcessor
from omit_hf.demo import serving, word_page


@pytest.fixture(scope="module")
def models(tmp_path_factory, processor):
    return save_models(tmp_path_factory.mktemp("models"), processor)


@pytest.fixture(scope="module")
def demo(models):
    return word_page.Demo(str(models / "omit"))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def drawn(demo, picture, *sentences) -> Elements:
    shown = demo.show(picture)
    alignments = [demo.align(shown, each) for each in sentences]
    return Elements(word_page.results(alignments, sentences, [demo.mean_similarity(shown, each) for each in sentences]))


def test_shares_are_those_of_the_models_plan(demo):
    picture, sentence = demo.examples[1]
    html, expected = drawn(demo, picture, sentence), oracle(demo, picture, sentence)
    *words, dustbin = html.all("button")
    assert [float(word["data-matched"]) for word in words] == pytest.approx(expected["matched"], abs=1e-5)
    for word, shares in zip(words, expected["shares"], strict=True):
        assert [float(each) for each in word["data-shares"].split()] == pytest.approx(shares, abs=1e-4)
        assert float(word["data-highest"]) == pytest.approx(max(map(max, expected["shares"])), abs=1e-5)
    assert [float(each) for each in dustbin["data-shares"].split()] == pytest.approx(expected["cells"], abs=1e-4)
    shares = {each["data-of"]: float(each["data-share"]) for each in html.all("b")}
    assert shares == pytest.approx({each: expected[each] for each in ("words", "picture")}, abs=1e-5)
    assert float(html.all("output")[0]["data-similarity"]) == pytest.approx(expected["similarity"], abs=1e-5)


def test_mean_is_the_cosine_of_the_same_features(demo):
    picture, sentence = demo.examples[0]
    with torch.no_grad():
        image = demo.model.get_image_features(**demo.processor(images=picture))
        text = demo.model.get_text_features(**demo.processor(text=sentence))
    sides = [(side.embeds * side.norms[..., None])[0].double().sum(0).numpy() for side in (image, text)]
    cosine = float(sides[0] @ sides[1] / np.linalg.norm(sides[0]) / np.linalg.norm(sides[1]))
    assert demo.mean_similarity(demo.show(picture), sentence) == pytest.approx(cosine, abs=1e-5)


def test_better_of_two_sentences_is_marked_a_method(demo):
    shown = demo.show(demo.examples[0][0])
    one, other = (demo.align(shown, sentence) for sentence in ("a red star", "two blue circles"))
    one.similarity, other.similarity = 0.25, 0.5
    table = word_page.comparison([one, other], ["a red star", "two blue circles"], [0.75, 0.125])
    marked = re.findall(r'data-method="(\w+)" data-value="([\d.]+)"><span class="better">', table)
    assert marked == [("mean", "0.750000"), ("omit", "0.500000")]
    assert "better" not in word_page.comparison([one], ["a red star"], [0.75])


def test_a_picture_is_encoded_once(demo, monkeypatch):
    encoded = []
    original = demo.model.get_image_features
    monkeypatch.setattr(demo.model, "get_image_features", lambda *a, **k: encoded.append(1) or original(*a, **k))
    shown = demo.show(demo.examples[0][0])
    for sentence in ("a red star", "two blue circles"):
        demo.align(shown, sentence)
        demo.mean_similarity(shown, sentence)
    assert len(encoded) == 1


@pytest.mark.parametrize("name", ["ot", "maxsim"])
def test_a_head_without_dustbins_says_so(models, demo, name):
    other = word_page.Demo(str(models / name))
    assert other.examples == []  # no recipe beside it
    html = drawn(other, demo.examples[0][0], "a red star")
    assert len(html.all("button")) == 3
    assert not html.all("button", "data-matched")
    assert not html.all("b")
    alignment = other.align(other.show(demo.examples[0][0]), "a red star")
    assert "has no dustbins" in word_page.results([alignment], ["a red star"], [0.5])


def test_nothing_of_a_sentence_becomes_html(demo):
    shown = demo.show(demo.examples[0][0])
    alignment = demo.align(shown, HOSTILE)
    alignment.words[0] = HOSTILE  # of a tokenizer that splits otherwise
    html = Elements(word_page.results([alignment], [HOSTILE], [0.5]))
    assert not {tag for tag, _ in html.found} & {"img", "script", "a", "x"}
    assert not any(name.startswith("on") for _, attributes in html.found for name in attributes)
    assert html.all("section")[0]["aria-label"] == HOSTILE
    assert not Elements(word_page.message(HOSTILE)).all("img")


def test_cells_cover_what_the_model_sees(demo):
    lay_evenly(demo.model, 32, 64)
    shown = demo.show(Image.new("RGB", (64, 32), "teal"))
    html = Elements(word_page.stage(shown))
    cells = [[float(cell[side]) for side in ("x", "y", "width", "height")] for cell in html.all("rect")]
    assert len(cells) == shown.encoded.features.embeds.shape[1]
    assert sum(width * height for _, _, width, height in cells) == pytest.approx(64 * 32)
    assert html.all("svg")[0]["viewbox"] == "0 0 64 32"
    assert html.all("image")[0]["href"].startswith("data:image/png;base64,")


def test_a_processor_that_crops_sees_the_middle(tmp_path):
    OmitModel.from_clip(save_clip("clip", tmp_path / "clip")).save_pretrained(tmp_path / "omit")
    pictures = CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    OmitProcessor(pictures, text_tokenizer("clip_text_model")).save_pretrained(tmp_path / "omit")
    demo = word_page.Demo(str(tmp_path / "omit"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 900, 3), dtype=np.uint8))
    html = Elements(word_page.stage(demo.show(picture)))
    cells = np.array([[float(cell[side]) for side in ("x", "y", "width", "height")] for cell in html.all("rect")])
    np.testing.assert_allclose(cells[[0, -1], :2], [[150, 0], [600, 450]], atol=1)
    np.testing.assert_allclose(cells[:, 2:], 150, atol=1)
    numbers = [float(each) for each in re.findall(r"[\d.]+", html.all("path", "class")[0]["d"])]
    np.testing.assert_allclose(numbers, [0, 0, 900, 600, 0, 150, 0, 750, 600, 150], atol=1)
    words = drawn(demo, picture, "red a").all("button", "data-matched")
    assert [word["aria-label"].split(",")[0] for word in words] == ["red", "a"]


def test_large_pictures_have_no_more_cells_than_a_page_bears(demo):
    shown = demo.show(Image.new("RGB", (1500, 1000), "teal"))
    assert 0.8 * word_page.MOST_CELLS < shown.encoded.features.embeds.shape[1] <= word_page.MOST_CELLS
    assert shown.picture.width / shown.picture.height == pytest.approx(1.5, rel=0.05)
    assert (shown.encoded.frame["width"], shown.encoded.frame["height"]) == shown.picture.size


def test_uploads_and_sentences_have_limits(demo, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    Image.new("RGB", (40, 24), "teal").save(file)
    assert demo.open(file).picture.size == (40, 24)
    with pytest.raises(ValueError, match=r"201 characters; expected at most 200"):
        demo.align(demo.open(file), "a" * 201)
    (tmp_path / "page.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(ValueError, match=r"no picture that can be read; expected one of PNG"):
        demo.open(tmp_path / "page.png")
    Image.new("RGB", (400, 8)).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match=r"400 x 8 pixels; expected at most 20 times"):
        demo.open(tmp_path / "long.png")
    monkeypatch.setattr(word_page, "LIMITS", serving.Limits(image_bytes=file.stat().st_size - 1))
    with pytest.raises(ValueError, match=r"too large; expected at most \d+ bytes"):
        demo.open(file)


# --- the command line -------------------------------------------------------------------------------------------------


def test_as_a_space_the_file_needs_no_arguments(models, monkeypatch, tmp_path, capsys):
    """examples/app.py, and the same from the command."""
    launched = {}
    monkeypatch.setattr("gradio.Blocks.launch", lambda self, **options: launched.update(options))
    monkeypatch.setenv("MODEL", str(models / "omit"))
    shutil.copy(Path(__file__).parents[1] / "examples" / "app.py", tmp_path / "app.py")
    monkeypatch.setattr(sys, "argv", ["app.py"])
    runpy.run_path(str(tmp_path / "app.py"), run_name="__main__")
    assert launched["server_name"] is None  # Gradio's own default: 127.0.0.1, or what a Space sets
    assert launched["share"] is False
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not launched.get("allowed_paths")
    assert run(capsys, "app", models / "ot", "--host", "0.0.0.0", "--port", "8123") == (0, "")
    assert (launched["server_name"], launched["server_port"]) == ("0.0.0.0", 8123)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"^error: .*mean matches with 'mean', which does not align words.*'omit', 'ot'"),
        ("regions", r"^error: .*takes precomputed regions.*omit-hf explain"),
        ("missing", r"^error: .*missing"),
    ],
)
def test_models_that_cannot_be_shown(models, capsys, name, message):
    assert re.search(message, run(capsys, "app", models / name)[0], re.DOTALL)


def test_a_model_is_needed(monkeypatch, capsys):
    monkeypatch.delenv("MODEL", raising=False)
    with pytest.raises(SystemExit, match="2"):
        omit_hf_command.main(["app"])
    assert "no model is given; expected a folder or Hub id" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["png header", "webp noise", "tiff xmp of numbers", "jpeg header lossy"])
def test_a_picture_with_broken_metadata_is_shown(demo, tmp_path, name):
    (tmp_path / "picture").write_bytes(FILES[name])
    assert demo.open(tmp_path / "picture").picture.size == WHOLE.size


def test_a_picture_that_is_too_small_says_so(demo, tmp_path):
    Image.new("RGB", (7, 7)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="7 x 7 pixels; the vision backbone, 'convnext', takes at least 16 x 16"):
        demo.open(tmp_path / "small.png")
