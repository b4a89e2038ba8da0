import re

import pytest
import torch

from omit_hf.data import read_word_vectors

WORDS = {"red": 2, "circle": 3, "star": 4, "naïve": 5}
GLOVE = "the 0.1 0.2 0.3\nred 1 2 3\n. . . 9 9 9\nstar -1e-1 .5 2\nnaïve 7 8 9\nred 0 0 0\n"


def written(folder, text, name="vectors.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [GLOVE, f"6 3\n{GLOVE}", "6 3\n" + GLOVE.replace("\n", " \n"), GLOVE.replace("\n", "\r\n"), GLOVE.rstrip()],
    ids=["glove", "word2vec", "fasttext", "windows", "no-last-newline"],
)
def test_every_form(tmp_path, text):
    read = read_word_vectors(written(tmp_path, text), WORDS, 3)
    vectors = dict(zip(read.ids.tolist(), read.vectors.tolist(), strict=True))
    assert vectors == {2: [1, 2, 3], 4: pytest.approx([-0.1, 0.5, 2]), 5: [7, 8, 9]}
    assert read.vectors.dtype == torch.float32
    assert read.missing == ["circle"]
    assert read.coverage == 0.75


def test_words_that_hold_spaces(tmp_path):
    read = read_word_vectors(written(tmp_path, GLOVE), {". . .": 1}, 3)
    assert read.vectors.tolist() == [[9, 9, 9]]


def test_only_the_vocabulary_is_kept(tmp_path):
    """What other words have for numbers is not even looked at."""
    text = "".join(f"word{n} x y z\n" for n in range(1000))
    assert read_word_vectors(written(tmp_path, text + "red 1 2 3\n"), WORDS, 3).ids.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red 1 2\n", "vectors.txt have 2 numbers a word; expected 3, the embedding_size of text_config"),
        ("1 300\nred 1 2 3\n", "have 300 numbers a word; expected 3"),
        ("", "has none of the vocabulary's 4 words, such as red, circle, star"),
        ("blue 1 2 3\n", "has none of the vocabulary's 4 words"),
        ("red 1 2 3\nstar 1 2\n", "line 2: 2 numbers after the word; expected 3. Is the file cut off"),
        ("red 1 two 3\n", "line 1: could not convert .*two.*; expected 3 numbers after the word"),
        ("red 1 nan 3\n", "line 1: the vector of 'red' is not finite"),
        ("3 3\nred 1 2 3\n", "has 1 words, and its first line tells of 3"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_word_vectors(written(tmp_path, text), WORDS, 3)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"No word vectors at {tmp_path / 'glove.txt'}")):
        read_word_vectors(tmp_path / "glove.txt", WORDS, 3)


def test_a_binary_file(tmp_path):
    (tmp_path / "vectors.bin").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(ValueError, match="numbers"):
        read_word_vectors(tmp_path / "vectors.bin", WORDS, 3)


@pytest.mark.parametrize("text", ["x" * 100_000, "a" + "\u0301" * 5000, "\x1b[2J"])
def test_what_is_no_number_is_cut(tmp_path, text):
    (tmp_path / "vectors.txt").write_text(f"red 1 2 3\nstar 4 {text} 6\n")
    with pytest.raises(ValueError, match="vectors.txt, line 2: could not convert string to float: ") as caught:
        read_word_vectors(tmp_path / "vectors.txt", {"red": 1, "star": 2}, 3)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_first_line_of_any_length(tmp_path):
    (tmp_path / "vectors.txt").write_text(f"{'1' * 5000} 3\nred 1 2 3\n")
    with pytest.raises(ValueError, match="vectors.txt have 1 numbers a word; expected 3"):
        read_word_vectors(tmp_path / "vectors.txt", {"red": 1}, 3)
