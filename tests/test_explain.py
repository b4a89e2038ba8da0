"""examples/explain.py, run in this process, which spares importing everything for each test."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import sources
import torch
from PIL import Image
from tiny import REGIONS, TEXT, tiny_config

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import word_alignment
from omit_hf.data import build_word_tokenizer

SCRIPT = Path(__file__).parents[1] / "examples" / "explain.py"


@pytest.fixture(scope="module")
def models(tmp_path_factory, scenes, processor):
    """Folders of models: of scenes, the same by `ot`, by `mean`, and one of regions."""
    folder = tmp_path_factory.mktemp("models")
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    for name in ("omit", "ot", "mean"):
        torch.manual_seed(0)
        OmitModel(tiny_config(text_config=text, matching=name)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    captions = [caption for number in range(12) for caption in sources.captions(number)]
    tokenizer = build_word_tokenizer(captions)
    config = tiny_config(
        vision_config={**REGIONS, "feature_size": 8}, text_config={**TEXT, "vocab_size": len(tokenizer)}
    )
    OmitModel(config).save_pretrained(folder / "regions")
    OmitProcessor(None, tokenizer).save_pretrained(folder / "regions")
    return folder


@pytest.fixture
def run(models, monkeypatch, capsys, tmp_path):
    """Runs the script in an empty folder; gives what it printed and the figure that it drew."""
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr("omit_hf.visualization.save_figure", lambda figure, file: drawn.append(figure))

    def call(model, *arguments):
        drawn.clear()
        monkeypatch.setattr(sys, "argv", ["explain.py", str(models / model), *map(str, arguments)])
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
            error = ""
        except SystemExit as stop:
            error = str(stop.code)
        shown = capsys.readouterr()
        return shown.out + shown.err + error, drawn[0] if drawn else None

    return call


def titles(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_a_scene_with_its_own_caption(run, models, scenes, processor):
    row = scenes["test"][3]
    shown, figure = run("omit", "scenes:3")
    found = word_alignment(OmitModel.from_pretrained(models / "omit"), processor, row["image"], row["captions"][0])
    assert titles(figure)[0] == f"similarity {found.similarity:.2f}"
    assert [title.rsplit("  ", 1)[0] for title in titles(figure)[1:]] == found.words
    assert f"{row['captions'][0]!r} → plan.png" in shown


def test_a_picture_and_a_sentence_with_an_unknown_word(run):
    Image.new("L", (96, 64), 100).save("mine.png")
    shown, figure = run("omit", "mine.png", "a red zebra")
    assert titles(figure)[3].startswith("zebra (unknown)  ")
    assert "not in the model's vocabulary: zebra" in shown


def test_the_plan(run):
    _, figure = run("omit", "scenes:0", "a red star", "--draw", "plan", "--fragments", 4)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert {"image dustbin", "text dustbin", "a", "red", "star", "32 others"} <= set(texts)


def test_models_and_methods_side_by_side(run, models):
    _, figure = run("omit", "scenes:0", "a star", "--compare", models / "ot", "--compare_matching", "maxsim", "ot")
    assert [title.split("  ")[0] for title in titles(figure)] == [
        *("omit", "a", "star"),
        *("maxsim", "a", "star"),
        *("ot", "a", "star"),
        *("ot", "a", "star"),
    ]
    assert titles(figure)[7:9] == titles(figure)[10:] == ["a  100%", "star  100%"]


def test_regions_of_a_folder_on_their_photo(run, tmp_path):
    sources.regions(tmp_path / "data", boxes=True)
    _, figure = run("regions", f"{tmp_path / 'data'}:1")
    assert [title.rsplit("  ", 1)[0] for title in titles(figure)[1:]] == ["a", "navy", "picture", "number", "0"]
    panel = next(axis for axis in figure.axes if axis.get_title())
    assert (panel.get_xlim(), panel.get_ylim()) == ((0, 640), (480, 0))
    outlined = {(patch.get_x(), patch.get_y()) for patch in panel.patches}
    assert outlined == {(0, 0), (2, 3)}  # the frame, and the four equal boxes of image 1
    Image.new("RGB", (640, 480), (1, 2, 3)).save("photo.png")
    _, figure = run("regions", f"{tmp_path / 'data'}:1", "--photo", "photo.png", "--split", "train")
    assert figure.axes[0].get_images()[0].get_array()[0, 0].tolist() == [1, 2, 3]
    Image.new("RGB", (320, 240)).save("photo.png")
    shown, _ = run("regions", f"{tmp_path / 'data'}:1", "--photo", "photo.png")
    assert "error: The regions lie in a picture of 640 x 480 pixels, and the one given has 320 x 240" in shown


def test_regions_without_boxes(run, tmp_path):
    sources.regions(tmp_path / "data")
    shown, _ = run("regions", f"{tmp_path / 'data'}:0")
    assert "error: The boxes of the regions are not known" in shown
    _, figure = run("regions", f"{tmp_path / 'data'}:0", "--draw", "plan")
    assert "region 4" in [text.get_text() for axis in figure.axes for text in axis.texts]


def test_pictures_of_a_folder(run, tmp_path):
    sources.image_folder(tmp_path / "data")
    _, figure = run("omit", f"{tmp_path / 'data'}:2", "--split", "validation", "--data_options", "{}")
    picture = figure.axes[0].get_images()[0].get_array()
    np.testing.assert_array_equal(picture[3, 3], sources.picture(8).getpixel((3, 3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes:1", "--output", "plan.gif"], "error: The output is 'plan.gif'; expected a name that ends in one of"),
        (["scenes:1", "--output", "no/plan.png"], "error: There is no folder no for plan.png"),
        (["scenes:1000"], "error: scenes:1000 is not there: test has 1000 images; expected a number from 0 to 999"),
        (["scenes:5", "--data_options", '{"test_size": 5}'], "scenes:5 is not there: test has 5 images"),
        (["scenes:1", "--split", "exam"], "error: split is 'exam'; expected one of train, validation, test"),
        (["scenes:-1"], "error: The picture is 'scenes:-1'; expected scenes:N with a number N from 0"),
        (["nowhere:1"], "error: data source 'nowhere' is unknown"),
        (["DATA:3"], "error: .*:3 is not there: test has 3 images; expected a number from 0 to 2"),
        (["picture.png"], "error: picture.png is a picture of your own, which needs a sentence"),
        (["scenes:one"], "error: The picture is 'scenes:one'; expected scenes:N with a number N from 0"),
        (["scenes:1", ""], "error: The sentence '' has no word that the model matches"),
        (["none.png", "a star"], "error: .*No such file.*none.png"),
        (["broken.png", "a star"], "error: The picture broken.png cannot be read: cannot identify image file"),
        (["picture.png", "..."], "error: The sentence '...' has no word that the model matches"),
        (["picture.png", "a star", "--photo", "picture.png"], "error: --photo goes with the regions of SOURCE:N"),
        (["scenes:1", "--photo", "picture.png"], "error: --photo goes with regions, and scenes:1 has a picture"),
        (["scenes:1", "--draw", "plan", "--compare", "m"], "--draw plan draws one plan; leave out --compare"),
        (["scenes:1", "--compare_matching", "mean"], "error: matching is 'mean', which does not align words"),
        (["scenes:1", "--compare", "MEAN"], "error: matching is 'mean', which does not align words"),
        (["DATA:1"], "error: The image encoder is 'convnext', which takes a picture and no regions; got no picture"),
    ],
)
def test_bad_input(run, models, tmp_path, arguments, message):
    Image.new("RGB", (96, 64)).save("picture.png")
    (tmp_path / "broken.png").write_text("no picture")
    sources.regions(tmp_path / "data")
    places = {"DATA": str(tmp_path / "data"), "MEAN": str(models / "mean")}
    arguments = [arguments[0].replace("DATA", places["DATA"]), *(places.get(each, each) for each in arguments[1:])]
    before = {file.name for file in tmp_path.iterdir()}
    shown, figure = run("omit", *arguments)
    assert figure is None
    assert re.search(message, shown), shown
    assert {file.name for file in tmp_path.iterdir()} == before


def test_a_model_that_is_not_there(run):
    shown, figure = run("nowhere", "scenes:1")
    assert "error: " in shown
    assert figure is None


def test_a_picture_for_a_model_of_regions(run):
    Image.new("RGB", (96, 64)).save("picture.png")
    shown, _ = run("regions", "picture.png", "a star")
    assert "error: The image encoder is 'omit_region', which takes regions=…" in shown
