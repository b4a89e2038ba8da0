import pytest
import torch
import torch.nn.functional as F
from samples import ALIGNING, POOLING, features, head_of
from torch import nn

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.matching_omit import tiled_similarity


def assert_no_match(name, similarity):
    """An item without fragments scores 0; in `pem`, whose best score that is, it is away from the others."""
    assert (similarity < -0.5).all() if name == "pem" else (similarity == 0).all()


@pytest.mark.parametrize(("name", "options"), [*ALIGNING, *POOLING])
class TestInvariance:
    def test_padding(self, name, options):
        head = head_of(name, **options)
        image, text = features(1, [5, 2]), features(2, [4, 3, 1])
        padded = OmitFeatures(
            **{
                key: F.pad(text[key], (0, 0, 0, 3) if key == "embeds" else (0, 3))
                for key in ("embeds", "mask", "norms")
            },
            pooled=text.pooled,
        )
        torch.testing.assert_close(head(image, padded), head(image, text), rtol=1e-12, atol=1e-14)

    def test_permutation_of_fragments(self, name, options):
        head = head_of(name, **options)
        image, text = features(1, [5, 2]), features(2, [4, 3, 1])
        order = torch.randperm(5)
        shuffled = OmitFeatures(
            embeds=image.embeds[:, order], mask=image.mask[:, order], norms=image.norms[:, order], pooled=image.pooled
        )
        torch.testing.assert_close(head(shuffled, text), head(image, text), rtol=1e-12, atol=1e-14)

    def test_tiles_with_an_uneven_last_one(self, name, options):
        """Values and gradients of the tiles are those of the whole."""
        head = head_of(name, **options)
        image, text = features(1, [5, 2, 4, 3, 5]), features(2, [4, 3, 1, 2, 4, 4, 3])
        weights = torch.randn(5, 7, dtype=torch.float64)
        results = []
        for pairs in (10**6, 12, 1):
            budget = 4 * head.elements_per_pair(image, text) * pairs
            image.embeds = image.embeds.detach().requires_grad_()
            text.embeds = text.embeds.detach().requires_grad_()
            similarity = tiled_similarity(head, image, text, budget)
            gradients = torch.autograd.grad(
                (weights * similarity).sum(), [image.embeds, text.embeds, *head.parameters()], allow_unused=True
            )
            results.append((similarity, [each for each in gradients if each is not None]))
        for similarity, gradients in results[1:]:
            torch.testing.assert_close(similarity, results[0][0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradients, results[0][1], rtol=1e-9, atol=1e-12)

    def test_autocast_does_not_reach_the_score(self, name, options):
        head = head_of(name, **options).float()
        image, text = features(1, [5, 2], dtype=torch.float32), features(2, [4, 3, 1], dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            similarity = head(image, text)
        assert torch.equal(similarity, head(image, text))

    def test_no_slot_at_all(self, name, options):
        """An empty caption, as a tokenizer without special tokens makes it."""
        head = head_of(name, **options)
        image, text = features(1, [5, 2]), features(2, [0])
        assert text.embeds.shape[1] == 0
        assert_no_match(name, tiled_similarity(head, image, text))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_always_a_number(self, name, options, dtype):
        """Forward and backward, also for a caption without a word and an image without a fragment."""
        head = head_of(name, regularization=0.01, **options).float()
        image, text = features(1, [5, 0, 3], 1, dtype), features(2, [4, 0, 1], 0, dtype)
        image.embeds.requires_grad_()
        similarity = head(image, text)
        similarity.sum().backward()
        assert similarity.dtype == torch.float32
        assert similarity.isfinite().all()
        assert image.embeds.grad.isfinite().all()
        assert_no_match(name, torch.cat([similarity[1], similarity[:, 1]]))
        exact = head.double()(features(1, [5, 0, 3], 1), features(2, [4, 0, 1]))
        assert (similarity - exact).abs().max() < {torch.float32: 1e-4, torch.bfloat16: 0.3, torch.float16: 0.05}[dtype]


def test_no_tile_is_larger_than_the_budget():
    sizes = []

    class Recorder(nn.Module):
        def forward(self, image, text):
            sizes.append(len(image.embeds) * len(text.embeds))
            return image.embeds.sum((1, 2))[:, None] + text.embeds.sum((1, 2))

        def elements_per_pair(self, image, text):
            return 100

    image, text = features(1, [2] * 23), features(2, [2] * 41)
    with torch.no_grad():
        similarity = tiled_similarity(Recorder(), image, text, memory_budget=4 * 100 * 50)
    assert similarity.shape == (23, 41)
    assert max(sizes) <= 50
    assert sum(sizes) == 23 * 41


@pytest.mark.parametrize(("name", "options"), ALIGNING)
class TestAlignment:
    def test_is_a_share_of_each_pair_of_valid_fragments(self, name, options):
        head = head_of(name, **options)
        image, text = features(1, [5, 2], 1), features(2, [4, 3, 1], 1)
        alignment = head.alignment(image, text)
        assert alignment.shape == (2, 3, 6, 5)
        assert (alignment >= 0).all()
        assert (alignment.transpose(1, 2)[~image.mask] == 0).all()
        assert (alignment.permute(1, 3, 0, 2)[~text.mask] == 0).all()
        total = alignment.sum((-2, -1))
        if name == "omit":  # the dustbins have the rest
            assert ((total > 0) & (total < 1)).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))

    def test_does_not_depend_on_the_order_of_the_cells(self, name, options):
        head = head_of(name, **options)
        image, text = features(1, [5, 2]), features(2, [4, 3, 1])
        order = torch.randperm(5)
        shuffled = OmitFeatures(
            embeds=image.embeds[:, order], mask=image.mask[:, order], norms=image.norms[:, order], pooled=image.pooled
        )
        torch.testing.assert_close(head.alignment(shuffled, text), head.alignment(image, text)[:, :, order])

    def test_is_empty_without_fragments(self, name, options):
        head = head_of(name, **options)
        alignment = head.alignment(features(1, [5, 0]), features(2, [4, 0]))
        assert (alignment[1] == 0).all()
        assert (alignment[:, 1] == 0).all()


@pytest.mark.parametrize(
    ("name", "options"), [each for each in ALIGNING if each[1].get("marginals", "uniform") == "uniform"]
)
def test_alignment_finds_the_cell_that_looks_like_the_word(name, options):
    """With equal shares: a cell that has little mass has little to give."""
    head = head_of(name, **options)
    image, text = features(3, [5]), features(4, [3])
    text.embeds[0, 1] = image.embeds[0, 3]
    assert head.alignment(image, text)[0, 0, :, 1].argmax() == 3
