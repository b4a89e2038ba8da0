import io
import json
import tarfile

import pytest
import sources
from datasets import Dataset, IterableDatasetDict

from omit_hf.data import DataError, load_image_text
from omit_hf.data.schema import FEATURES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def by_key(split, number):
    place = number - sources.NUMBERS[split][0]
    half = sources.SIZES[split] // 2
    return f"{split}-{place // half:05d}/{place % half:04d}" if place < 2 * half else f"{split}-00001/0001"


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_captions_in_text_or_json(tmp_path, ending):
    folder, options = sources.archives(tmp_path / "archives", ending)
    sources.expect(load_image_text(folder, **options), by_key)


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_archives_may_be_streamed(tmp_path, ending):
    """Nothing is copied, and what comes is what is loaded otherwise."""
    folder, options = sources.archives(tmp_path / "archives", ending)
    streams = load_image_text(folder, streaming=True, **options)
    assert isinstance(streams, IterableDatasetDict)
    found = {split: Dataset.from_list(list(stream), features=FEATURES) for split, stream in streams.items()}
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    sources.expect(found, by_key)
    assert list(load_image_text(folder, streaming=True, only=["test"], **options)) == ["test"]


def test_fields_of_streamed_json_may_lie_deep(tmp_path):
    (tmp_path / "data").mkdir()
    texts = {"about": {"language": "en", "texts": {"all": ["a red cube", "a cube"]}}, "size": None}
    content = json.dumps(texts).encode()
    add(tmp_path / "data" / "train-0.tar", ("7.png", sources.png(0)), ("7.json", content))
    options = {"columns": {"captions": "json.about.texts.all"}, "captions_as": "list"}
    loaded = load_image_text(tmp_path / "data", **options)["train"]
    [streamed] = load_image_text(tmp_path / "data", streaming=True, **options)["train"]
    assert streamed["captions"] == loaded[0]["captions"] == ["a red cube", "a cube"]


def test_a_stream_tells_of_a_sample_when_it_comes(tmp_path):
    folder, _ = sources.archives(tmp_path / "archives")
    add(folder / "train-00001.tar", ("9000.png", sources.png(0)), ("9001.txt", b"text"))
    with pytest.raises(ValueError, match="split 'train' row 6: None is no text"):
        list(load_image_text(folder, streaming=True)["train"])
    with pytest.raises(ValueError, match=r"no column json\.text; it has .*txt"):
        load_image_text(folder, streaming=True, columns={"captions": "json.text"})


def add(archive, *files):
    with tarfile.open(archive, "a") as out:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, sources.io.BytesIO(content))


def test_every_problem_is_listed(tmp_path):
    folder, _ = sources.archives(tmp_path / "archives")
    add(folder / "train-00001.tar", ("9000.png", sources.png(0)), ("9001.txt", b"text"))
    add(folder / "test-00001.tar", ("9000.png", sources.png(0)), ("9000.txt", b"\n"))
    with pytest.raises(ValueError, match="has 3 problems") as caught:
        load_image_text(folder)
    for problem in (
        "split 'train' row 6: None is no text",
        "split 'train' row 7: no bytes in png",
        "split 'test' row 3: no caption, or an empty one",
    ):
        assert problem in str(caught.value)


def test_a_damaged_archive(tmp_path):
    folder, _ = sources.archives(tmp_path / "archives")
    content = (folder / "train-00001.tar").read_bytes()
    (folder / "train-00001.tar").write_bytes(content[:700])
    with pytest.raises(ValueError, match="An archive in .* cannot be read"):
        load_image_text(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"captions": "json.text"}}, "no column json.text; it has .*txt"),
        ({"columns": {"image": "jpg"}}, "no column jpg; it has .*png"),
        ({"columns": {"image_id": "json.id"}}, "it is the archive's name and the key"),
        ({"captions_as": "text"}, "expected 'lines'"),
        ({"captions_as": "list"}, "'a .* is no list; captions_as says what it is"),
        ({"splits": {"train": "training"}}, "splits names training; the source has test, train, validation"),
    ],
)
def test_a_mapping_that_does_not_fit(tmp_path, options, message):
    folder, _ = sources.archives(tmp_path / "archives")
    with pytest.raises(ValueError, match=message):
        load_image_text(folder, **options)


def test_pictures_of_two_endings(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for split in sources.SIZES:
        files = [("1.png", sources.png(0)), ("1.thumb.png", sources.png(1)), ("1.txt", b"a")]
        add(folder / f"{split}-0.tar", *files)
    with pytest.raises(ValueError, match=r"hold .*png, thumb.png, txt.*expected pictures of one ending"):
        load_image_text(folder)
    assert load_image_text(folder, columns={"image": "thumb.png"})["test"]["image_id"][:] == ["test-0/1"]


def test_a_name_that_tells_no_split(tmp_path):
    folder, _ = sources.archives(tmp_path / "archives")
    (folder / "train-00001.tar").rename(folder / "00001.tar")
    with pytest.raises(ValueError, match=r"00001.tar tells no split; expected a name that begins with one of train"):
        load_image_text(folder)


# --- samples that are not alike ---------------------------------------------------------------------------------------


def pack(folder, *samples, name="train-0.tar"):
    folder.mkdir(exist_ok=True)
    add(folder / name, *[(f"{key:04d}.{ending}", text) for key, each in enumerate(samples) for ending, text in each])
    return folder


PNG = ("png", sources.png(0))
GOOD = [PNG, ("txt", b"a")]


@pytest.mark.parametrize("place", [1, 4, 6])
@pytest.mark.parametrize("odd", [[PNG], [PNG, ("txt", b"a"), ("json", b"{}")], [("txt", b"a")]])
def test_a_sample_of_other_files(tmp_path, place, odd):
    """Within the first five `datasets` raises an error that names none; beyond them the rows tell."""
    samples = [odd if number == place else GOOD for number in range(8)]
    if place == 6 and len(odd) == 3:  # a file more than is needed, which nobody reads
        assert len(load_image_text(pack(tmp_path / "archives", *samples))["train"]) == 8
        return
    message = f"train-0.tar sample {place:04d} has .*; expected png, txt, as most have" if place < 5 else "row 6: "
    with pytest.raises(DataError, match=message) as caught:
        load_image_text(pack(tmp_path / "archives", *samples))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("place", [1, 6])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"captions": "a"}', "sample 000.: json.captions is text; expected a list of text, as most have"),
        (b'{"captions": [{"raw": "a"}]}', "json.captions is a list of an object; expected a list of text"),
        (b'{"captions": [3]}', "json.captions is a list of numbers; expected a list of text"),
        (b"{", "sample 000.: its .json is no JSON"),
        (b"[" * 10_000, r"sample 000.: its .json is no JSON \(values nested too deep\)"),
    ],
)
def test_a_sample_of_other_fields(tmp_path, place, text, message):
    samples = [[PNG, ("json", text if number == place else b'{"captions": ["a"]}')] for number in range(8)]
    with pytest.raises(DataError, match=message):
        load_image_text(
            pack(tmp_path / "archives", *samples), columns={"captions": "json.captions"}, captions_as="list"
        )


@pytest.mark.parametrize("place", [0, 6])
def test_text_that_is_no_utf8(tmp_path, place):
    samples = [[PNG, ("txt", "a".encode("utf-16") if number == place else b"a")] for number in range(8)]
    with pytest.raises(DataError, match=rf"train-0.tar sample 000{place}: its .txt is no UTF-8 text, but UTF-16"):
        load_image_text(pack(tmp_path / "archives", *samples))


def test_a_sample_without_the_field(tmp_path):
    texts = [b'{"captions": ["a"]}', b'{"caption": ["a"]}', '\ufeff{"captions": ["b"]}'.encode()]
    folder = pack(tmp_path / "archives", *[[PNG, ("json", text)] for text in texts])
    with pytest.raises(DataError, match="has 1 problem:\n  split 'train' row 1: None is no list"):
        load_image_text(folder, columns={"captions": "json.captions"}, captions_as="list")


@pytest.mark.parametrize("content", [b"", b"no archive" * 100, b"\x1f\x8b\x08\0"])
def test_what_is_no_archive_has_one_line(tmp_path, content):
    (tmp_path / "test-0.tar").write_bytes(content)
    with pytest.raises(ValueError, match=f"An archive in {tmp_path} cannot be read: test-0.tar: ") as caught:
        load_image_text(tmp_path)
    assert str(caught.value).isprintable()


def test_a_name_twice_in_the_json_of_a_sample(tmp_path):
    folder, options = sources.archives(tmp_path, "json")
    with tarfile.open(folder / "test-00000.tar", "a") as archive:
        for name, content in (
            ("9.png", sources.png(0)),
            ("9.json", b'{"captions": ["a"], "captions": ["b"], "url": ""}'),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(
        ValueError, match="test-00000.tar sample 9: its .json is no JSON .the name captions stands twice"
    ):
        load_image_text(folder, **options)
