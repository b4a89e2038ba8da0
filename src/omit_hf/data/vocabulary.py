"""A word-level tokenizer made from captions, for the BiGRU text encoder."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from omit_hf.data.words import NORMALIZER, SPLITTER, count_words

PAD, UNKNOWN = "<pad>", "<unk>"


def build_word_tokenizer(captions: Iterable[str], min_count: int = 1, max_length: int = 64) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose tokens are the words of some captions, in lower case; see `omit_hf.data.words`.

    Args:
        captions: captions of the training split; never of other splits, or their results flatter.
        min_count: how often a word must occur to be in the vocabulary; rarer words are `<unk>`.
        max_length: greatest number of words; longer captions are cut.

    Returns:
        A fast tokenizer, which saves and loads like any other. Padding is id 0, an unknown word id 1.

    Raises:
        ValueError: if no word is left.

    Example:
        >>> tokenizer = build_word_tokenizer(["A red circle.", "a blue circle"])
        >>> tokenizer(["a red square"])["input_ids"]
        [[2, 5, 1]]
    """
    counts = count_words(captions)
    words = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    if not words:
        raise ValueError(
            f"No word occurs {min_count} times or more in the captions; expected a vocabulary of at least 1."
        )
    vocabulary = {token: number for number, token in enumerate([PAD, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = NORMALIZER, SPLITTER
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
