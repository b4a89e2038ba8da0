"""Data of one split: a command asks for, checks and opens the splits that it uses, and no other."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import sources
from tiny import tiny_recipe

from omit_hf.data import DataError, check_data, load_hub, load_image_text
from omit_hf.training import Recipe, load_split, train

pytestmark = pytest.mark.usefixtures("own_cache")


def cutouts(folder):
    return sources.cutouts(folder), {"train_size": 2, "validation_size": 2, "test_size": 3}


EXAMPLES = Path(__file__).parents[1] / "examples"
LAYOUTS = {**sources.WITH_PICTURES, "regions": sources.regions, "cutouts": cutouts}


def keep_images_of_test(folder):
    """What somebody has who fetched the pictures of the test split alone."""
    shutil.rmtree(folder / "images" / "train2014")
    for number in (5, 6, 7, 8):
        (folder / "images" / "val2014" / f"COCO_val2014_{number:012d}.jpg").unlink()


def leave_out_others(kind, folder):
    """Only the test split stays, in a form that somebody would publish."""
    if kind in ("karpathy", "coco"):
        keep_images_of_test(folder)
        entries = json.loads((folder / "dataset_coco.json").read_text())["images"]
        entries = [entry for entry in entries if entry["split"] == "test"]
        (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
        (folder / "captions_train2014.json").unlink(missing_ok=True)
    elif kind == "image_folder":
        shutil.rmtree(folder / "train")
        shutil.rmtree(folder / "validation")
    elif kind == "cutouts":
        file = folder / "cutouts.jsonl"
        file.write_text("".join(line for line in file.read_text().splitlines(True) if '"clay"' in line))
    else:
        for file in folder.rglob("*"):
            if file.is_file() and not file.name.startswith("test"):
                file.unlink()


def break_others(kind, folder):
    """The other splits are there, and damaged."""
    if kind in ("karpathy", "coco"):
        keep_images_of_test(folder)
        (folder / "captions_train2014.json").unlink(missing_ok=True)
    elif kind == "cutouts":
        leave_out_others(kind, folder)
    else:
        for file in folder.rglob("*"):
            of_test = file.name.startswith("test") or file.parent.name == "test"
            if file.is_file() and not of_test and file.name != "metadata.jsonl":
                file.write_bytes(b"broken")
            elif file.is_file() and not of_test:
                file.write_text("{")


def rows_of(data):
    rows = data["test"]
    return rows["image_id"][:], rows["captions"][:], len(list(rows))


@pytest.mark.parametrize("change", [leave_out_others, break_others])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_test_split_alone(tmp_path, kind, change):
    source, options = LAYOUTS[kind](tmp_path / "data")
    whole = load_image_text(source, **options)
    expected = rows_of(whole)
    change(kind, tmp_path / "data")
    data = load_image_text(source, **options, only=["test"])
    assert list(data) == ["test"]
    check_data(data, ["test"])
    assert load_split(str(source), options, "test")["image_id"][:] == data["test"]["image_id"][:]
    if kind != "cutouts":
        assert rows_of(data) == expected
    if change is leave_out_others and kind != "cutouts":  # which can be composed for every split
        assert rows_of(load_image_text(source, **options)) == expected
        with pytest.raises((ValueError, FileNotFoundError), match="train"):
            load_split(str(source), options, "train")


@pytest.mark.parametrize("kind", [*LAYOUTS, "scenes"])
@pytest.mark.parametrize("only", [["train"], ["validation", "train"], ["test", "validation"]])
def test_some_splits_are_as_in_the_whole(tmp_path, kind, only):
    source, options = LAYOUTS[kind](tmp_path / "data") if kind != "scenes" else ("scenes", cutouts(tmp_path)[1])
    whole, some = load_image_text(source, **options), load_image_text(source, **options, only=only)
    assert list(some) == [split for split in whole if split in only]
    for split in some:
        assert some[split]["image_id"][:] == whole[split]["image_id"][:]
        assert some[split]["captions"][:] == whole[split]["captions"][:]


@pytest.mark.parametrize("only", [[], ["val"], "test", 3, [["test"]]])
def test_splits_that_there_are_not(tmp_path, only):
    for kind in LAYOUTS:
        source, options = LAYOUTS[kind](tmp_path / kind)
        with pytest.raises(ValueError, match="only is .*; expected a list of some of train, validation, test"):
            load_image_text(source, **options, only=only)


def test_a_column_and_a_file_of_splits(tmp_path):
    """Rows of other splits are not looked at, whatever is in them, and names of no split of ours do not matter."""
    table = sources.table(range(12), lambda n: "extra" if n == 0 else sources.split_of(n))
    captions = [each if n > 8 else [] for n, each in enumerate(table["caption"])]
    table = table.remove_columns("caption").add_column("caption", captions)
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "test.parquet")
    options = {"split_column": "split", "columns": sources.FLICKR}
    found = load_hub(tmp_path / "table", **options, only=["test"])
    assert {split: rows["image_id"][:] for split, rows in found.items()} == {"test": ["9.jpg", "10.jpg", "11.jpg"]}
    with pytest.raises(ValueError, match="splits extra are unknown; map them"):
        load_hub(tmp_path / "table", **options)
    entries = [{"filename": f"{n}.jpg", "split": sources.split_of(n)} for n in range(12)]
    (tmp_path / "splits.json").write_text(json.dumps({"images": entries}))
    options = {"split_file": tmp_path / "splits.json", "columns": sources.FLICKR}
    assert load_hub(tmp_path / "table", **options, only=["test"])["test"]["image_id"][:] == found["test"]["image_id"][:]
    entries[0]["filename"] = "gone.jpg"
    (tmp_path / "splits.json").write_text(json.dumps({"images": entries}))
    assert load_hub(tmp_path / "table", **options, only=["test"])["test"]["image_id"][:] == found["test"]["image_id"][:]
    with pytest.raises(ValueError, match="names 1 images that are not in column 'filename': gone.jpg"):
        load_hub(tmp_path / "table", **options)
    stream = load_hub(tmp_path / "table", columns=sources.FLICKR, streaming=True, only=["test"])
    assert list(stream) == ["test"]
    with pytest.raises(ValueError, match="has no split 'train'; it has test"):
        load_hub(tmp_path / "table", columns=sources.FLICKR, streaming=True, only=["train"])


def test_images_to_exclude_may_be_of_another_split(tmp_path):
    folder, _ = sources.image_folder(tmp_path)
    data = load_image_text(folder, exclude=["train/0.png", "test/9.png"], only=["test"])
    assert data["test"]["image_id"][:] == ["test/10.png", "test/11.png"]


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        capsys.readouterr()
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


def recipe(tmp_path, source, options, **fields) -> Recipe:
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    fields = {"image_processor": processor, "output_dir": str(tmp_path / "run"), **fields}
    return Recipe(**tiny_recipe(data=str(source), data_options=options, **fields))


def test_commands_on_a_test_split_alone(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, options = sources.karpathy(tmp_path / "data")
    train(recipe(tmp_path, source, options))
    measured = run("evaluate.py", "run", "--json", "all.json")
    leave_out_others("karpathy", tmp_path / "data")
    data = ["--data", source, "--data_options", json.dumps(options)]
    assert run("evaluate.py", "run", "--json", "one.json") == measured
    assert run("evaluate.py", "run", *data, "--split", "test", "--json", "two.json") == measured
    assert Path("one.json").read_text() == Path("two.json").read_text() == Path("all.json").read_text()
    code, out = run("explain.py", "run", f"{source}:1", *data[2:], "--output", "plan.png")
    assert (code, "plan.png" in out) == (0, True)
    code, out = run("inspect_data.py", source, *data[2:], "--duplicates")
    assert (code, "No problem found." in out) == (0, True)
    code, _ = run("evaluate.py", "run", "--split", "validation")
    assert code.startswith("error: ")
    assert code.endswith("has no split 'validation'; it has test.")


def test_training_says_which_split_is_missing(tmp_path):
    source, options = sources.karpathy(tmp_path / "data")
    entries = json.loads(source.read_text())["images"]

    def keep(*splits):
        source.write_text(json.dumps({"images": [entry for entry in entries if entry["split"] in splits]}))

    keep("train", "val")
    with pytest.raises(ValueError, match="has no split 'test'; it has train, validation"):
        train(recipe(tmp_path, source, options))
    metrics = train(recipe(tmp_path, source, options, test=False))
    assert list(metrics["splits"]) == ["train", "validation"]
    keep("test")
    with pytest.raises(ValueError, match="has no split 'train' and no split 'validation'; it has test"):
        train(recipe(tmp_path, source, options, output_dir=str(tmp_path / "other")))


def test_a_split_that_training_does_not_use_is_not_opened(tmp_path):
    source, options = sources.image_folder(tmp_path / "data")
    (source / "test" / "9.png").unlink()
    metrics = train(recipe(tmp_path, source, options, test=False, check_images=True))
    assert list(metrics["splits"]) == ["train", "validation"]


def test_a_stream_is_no_data_for_training(tmp_path):
    source, options = sources.parquet(tmp_path / "data")
    with pytest.raises(DataError, match="train: a stream, whose rows are not known; load it without streaming"):
        train(recipe(tmp_path, source, {**options, "streaming": True}))


# --- the same picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image_folder", "parquet"])
def test_duplicates_by_content(tmp_path, run, kind):
    source, options = LAYOUTS[kind](tmp_path / "data")
    data = ["--quick", "--data_options", json.dumps(options)]
    assert run("inspect_data.py", source, *data, "--duplicates")[0] == 0
    if kind == "image_folder":
        shutil.copyfile(source / "train" / "2.png", source / "train" / "4.png")
        shutil.copyfile(source / "train" / "2.png", source / "test" / "9.png")
        name = "{split}/{number}.png"
    else:
        rows = sources.table(range(4, 6)).to_list()
        rows[0]["image"]["bytes"] = sources.png(2)
        write(rows, source / "data" / "train-00001-of-00002.parquet")
        rows = sources.table(range(9, 12)).to_list()
        rows[0]["image"]["bytes"] = sources.png(2)
        write(rows, source / "data" / "test-00000-of-00001.parquet")
        name = "{number}.jpg"
    first = f"train image 2 ({name.format(split='train', number=2)})"
    found = [
        f"train image 4 ({name.format(split='train', number=4)}): its picture is byte for byte that of {first}",
        f"test image 0 ({name.format(split='test', number=9)}): its picture is byte for byte that of {first}",
    ]
    code, _ = run("inspect_data.py", source, *data, "--duplicates")
    assert code == "\n".join(["error: 2 problems:", *found])
    assert run("inspect_data.py", source, *data)[0] == 0


def write(rows, file):
    sources.Dataset.from_list(rows, features=sources.table(range(1)).features).to_parquet(file)


def test_duplicates_of_regions(tmp_path, run):
    sources.regions(tmp_path)
    array = sources.np.load(tmp_path / "test_ims.npy")
    array[1] = sources.region_array(3)
    sources.np.save(tmp_path / "test_ims.npy", array)
    code, _ = run("inspect_data.py", tmp_path, "--duplicates")
    assert code == "error: 1 problem:\ntest image 1 (10): its regions are byte for byte those of train image 3 (3)"
