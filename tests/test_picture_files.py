"""Names of files in data: where they may lead, and that a picture has one name."""

import json
import os

import pytest
import sources
from datasets import Dataset, DatasetDict, Image

from omit_hf.data import DataError, check_data, find_problems, load_image_text
from omit_hf.data.sources.picture_files import file_within


def karpathy(tmp_path, *names, splits=("train", "test")):
    """A Karpathy JSON, an entry a name, and the folder `images` with 0.png, 1.png and a/2.png."""
    (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("0.png", "1.png", "a/2.png")):
        (tmp_path / "images" / name).write_bytes(sources.png(number))
    entries = [
        {"filename": name, "split": split, "sentences": [{"raw": "a"}]}
        for name, split in zip(names, splits, strict=True)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    return tmp_path / "dataset.json"


def load(file):
    return load_image_text(file, image_folder=file.parent / "images")


@pytest.mark.parametrize(
    "other", ["./0.png", "a/../0.png", "a//../0.png", "link.png", "hard.png", "linked/0.png", "{folder}/images/0.png"]
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_another_name_of_the_same_picture(tmp_path, other, split):
    file = karpathy(tmp_path, "0.png", other.format(folder=tmp_path), splits=("train", split))
    (tmp_path / "images" / "link.png").symlink_to("0.png")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "images")
    os.link(tmp_path / "images" / "0.png", tmp_path / "images" / "hard.png")
    with pytest.raises(DataError, match=r"images\[1\]: .*0?.png is there already, .*as images\[0\]"):
        load(file)


@pytest.mark.parametrize("name", ["./0.png", "../train/0.png", "link.png"])
def test_another_name_in_metadata(tmp_path, name):
    folder, _ = sources.image_folder(tmp_path)
    (folder / "test" / "link.png").symlink_to("../train/0.png")
    (folder / "test" / "0.png").symlink_to("../train/0.png")
    with (folder / "test" / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": name, "text": "a"}))
    with pytest.raises(
        DataError, match="test/metadata.jsonl line 4: .*there already.*, as train/metadata.jsonl line 1"
    ):
        load_image_text(folder)
    assert list(load_image_text(folder, only=["test"])["test"]["image_id"])[-1] == f"test/{name}"


def test_data_of_another_loader_are_checked_by_the_file(tmp_path):
    """As where somebody makes the splits on their own."""
    (tmp_path / "0.png").write_bytes(sources.png(0))
    (tmp_path / "1.png").symlink_to("0.png")
    features = {"image": Image()}
    rows = [
        Dataset.from_dict(
            {"image": [str(tmp_path / f"{n}.png")], "captions": [["a"]], "image_id": [f"{n}"]}
        ).cast_column("image", features["image"])
        for n in range(2)
    ]
    data = DatasetDict(train=rows[0], test=rows[1])
    assert find_problems(data, ["train", "test"]) == [
        "test image 0 (1): its file is that of train image 0 too, under another name"
    ]
    check_data(data, ["test"])  # the other split is not looked at
    renamed = rows[1].remove_columns(["image", "image_id"]).add_column("image_id", ["./0"])
    renamed = renamed.add_column("image", [{"bytes": sources.png(1), "path": None}]).cast_column("image", Image())
    assert find_problems(DatasetDict(train=rows[0], test=renamed), ["train", "test"]) == [
        "test image 0 (./0): the image_id is that of train image 0 too"
    ]


def test_pictures_in_a_table_have_no_file(tmp_path, monkeypatch):
    """Their path is a name, which may be that of some file here."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "0.jpg").write_bytes(sources.png(0))
    rows = [
        {"image": {"bytes": sources.png(n), "path": "0.jpg"}, "captions": ["a"], "image_id": str(n)} for n in (1, 2)
    ]
    rows.append({"image": {"bytes": None, "path": "0.jpg"}, "captions": ["a"], "image_id": "3"})
    split = Dataset.from_list(rows).cast_column("image", Image())
    assert find_problems(DatasetDict(test=split), ["test"]) == []
    assert find_problems(DatasetDict(test=split.select([0, 1])), ["test"]) == []


def test_regions_of_one_file_under_two_names(tmp_path):
    folder, _ = sources.regions(tmp_path)
    (folder / "test_ims.npy").unlink()
    (folder / "test_ims.npy").symlink_to("dev_ims.npy")
    problems = find_problems(load_image_text(folder))
    assert problems == [
        f"test image {n} ({n + 9}): its file is that of validation image {n} too, under another name" for n in range(3)
    ]


def test_links_of_the_folder_are_followed(tmp_path):
    """A cache of the Hub has its pictures elsewhere; so has a folder on a larger disk."""
    folder, _ = sources.image_folder(tmp_path / "disk")
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "test").symlink_to(folder / "test")
    for split in ("train", "validation"):
        (snapshot / split).mkdir()
        for number, file in enumerate(sorted((folder / split).iterdir())):
            file.rename(tmp_path / "blobs" / f"{split}{number}")
            (snapshot / split / file.name).symlink_to(f"../../../blobs/{split}{number}")
    data = load_image_text(snapshot)
    sources.expect(data, lambda split, number: f"{split}/{number}.png")
    check_data(data, read_images=True)
    linked = tmp_path / "here"
    linked.symlink_to(snapshot)
    sources.expect(load_image_text(linked), lambda split, number: f"{split}/{number}.png")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../0.png", "lies outside the image folder"),
        ("a/../../images2/0.png", "lies outside the image folder"),
        ("/etc/passwd", "/etc/passwd lies outside the image folder"),
        ("linked/../secret.png", "linked/../secret.png is missing"),  # of images, not of what the link leads to
        ("gone.png", "gone.png is missing"),
        ("a", "a is missing: there is a folder"),
        (".", "is missing: there is a folder"),
        ("0.png/1.png", "0.png/1.png cannot be read: Not a directory"),
        ("loop.png", "loop.png cannot be read: Too many levels of symbolic links"),
        ("dangling.png", "dangling.png is missing"),
        ("0\0.png", r"the file is '0\\x00.png'; expected a path"),
        ("\ud800.png", r"the file is '\\ud800.png'; expected a path"),
        ("a" * 300, "aaa.*… cannot be read: File name too long"),
        ("a\n/b.png", r"'a\\n/b.png' is missing"),
        ("", "the file is ''; expected a path"),
        (3, "the file is 3; expected a path"),
        (None, "the file is None; expected a path"),
    ],
)
def test_names_that_lead_to_no_picture(tmp_path, name, message):
    karpathy(tmp_path, splits=())
    folder = tmp_path / "images"
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "secret.png").write_bytes(sources.png(0))
    (folder / "linked").symlink_to(tmp_path / "disk" / "deep")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    with pytest.raises(ValueError, match=message) as caught:
        file_within(folder, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["0\0.png", "loop.png", "\ud800.png", 3, None, [["0.png"]], {"a": 1}, "x" * 300])
def test_each_loader_lists_such_names(tmp_path, name):
    """None of them ends in a traceback."""
    file = karpathy(tmp_path, name, splits=("test",))
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"has 1 problem:\n  images\[0\]: "):
        load(file)
    folder, _ = sources.image_folder(tmp_path / "folder")
    (folder / "train" / "loop.png").symlink_to("loop.png")
    with (folder / "train" / "metadata.jsonl").open("a") as lines:
        lines.write(json.dumps({"file_name": name, "text": "a"}))
    with pytest.raises(DataError, match=r"has 1 problem:\n  train/metadata.jsonl line 7: "):
        load_image_text(folder)
