import errno
import os
import resource

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from omit_hf.writing import appears_when_complete, names_what_fails, remove_folder, write_atomically, write_folder


@pytest.fixture
def full_disk():
    """Stands for one: the system lets no file grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def save_tokenizer(file):
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(file))


WRITERS = {
    "python": lambda file: file.write_text("more than there is room for"),
    "torch": lambda file: torch.save(torch.rand(100_000), file),
    "torch at the end": lambda file: torch.save({"step": 1}, file),  # what is buffered, which has another message
    "safetensors": lambda file: save_file({"a": torch.rand(1000)}, file),
    "tokenizers": save_tokenizer,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_error_of_the_file(tmp_path, full_disk, writer):
    """Whichever library finds it, and nothing is left of the file."""
    file = tmp_path / "file"
    with pytest.raises(OSError, match=str(file)) as caught, appears_when_complete(file) as partial:
        WRITERS[writer](partial)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_does_not_fit(tmp_path, full_disk, writer):
    with pytest.raises(OSError, match=str(tmp_path / "folder")):
        write_folder(tmp_path / "folder", lambda folder: WRITERS[writer](folder / "file"))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (RuntimeError("a mistake"), KeyError("name"), OSError(errno.EACCES, "no", "its own file")):
        with pytest.raises(type(error)) as caught, names_what_fails(tmp_path):
            raise error
        assert caught.value is error


def test_what_is_there_stays_until_the_new_is_complete(tmp_path):
    file = tmp_path / "file.txt"
    write_atomically(file, "old")
    with pytest.raises(TypeError), appears_when_complete(file) as partial:
        partial.write_text("half of the n") + "ew"
    assert [each.name for each in tmp_path.iterdir()] == ["file.txt"]
    assert file.read_text() == "old"
    write_folder(tmp_path / "folder", lambda folder: (folder / "a").touch())
    write_folder(tmp_path / "folder", lambda folder: (folder / "b").touch())
    assert os.listdir(tmp_path / "folder") == ["b"]
    remove_folder(tmp_path / "folder")
    remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_name_that_is_no_utf_8(tmp_path):
    """As Python reads the byte 0xff of a file name; json reads the escape as the same."""
    write_atomically(tmp_path / "a.json", '"pictures/\udcff.png → λ"')
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '"pictures/\\udcff.png → λ"'
