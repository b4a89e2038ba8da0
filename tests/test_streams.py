import itertools
import json
from collections import Counter

import pytest
import sources
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from runs import finish, launch, log_of, names, run
from tiny import REGIONS, tiny_recipe

from omit_hf.training import Recipe, streams
from omit_hf.training.building import build_model
from omit_hf.training.streams import PairStream, open_stream, vocabulary_captions

PICTURES = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)  # 5 seconds, at the end of each pass
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return sources.parquet(tmp_path_factory.mktemp("table") / "data")


@pytest.fixture
def fields(table) -> dict:
    """Of a recipe that streams 6 images of 5 captions, in 2 shards."""
    source, options = table
    fields = {"data": str(source), "data_options": options, "image_processor": PICTURES, "epoch_steps": 4}
    return tiny_recipe(**fields, batch_size=5, shuffle_buffer=4)


class Process:
    """One of several, of which only its number counts."""

    def __init__(self, process_index, num_processes):
        self.process_index, self.num_processes, self.device = process_index, num_processes, "cpu"

    def register_save_state_pre_hook(self, hook):
        self.save = hook

    register_load_state_pre_hook = register_save_state_pre_hook


class Recorder:
    """Makes no inputs, and keeps what they would be made of."""

    def __init__(self, seen):
        self.seen = seen

    def __getitem__(self, pairs):
        self.seen += [(each["image_id"], each["caption"]) for each in pairs]
        return {}


def pairs_of(stream, count) -> list[tuple]:
    """The next pairs of a stream, as their images and captions."""
    stream.coming = stream.coming or stream._all_pairs()
    return [(each["image_id"], each["caption"]) for _, each in zip(range(count), stream.coming, strict=False)]


def stream_of(fields, accelerator=None, **options) -> PairStream:
    recipe = Recipe(**{**fields, **options})
    stream = open_stream(recipe)
    _, processor = build_model(recipe, vocabulary_captions(stream, recipe))
    return PairStream(stream, processor, recipe, accelerator or Accelerator(cpu=True))


ALL = {(f"{number}.jpg", caption) for number in range(6) for caption in sources.captions(number)}


def test_a_pass_has_every_pair_once_and_each_has_another_order(fields):
    stream = stream_of(fields)
    passes = [pairs_of(stream, 30) for _ in range(3)]
    assert all(set(each) == ALL for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert passes == [pairs_of(other, 30) for other in [stream_of(fields)] for _ in range(3)]  # the same by the seed
    assert pairs_of(stream_of(fields, seed=1), 30) != passes[0]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_pass(fields, processes):
    parts = [stream_of(fields, Process(number, processes)) for number in range(processes)]
    counts = {2: (20, 10), 3: (10, 10, 10)}[processes]  # shards of 4 and 2 images; or every third image
    read = Counter(pair for part, count in zip(parts, counts, strict=True) for pair in pairs_of(part, count))
    assert read == Counter(ALL)


def test_batches_are_what_the_model_takes(fields):
    stream = stream_of(fields)
    few = stream.first(3)
    batches = list(stream)
    assert len(batches) == len(stream) == 4
    assert batches[0]["pixel_values"].shape == (5, 3, 32, 32)
    assert batches[0]["input_ids"].shape[0] == 5
    assert few["image_ids"].tolist() == batches[0]["image_ids"][:3].tolist()  # which counted as read by nobody
    ids = [number for batch in batches for number in batch["image_ids"].tolist()]
    read = pairs_of(stream_of(fields, Process(0, 1)), 20)
    assert ids == [streams._number(image) for image, _ in read]  # the same for all captions of an image
    rest = list(stream.starting_at(3))
    assert len(rest) == 1
    assert len(list(stream)) == 4


def test_a_state_leaves_out_no_more_than_the_buffer(fields, tmp_path):
    part = stream_of(fields, Process(0, 1), batch_size=13)
    seen = []
    part.inputs = Recorder(seen)
    next(iter(part))
    part._save(None, None, tmp_path)
    assert json.loads((tmp_path / "stream-0.json").read_text())["passes"] == 0
    resumed = stream_of(fields, Process(0, 1))
    resumed._load(None, tmp_path)
    left, following = [], []
    for each in itertools.islice(resumed._all_pairs(), 50):
        (following if resumed.passes else left).append((each["image_id"], each["caption"]))
    assert not set(left) & set(seen)
    assert len(left) >= 30 - 13 - 4
    assert set(following[:30]) == ALL  # the next pass is whole


def test_a_run(fields, tmp_path):
    metrics = run(tmp_path / "run", **fields)
    assert metrics["steps"] == 8
    assert list(metrics["splits"]) == ["validation", "test"]
    assert "its training split read as a stream" in (tmp_path / "run" / "README.md").read_text()
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [0] * 4 + [1] * 4
    assert "stream-0.json" in names(tmp_path / "run/checkpoints/step-00000008")


def test_a_run_goes_on(fields, tmp_path):
    """With a buffer of one pair, which holds nothing between two batches, to the same losses."""
    fields = {**fields, "shuffle_buffer": 1}
    run(tmp_path / "whole", **fields)
    run(tmp_path / "parts", **{**fields, "max_steps": 3})
    run(tmp_path / "parts", **fields, resume=True)
    assert [line["step"] for line in log_of(tmp_path / "parts")] == list(range(1, 9))
    whole, parts = (log_of(tmp_path / name) for name in ("whole", "parts"))
    assert [each["loss"] for each in parts[:3]] == [each["loss"] for each in whole[:3]]


def test_workers_change_nothing(fields, tmp_path):
    """They are ahead of the training; a checkpoint is not."""
    fields = {**fields, "shuffle_buffer": 1}
    run(tmp_path / "none", **fields)
    run(tmp_path / "two", **{**fields, "num_workers": 2, "max_steps": 3})
    run(tmp_path / "two", **fields, num_workers=2, resume=True)
    none, two = (log_of(tmp_path / name) for name in ("none", "two"))
    assert [each["loss"] for each in two] == [each["loss"] for each in none]


def test_archives_make_a_run(fields, tmp_path):
    folder, options = sources.archives(tmp_path / "archives", "json")
    assert run(tmp_path / "run", **{**fields, "data": str(folder), "data_options": options})["steps"] == 8


def test_a_damaged_archive_ends_a_run_in_a_line(fields, tmp_path):
    folder, options = sources.archives(tmp_path / "archives", "json")
    archive = folder / "train-00001.tar"
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(ValueError, match=r"An archive of the training stream is damaged: .*`omit-hf inspect` tells"):
        run(tmp_path / "run", **{**fields, "data": str(folder), "data_options": options})


def test_a_vocabulary_of_a_file(fields, tmp_path):
    """In the place of the stream's first images."""
    file = tmp_path / "captions.txt"
    file.write_text("\ufeffa zebra\n\nand a lion \n", encoding="utf-8")
    recipe = Recipe(**fields, vocabulary_file=str(file))
    captions = vocabulary_captions(iter(()), recipe)
    assert captions["captions"] == [["a zebra"], ["and a lion"]]
    _, processor = build_model(recipe, captions)
    assert {"zebra", "lion"} <= set(processor.tokenizer.get_vocab())
    file.write_text(" \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocabulary_file .*captions.txt has no caption; expected some"):
        vocabulary_captions(iter(()), recipe)
    with pytest.raises(ValueError, match="vocabulary_file is 'captions.txt', and without epoch_steps"):
        Recipe(**tiny_recipe(vocabulary_file="captions.txt"))


def test_two_processes(fields, tmp_path):
    finish(launch(tmp_path / "run", processes=2, **fields))
    assert {"stream-0.json", "stream-1.json"} <= set(names(tmp_path / "run/checkpoints/step-00000008"))


def test_accumulated_batches_make_a_step(fields, tmp_path):
    assert run(tmp_path / "run", **{**fields, "gradient_accumulation_steps": 2, "num_epochs": 1})["steps"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch_steps": 0}, "epoch_steps is 0; expected at least 1"),
        ({"caption_noise": 0.1}, "caption_noise is 0.1, and epoch_steps reads the training split as a stream"),
        ({"cache_states": True, "freeze_vision": True}, "cache_states is True, and epoch_steps"),
        ({"vision_config": REGIONS, "image_processor": None}, "expected none for precomputed regions"),
    ],
)
def test_what_a_stream_cannot_do(fields, options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{**fields, **options})


def test_sources_that_are_no_streams(fields, tmp_path):
    with pytest.raises(ValueError, match="load_scenes.* has no option 'streaming'"):
        run(tmp_path / "run", **tiny_recipe(epoch_steps=2))
    options = {**fields["data_options"], "max_images": 3}
    with pytest.raises(ValueError, match="data_options has max_images, which loads them"):
        run(tmp_path / "run", **{**fields, "data_options": options})
    assert not (tmp_path / "run").exists()


def test_a_stream_without_images(fields):
    empty = Dataset.from_dict({"captions": [["a cat"]]}).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(ValueError, match="has no image; expected some"):
        vocabulary_captions(empty, Recipe(**fields))
    stream = stream_of(fields)
    stream.rows = empty
    with pytest.raises(ValueError, match="no image for a process"):
        next(stream._all_pairs())


def test_a_picture_that_cannot_be_read(fields):
    stream = stream_of(fields)
    pair = {"image": {"bytes": b"nothing", "path": None}, "image_id": "7.jpg", "caption": "a cat"}
    with pytest.raises(ValueError, match="Image '7.jpg' of the stream cannot be read"):
        stream.inputs[[pair]]
    assert streams._number("a") == streams._number("a") != streams._number("b")
