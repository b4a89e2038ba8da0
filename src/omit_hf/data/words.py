"""The words of captions, by Unicode's word boundaries (UAX 29), for vocabularies, augmentation and counts.

A stretch between two boundaries is a word where it holds more than blanks, punctuation and accents: "don't", "3.5",
"café" and 👍 are words, and so is each character of a script that writes no blanks, such as Chinese or Thai.
"""

import collections
from collections.abc import Iterable

from tokenizers import Regex, normalizers, pre_tokenizers

from omit_hf.modeling.words_omit import SEGMENTS

# Soft hyphens, marks of direction and the like, which make no other word of one. Joiners do, in Persian and in emoji.
INVISIBLE = r"[\x{ad}\x{61c}\x{200e}\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{2069}\x{feff}]"
NORMALIZER = normalizers.Sequence(
    [normalizers.Replace(Regex(INVISIBLE), ""), normalizers.NFKC(), normalizers.Lowercase()]
)
OTHERS = pre_tokenizers.Split(Regex(r"\A[\p{Z}\p{Cc}\p{Cf}\p{M}\p{P}$+<=>^`|~]+\z"), "removed")
SPLITTER = pre_tokenizers.Sequence([SEGMENTS, OTHERS])


def word_spans(caption: str) -> list[tuple[int, int]]:
    """Find where the words of a caption begin and end, in characters.

    Example:
        >>> word_spans("a well-known star.")
        [(0, 1), (2, 6), (7, 12), (13, 17)]
    """
    return [span for _, span in SPLITTER.pre_tokenize_str(caption)]


def count_words(captions: Iterable[str]) -> collections.Counter:
    """Count the words of some captions, in lower case and Unicode's form NFKC."""
    return collections.Counter(
        word for caption in captions for word, _ in SPLITTER.pre_tokenize_str(NORMALIZER.normalize_str(caption))
    )
