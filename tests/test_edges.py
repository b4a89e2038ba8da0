"""What is at the edge of sense: nothing on a side, one of everything, a block and one more; and types that are none."""

import itertools
import math

import numpy as np
import pytest
import torch
from samples import ALIGNING, POOLING, features, head_of

from omit_hf import kernels, partial_sinkhorn_similarity, retrieval_metrics, sinkhorn
from omit_hf.modeling.losses_omit import info_nce_loss, triplet_loss
from omit_hf.modeling.matching_omit import topk_similarity
from omit_hf.modeling.transport_omit import BACKENDS

assert kernels  # registers the backends
SIZES = (0, 1, 2, 31, 32, 33)  # a block of the tiles holds 32
# Items of a side, regions and words; not all of them many, which would add nothing but time.
GRID = [each for each in itertools.product(SIZES, SIZES, SIZES) if each[0] * math.prod(each) <= 33**3]
WITH_BACKEND = [(name, {"backend": backend}) for name in ("omit", "ot", "maxsim") for backend in ("cpu", "numba")]
WITH_BACKEND += [(name, {"backend": "reference"}) for name in ("omit", "ot", "maxsim")]
HEADS = [*ALIGNING, *POOLING, *WITH_BACKEND]


def sides(items, regions, words, valid):
    """That many images and captions; with `valid` 0 nothing of them is, with 1/2 of every other one."""
    made = []
    for seed, slots in ((1, regions), (2, words)):
        counts = [slots if valid == 1 or (valid and number % 2) else 0 for number in range(items)]
        side = features(seed, counts or [0], 0, torch.float32, width=16)
        if side.embeds.shape[1] < slots:
            side = features(seed, counts or [0], slots - max(counts, default=0), torch.float32, width=16)
        side = side.select(slice(0, items))
        side.embeds.requires_grad_()
        side.pooled.requires_grad_()
        made.append(side)
    return made


def check(name, image, text, similarity, parameters=()):
    """A number everywhere, 0 where there is nothing to match; and a gradient that is one, 0 at padding."""
    matched = image.mask.any(1)[:, None] & text.mask.any(1)
    assert similarity.shape == (len(image.mask), len(text.mask))
    assert similarity.isfinite().all()
    if name != "pem":  # where it is the distance of two points, of which one has no direction
        assert (similarity[~matched] == 0).all()
    wanted = [image.embeds, text.embeds, image.pooled, text.pooled, *parameters]
    gradients = torch.autograd.grad(similarity.sum(), wanted, allow_unused=True)
    for gradient, tensor in zip(gradients, wanted, strict=True):
        assert gradient is None or (gradient.shape == tensor.shape and gradient.isfinite().all())
    for gradient, side in zip(gradients, (image, text), strict=False):
        if name.startswith("scan"):  # which needs zeros in the padding, so that what comes back there goes nowhere
            continue
        assert gradient is None or (gradient[~side.mask] == 0).all()
        if gradient is not None and not matched.any() and name != "pem":
            assert (gradient == 0).all()


@pytest.mark.parametrize(("name", "options"), HEADS)
@pytest.mark.parametrize("valid", [0, 0.5, 1])
def test_every_head(name, options, valid):
    head = head_of(name, **options).float()
    for items, regions, words in [each for each in GRID if each[0] in (0, 1, 33)]:
        image, text = sides(items, regions, words, valid)
        check(name, image, text, head(image, text), [*head.parameters()])
        if head.aligns:
            match = head.match(image, text)
            assert match.alignment.shape == (items, items, regions, words)
            assert match.fragments.isfinite().all()
        if items:
            found = topk_similarity(head, image, text, min(2, items), dim=int(words % 2))
            assert found.values.isfinite().all()


@pytest.mark.parametrize("backend", ["auto", *(each for each in BACKENDS if each != "triton")])
@pytest.mark.parametrize("valid", [0, 0.5, 1])
def test_the_public_functions_of_transport(backend, valid):
    for items, regions, words in GRID:
        image, text = sides(items, regions, words, valid)
        arguments = (image.embeds, image.mask, image.pooled, text.embeds, text.mask, text.pooled)
        check("omit", image, text, partial_sinkhorn_similarity(*arguments, regularization=0.1, backend=backend))


@pytest.mark.parametrize("valid", [False, True])
def test_sinkhorn(valid):
    for items, regions, words in GRID:
        similarity = torch.zeros(items, regions, words, requires_grad=True)
        masses = [torch.full((items, size), valid / max(1, size)).requires_grad_() for size in (regions, words)]
        plan = sinkhorn(similarity, *masses, 0.1, 5)
        full = torch.full(plan.shape, valid / max(1, regions * words))
        torch.testing.assert_close(plan.detach(), full)
        gradients = torch.autograd.grad(plan.sum(), [similarity, *masses])
        assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("size", SIZES[1:])
def test_losses_and_metrics(size):
    scores = torch.zeros(size, size, requires_grad=True)
    own, same = torch.arange(size), torch.eye(size, dtype=torch.bool)
    for same_image in (same, torch.ones_like(same)):  # one image alone: no negative
        losses = [triplet_loss(scores, own, same_image, 0.2, negatives) for negatives in ("hardest", "all")]
        for loss in (*losses, info_nce_loss(scores, own, same_image)):
            assert loss.isfinite()
            assert torch.autograd.grad(loss, scores, retain_graph=True)[0].isfinite().all()
    metrics = retrieval_metrics(torch.eye(size), np.arange(size))
    assert metrics["rsum"] == 600
    with pytest.raises(ValueError, match=r"similarity has shape \(0, .*\); expected \[images, captions\], neither"):
        retrieval_metrics(torch.zeros(0, size), np.arange(size))


# --- types ---

NO_FLOAT = [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", NO_FLOAT)
@pytest.mark.parametrize(("name", "options"), HEADS)
def test_features_that_are_no_floating_point_numbers_are_refused(name, options, dtype):
    head = head_of(name, **options).float()
    uses = [head, head.tiled_similarity, lambda *both: topk_similarity(head, *both, 1)]
    for use in [*uses, head.match] if head.aligns else uses:
        for number, side in ((0, "image"), (1, "text")):
            both = sides(2, 3, 2, 1)
            with torch.no_grad():
                both[number].embeds = (100 * both[number].embeds.detach()).to(dtype)
            with pytest.raises(ValueError, match=f"embeds is of type {dtype}; expected floating-point numbers. Cast"):
                use(*both)
            assert side in ("image", "text")


@pytest.mark.parametrize(("name", "options"), HEADS)
def test_sides_of_two_types_are_refused(name, options):
    image, text = features(1, [3, 2]), features(2, [3], dtype=torch.float32)
    head = head_of(name, **options)
    for use in (head, head.tiled_similarity):
        with pytest.raises(ValueError, match="images are torch.float64 on cpu, the captions torch.float32.*Cast one"):
            use(image, text)


@pytest.mark.parametrize("dtype", NO_FLOAT)
def test_arguments_that_are_no_floating_point_numbers_are_refused(dtype):
    arguments = [torch.ones(2, 2), torch.ones(2) / 2, torch.ones(2) / 2]
    for number, name in enumerate(("similarity", "row_marginals", "column_marginals")):
        wrong = [each.to(dtype) if place == number else each for place, each in enumerate(arguments)]
        with pytest.raises(ValueError, match=f"{name} is of type {dtype}; expected floating-point"):
            sinkhorn(*wrong, 0.1, 3)
    image, text = sides(2, 3, 2, 1)
    arguments = [image.embeds, image.mask, image.pooled, text.embeds, text.mask, text.pooled]
    names = ("embeds", None, "pooled", "embeds", None, "pooled")
    for number, name in enumerate(names):
        if name is not None:
            wrong = [each.detach().to(dtype) if place == number else each for place, each in enumerate(arguments)]
            with pytest.raises(ValueError, match=f"{name} is of type {dtype}; expected floating-point"):
                partial_sinkhorn_similarity(*wrong)


def test_integers_can_be_ranked_and_complex_numbers_not():
    scores = torch.tensor([[3, 1], [2, 9]])
    assert retrieval_metrics(scores, [0, 1]) == retrieval_metrics(scores.double(), [0, 1])
    assert retrieval_metrics(scores > 2, [0, 1])["i2t_r1"] == 100
    for dtype in (torch.complex32, torch.complex64, torch.complex128):
        with pytest.raises(ValueError, match="similarity has type .*complex.*; expected real numbers"):
            retrieval_metrics(scores.to(dtype), [0, 1])
