"""Words: where they begin in a text, by Unicode's rules (UAX 29), and which tokens make each."""

import itertools
import string
import unicodedata
from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers
from torch import Tensor

SEGMENTS = pre_tokenizers.Split(Regex(r"\p{RI}{2}(?=\p{RI})|(?y{w})\X"), "isolated")  # rows of flags; Oniguruma's words
UNSEEN = ("Cc", "Cf", "Zs")  # categories of blanks, controls and marks of direction


class Word(NamedTuple):
    """A word of a sentence, and the places of its tokens among those of the sentence."""

    text: str
    tokens: list[int]
    known: bool


def words_of_tokens(tokenizer, sentence: str, input_ids: Tensor, valid: Tensor) -> list[Word]:
    """Merge those tokens of a sentence, `input_ids` [L], that are `valid`, bool [L], into words.

    Successive tokens make one word where no word boundary of UAX 29 parts them, or punctuation alone meets: "..." is a
    word. A token is never split. One of blanks alone belongs to the word after it, or at the end to the one before.
    """
    text, spans = _spans(tokenizer, sentence, input_ids)
    boundaries = {start for _, (start, _) in SEGMENTS.pre_tokenize_str(text)} | {len(text)}
    words, blanks, begin, end = [], [], 0, 0
    for place in valid.nonzero()[:, 0].tolist():
        token, (start, stop) = input_ids[place].item(), spans[place]
        written = text[start:stop].lstrip()
        start = stop - len(written)
        unknown = token == tokenizer.unk_token_id
        special = not written and not unknown and tokenizer.is_fast and token in tokenizer.all_special_ids
        follows = bool(words) and words[-1].tokens[-1] == place - 1 and not special
        if follows and not boundaries.isdisjoint(range(end, start + 1)):
            follows = start == end and _is_punctuation(text[end - 1 : end]) and _is_punctuation(written[:1])
        if not (follows or special) and all(unicodedata.category(each) in UNSEEN for each in written):
            blanks.append(place)
            continue
        last = words.pop() if follows else Word("", [], True)
        begin, end = (begin, max(end, stop)) if follows else (start, stop)
        while end not in boundaries:  # accents and the like, for which the tokenizer may have no token
            end += 1
        name = tokenizer.convert_ids_to_tokens(token) if special else text[begin:end]
        words.append(Word(name, [*last.tokens, *blanks, place], last.known and not unknown))
        blanks = []
    if words:
        words[-1].tokens.extend(blanks)
    return words


def _is_punctuation(character: str) -> bool:
    return character != "" and (character in string.punctuation or unicodedata.category(character)[0] == "P")


def _spans(tokenizer, sentence: str, input_ids: Tensor) -> tuple[str, list[tuple[int, int]]]:
    """A text, and where in it each token begins and ends."""
    if tokenizer.is_fast:
        encoding = tokenizer(sentence, truncation=True, return_offsets_mapping=True)  # a length would stay in its state
        count = len(encoding["input_ids"])
        before = 0 if tokenizer.padding_side == "right" else max(0, len(input_ids) - count)
        if encoding["input_ids"] != input_ids[before : before + count].tolist():
            raise ValueError(f"input_ids is not what {type(tokenizer).__name__} makes of {sentence!r}; expected that.")
        return sentence, [(0, 0)] * before + encoding["offset_mapping"] + [(0, 0)] * (len(input_ids) - before - count)
    # Without offsets, the text is what the tokens spell. Of these tokenizers SentencePiece's mark where a word begins.
    tokens = tokenizer.convert_ids_to_tokens(input_ids.tolist())
    marked = any(token.startswith("▁") for token in tokens)
    spelled = [token.replace("▁", " ") if marked else f" {token}" for token in tokens]
    return "".join(spelled), list(itertools.pairwise([0, *itertools.accumulate(map(len, spelled))]))
