import logging
import pickle

import numpy as np
import pytest
import sources
from tiny import tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import DataError, ImageTextInputs, load_image_text
from omit_hf.evaluation import evaluate_split
from omit_hf.training import Recipe, train

pytestmark = pytest.mark.usefixtures("own_cache")


def recipe(folder, source, options, **fields) -> Recipe:
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    fields = {"image_processor": processor, "output_dir": str(folder), **fields}
    return Recipe(**tiny_recipe(data=str(source), data_options=options, **fields))


@pytest.mark.parametrize("kind", sources.WITH_PICTURES)
def test_every_source_trains(tmp_path, kind):
    source, options = sources.WITH_PICTURES[kind](tmp_path / "data")
    metrics = train(recipe(tmp_path / "run", source, options))
    assert metrics["splits"] == {
        "train": {"images": 6, "captions": 30},
        "validation": {"images": 3, "captions": 15},
        "test": {"images": 3, "captions": 15},
    }
    model, processor = (each.from_pretrained(tmp_path / "run") for each in (OmitModel, OmitProcessor))
    test = load_image_text(source, **options)["test"]
    assert evaluate_split(model, processor, test)[0] == pytest.approx(metrics["test"])


def test_cutouts_train(tmp_path):
    folder = sources.cutouts(tmp_path / "data")
    metrics = train(recipe(tmp_path / "run", folder, {"train_size": 6, "validation_size": 3, "test_size": 3}))
    assert metrics["splits"]["test"] == {"images": 3, "captions": 15}
    assert metrics["test"].keys() >= {"rsum", "i2t_map", "t2i_map"}


def test_training_does_not_begin_with_bad_data(tmp_path):
    folder, options = sources.image_folder(tmp_path / "data")
    lines = '{"file_name": "9.png", "text": "%s"}\n{"file_name": "10.png", "text": "a"}\n' % ("word " * 10_000)
    (folder / "test" / "metadata.jsonl").write_text(lines)
    (folder / "train" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"has 1 problem:\n  test image 0 \(test/9.png\): caption 0 has 10000 words"):
        train(recipe(tmp_path / "run", folder, options))
    with pytest.raises(DataError, match=r"has 2 problems:\n  train image 3 \(train/3.png\): cannot be read") as caught:
        train(recipe(tmp_path / "other", folder, options, check_images=True))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_unreadable_images_are_skipped_counted_and_named(tmp_path, processor, caplog):
    folder, options = sources.image_folder(tmp_path)
    (folder / "train" / "3.png").write_bytes(b"broken")
    (folder / "test" / "10.png").write_bytes(sources.png(10)[:50])
    with pytest.raises(ValueError, match=r"Image 'train/3.png' cannot be read: .* the data option skip_unreadable"):
        ImageTextInputs(load_image_text(folder)["train"], processor).images(np.arange(6))
    with caplog.at_level(logging.WARNING):
        data = load_image_text(folder, skip_unreadable=True)
    assert "Left out 2 of 12 images, which cannot be read:\n  train/3.png: cannot identify" in caplog.text
    assert "  test/10.png: " in caplog.text
    assert data["train"]["image_id"][:] == [f"train/{n}.png" for n in (0, 1, 2, 4, 5)]
    assert data["test"]["captions"][:] == [sources.captions(9), sources.captions(11)]
    assert ImageTextInputs(data["train"], processor).images(np.arange(5))["pixel_values"].shape[0] == 5


def test_images_that_are_excluded(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    (tmp_path / "bad.txt").write_text("train/0.png\n\ntest/11.png\n")
    for exclude in (str(tmp_path / "bad.txt"), ["train/0.png", "test/11.png"]):
        data = load_image_text(folder, exclude=exclude)
        assert data["train"]["image_id"][:] == [f"train/{n}.png" for n in range(1, 6)]
        assert {split: len(rows) for split, rows in data.items()} == {"train": 5, "validation": 3, "test": 2}
    with pytest.raises(ValueError, match="exclude names images that are not in the data: test/0.png"):
        load_image_text(folder, exclude=["test/0.png"])
    with pytest.raises(FileNotFoundError, match="exclude is 'nowhere.txt', which is not there"):
        load_image_text(folder, exclude="nowhere.txt")
    sizes = {"train_size": 1, "validation_size": 1, "test_size": 2}
    with pytest.raises(ValueError, match="Images of scenes cannot be left out"):
        load_image_text("scenes", exclude=["scenes-0-test-00000"], **sizes)
    regions, _ = sources.regions(tmp_path / "regions")
    assert len(load_image_text(regions, exclude=["3"])["train"]) == 5
    with pytest.raises(ValueError, match="skip_unreadable is on, and the data have no pictures"):
        load_image_text(regions, skip_unreadable=True)


def test_a_source_that_is_unknown(tmp_path):
    with pytest.raises(
        ValueError, match="data source 'flickr30k' is unknown; expected 'scenes'; the path of a Karpathy"
    ):
        load_image_text("flickr30k")
    with pytest.raises(ValueError, match="holds no data that is known; expected 'scenes'"):
        load_image_text(tmp_path)
    with pytest.raises(FileNotFoundError, match="No annotations at data/dataset.json"):
        load_image_text("data/dataset.json", image_folder=".")


def test_options_that_the_loader_does_not_have(tmp_path):
    with pytest.raises(
        ValueError, match="load_scenes, which reads 'scenes', has no option 'train'; did you mean 'train_size'"
    ):
        load_image_text("scenes", train=3)
    file, _ = sources.karpathy(tmp_path)
    with pytest.raises(
        ValueError, match="load_karpathy, which reads .*dataset_coco.json', needs the option image_folder"
    ):
        load_image_text(file)
