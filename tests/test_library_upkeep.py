"""What keeps a library: other models, removing, compacting, and how they go on after a stop."""

import os
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from tiny import REGIONS, TEXT, tiny_config

from omit_hf import OmitModel, OmitProcessor
from omit_hf.library import PictureLibrary
from omit_hf.library import library as library_module
from omit_hf.library.lance import LanceStore
from omit_hf.library.updating import Update


@pytest.fixture
def other(processor):
    torch.manual_seed(1)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    return OmitModel(tiny_config(text_config=text, projection_dim=24)).eval()


def scores_of(library, sentence: str = "a red star left of a ring") -> dict[str, float]:
    return {hit.id: hit.score for hit in library.search(sentence, k=1000)}


def made_anew(source, model, processor, folder, **options) -> dict[str, float]:
    """The scores of a library that a model made from the beginning."""
    library = PictureLibrary(folder, model, processor)
    library.add(source, progress=False, **options)
    return scores_of(library)


def stop_after(monkeypatch, count: int) -> None:
    """Updates end with an error after so many transactions of two rows."""
    write, done = Update._write, []
    monkeypatch.setattr("omit_hf.library.updating.COMMIT_ROWS", 2)

    def write_or_stop(self, *arguments):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(None)
        write(self, *arguments)

    monkeypatch.setattr(Update, "_write", write_or_stop)


def test_a_library_is_encoded_again(library, pictures, other, processor, tmp_path):
    former, before = library.model, library.store.metadata()
    report = library.reencode(other, processor, progress=False)
    assert (report.added, report.unreadable) == (24, {})
    assert sorted(map(str, library.store.metadata())) == sorted(map(str, before))
    assert scores_of(library) == pytest.approx(made_anew(pictures, other, processor, tmp_path / "y"), abs=1e-6)
    assert library.settings.width == 24
    with pytest.raises(ValueError, match="reencode"):
        PictureLibrary(library.path, former, processor)
    tables = library.store.table_names()
    assert sum(name.startswith("items") for name in tables) == 2
    assert library.reencode(other, processor, progress=False).unchanged == 24
    library.compact()
    assert library.store.table_names() == [library.settings.table, "settings"]
    assert library.sync(pictures, progress=False).unchanged == 24


def test_the_former_model_is_not_needed(library, other, processor):
    """The library was made with a model that was never saved."""
    opened = PictureLibrary(library.path)
    opened.remove("path LIKE '%/00.png'")
    opened.compact()
    assert opened.reencode(other, processor, progress=False).added == 23
    assert len(opened.search("a red star", k=50)) == 23


@pytest.mark.parametrize("commits", [0, 1, 5, 11])
def test_encoding_again_goes_on_after_a_stop(commits, library, pictures, other, processor, tmp_path, monkeypatch):
    """The library is as it was until the end, and may change in between."""
    before = scores_of(library)
    with monkeypatch.context() as patch:
        stop_after(patch, commits)
        with pytest.raises(KeyboardInterrupt):
            library.reencode(other, processor, batch_size=2, progress=False)
    assert scores_of(library) == before
    (pictures / "00.png").rename(pictures / "moved.png")
    shutil.copy(pictures / "04.png", pictures / "02.png")
    (pictures / "06.png").unlink()
    shutil.copy(pictures / "04.png", pictures / "new.png")
    library.sync(pictures, progress=False)
    report = library.reencode(other, processor, progress=False)
    assert report.added + report.unchanged == 24
    assert report.unchanged <= 2 * commits
    assert commits < 5 or report.unchanged > 0
    assert scores_of(library) == pytest.approx(made_anew(pictures, other, processor, tmp_path / "y"), abs=1e-6)
    keys = [row["key"] for row in library.store.metadata()]
    assert len(keys) == len(set(keys)) == 24


def test_there_and_back(library, other, processor):
    """A table of a former model that is still there is brought up to date, not trusted."""
    first, before = library.model, scores_of(library)
    library.reencode(other, processor, progress=False)
    library.remove("path LIKE '%/00.png'")
    report = library.reencode(first, processor, progress=False)
    assert (report.added, report.unchanged) == (0, 23)
    assert scores_of(library) == {name: score for name, score in before.items() if not name.endswith("/00.png")}


def test_pictures_that_are_gone_are_left_out(library, pictures, other, processor):
    (pictures / "00.png").unlink()
    (pictures / "02.png").write_bytes(b"torn")
    report = library.reencode(other, processor, progress=False)
    assert set(report.unreadable) == {str(pictures / "00.png"), str(pictures / "02.png")} == set(library.unreadable)
    assert len(library) == 22
    pictures.rename(f"{pictures}-elsewhere")
    with pytest.raises(ValueError, match="None of the 22 pictures of .* is there any more; make the folder available"):
        library.reencode(other, processor, progress=False)
    assert len(library) == 22


def test_rows_of_data_sets_are_encoded_again(scenes_model, other, processor, scenes, pictures, tmp_path, monkeypatch):
    library = PictureLibrary(tmp_path / "x", scenes_model, processor)
    rows = scenes["test"].select_columns(["image", "image_id", "captions"])
    rows = rows.add_column("label", list(range(len(rows))))
    library.add(rows, progress=False)
    nameless = scenes["validation"].select_columns(["image"])
    library.add(nameless, progress=False)
    library.add(pictures / "more", progress=False)
    library.remove("label = 3")
    before = library.store.metadata()
    for data in (None, rows, nameless):
        with pytest.raises(ValueError, match=r"of 25 pictures came from data sets.*pass the rows"):
            library.reencode(other, processor, data=data, progress=False)
    both = concatenate_datasets([rows.select_columns(["image", "image_id"]), nameless])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            library.reencode(other, processor, data=both, batch_size=2, progress=False)
    report = library.reencode(other, processor, data=both, progress=False)
    assert (report.added + report.unchanged, report.unchanged > 0) == (25, True)
    assert sorted(map(str, library.store.metadata())) == sorted(map(str, before))
    assert len(scores_of(library)) == 25


def test_regions_are_encoded_again(processor, tmp_path):
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(OmitModel(tiny_config(vision_config=REGIONS, text_config=text)).eval())
    own = OmitProcessor(None, processor.tokenizer)
    rng = np.random.default_rng(0)
    counts = (3, 1, 5)
    data = Dataset.from_dict({
        "region_features": [rng.normal(size=(count, 10)).tolist() for count in counts],
        "boxes": [rng.uniform(0, 9, size=(count, 4)).tolist() for count in counts],
        "image_id": ["a", "b", "c"],
    })  # fmt: skip
    library = PictureLibrary(tmp_path / "x", models[0], own)
    library.add(data, progress=False)
    boxes = {row["id"]: row["boxes"] for row in library.store.metadata(columns=["id", "boxes"])}
    library.reencode(models[1], own, data=data.select([2, 1, 0]), progress=False)
    assert {row["id"]: row["boxes"] for row in library.store.metadata(columns=["id", "boxes"])} == boxes
    assert scores_of(library) == pytest.approx(made_anew(data, models[1], own, tmp_path / "y"), abs=1e-6)
    assert library.search("a red star", k=1)[0].words


def test_captions_are_encoded_again(scenes_model, other, processor, scenes, tmp_path):
    library = PictureLibrary(tmp_path / "x", scenes_model, processor, of="captions")
    library.add(["a red star", "a ring", "a blue ring"], progress=False)
    library.reencode(other, processor, progress=False)
    new = PictureLibrary(tmp_path / "y", other, processor, of="captions")
    new.add(["a blue ring", "a ring", "a red star"], progress=False)
    picture = scenes["train"][0]["image"]
    found = [{hit.captions[0]: hit.score for hit in each.search_image(picture)} for each in (library, new)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_what_a_filter_lets_pass_is_removed(library):
    assert library.remove("width < 0") == 0
    assert library.remove("path LIKE '%/more/%'") == 12
    assert len(library) == len(scores_of(library)) == 12
    assert not any("/more/" in name for name in scores_of(library))
    assert library.remove("true") == 12


@pytest.mark.parametrize("commits", [0, 1, 7])
def test_adding_goes_on_after_a_stop(commits, scenes_model, processor, pictures, tmp_path, monkeypatch):
    library = PictureLibrary(tmp_path / "x", scenes_model, processor)
    with monkeypatch.context() as patch:
        stop_after(patch, commits)
        with pytest.raises(KeyboardInterrupt):
            library.add(pictures, batch_size=2, progress=False)
    assert len(library) == 2 * commits
    report = library.add(pictures, progress=False)
    assert (report.added, report.unchanged) == (24 - 2 * commits, 2 * commits)


def test_the_index_is_built_and_merged(library, pictures, scenes, monkeypatch):
    """As the library grows, and while an update goes on."""
    monkeypatch.setattr(library_module, "MEMORY", 0)
    monkeypatch.setattr(library_module, "MERGE_ROWS", 6)
    monkeypatch.setattr("omit_hf.library.updating.COMMIT_ROWS", 2)
    library.compact()
    assert (library.store.index is not None, library.store.num_unindexed) == (True, 0)
    waiting, tidy = [], LanceStore.tidy
    monkeypatch.setattr(LanceStore, "tidy", lambda self: waiting.append(self.num_unindexed) or tidy(self))
    for number, row in enumerate(scenes["test"]):
        row["image"].save(pictures / f"new{number}.png")
    library.add(pictures, batch_size=2, progress=False)
    assert waiting[0] == 6
    assert library.store.num_unindexed == 0
    assert len(library.search("a red star", k=100)) == 24 + len(scenes["test"])


def test_compacting_cleans_what_stopped_updates_left(library, pictures):
    """Their files are in no version of a table."""
    table = f"{library.path}/{library.settings.table}.lance"
    left = [f"{table}/data/left.lance", f"{table}/_transactions/left.txn"]
    for file in left:
        with open(file, "wb") as stream:
            stream.write(b"torn")
    os.makedirs(f"{library.path}/items_0123.lance/data")
    before = scores_of(library)
    assert library.sync(pictures, progress=False).unchanged == 24
    library.compact()
    assert not os.path.exists(left[0])
    assert "items_0123" not in library.store.table_names()
    assert scores_of(library) == before


def fragments_of(library) -> int:
    return library.store.table.stats()["fragment_stats"]["num_fragments"]


def rows_of(library) -> dict[str, dict]:
    """All that is stored, by path."""
    return {row["path"]: row for row in library.store.table.to_arrow().to_pylist()}


def test_small_files_are_merged(library, pictures, scenes):
    for number, row in enumerate(scenes["test"]):
        row["image"].save(pictures / f"new{number}.png")
        library._tend = lambda *_, **__: None
        library.add(pictures, progress=False)
    assert fragments_of(library) > 5
    del library._tend
    before, stored = scores_of(library), rows_of(library)
    library.compact()
    assert fragments_of(library) == 1
    assert rows_of(library) == stored
    assert scores_of(library) == pytest.approx(
        before, abs=1e-6
    )  # a file is scored as a block; a larger rounds otherwise


@pytest.mark.parametrize("torn", ["settings", "items", "unreadable"])
def test_a_table_that_was_never_finished(torn, scenes_model, processor, pictures, tmp_path):
    """A kill left its folder alone."""
    library = PictureLibrary(tmp_path / "x", scenes_model, processor)
    if torn == "unreadable":
        library.add(pictures, progress=False)
    name = f"items_{library._given.digest[:16]}" if torn == "items" else torn
    os.makedirs(tmp_path / "x" / f"{name}.lance" / "data")
    again = PictureLibrary(tmp_path / "x", scenes_model, processor)
    (pictures / "broken.png").write_bytes(b"no picture")
    again.sync(pictures, progress=False)
    assert len(again) == 24
    assert list(again.unreadable) == [str(pictures / "broken.png")]


def test_a_saved_model_is_the_one_in_memory(library, published, processor, scenes_model):
    """Saving changes no digest, though it fills in the configuration."""
    assert PictureLibrary(library.path, published).search("a red star", k=1)
    renamed = OmitModel.from_pretrained(published, backend="cpu")
    assert PictureLibrary(library.path, renamed, processor).search("a red star", k=1)
    with pytest.raises(ValueError, match="other weights, another configuration or processor"):
        PictureLibrary(library.path, OmitModel.from_pretrained(published, regularization=0.5), processor)
    with pytest.raises(ValueError, match="other weights, another configuration or processor"):
        PictureLibrary(library.path, scenes_model.half(), processor)
