"""MaxSim, CHAN and SCAN against plain loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import softmax
from samples import SIDES, features, head_of, item

from omit_hf.kernels.tiled import problem as tiles
from omit_hf.modeling import OmitFeatures


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


LATE_INTERACTION = ["maxsim", "chan"]
BACKENDS = [*[(name, "auto") for name in ORACLES], *[(name, "reference") for name in LATE_INTERACTION]]


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
@settings(max_examples=settings.default.max_examples // 4)
@given(**SIDES, padding=st.integers(1, 3))
def test_score_is_that_of_a_double_loop(name, backend, seed, image_counts, text_counts, padding):
    image, text = features(seed, image_counts, padding), features(seed + 1, text_counts, padding)
    similarity = head_of(name, backend=backend)(image, text)
    for i, regions in enumerate(image_counts):
        for t, words in enumerate(text_counts):
            expected = ORACLES[name](item(image, i), item(text, t)) if regions and words else 0
            assert similarity[i, t].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_pictures_without_a_slot_for_a_region(name, backend):
    image, text = features(1, [0, 0], padding=0), features(2, [3, 0, 1])
    head = head_of(name, backend=backend)
    score = head(image, text)
    assert score.shape == (2, 3)
    assert (score == 0).all()
    assert head.match(image, text).alignment.shape == (2, 3, 0, 3)


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_gradients(name, backend):
    head, image, text = head_of(name, backend=backend), features(1, [3, 2], 1), features(2, [2, 1], 1)

    def score(image_embeds, text_embeds):
        image.embeds, text.embeds = (
            image_embeds * image.mask[..., None],  # padding is zero, as the model makes it
            text_embeds * text.mask[..., None],
        )
        return head(image, text)

    inputs = (image.embeds.clone().requires_grad_(), text.embeds.clone().requires_grad_())
    assert torch.autograd.gradcheck(score, inputs)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", LATE_INTERACTION)
def test_tiles_of_the_cpu_are_the_reference(name, sparse, monkeypatch):
    """With tiles that all end unevenly, a region that stands twice, and few pairs or all with a gradient."""
    monkeypatch.setattr(tiles, "IMAGES_PER_BLOCK", 3)
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 150)
    monkeypatch.setattr(tiles, "PRODUCT_ENTRIES", 400)
    monkeypatch.setattr(tiles, "GATHERED_ENTRIES", 700)
    image, text = features(1, [5, 3, 5, 4, 0, 2, 5], 1), features(2, [4, 4, 4, 1, 7, 4, 4, 0, 4, 6, 6], 1)
    image.mask[0, :2] = True
    image.embeds[0, 1] = image.embeds[0, 0] = text.embeds[4, 0]
    weights = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if sparse:
        weights[torch.rand(7, 11, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    found = []
    for backend in ("cpu", "reference"):
        sides = [side.embeds.detach().clone().requires_grad_() for side in (image, text)]
        score = head_of(name, backend=backend)(
            *(OmitFeatures(embeds=rows, mask=side.mask) for rows, side in zip(sides, (image, text), strict=True))
        )
        found.append((score.detach(), *torch.autograd.grad((score * weights).sum(), sides)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", LATE_INTERACTION)
def test_a_reduced_product_is_close(name):
    image, text = features(1, [6, 4, 5], dtype=torch.float32), features(2, [5, 3, 2, 7], dtype=torch.float32)
    expected = head_of(name).float().tiled_similarity(image, text)
    for matmul_dtype, bound in (("bfloat16", 4e-3), ("int8", 1e-2)):
        score = head_of(name).float().tiled_similarity(image, text, matmul_dtype=matmul_dtype)
        assert 0 < (score - expected).abs().max() < bound
    with pytest.raises(
        ValueError, match="matmul_dtype 'int8' is for the backends 'cpu' and 'numba' of omit_hf.kernels on a CPU"
    ):
        head_of(name, backend="reference").tiled_similarity(image, text, matmul_dtype="int8")
    with pytest.raises(
        ValueError, match="matmul_dtype is 'int8', which heads that transport and late interaction take"
    ):
        head_of("mean").tiled_similarity(image, text, matmul_dtype="int8")


@pytest.mark.parametrize("name", LATE_INTERACTION)
def test_alignment_is_the_gradient_of_the_score_by_the_similarities(name):
    """Which is what it means that a pair of fragments has a share of the score."""
    image, text = features(1, [4]), features(2, [3])
    image.embeds, text.embeds = torch.eye(4, dtype=torch.float64)[None], torch.rand(1, 3, 4, dtype=torch.float64)
    text.embeds.requires_grad_()  # word l holds its similarity to region k as its k-th entry
    head_of(name)(image, text).sum().backward()
    torch.testing.assert_close(head_of(name).match(image, text).alignment[0, 0].detach(), text.embeds.grad[0].T)


def test_chan_grows_with_the_number_of_words():
    image, text = features(1, [4]), features(2, [1])
    doubled = features(2, [1])
    for name in ("embeds", "mask", "norms"):
        doubled[name] = torch.cat([doubled[name], doubled[name]], dim=1)
    difference = head_of("chan")(image, doubled) - head_of("chan")(image, text)
    assert difference.item() == pytest.approx(0.1 * math.log(2))
