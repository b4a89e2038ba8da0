import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sources
from datasets import Dataset, IterableDatasetDict, load_dataset
from sources import FLICKR

from omit_hf.data import ImageTextInputs, load_hub, load_image_text


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def by_file(split, number):
    return f"{number}.jpg"


def write(tmp_path, table, name="test-00000-of-00001.parquet"):
    (tmp_path / "table").mkdir(exist_ok=True)
    table.to_parquet(tmp_path / "table" / name)
    return tmp_path / "table"


def test_a_file_a_split(tmp_path):
    folder, options = sources.parquet(tmp_path / "flickr")
    data = load_image_text(folder, **options)
    sources.expect(data, by_file)
    assert data["train"].column_names == ["image", "captions", "image_id"]


def test_a_column_of_splits(tmp_path):
    """As `nlphuji/flickr30k`, where all is in the test split."""

    def split(number):
        return "restval" if number == 5 else sources.split_of(number)

    folder = write(tmp_path, sources.table(range(12), split))
    sources.expect(load_image_text(folder, split_column="split", columns=FLICKR), by_file)
    with pytest.raises(ValueError, match="split_column is 'splits'; expected one of image, caption, .*split"):
        load_image_text(folder, split_column="splits", columns=FLICKR)


def test_splits_of_karpathy(tmp_path):
    """As `lmms-lab/flickr30k`, where 31 783 images are in one split and Karpathy's JSON names 31 014 of them."""
    folder = write(tmp_path, sources.table(range(14)))
    entries = [{"filename": f"{number}.jpg", "split": sources.split_of(number)} for number in range(12)]
    file = tmp_path / "dataset_flickr30k.json"
    file.write_text(json.dumps({"images": entries}))
    sources.expect(load_image_text(folder, split_file=file, columns=FLICKR), by_file)
    file.write_text(json.dumps({"images": [*entries, {"filename": "99.jpg", "split": "test"}]}))
    with pytest.raises(ValueError, match="names 1 images that are not in column 'filename': 99.jpg"):
        load_image_text(folder, split_file=file, columns=FLICKR)
    with pytest.raises(ValueError, match="split_file is given without a column of file names"):
        load_image_text(folder, split_file=file, columns={"captions": "caption", "image_id": None})


def test_pictures_beside_the_table(tmp_path):
    """As `yerevann/coco-karpathy`."""
    _, options = sources.karpathy(tmp_path)
    entries = json.loads((tmp_path / "dataset_coco.json").read_text())["images"]
    for entry in entries:
        entry["sentences"] = [sentence["raw"] for sentence in entry["sentences"]]
    for split in ("train", "restval", "val", "test"):
        rows = [entry for entry in entries if entry["split"] == split]
        folder = write(tmp_path, Dataset.from_list(rows), f"{split}-00000-of-00001.parquet")
    columns = {"image": ["filepath", "filename"], "captions": "sentences", "image_id": "cocoid"}
    sources.expect(load_image_text(folder, columns=columns, **options), lambda split, number: str(number))
    (tmp_path / "images" / "train2014" / entries[1]["filename"]).unlink()
    with pytest.raises(ValueError, match=r"split 'train' row 1: train2014/COCO_.*jpg is missing"):
        load_image_text(folder, columns=columns, **options)
    with pytest.raises(ValueError, match="which name files; image_folder says where these are"):
        load_image_text(folder, columns=columns)


def one_a_row(numbers) -> Dataset:
    rows = [(number, caption) for caption in range(5) for number in numbers]  # those of an image lie apart
    return sources.table(
        [number for number, _ in rows], caption=[sources.captions(number)[caption] for number, caption in rows]
    )


def test_one_caption_a_row(tmp_path):
    for split, numbers in sources.NUMBERS.items():
        folder = write(tmp_path, one_a_row(numbers), f"{split}.parquet")
    sources.expect(load_image_text(folder, captions_as="text", columns=FLICKR), by_file)
    with pytest.raises(ValueError, match=r"split 'train' row 0: 'a red .* is no list; captions_as says what it is"):
        load_image_text(folder, columns=FLICKR)


def test_one_caption_a_row_and_a_column_of_splits(tmp_path):
    table = one_a_row(range(12))
    labels = [sources.split_of(int(name.removesuffix(".jpg"))) for name in table["filename"]]
    folder = write(tmp_path, table.add_column("split", labels))
    options = {"captions_as": "text", "split_column": "split", "columns": FLICKR}
    sources.expect(load_image_text(folder, **options), by_file)
    labels[40] = "val"
    folder = write(tmp_path, table.add_column("split", labels))
    with pytest.raises(ValueError, match="split 'test' row 40: 4.jpg is in 'val', and in 'train'"):
        load_image_text(folder, **options)


@pytest.mark.parametrize("form", ["json", "lines"])
def test_captions_in_one_text(tmp_path, form):
    for split, numbers in sources.NUMBERS.items():
        texts = [sources.captions(number) for number in numbers]
        column = [json.dumps(each) if form == "json" else "\n".join(each) + "\n" for each in texts]
        folder = write(tmp_path, sources.table(numbers, caption=column), f"{split}.parquet")
    sources.expect(load_image_text(folder, captions_as=form, columns=FLICKR), by_file)


def test_splits_as_declared(tmp_path):
    folder, _ = sources.parquet(tmp_path / "flickr")
    data = load_image_text(folder, columns=FLICKR, splits={"test": ["val", "test"]})
    assert {split: rows["image_id"][:] for split, rows in data.items()} == {"test": [f"{n}.jpg" for n in range(6, 12)]}
    for splits, message in [
        ({"dev": "val"}, "splits maps dev; expected some of train, validation, test"),
        ({}, "splits maps nothing"),
        ({"train": ["train", "restval"]}, "splits names restval; the source has test, train, val"),
        ({"train": "train", "test": "train"}, "splits names train twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_image_text(folder, columns=FLICKR, splits=splits)
    folder = write(tmp_path, sources.table(range(2), lambda number: "unlabelled"))
    with pytest.raises(ValueError, match="splits unlabelled are unknown; map them with the option splits"):
        load_image_text(folder, columns=FLICKR, split_column="split")


def test_numbered_rows_and_kept_columns(tmp_path):
    table = sources.table(range(2), w=[32, 32], h=[24, 24])
    columns = {"captions": "caption", "image_id": None, "width": "w", "height": "h"}
    data = load_image_text(write(tmp_path, table), columns=columns)
    assert data["test"]["image_id"][:] == ["test-0", "test-1"]
    assert data["test"][1]["height"] == 24


def test_pictures_are_not_copied(tmp_path):
    folder, options = sources.parquet(tmp_path / "flickr")
    data = load_image_text(folder, **options)
    assert all(str(file["filename"]).startswith(str(tmp_path / "cache")) for file in data["train"].cache_files)
    assert len(data["train"].cache_files) == 1


def test_every_problem_is_listed(tmp_path):
    texts = [*map(sources.captions, range(3)), [], ["a", " "], None]
    table = sources.table(range(6)).remove_columns("caption").add_column("caption", texts)
    names = ["0.jpg", None, "", "3.jpg", "4.jpg", "5.jpg"]
    table = table.remove_columns("filename").add_column("filename", names)
    with pytest.raises(ValueError, match="has 5 problems") as caught:
        load_image_text(write(tmp_path, table), columns=FLICKR)
    assert [problem.removeprefix("split 'test' row ") for problem in caught.value.problems] == [
        "3: no caption, or an empty one",
        "4: no caption, or an empty one",
        "5: None is no list; captions_as says what it is: list, json, lines, text",
        "1: no filename",
        "2: no filename",
    ]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([[{"raw": "a"}], [{"raw": "b"}]], r"row 1: caption 0 is \{'raw': 'b'\}; expected a text"),
        ([["a"], ["b", None]], "row 1: caption 1 is None; expected a text"),
        ([["a"], None], "row 1: None is no list; captions_as says what it is"),
        ([[["a"]], [["b"]]], r"row 1: caption 0 is \['b'\]; expected a text"),
        ([[1], [2]], "row 1: caption 0 is 2; expected a text"),
        ([{"raw": "a"}, {"raw": "b"}], r"row 1: \{'raw': 'b'\} is no list"),
    ],
)
def test_captions_that_are_no_texts(tmp_path, texts, message):
    table = sources.table(range(2)).remove_columns("caption").add_column("caption", texts)
    folder = write(tmp_path, table)
    with pytest.raises(ValueError, match=message):
        load_image_text(folder, columns=FLICKR)
    with pytest.raises(
        ValueError, match=message.replace("row 1", "row .").replace("'b'", "'.'").replace("is 2", "is .")
    ):
        list(load_image_text(folder, columns=FLICKR, streaming=True)["test"])


@pytest.mark.parametrize("text", ["[" * 10_000, '["a", 3]', '"a"', "{}", ""])
def test_json_that_is_no_list_of_texts(tmp_path, text):
    folder = write(tmp_path, sources.table(range(2), caption=['\ufeff["a"]', text]))
    with pytest.raises(ValueError, match=r"has 1 problem:\n  split 'test' row 1: "):
        load_image_text(folder, columns=FLICKR, captions_as="json")


def test_what_is_no_size_and_no_boxes(tmp_path):
    boxes = [[[0.0, 0.0, 3.0, 4.0]], [[0.0, 0.0, float("inf"), 4.0]], [[5.0, 0.0, 3.0, 4.0]]]
    table = sources.table(range(3), w=[32.0, float("inf"), 0.0], b=boxes)
    with pytest.raises(ValueError, match="has 4 problems") as caught:
        load_image_text(write(tmp_path, table), columns={**FLICKR, "width": "w", "boxes": "b"})
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "split 'test' row 1: w is inf",
        "split 'test' row 2: w is 0.0",
        "split 'test' row 1: b is [[0.0, 0.0, inf, 4.0]]",
        "split 'test' row 2: b is [[5.0, 0.0, 3.0, 4.0]]",
    ]


def test_folders_that_are_links(tmp_path):
    """A cache of the Hub, or a larger disk; a loop of folders ends."""
    folder, options = sources.parquet(tmp_path / "disk")
    (tmp_path / "flickr").mkdir()
    (tmp_path / "flickr" / "data").symlink_to(folder / "data")
    (tmp_path / "flickr" / "loop").symlink_to(tmp_path / "flickr")
    sources.expect(load_image_text(tmp_path / "flickr", **options), by_file)


def test_an_image_in_two_splits_of_a_split_file(tmp_path):
    entries = [{"filename": "0.jpg", "split": "train"}, {"filename": "0.jpg", "split": "test"}]
    (tmp_path / "splits.json").write_text(json.dumps({"images": entries}))
    with pytest.raises(ValueError, match="has images in two splits: 0.jpg"):
        load_image_text(write(tmp_path, sources.table(range(1))), split_file=tmp_path / "splits.json", columns=FLICKR)


def test_a_table_cannot_show_files_of_this_machine(tmp_path):
    sources.picture(0).save(tmp_path / "secret.png")
    table = sources.table(range(3)).to_list()
    table[1]["image"] = {"bytes": None, "path": str(tmp_path / "secret.png")}
    folder = write(tmp_path, Dataset.from_list(table, features=sources.table(range(1)).features))
    with pytest.raises(ValueError, match="split 'test' row 1: no bytes in image"):
        load_image_text(folder, columns=FLICKR)
    with pytest.raises(ValueError, match="row 1: no bytes in image; expected the picture itself"):
        list(load_image_text(folder, columns=FLICKR, streaming=True)["test"])
    names = Dataset.from_dict({"image": [str(tmp_path / "secret.png")], "caption": [["a"]], "filename": ["a"]})
    with pytest.raises(ValueError, match=r"column 'image' holds .*string.*; expected pictures.*image_folder says"):
        load_image_text(write(tmp_path, names), columns=FLICKR)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"no column captions, image_id; it has image, caption, sentids, filename. Map them with the option columns",
        ),
        ({"columns": {"caption": "caption"}}, "columns maps caption; expected names of the schema: boxes, captions"),
        ({"columns": ["caption"]}, r"columns is \['caption'\]; expected names of the schema and the source's"),
        ({"columns": {"captions": ["a"]}}, r"columns maps captions to \['a'\]; expected the name of a column"),
        ({"columns": {"image": []}}, r"columns maps image to \[\]; expected the name of a column"),
        ({"captions_as": "csv"}, "captions_as is 'csv'; expected one of list, json, lines, text"),
        ({"columns": FLICKR, "revision": "main"}, "name and revision are of the Hub, and .* is a folder"),
        ({"columns": FLICKR, "max_images": 3}, "max_images is 3; expected at least 1, and streaming"),
        ({"columns": FLICKR, "streaming": True, "max_images": float("inf")}, "max_images is inf; expected at least 1"),
        ({"columns": FLICKR, "splits": {"test": None}}, "splits maps test to None; expected a name of the source"),
        ({"columns": FLICKR, "split_column": "a", "split_file": "b"}, "are both given; expected one of them"),
        ({"columns": FLICKR, "splits": {}, "split_file": "b"}, "are both given; expected one of them"),
        ({"columns": FLICKR, "streaming": True, "split_column": "split"}, "streaming goes without split_column"),
        ({"columns": FLICKR, "streaming": True, "captions_as": "text"}, "a stream cannot do that"),
        (
            {"columns": FLICKR, "column": "a"},
            "load_hub, which reads .*, has no option 'column'; did you mean 'columns'",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    folder, _ = sources.parquet(tmp_path / "flickr")
    with pytest.raises(ValueError, match=message):
        load_image_text(folder, **options)


def test_damaged_files_and_names_without_a_split(tmp_path):
    folder, options = sources.parquet(tmp_path / "flickr")
    file = folder / "data" / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"flickr cannot be read: .*Parquet"):
        load_image_text(folder, **options)
    file.rename(folder / "data" / "00000.parquet")
    with pytest.raises(ValueError, match="00000.parquet tells no split; expected a name or a folder that begins with"):
        load_image_text(folder, **options)


# --- streaming and the Hub --------------------------------------------------------------------------------------------


def test_a_stream_fetches_nothing_beforehand(tmp_path, processor):
    folder, options = sources.parquet(tmp_path / "flickr")
    data = load_image_text(folder, streaming=True, **options)
    assert isinstance(data, IterableDatasetDict)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    rows = list(data["train"])
    assert [row["image_id"] for row in rows] == [f"{number}.jpg" for number in range(6)]
    assert rows[3]["captions"] == sources.captions(3)
    assert rows[3]["image"].getpixel((0, 0)) == sources.picture(3).getpixel((0, 0))
    with pytest.raises(TypeError, match="expected a datasets.Dataset. A stream cannot be shuffled"):
        ImageTextInputs(data["train"], processor)
    for option in ({"exclude": ["0.jpg"]}, {"skip_unreadable": True}):
        with pytest.raises(ValueError, match="the data are a stream"):
            load_image_text(folder, streaming=True, **options, **option)


def test_the_beginning_of_a_stream(tmp_path, processor):
    folder, options = sources.parquet(tmp_path / "flickr")
    data = load_image_text(folder, streaming=True, max_images=4, **options)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 4, "validation": 3, "test": 3}
    assert ImageTextInputs(data["train"], processor).images([3])["pixel_values"].shape == (1, 3, 24, 32)


def test_what_is_asked_of_the_hub(tmp_path, monkeypatch):
    folder, _ = sources.parquet(tmp_path / "flickr")
    files = {split: str(next((folder / "data").glob(f"{split}*"))) for split in ("train", "val", "test")}
    local, asked = load_dataset("parquet", data_files=files), []

    def answer(*arguments, **options):
        asked.append((arguments, options))
        return local

    monkeypatch.setattr("omit_hf.data.sources.hub.load_dataset", answer)
    data = load_image_text("hub:umaru97/flickr30k", revision="abc", columns=FLICKR)
    assert data["validation"]["image_id"][:] == ["6.jpg", "7.jpg", "8.jpg"]
    load_image_text("umaru97/flickr30k", name="small", columns=FLICKR)
    assert asked == [
        (("umaru97/flickr30k", None), {"revision": "abc", "streaming": False}),
        (("umaru97/flickr30k", "small"), {"revision": None, "streaming": False}),
    ]


def test_a_data_set_that_is_not_there(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    def refuse(*_, **__):
        raise DatasetNotFoundError("it does not exist.")

    monkeypatch.setattr("omit_hf.data.sources.hub.load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder here, and no data set that you can read"):
        load_hub("nobody/nothing")


def parquet_with(tmp_path, image=None, captions=None, names=None, features=None):
    """A file of two rows."""
    image = pa.array([{"bytes": sources.png(n), "path": "a"} for n in range(2)]) if image is None else image
    captions = pa.array([["a"], ["b"]]) if captions is None else captions
    table = pa.table([image, captions, pa.array(["0", "1"])], names=names or ["image", "captions", "image_id"])
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "table").mkdir()
    pq.write_table(table, tmp_path / "table" / "test.parquet", compression="none")
    return tmp_path / "table"


def test_text_that_is_no_utf8_in_a_table(tmp_path):
    plain = pa.array([b"a", b"\xff"])
    text = pa.Array.from_buffers(pa.string(), 2, plain.buffers())
    folder = parquet_with(tmp_path, captions=pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), text))
    with pytest.raises(
        ValueError, match=f"Split 'test' of {folder}: column 'captions' cannot be read: UnicodeDecodeErr"
    ):
        load_image_text(folder)


@pytest.mark.parametrize(
    "columns",
    [
        {"captions": pa.array([[("a", "b")]] * 2, pa.map_(pa.string(), pa.string()))},
        {"names": ["image", "captions", "image"]},
        {"features": {"captions": [[1]]}},
        {"features": {"captions": {"_type": "Sequence"}}},
        {"features": 3},
    ],
    ids=["a map", "a name twice", "lists", "no feature", "a number"],
)
def test_a_table_that_datasets_does_not_take(tmp_path, columns):
    folder = parquet_with(tmp_path, **columns)
    with pytest.raises(ValueError, match=f"^{folder} cannot be read: .*, in one of test.parquet.$") as caught:
        load_image_text(folder)
    assert str(caught.value).isprintable()


def test_pages_that_are_damaged(tmp_path):
    folder = parquet_with(tmp_path)
    content = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").write_bytes(content[:4] + bytes(200) + content[204:])
    with pytest.raises(ValueError, match=f"^{folder} cannot be read: .*, in one of test.parquet.$") as caught:
        load_image_text(folder)
    assert str(caught.value).isprintable()


def test_a_split_file_whose_names_are_of_two_types(tmp_path):
    folder = parquet_with(tmp_path)
    (tmp_path / "split.json").write_text(
        '{"images": [{"filename": 7, "split": "test"}, {"filename": "a", "split": "test"}]}'
    )
    with pytest.raises(ValueError, match="split.json names 2 images that are not in column 'image_id': 7, a"):
        load_image_text(folder, split_file=tmp_path / "split.json", columns={"image_id": "image_id"})
