"""MaxSim, CHAN and SCAN against plain loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import softmax
from samples import features, head_of, item


def best_regions(image, text) -> list[float]:
    return [max(float(v @ t) for v in image["embeds"]) for t in text["embeds"]]


def maxsim(image, text) -> float:
    best = best_regions(image, text)
    return sum(best) / len(best)


def chan(image, text) -> float:
    return 0.1 * math.log(sum(math.exp(each / 0.1) for each in best_regions(image, text)))


def scan(queries, keys) -> float:
    """Stacked cross attention as its paper writes it, with the attended vectors."""
    relu = [[max(s, 0.1 * s) for s in (float(k @ q) for q in queries["embeds"])] for k in keys["embeds"]]
    normalised = [[each / math.sqrt(sum(other**2 for other in row)) for each in row] for row in relu]
    total = 0.0
    for j, query in enumerate(queries["embeds"]):
        weights = softmax([9 * row[j] for row in normalised])
        attended = sum(weight * key for weight, key in zip(weights, keys["embeds"], strict=True))
        total += float(query @ attended) / math.sqrt(float(attended @ attended))
    return total / len(queries["embeds"])


ORACLES = {
    "maxsim": maxsim,
    "chan": chan,
    "scan_t2i": lambda image, text: scan(text, image),
    "scan_i2t": lambda image, text: scan(image, text),
}


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    image_counts=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    text_counts=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    padding=st.integers(1, 3),
)
def test_score_is_that_of_a_double_loop(name, seed, image_counts, text_counts, padding):
    image, text = features(seed, image_counts, padding), features(seed + 1, text_counts, padding)
    similarity = head_of(name)(image, text)
    for i, regions in enumerate(image_counts):
        for t, words in enumerate(text_counts):
            expected = ORACLES[name](item(image, i), item(text, t)) if regions and words else 0
            assert similarity[i, t].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_gradients(name):
    head, image, text = head_of(name), features(1, [3, 2], 1), features(2, [2, 1], 1)

    def score(image_embeds, text_embeds):
        image.embeds, text.embeds = (
            image_embeds * image.mask[..., None],  # padding is zero, as the model makes it
            text_embeds * text.mask[..., None],
        )
        return head(image, text)

    inputs = (image.embeds.clone().requires_grad_(), text.embeds.clone().requires_grad_())
    assert torch.autograd.gradcheck(score, inputs)


@pytest.mark.parametrize("name", ["maxsim", "chan"])
def test_alignment_is_the_gradient_of_the_score_by_the_similarities(name):
    """Which is what it means that a pair of fragments has a share of the score."""
    image, text = features(1, [4]), features(2, [3])
    image.embeds, text.embeds = torch.eye(4, dtype=torch.float64)[None], torch.rand(1, 3, 4, dtype=torch.float64)
    text.embeds.requires_grad_()  # word l holds its similarity to region k as its k-th entry
    head_of(name)(image, text).sum().backward()
    torch.testing.assert_close(head_of(name).alignment(image, text)[0, 0].detach(), text.embeds.grad[0].T)


def test_chan_grows_with_the_number_of_words():
    image, text = features(1, [4]), features(2, [1])
    doubled = features(2, [1])
    for name in ("embeds", "mask", "norms"):
        doubled[name] = torch.cat([doubled[name], doubled[name]], dim=1)
    difference = head_of("chan")(image, doubled) - head_of("chan")(image, text)
    assert difference.item() == pytest.approx(0.1 * math.log(2))
