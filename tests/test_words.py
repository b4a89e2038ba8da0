import json
import time

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from omit_hf.data import build_word_tokenizer
from omit_hf.data.augmentation import words_of
from omit_hf.data.words import count_words, word_spans
from omit_hf.modeling.words_omit import SEGMENTS

WORDS = {  # of a caption, as it spells them
    "a well-known café.": ["a", "well", "known", "café"],
    "cafe\u0301 noir": ["cafe\u0301", "noir"],
    "كِتَابٌ جَمِيلٌ": ["كِتَابٌ", "جَمِيلٌ"],  # with vowel marks
    "வணக்கம் உலகம்": ["வணக்கம்", "உலகம்"],
    "नमस्ते क्\u200dष": ["नमस्ते", "क्\u200dष"],  # with virama and joiner
    "שָׁלוֹם עוֹלָם": ["שָׁלוֹם", "עוֹלָם"],
    "don't don\u2019t l'été l\u2019été": ["don't", "don\u2019t", "l'été", "l\u2019été"],
    "the U.S. 3.5 1,000 e.g.": ["the", "U.S", "3.5", "1,000", "e.g"],
    "rock 'n' roll students' 'tis": ["rock", "n", "roll", "students", "tis"],
    "👩\u200d👩\u200d👧 and 👍🏽👍 🇫🇷🇩🇪": ["👩\u200d👩\u200d👧", "and", "👍🏽", "👍", "🇫🇷", "🇩🇪"],
    "สวัสดี": ["ส", "วั", "ส", "ดี"],
    "カタカナの日本語": ["カタカナ", "の", "日", "本", "語"],
    "我爱北京red star": ["我", "爱", "北", "京", "red", "star"],
    "안녕하세요 세계": ["안녕하세요", "세계"],
    "co\u00adoperate zero\u200bwidth \u200f\u200e x": ["co\u00adoperate", "zero", "width", "x"],
    "  a \t\n b\u00a0c  ": ["a", "b", "c"],
    "C++, $5 & 100 % -- (#tag) __ ... !": ["C", "5", "100", "tag"],
    " \u0301 \u200d ": [],
}


@pytest.mark.parametrize("caption", WORDS)
def test_words(caption):
    assert [caption[start:stop] for start, stop in word_spans(caption)] == WORDS[caption]


def boundaries_of_another_library(text: str) -> set[int]:
    return {0, *(found.start() for found in regex.finditer(r"(?w)\b", text))} - {len(text)}


@given(
    st.text(
        alphabet=st.sampled_from("aé'’.,:_3-\u05d0\"カ漢ส한\u0301\u064b\u0bcd\u093f\n \u00ad\u200b\u200e👩🏽"),
        max_size=12,
    )
)
def test_boundaries_are_those_of_another_library(text):
    assert {start for _, (start, _) in SEGMENTS.pre_tokenize_str(text)} == boundaries_of_another_library(text)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_the_tokenizer_knows_every_word_of_its_captions(captions):
    captions = [*captions, "star"]
    tokenizer = build_word_tokenizer(captions)
    words = words_of(captions)
    assert {"<pad>", "<unk>", *words} == set(tokenizer.get_vocab())
    for word in words:
        assert tokenizer(word)["input_ids"] == [tokenizer.get_vocab()[word]]
    for caption in captions:
        assert tokenizer.unk_token_id not in tokenizer(caption)["input_ids"]


def test_spellings_of_one_word_are_one():
    assert count_words(["cafe\u0301 CAFÉ", "café cafe\u0301", "co\u00adop coop \u200fcoop", "Ａ a"]) == {
        "café": 4,
        "coop": 3,
        "a": 2,
    }


def test_a_tokenizer_of_older_captions_loads(tmp_path):
    """Before, words were parted by blanks and punctuation; a saved tokenizer keeps its own rules."""
    build_word_tokenizer(["a man's café"]).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    old = [{"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Removed"}]
    saved["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": old}
    saved["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    saved["model"]["vocab"] = {"<pad>": 0, "<unk>": 1, "a": 2, "man": 3, "s": 4, "café": 5}
    file.write_text(json.dumps(saved))
    tokenizer = type(build_word_tokenizer(["a"])).from_pretrained(tmp_path)
    assert tokenizer("A man's café.")["input_ids"] == [2, 3, 4, 5]


@pytest.mark.parametrize("before", ["", "a", "\u0301", "\U0001f1e9\u0301"])
@pytest.mark.parametrize("after", ["", " b", "\U0001f1e9", "\u0301", "\U0001f1e9\u0301\U0001f1ea"])
def test_rows_of_flags(before, after):
    """Of any length they are split as short ones are, in a time that grows with their length."""
    flag = "\U0001f1e9\U0001f1ea"
    plain = pre_tokenizers.Split(Regex(r"(?y{w})\X"), "isolated")
    for count in range(6):
        text = f"{before}{flag * count}{after}"
        assert SEGMENTS.pre_tokenize_str(text) == plain.pre_tokenize_str(text)
    began = time.process_time()
    found = SEGMENTS.pre_tokenize_str(f"{before}{flag * 50_000}{after}")
    assert time.process_time() - began < 5  # a minute, when each of them counted all before it
    assert len(found) in range(49_999, 50_004)
    assert {text for text, _ in found[2:-4]} == {flag}
