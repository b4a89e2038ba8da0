import numpy as np
import pytest
import sources
from datasets import Dataset, DatasetDict

from omit_hf.data import DataError, check_data, describe_split, find_problems, load_image_text, unreadable_images


@pytest.fixture
def data(tmp_path):
    folder, options = sources.karpathy(tmp_path)
    return load_image_text(folder, **options)


def changed(split: Dataset, change) -> Dataset:
    rows = split.to_list()
    change(rows)
    return Dataset.from_list(rows, features=split.features)


def test_good_data(data, scenes):
    check_data(data, read_images=True)
    check_data(scenes)


def test_description(data):
    def change(rows):
        rows[1]["captions"] = ["One red, RED dot"]

    found = describe_split(changed(data["test"], change))
    assert (found.images, found.captions) == (3, 11)
    assert str(found.captions_per_image) == "1 / 3.7 / 5"
    assert str(found.words) == "4 / 4.9 / 5"
    assert found.vocabulary == 13  # a lime wine picture number 0 1 2 3 4 one red dot


def test_every_problem_is_listed(data):
    def change_train(rows):
        rows[0]["image_id"] = ""
        rows[1]["captions"] = []
        rows[2]["captions"][3] = " "
        rows[3]["captions"][1] = "word " * 10_000
        rows[4]["image_id"] = rows[5]["image_id"]

    def change_test(rows):
        rows[0]["image_id"] = "train2014/COCO_train2014_000000000002.jpg"

    broken = {"train": changed(data["train"], change_train), "test": changed(data["test"], change_test)}
    with pytest.raises(DataError, match="The data has 7 problems") as caught:
        check_data(DatasetDict(broken))
    place = "train2014/COCO_train2014_0000000000"
    assert caught.value.problems == [
        "no split 'validation'",
        "train image 0 (): no image_id",
        f"train image 1 ({place}01.jpg): no caption",
        f"train image 2 ({place}02.jpg): caption 3 is empty",
        f"train image 3 ({place}03.jpg): caption 1 has 10000 words; expected at most 1000",
        "train image 5 (val2014/COCO_val2014_000000000005.jpg): the image_id is that of train image 4 too",
        f"test image 0 ({place}02.jpg): the image_id is that of train image 2 too",
    ]


def test_splits_and_columns(data):
    assert find_problems(DatasetDict({"test": data["test"]}), ["test"]) == []
    assert find_problems(DatasetDict({"test": data["test"].select([])}), ["test"]) == ["test: no image"]
    assert find_problems(DatasetDict({"test": data["test"].remove_columns(["image", "image_id"])}), ["test"]) == [
        "test: no column image or region_features",
        "test: no column image_id",
    ]


def test_images_are_opened_when_asked(data, tmp_path):
    (tmp_path / "images" / "val2014" / "COCO_val2014_000000000010.jpg").write_bytes(b"broken")
    assert find_problems(data) == []
    [problem] = find_problems(data, read_images=True)
    assert problem.startswith("test image 1 (val2014/COCO_val2014_000000000010.jpg): cannot be read: cannot identify")


def test_regions_that_are_not_finite(tmp_path):
    sources.regions(tmp_path)
    array = np.load(tmp_path / "test_ims.npy")
    array[2, 1, 3] = np.nan
    np.save(tmp_path / "test_ims.npy", array)
    data = load_image_text(tmp_path)
    assert find_problems(data) == []
    assert find_problems(data, read_images=True) == ["test image 2 (11): its regions have values that are not finite"]
    assert unreadable_images(data["train"]) == {}
