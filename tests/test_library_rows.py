"""Rows of data sets, and captions, in a library: columns, ids, regions, and what does not fit."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from tiny import REGIONS, TEXT, tiny_config

from omit_hf import OmitModel, OmitProcessor
from omit_hf.library import PictureLibrary


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
