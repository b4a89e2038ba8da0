"""Where a model finds the words of a sentence in a picture, and how well that meets what the words name."""

from omit_hf.alignment.scores import alignment_table, evaluate_alignment
from omit_hf.alignment.sentence import (
    EncodedPicture,
    Word,
    WordAlignment,
    align_sentence,
    encode_picture,
    word_alignment,
    words_of_tokens,
)
from omit_hf.alignment.split import AlignedPair, Aligner

__all__ = [
    "AlignedPair",
    "Aligner",
    "EncodedPicture",
    "Word",
    "WordAlignment",
    "align_sentence",
    "alignment_table",
    "encode_picture",
    "evaluate_alignment",
    "word_alignment",
    "words_of_tokens",
]
