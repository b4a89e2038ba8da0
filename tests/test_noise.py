import collections
import contextlib

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from omit_hf.data import shuffle_captions
from omit_hf.data.noise import moved_captions


def split_of(counts) -> Dataset:
    captions = [[f"caption {place} of {image}" for place in range(count)] for image, count in enumerate(counts)]
    return Dataset.from_dict({"image_id": [str(n) for n in range(len(counts))], "captions": captions})


def image_of(caption: str) -> int:
    return int(caption.split()[-1])


@given(counts=st.lists(st.integers(0, 6), min_size=2, max_size=12), share=st.floats(0, 0.999), seed=st.integers(0, 99))
def test_exactly_the_share_moves_and_none_to_its_own_image(counts, share, seed):
    index = np.repeat(np.arange(len(counts)), counts)
    with contextlib.suppress(ValueError):
        source = moved_captions(index, share, seed)
        check_moves(index, source, round(share * len(index)))
        return
    # Refused where the one that has most of all could have been drawn so.
    assert 2 * min(max(counts), round(share * len(index))) > round(share * len(index))


def check_moves(index, source, number):
    assert sorted(source) == list(range(len(index)))
    moved = [n for n in range(len(index)) if source[n] != n]
    assert len(moved) == number
    assert all(index[source[n]] != index[n] for n in moved)


def test_the_tightest_case_always_finds_its_way():
    """Of two images with all captions but the last to move, each must give all of its own to the other."""
    index = np.repeat(np.arange(2), 20)
    for seed in range(50):
        source = moved_captions(index, 0.999, seed)
        assert (index[source] == 1 - index).all()


def test_the_split_keeps_its_images_and_all_captions():
    counts = [5, 5, 3, 0, 7, 5]
    split = split_of(counts)
    noisy = shuffle_captions(split, 0.4, seed=1)
    assert noisy["image_id"][:] == split["image_id"][:]
    assert [len(captions) for captions in noisy["captions"]] == counts
    before, after = (collections.Counter(each for row in rows["captions"] for each in row) for rows in (split, noisy))
    assert after == before
    strangers = [each for image, row in enumerate(noisy["captions"]) for each in row if image_of(each) != image]
    assert len(strangers) == 10
    assert shuffle_captions(split, 0.4, seed=1)["captions"][:] == noisy["captions"][:]
    assert shuffle_captions(split, 0.4, seed=2)["captions"][:] != noisy["captions"][:]
    assert shuffle_captions(split, 0.0, seed=1) is split


def test_captions_that_move_are_spread_over_the_images():
    """Captions of one image do not go to one other image together, and every place is as likely."""
    index = np.repeat(np.arange(200), 5)
    source = moved_captions(index, 0.5, seed=0)
    moved = np.flatnonzero(source != np.arange(1000))
    pairs = collections.Counter(zip(index[moved].tolist(), index[source[moved]].tolist(), strict=True))
    assert max(pairs.values()) <= 2
    assert abs(np.mean(moved < 500) - 0.5) < 0.05


def test_what_tells_of_the_captions_goes(scenes):
    noisy = shuffle_captions(scenes["train"], 0.3, seed=0)
    assert {"image", "captions", "image_id", "boxes"} <= set(noisy.column_names)
    assert not {"phrases", "relevant_captions"} & set(noisy.column_names)
    assert noisy.features["captions"] == scenes["train"].features["captions"]
    assert noisy[0]["image"] == scenes["train"][0]["image"]


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_no_share(share):
    with pytest.raises(ValueError, match="share is .*; expected a share of the captions from 0 to below 1"):
        shuffle_captions(split_of([2, 2]), share, 0)


@pytest.mark.parametrize(("counts", "share"), [([9, 1], 0.9), ([5, 5], 0.1)])
def test_captions_that_find_no_room(counts, share):
    with pytest.raises(ValueError, match=r"A share of .* find no room at others; expected more images"):
        shuffle_captions(split_of(counts), share, 0)
