"""Text that users bring: with a byte-order mark it is as without, and UTF-16 is named."""

import json
import re

import numpy as np
import pytest
import sources

from omit_hf.data import load_image_text, read_word_vectors
from omit_hf.data.entities import read_sentences
from omit_hf.evaluation.protocols import read_cxc
from omit_hf.evaluation.protocols.coco_numbers import CocoNumbers
from omit_hf.parsing import parse_json, read_text, read_yaml, text_lines

MARK = b"\xef\xbb\xbf"
TEXTS = {".json", ".jsonl", ".txt"}


def content(data):
    return {split: (rows["captions"][:], rows["image_id"][:]) for split, rows in data.items()}


def cutouts(folder):
    return sources.cutouts(folder), {"train_size": 2, "validation_size": 1, "test_size": 1}


LAYOUTS = {
    "karpathy": sources.karpathy,
    "coco": sources.coco,
    "image_folder": sources.image_folder,
    "regions": sources.regions,
    "cutouts": cutouts,
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, kind):
    source, options = LAYOUTS[kind](tmp_path)
    expected = content(load_image_text(source, **options))
    marked = [file for file in tmp_path.rglob("*") if file.suffix in TEXTS]
    for file in marked:
        file.write_bytes(MARK + file.read_bytes())
    assert marked
    assert content(load_image_text(source, **options)) == expected


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_utf_16_is_named(tmp_path, kind, encoding):
    source, options = LAYOUTS[kind](tmp_path)
    for file in [file for file in tmp_path.rglob("*") if file.suffix in TEXTS]:
        text = file.read_bytes()
        file.write_bytes(text.decode().encode(encoding))
        with pytest.raises(
            ValueError, match=f"{re.escape(file.name)}( is no UTF-8 text, but| line 1 has a null)"
        ) as caught:
            load_image_text(source, **options)
        assert len(str(caught.value).splitlines()) <= 2  # of which one is a heading
        file.write_bytes(text)


def test_marks_within_what_others_put_together(tmp_path):
    """As `cat` leaves them; and in the text files of an archive."""
    (tmp_path / "a.txt").write_bytes(MARK + b"a\n" + MARK + b"b\n" + MARK)
    assert text_lines(tmp_path / "a.txt") == ["a\n", "b\n", ""]
    assert parse_json('\ufeff{"a": 1}') == {"a": 1}


def test_marks_in_archives(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(sources, "captions", lambda number, plain=sources.captions: ["\ufeff" + plain(number)[0]])
    folder, _ = sources.archives(tmp_path / "archives")
    expected = [[f"a {word} picture, number 0"] for word in sources.WORDS[9:12]]
    assert load_image_text(folder)["test"]["captions"][:] == expected


def test_ids_to_exclude(tmp_path):
    folder, _ = sources.image_folder(tmp_path / "data")
    (tmp_path / "bad.txt").write_bytes(MARK + b"train/0.png\r\n")
    assert len(load_image_text(folder, exclude=tmp_path / "bad.txt")["train"]) == 5
    (tmp_path / "bad.txt").write_text("train/0.png\n", encoding="utf-16")
    with pytest.raises(ValueError, match="bad.txt is no UTF-8 text, but UTF-16. Save it anew as UTF-8"):
        load_image_text(folder, exclude=tmp_path / "bad.txt")


@pytest.mark.parametrize("text", ["red 1 2 3\nstar 4 5 6\n", "2 3\nred 1 2 3\nstar 4 5 6\n"])
def test_word_vectors(tmp_path, text):
    (tmp_path / "vectors.txt").write_bytes(MARK + text.encode())
    read = read_word_vectors(tmp_path / "vectors.txt", {"red": 1, "star": 2}, 3)
    assert read.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    for encoding, message in (("utf-16", "is no UTF-8 text, but UTF-16"), ("utf-16-le", "line 1 has a null byte")):
        (tmp_path / "vectors.txt").write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=f"vectors.txt {message}"):
            read_word_vectors(tmp_path / "vectors.txt", {"red": 1}, 3)


def test_sentences_of_entities(tmp_path):
    (tmp_path / "1.txt").write_bytes(MARK + b"[/EN#1/people A man] runs\n")
    assert read_sentences(tmp_path / "1.txt") == [("A man runs", [(0, 5, "1")])]


def test_crisscrossed_captions(tmp_path):
    numbers = CocoNumbers(np.array([1]), np.array([7]), np.array([0]), np.array([0]), frozenset(), 1)
    text = b"caption,image,agg_score,sampling_method\n7,COCO_val2014_000000000001.jpg,5,c2i_original\n"
    (tmp_path / "sits_test.csv").write_bytes(MARK + text)
    assert read_cxc(tmp_path, numbers, ["i2t"])["i2t"][0].tolist() == [0]
    (tmp_path / "sits_test.csv").write_bytes(text.decode().encode("utf-16"))
    with pytest.raises(ValueError, match="sits_test.csv is no UTF-8 text, but UTF-16"):
        read_cxc(tmp_path, numbers, ["i2t"])
    (tmp_path / "sits_test.csv").write_bytes(text + b"1" * 200_000)
    with pytest.raises(ValueError, match="sits_test.csv is no CSV: line .*field larger than field limit"):
        read_cxc(tmp_path, numbers, ["i2t"])


def test_other_bytes(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\ncaf\xe9")
    with pytest.raises(ValueError, match="a.txt is no UTF-8 text: line 2 has the byte 0xe9. Save it anew as UTF-8"):
        read_text(tmp_path / "a.txt")
    (tmp_path / "a.yaml").write_bytes("a: 1".encode("utf-16"))
    with pytest.raises(ValueError, match="a.yaml is no UTF-8 text, but UTF-16"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("split", [[[]] * 2, {"a": 1}, 3, None])
def test_a_split_that_is_no_text(tmp_path, split):
    file, options = sources.karpathy(tmp_path)
    entries = json.loads(file.read_text())
    entries["images"][0]["split"] = split
    file.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"has 1 problem:\n  images\[0\]: split .*, expected one of train, restval"):
        load_image_text(file, **options)
