import logging

import pytest
import torch
import torch.nn.functional as F
from samples import ALIGNING, POOLING, TRANSPORTING, features, head_of

from omit_hf.modeling import OmitFeatures, search_omit
from omit_hf.modeling.matching_omit import tiled_similarity
from omit_hf.modeling.packed_omit import packed_bound
from omit_hf.modeling.search_omit import topk_similarity


def assert_same(head, image, text, k, dim):
    """The same scores as by sorting the whole matrix; each index has the score that it is given."""
    similarity = tiled_similarity(head, image, text)
    similarity = similarity if dim == 1 else similarity.T
    found = topk_similarity(head, image, text, k, dim)
    assert found.values.shape == found.indices.shape == (len(similarity), k)
    torch.testing.assert_close(found.values, similarity.topk(k).values)
    torch.testing.assert_close(similarity.gather(1, found.indices), found.values)
    assert all(len(set(row.tolist())) == k for row in found.indices)


@pytest.mark.parametrize(("name", "options"), [*ALIGNING, *POOLING])
@pytest.mark.parametrize("dim", [0, 1])
def test_it_is_the_whole_matrix_sorted(monkeypatch, name, options, dim):
    monkeypatch.setattr(search_omit, "QUERIES", 3)
    monkeypatch.setattr(search_omit, "WHOLE_BLOCK", 1 / 2)
    image, text = features(1, [5, 2, 4, 3, 0, 5, 4, 1]), features(2, [4, 3, 1, 2, 0, 4, 3])
    for k in (1, 3, 7):
        assert_same(head_of(name, **options), image, text, k, dim)


def themes(seed, count, slots, width=64):
    """Items of which each has a theme, so that most pairs have little in common."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(32, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    theme = torch.arange(count) % 32
    embeds = centres[theme][:, None] + 0.1 * torch.randn(count, slots, width, generator=generator)
    pooled = centres[theme] + 0.1 * torch.randn(count, width, generator=generator)
    mask = torch.ones(count, slots, dtype=torch.bool)
    return OmitFeatures(
        embeds=F.normalize(embeds, dim=-1), mask=mask, pooled=F.normalize(pooled, dim=-1), norms=embeds.norm(dim=-1)
    )


@pytest.mark.parametrize("dim", [0, 1])
def test_pairs_that_cannot_enter_are_not_scored(caplog, monkeypatch, dim):
    monkeypatch.setattr(search_omit, "DIRECTIONS", 40)
    image, text = themes(1, 320, 6), themes(2, 480, 5)
    head = head_of("ot").float()
    with caplog.at_level(logging.DEBUG, logger="omit_hf.modeling.search_omit"):
        assert_same(head, image, text, 4, dim)
    [share] = [float(each.args[2]) for each in caplog.records if each.msg.startswith("Scored")]
    assert share < 5


@pytest.mark.parametrize(("name", "options"), TRANSPORTING)
def test_no_score_exceeds_the_bound(name, options):
    """Random rows, and the adversary's: all of a caption's mass on one region, opposite words, nothing to compress."""
    head = head_of(name, regularization=0.02, num_iterations=1, **options)
    random = features(1, [5, 1, 3, 4]), features(2, [4, 2, 1, 5])
    alike = features(3, [5, 5]), features(4, [5, 5])
    for side in alike:
        side.embeds = side.embeds * 0
        side.embeds[..., 0] = torch.tensor([1.0, -1, 1, -1, 1])
    for image, text in (random, alike):
        image_rows, image_mass, text_rows, text_mass = head.sides(image, text)
        for directions in (search_omit._principal_directions(image, text), torch.eye(16, dtype=torch.float64)[:1]):
            rows = [search_omit._compressed(each, directions) for each in (image_rows, text_rows)]
            bound = packed_bound(rows[0], image_mass, rows[1], text_mass, dustbins=head.dustbins)
            assert (head(image, text) <= bound + 1e-9).all()


def test_bad_input():
    image, text = features(1, [5, 2]), features(2, [4, 3, 1])
    with pytest.raises(ValueError, match="k is 4; expected 1 to 3, the number of candidates"):
        topk_similarity(head_of("omit"), image, text, 4)
    with pytest.raises(ValueError, match="k is 0"):
        topk_similarity(head_of("omit"), image, text, 0)
    with pytest.raises(ValueError, match="dim is 2; expected 1, the captions of every image, or 0"):
        topk_similarity(head_of("omit"), image, text, 1, dim=2)
    assert topk_similarity(head_of("omit"), image.rows(0, 0), text, 1).values.shape == (0, 1)


def test_the_model_searches(model, inputs):
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    found = model.topk(image, text, 2, dim=0)
    expected = model.similarity(image, text).topk(2, dim=0)
    torch.testing.assert_close(found.values, expected.values.T)
    assert torch.equal(found.indices, expected.indices.T)
