"""Noisy correspondence: training captions that belong to other images."""

import numpy as np
from datasets import Dataset, List, Value

# Columns that tell of a row's own captions, and would be wrong of others.
OF_CAPTIONS = ("phrases", "relevant_captions")


def shuffle_captions(split: Dataset, share: float, seed: int) -> Dataset:
    """Give a share of a split's captions to other images, chosen at random.

    Every image keeps its number of captions, and every caption is still there once. Exactly round(share · N) of the N
    captions move, each of them to an image that is not its own. The same split, share and seed give the same captions.

    Args:
        split: split in the schema of `omit_hf.data`.
        share: share of the captions to move, from 0 to below 1.
        seed: seed of the choice and the order.

    Returns:
        The split with its captions moved, without `phrases` and `relevant_captions`; at a share of 0 the split itself.

    Raises:
        ValueError: if the share is out of range, or one image has so many captions that some of them must stay.

    Source: Huang et al., *Learning with Noisy Correspondence for Cross-modal Matching* (NeurIPS 2021).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected a share of the captions from 0 to below 1.")
    if share == 0:
        return split
    counts = [len(captions) for captions in split["captions"]]
    captions = [caption for captions in split["captions"] for caption in captions]
    noisy = (captions[number] for number in moved_captions(np.repeat(np.arange(len(counts)), counts), share, seed))
    rows = [[next(noisy) for _ in range(count)] for count in counts]
    split = split.remove_columns([name for name in ("captions", *OF_CAPTIONS) if name in split.column_names])
    return split.add_column("captions", rows, feature=List(Value("string")))


def moved_captions(caption_image_index: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose the caption that takes the place of every caption, int64 [N]; see `shuffle_captions`.

    Args:
        caption_image_index: the image of every caption, integers [N].
    """
    image, random = np.asarray(caption_image_index), np.random.default_rng(seed)
    number = round(share * len(image))
    places = np.sort(random.choice(len(image), number, replace=False))
    most = np.bincount(image[places]).max(initial=0)
    if 2 * most > number:
        raise ValueError(
            f"A share of {share} of {len(image)} captions is {number} to move, of which {most} are of one image and "
            "find no room at others; expected more images, or another share."
        )
    taken = places[random.permutation(number)]
    for at in np.flatnonzero(image[taken] == image[places]):
        own = image[places[at]]
        if image[taken[at]] == own:  # not mended yet by an exchange with an earlier one
            # Some place is free: since 2 · most ≤ number, one of another image holds a caption of another image.
            other = random.choice(np.flatnonzero((image[places] != own) & (image[taken] != own)))
            taken[[at, other]] = taken[[other, at]]
    source = np.arange(len(image))
    source[places] = taken
    return source
