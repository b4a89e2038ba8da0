import tarfile

import pytest
import sources

from omit_hf.data import load_image_text


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
