import copy
import json

import pytest
from PIL import Image

from omit_hf.data import load_image_text, load_karpathy


@pytest.fixture
def coco(tmp_path):
    """Annotations and images in the layout of dataset_coco.json."""
    entries = []
    for number, split in enumerate(["train", "restval", "val", "test", "train"]):
        folder = "train2014" if split == "train" else "val2014"
        sentences = [{"raw": f" caption {place}\nof image {number} ", "tokens": []} for place in range(5)]
        entries.append(
            {
                "filepath": folder,
                "filename": f"COCO_{number}.png",
                "split": split,
                "sentences": sentences,
                "imgid": number,
            }
        )
        (tmp_path / "images" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "images" / folder / f"COCO_{number}.png")
    return tmp_path, {"images": entries, "dataset": "coco"}


def load(coco, change=lambda content: None):
    folder, content = coco
    content = copy.deepcopy(content)
    change(content["images"])
    (folder / "dataset_coco.json").write_text(json.dumps(content))
    return load_image_text(folder / "dataset_coco.json", image_folder=folder / "images")


def test_coco(coco):
    data = load(coco)
    assert {split: rows["image_id"] for split, rows in data.items()} == {
        "train": ["train2014/COCO_0.png", "val2014/COCO_1.png", "train2014/COCO_4.png"],
        "validation": ["val2014/COCO_2.png"],
        "test": ["val2014/COCO_3.png"],
    }
    assert data["test"][0]["captions"] == [f"caption {place} of image 3" for place in range(5)]
    assert data["test"][0]["image"].getpixel((0, 0)) == (3, 0, 0)


def test_flickr_has_no_filepath(coco):
    folder, content = coco
    for entry in content["images"]:
        (folder / "images" / entry.pop("filepath") / entry["filename"]).rename(folder / "images" / entry["filename"])
    assert load(coco)["train"]["image_id"] == ["COCO_0.png", "COCO_1.png", "COCO_4.png"]


def test_every_problem_is_listed(coco):
    def change(entries):
        entries[0]["filename"] = "gone.png"
        entries[1]["split"] = "training"
        entries[2]["sentences"][3]["raw"] = "  "
        entries[3]["sentences"] = []
        del entries[4]["filename"]

    with pytest.raises(ValueError, match="has 5 problems") as caught:
        load(coco, change)
    for problem in (
        "images[0]: train2014/gone.png is missing",
        "split 'training', expected one of train, restval, val, test",
        "images[2] (val2014/COCO_2.png): no caption, or an empty one",
        "images[3] (val2014/COCO_3.png): no caption, or an empty one",
        "images[4]: not the expected fields (KeyError('filename'))",
    ):
        assert problem in str(caught.value)


def test_a_long_list_of_problems_is_cut(coco):
    with pytest.raises(ValueError, match=r"has 30 problems(.|\n)*… and 10 more"):
        load(coco, lambda entries: entries.extend([{}] * 30))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "deep/../../secret.png", "linked/../../secret.png"])
def test_a_path_cannot_leave_the_image_folder(coco, name):
    folder, _ = coco
    Image.new("RGB", (8, 8)).save(folder / "secret.png")
    (folder / "images" / "linked").symlink_to(folder / "images" / "train2014")

    def change(entries):
        del entries[0]["filepath"]
        entries[0]["filename"] = name

    with pytest.raises(ValueError, match="lies outside the image folder"):
        load(coco, change)


def test_a_split_that_is_not_there_is_not_asked_for(coco):
    assert list(load(coco, lambda entries: entries.pop(2))) == ["train", "test"]
    options = {"image_folder": coco[0] / "images", "only": ["validation", "test"]}
    with pytest.raises(ValueError, match=r"has no split 'validation'; it has train, test\."):
        load_image_text(coco[0] / "dataset_coco.json", **options)
    with pytest.raises(ValueError, match="has no image; expected some in train, validation, test"):
        load(coco, lambda entries: entries.clear())


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[1]", '{"annotations": []}', '{"images": 3}', "[" * 10_000],
    ids=lambda content: content[:20],
)
def test_other_json(tmp_path, content):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match="is no Karpathy JSON"):
        load_karpathy(tmp_path / "captions.json", tmp_path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No annotations at .*expected a Karpathy JSON"):
        load_karpathy(tmp_path / "dataset.json", tmp_path)
    (tmp_path / "dataset.json").write_text('{"images": []}')
    with pytest.raises(FileNotFoundError, match="No image folder at .*nowhere"):
        load_karpathy(tmp_path / "dataset.json", tmp_path / "nowhere")


def test_an_image_that_is_named_twice(coco):
    with pytest.raises(ValueError, match=r"images\[5\]: train2014/COCO_0.png is there already, as images\[0\]"):
        load(coco, lambda entries: entries.append(entries[0]))


def test_options_that_the_loader_does_not_have(tmp_path):
    with pytest.raises(
        ValueError, match="load_karpathy, which reads .*, has no option 'image_foldr'; did you mean 'image_f"
    ):
        load_image_text("dataset.json", image_foldr=tmp_path)
    with pytest.raises(ValueError, match="load_karpathy, which reads 'dataset.json', needs the option image_folder"):
        load_image_text("dataset.json")
