import pytest
from transformers import AutoTokenizer

from omit_hf.data import build_word_tokenizer

CAPTIONS = ["A red circle.", "a  blue, blue circle!", "Ａ star"]


def test_words_are_lower_case_and_the_most_frequent_come_first():
    tokenizer = build_word_tokenizer(CAPTIONS)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "a": 2, "blue": 3, "circle": 4, "red": 5, "star": 6}
    assert tokenizer(["A STAR, blue"])["input_ids"] == [[2, 6, 3]]


def test_rare_and_new_words_are_unknown():
    tokenizer = build_word_tokenizer(CAPTIONS, min_count=2)
    assert tokenizer(["a red circle, a square"])["input_ids"] == [[2, 1, 4, 2, 1]]


def test_words_are_unicodes():
    tokenizer = build_word_tokenizer(["don't cafe\u0301 كِتَابٌ 北京 👍🏽 3.5, well-known"])
    words = {"don't", "café", "كِتَابٌ", "北", "京", "👍🏽", "3.5", "well", "known"}
    assert set(tokenizer.get_vocab()) == {"<pad>", "<unk>", *words}


def test_padding_and_truncation():
    tokenizer = build_word_tokenizer(CAPTIONS, max_length=3)
    batch = tokenizer(["a red blue star", "star"], padding=True, truncation=True)
    assert batch["input_ids"] == [[2, 5, 3], [6, 0, 0]]
    assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_it_saves_and_loads_as_any_tokenizer(tmp_path):
    tokenizer = build_word_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(CAPTIONS)["input_ids"] == tokenizer(CAPTIONS)["input_ids"]
    assert (loaded.pad_token_id, loaded.model_max_length) == (0, 64)


def test_no_word_is_left():
    with pytest.raises(ValueError, match="No word occurs 4 times or more"):
        build_word_tokenizer(CAPTIONS, min_count=4)
