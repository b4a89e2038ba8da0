import math

import pytest
import torch

from omit_hf.modeling.losses_omit import info_nce_loss, triplet_loss


def batch(seed=0, size=6):
    """Scores of pairs of which 1 and 4 show one image, and 2, 3 and 5 another."""
    torch.manual_seed(seed)
    scores = torch.randn(size, size, dtype=torch.float64)
    image_ids = torch.tensor([0, 1, 2, 2, 1, 2])
    return scores, torch.arange(size), image_ids[:, None] == image_ids


@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_triplet_loss_is_a_double_loop(negatives):
    scores, target, same = batch()
    expected = 0.0
    for a in range(6):
        violations = [max(0.0, 0.2 - scores[a, a].item() + scores[a, c].item()) for c in range(6) if not same[a, c]]
        expected += (max(violations) if negatives == "hardest" else sum(violations) / len(violations)) / 6
    assert triplet_loss(scores, target, same, 0.2, negatives).item() == pytest.approx(expected)


def test_info_nce_loss_is_a_double_loop():
    logits, target, same = batch()
    expected = 0.0
    for a in range(6):
        candidates = [logits[a, c].item() for c in range(6) if c == a or not same[a, c]]
        expected -= (logits[a, a].item() - math.log(sum(map(math.exp, candidates)))) / 6
    assert info_nce_loss(logits, target, same).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["hardest", "all", "infonce"])
def test_another_caption_of_the_image_is_no_negative(loss):
    scores, target, same = batch()
    scores = scores.requires_grad_()
    value = info_nce_loss(scores, target, same) if loss == "infonce" else triplet_loss(scores, target, same, 5.0, loss)
    value.backward()
    others = same & ~torch.eye(6, dtype=torch.bool)
    assert (scores.grad[others] == 0).all()
    assert (scores.grad[torch.eye(6, dtype=torch.bool)] < 0).all()


def test_anchors_may_be_fewer_than_candidates():
    scores, target, same = batch()
    whole = triplet_loss(scores, target, same, 0.2)
    halves = [triplet_loss(scores[s], target[s], same[s], 0.2) for s in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("negatives", ["hardest", "all"])
def test_a_batch_without_negatives_costs_nothing(negatives):
    scores = torch.randn(2, 2, requires_grad=True)
    loss = triplet_loss(scores, torch.arange(2), torch.ones(2, 2, dtype=torch.bool), 0.2, negatives)
    loss.backward()
    assert loss == 0
    assert scores.grad.isfinite().all()
    assert info_nce_loss(scores, torch.arange(2), torch.ones(2, 2, dtype=torch.bool)) == 0


def test_unknown_negatives():
    with pytest.raises(ValueError, match="negatives is 'easy'; expected 'hardest' or 'all'"):
        triplet_loss(*batch(), margin=0.2, negatives="easy")
