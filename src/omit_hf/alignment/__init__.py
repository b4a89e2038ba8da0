"""Aligns the words of a sentence with places in a picture, and measures how well they meet what the words name."""

from omit_hf.alignment.scores import alignment_table, evaluate_alignment
from omit_hf.alignment.sentence import (
    EncodedPicture,
    WordAlignment,
    align_sentence,
    encode_picture,
    word_alignment,
)
from omit_hf.alignment.split import AlignedPair, Aligner
from omit_hf.modeling.words_omit import Word, words_of_tokens

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
