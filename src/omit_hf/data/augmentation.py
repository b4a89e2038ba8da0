"""Augmentation of training pairs: words perturbed, pictures cropped and flipped.

All randomness is a function of (seed, epoch, pair), so that a resumed run, or one with other worker processes, sees the
same pairs to the bit.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from omit_hf.data.words import count_words, word_spans

MASKED, REPLACED = 0.5, 0.1  # shares of the perturbed words; the rest is deleted
ASPECT_RATIOS = 3 / 4, 4 / 3  # of a crop, relative to its picture's
WORDS, PICTURES = range(2)  # streams of randomness, so that one augmentation does not change the other


@dataclass
class Augmentation:
    """Augments the pairs of an epoch.

    Args:
        words: share of a caption's words that is perturbed: half of these are masked, a tenth replaced by a random word
            of the vocabulary, and the rest deleted.
        crop: smallest share of a picture's area that a random crop keeps, before it is resized to the picture's size; 1
            for no crop.
        flip: mirror every other picture, at random.
        mask: token for a masked word.
        vocabulary: words that may replace another one.
        seed: seed of the run.
        epoch: epoch from 0; set it before every epoch.
    """

    words: float = 0.0
    crop: float = 1.0
    flip: bool = False
    mask: str = ""
    vocabulary: Sequence[str] = field(default=(), repr=False)
    seed: int = 0
    epoch: int = 0

    def caption(self, caption: str, pair: int) -> str:
        """Augment the caption of a pair for this epoch."""
        if not self.words:
            return caption
        return perturb_words(caption, self.words, self.mask, self.vocabulary, self._generator(WORDS, pair))

    def picture(self, picture: Image.Image, pair: int) -> Image.Image:
        """Augment the picture of a pair for this epoch; its size stays."""
        random = self._generator(PICTURES, pair)
        if self.crop < 1:
            box = crop_box(picture.size, self.crop, random)
            picture = picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)
        if self.flip and random.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return picture

    def _generator(self, stream: int, pair: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, int(pair), stream])


def perturb_words(caption: str, share: float, mask: str, vocabulary: Sequence[str], random: np.random.Generator) -> str:
    """Mask, replace or delete each word with a probability, a deleted one with the blanks before it; at least one word
    is left."""
    changed, end, left = "", 0, 0
    for start, stop in word_spans(caption):
        chance, between = random.random() / share, caption[end:start]
        if chance < MASKED:
            word = mask
        elif chance < MASKED + REPLACED:
            word = vocabulary[random.integers(len(vocabulary))]
        else:
            word = caption[start:stop] if chance >= 1 else ""
        changed += between + word if word else between.rstrip()
        end, left = stop, left + bool(word)
    return " ".join((changed + caption[end:]).split()) if left else caption


def crop_box(size: tuple[int, int], smallest: float, random: np.random.Generator) -> tuple[float, float, float, float]:
    """Choose a random part of a picture: its area uniform from the smallest share to all, its shape near the whole's.

    Returns:
        Left, upper, right and lower edge, in pixels.
    """
    area = random.uniform(smallest, 1)
    shape = np.exp(random.uniform(*np.log(ASPECT_RATIOS)) / 2)
    sides = [min(1.0, np.sqrt(area) * shape), min(1.0, np.sqrt(area) / shape)]
    starts = [random.uniform(0, 1 - side) for side in sides]
    (left, upper), (right, lower) = starts, (start + side for start, side in zip(starts, sides, strict=True))
    return left * size[0], upper * size[1], right * size[0], lower * size[1]


def mask_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find the token for a masked word: the tokenizer's mask, or else its unknown word.

    Raises:
        ValueError: if it has neither. (CLIP's unknown word is its end of text.)
    """
    if tokenizer.mask_token is not None:
        return tokenizer.mask_token
    if tokenizer.unk_token is not None and tokenizer.unk_token not in (tokenizer.eos_token, tokenizer.pad_token):
        return tokenizer.unk_token
    raise ValueError(
        f"word_augmentation needs a token for masked words, and {type(tokenizer).__name__} has neither a mask token "
        "nor an unknown word that is not its end of text; set word_augmentation to 0."
    )


def words_of(captions: Iterable[str]) -> list[str]:
    """List the distinct words of some captions, as the word tokenizer splits them, in alphabetical order."""
    return sorted(count_words(captions))
