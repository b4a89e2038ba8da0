import pytest
import torch
import torch.nn.functional as F
from samples import ALIGNING, POOLING, features, head_of, reordered

from omit_hf.modeling import OmitFeatures, matching_omit
from omit_hf.modeling.matching_omit import MatchingHead, topk_similarity


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
        shuffled = reordered(image, order)
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
            similarity = head.tiled_similarity(image, text, budget)
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
        assert_no_match(name, head.tiled_similarity(image, text))

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

    class Recorder(MatchingHead):
        def similarity(self, image, text):
            sizes.append(len(image.embeds) * len(text.embeds))
            return image.embeds.sum((1, 2))[:, None] + text.embeds.sum((1, 2))

        def elements_per_pair(self, image, text):
            return 100

    image, text = features(1, [2] * 23), features(2, [2] * 41)
    with torch.no_grad():
        similarity = Recorder(None).tiled_similarity(image, text, memory_budget=4 * 100 * 50)
    assert similarity.shape == (23, 41)
    assert max(sizes) <= 50
    assert sum(sizes) == 23 * 41


@pytest.mark.parametrize(("name", "options"), ALIGNING)
class TestAlignment:
    def test_is_a_share_of_each_pair_of_valid_fragments(self, name, options):
        head = head_of(name, **options)
        image, text = features(1, [5, 2], 1), features(2, [4, 3, 1], 1)
        alignment = head.match(image, text).alignment
        assert alignment.shape == (2, 3, 6, 5)
        assert torch.equal(head.match(image, text).fragments, alignment)
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
        shuffled = reordered(image, order)
        torch.testing.assert_close(head.match(shuffled, text).alignment, head.match(image, text).alignment[:, :, order])

    def test_is_empty_without_fragments(self, name, options):
        head = head_of(name, **options)
        alignment = head.match(features(1, [5, 0]), features(2, [4, 0])).alignment
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
    assert head.match(image, text).alignment[0, 0, :, 1].argmax() == 3


def assert_same(head, image, text, k, dim):
    """The same scores as by sorting the whole matrix; each index has the score that it is given."""
    similarity = head.tiled_similarity(image, text)
    similarity = similarity if dim == 1 else similarity.T
    found = topk_similarity(head, image, text, k, dim)
    assert found.values.shape == found.indices.shape == (len(similarity), k)
    torch.testing.assert_close(found.values, similarity.topk(k).values)
    torch.testing.assert_close(similarity.gather(1, found.indices), found.values)
    assert all(len(set(row.tolist())) == k for row in found.indices)


@pytest.mark.parametrize(("name", "options"), [*ALIGNING, *POOLING])
@pytest.mark.parametrize("dim", [0, 1])
def test_it_is_the_whole_matrix_sorted(monkeypatch, name, options, dim):
    monkeypatch.setattr(matching_omit, "TOPK_BLOCK", (3, 2))
    image, text = features(1, [5, 2, 4, 3, 0, 5, 4, 1]), features(2, [4, 3, 1, 2, 0, 4, 3])
    for k in (1, 3, 7):
        assert_same(head_of(name, **options), image, text, k, dim)


def test_topk_where_a_whole_block_has_no_valid_fragment():
    """An IndexError once, of 32 images in one block."""
    image, text = features(1, [0] * 32 + [3], 2, torch.float32), features(2, [4, 0, 2], 0, torch.float32)
    assert_same(head_of("omit").float(), image, text, 2, 0)


def test_topk_holds_two_blocks_at_most(monkeypatch):
    """Whatever the number of candidates, no matrix is wider than a block and what was best so far."""
    monkeypatch.setattr(matching_omit, "TOPK_BLOCK", (4, 5))
    head, shapes = head_of("mean"), []
    similarity = head.similarity
    monkeypatch.setattr(head, "similarity", lambda *sides: shapes.append(None) or similarity(*sides))
    image, text = features(1, [3] * 9), features(2, [2] * 23)
    assert_same(head, image, text, 3, 1)
    assert len(shapes) == 1 + 3 * 5  # the whole matrix of `assert_same`, and 3 x 5 blocks


def test_bad_input_of_topk():
    image, text = features(1, [5, 2]), features(2, [4, 3, 1])
    with pytest.raises(ValueError, match="k is 4; expected 1 to 3, the number of candidates"):
        topk_similarity(head_of("omit"), image, text, 4)
    with pytest.raises(ValueError, match="k is 0"):
        topk_similarity(head_of("omit"), image, text, 0)
    with pytest.raises(ValueError, match="dim is 2; expected 1, the captions of every image, or 0"):
        topk_similarity(head_of("omit"), image, text, 1, dim=2)
    assert topk_similarity(head_of("omit"), image.select(slice(0)), text, 1).values.shape == (0, 1)


def test_the_model_searches(model, inputs):
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    found = model.topk(image, text, 2, dim=0)
    expected = model.similarity(image, text).topk(2, dim=0)
    torch.testing.assert_close(found.values, expected.values.T)
    assert torch.equal(found.indices, expected.indices.T)
