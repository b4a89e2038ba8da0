import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import pair_score, score_bound
from samples import SIDES, TRANSPORTING, features, head_of, item

from omit_hf import partial_sinkhorn_similarity
from omit_hf.modeling import OmitFeatures, transport_omit
from omit_hf.modeling.sinkhorn_omit import fragment_marginals


def bins_of(head):
    """What the oracle needs of a head's learned dustbins."""
    parameters = [each.detach() for each in head.parameters()]
    if len(parameters) == 2:
        return [F.normalize(each, dim=-1).numpy() for each in parameters]
    return parameters[0].item() if parameters else None


def arguments(image, text):
    return image.embeds, image.mask, image.pooled, text.embeds, text.mask, text.pooled


@settings(max_examples=settings.default.max_examples // 2)
@given(
    **SIDES,
    padding=st.integers(0, 2),
    regularization=st.floats(0.01, 1),
    num_iterations=st.integers(1, 50),
)
@example(  # −2e-50, which float32 has not
    seed=1484, image_counts=[1], text_counts=[1], padding=0, regularization=0.01, num_iterations=1
)
def test_similarity_is_that_of_a_double_loop(seed, image_counts, text_counts, padding, regularization, num_iterations):
    """Also with a single fragment, and with none at all, where it is 0."""
    image, text = features(seed, image_counts, padding), features(seed + 1, text_counts, padding)
    options = {"regularization": regularization, "num_iterations": num_iterations}
    exact = partial_sinkhorn_similarity(*arguments(image, text), **options)
    single_image, single_text = (
        features(seed, image_counts, padding, torch.float32),
        features(seed + 1, text_counts, padding, torch.float32),
    )
    single = partial_sinkhorn_similarity(*arguments(single_image, single_text), **options)
    assert single.dtype == torch.float32
    for i, image_count in enumerate(image_counts):
        for t, text_count in enumerate(text_counts):
            score, *sizes = pair_score("omit", item(image, i), item(text, t), *options.values())
            assert abs(exact[i, t].item() - score) <= score_bound(*sizes, regularization, single=False)
            score, *sizes = pair_score("omit", item(single_image, i), item(single_text, t), *options.values())
            assert abs(single[i, t].item() - score) <= score_bound(*sizes, regularization)
            if image_count == 0 or text_count == 0:
                assert single[i, t] == 0


@pytest.mark.parametrize(("name", "options"), TRANSPORTING)
def test_every_head_is_a_double_loop(name, options):
    head = head_of(name, regularization=0.05, num_iterations=5, **options)
    image, text = features(1, [5, 1, 3, 0], 2), features(2, [4, 2, 1, 0], 1)
    similarity = head(image, text)
    for i in range(4):
        for t in range(4):
            expected, *sizes = pair_score(name, item(image, i), item(text, t), 0.05, 5, **options, bins=bins_of(head))
            assert abs(similarity[i, t].item() - expected) <= score_bound(*sizes, 0.05, single=False)


def test_head_of_the_paper_is_the_public_function():
    image, text = features(1, [5, 1, 3]), features(2, [4, 2])
    similarity = head_of("omit", regularization=0.05, num_iterations=4)(image, text)
    expected = partial_sinkhorn_similarity(*arguments(image, text), regularization=0.05, num_iterations=4)
    torch.testing.assert_close(similarity, expected)


@pytest.mark.parametrize("options", [{}, {"dustbin": "learned", "marginals": "self_global"}, {"dustbin": "scalar"}])
def test_gradients(options):
    head = head_of("omit", regularization=0.3, num_iterations=5, **options)
    image, text = features(1, [3, 2]), features(2, [2, 1])
    image.embeds.requires_grad_()
    image.pooled.requires_grad_()

    def score(embeds, pooled, *parameters):
        return head(OmitFeatures(embeds=embeds, mask=image.mask, pooled=pooled, norms=image.norms), text)

    assert torch.autograd.gradcheck(score, (image.embeds, image.pooled, *head.parameters()))


@pytest.mark.parametrize("backend", ["reference", "cpu", "numba", "auto"])
@pytest.mark.parametrize("terms", [{"global_weight": 0.3}, {"score": "augmented"}])
def test_every_backend_has_the_terms_that_are_not_the_papers(backend, terms):
    """In the score and its gradient, of which the global term's alone reaches the features of every pair."""
    settings = {"regularization": 0.05, "num_iterations": 4, **terms}
    exact = [features(1, [5, 1, 3, 0], 2), features(2, [4, 2, 1, 0], 1)]
    single = [features(1, [5, 1, 3, 0], 2, torch.float32), features(2, [4, 2, 1, 0], 1, torch.float32)]
    for side in (*exact, *single):
        side.pooled.requires_grad_()
        side.embeds.requires_grad_()
    truth = head_of("omit", backend="reference", **settings).similarity(*exact)
    scores = head_of("omit", backend=backend, **settings).tiled_similarity(*single)
    torch.testing.assert_close(scores.double(), truth, atol=1e-5, rtol=0)
    assert (scores[3] == 0).all()
    assert (scores[:, 3] == 0).all()
    for each in (truth, scores):
        each.square().sum().backward()
    for ours, theirs in zip(single, exact, strict=True):
        torch.testing.assert_close(ours.pooled.grad.double(), theirs.pooled.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.embeds.grad.double(), theirs.embeds.grad, atol=1e-4, rtol=1e-4)


def test_the_term_alone_is_the_cosine_of_the_global_features():
    image, text = features(1, [5, 1, 3]), features(2, [4, 2])
    for name in ("omit", "ot"):
        scores = head_of(name, global_weight=1).similarity(image, text)
        torch.testing.assert_close(scores, image.pooled @ text.pooled.T)
        halfway = head_of(name, global_weight=0.25).similarity(image, text)
        torch.testing.assert_close(halfway, 0.25 * scores + 0.75 * head_of(name).similarity(image, text))


def test_what_lies_in_the_padding_does_not_matter():
    image, text = features(1, [5, 2], dtype=torch.float32), features(2, [4, 3, 1], dtype=torch.float32)
    expected = partial_sinkhorn_similarity(*arguments(image, text))
    for garbage in (1e30, float("nan"), float("inf")):
        spoilt = image.embeds.masked_fill(~image.mask[..., None], garbage).requires_grad_()
        similarity = partial_sinkhorn_similarity(spoilt, *arguments(image, text)[1:])
        similarity.sum().backward()
        assert torch.equal(similarity, expected)
        assert spoilt.grad.isfinite().all()


def test_an_irrelevant_fragment_goes_to_the_dustbin():
    """A cell like the caption's global feature, and unlike its word, leaves the score to the cell that matches."""
    word, theme, other = torch.eye(3)
    image, text = torch.stack([word, theme])[None], word[None, None]
    valid = torch.ones(1, 2, dtype=torch.bool)
    match = (
        head_of("omit")
        .float()
        .match(
            OmitFeatures(embeds=image, mask=valid, pooled=other[None], norms=torch.ones(1, 2)),
            OmitFeatures(embeds=text, mask=valid[:, :1], pooled=theme[None], norms=torch.ones(1, 1)),
        )
    )
    plan = match.plan
    torch.testing.assert_close(match.row_dustbin[0, 0], plan[0, 0, 1:, 0])
    torch.testing.assert_close(match.column_dustbin[0, 0], plan[0, 0, 0, 1:])
    assert plan.shape == (1, 1, 3, 2)
    matched, dumped = plan[0, 0, 1], plan[0, 0, 2]
    assert matched[1] > 0.99 * matched.sum()
    assert dumped[0] > 0.99 * dumped.sum()


@pytest.mark.parametrize(("name", "shape"), [("omit", (2, 3, 6, 5)), ("ot", (2, 3, 5, 4))])
def test_transport_plans_hold_the_marginals(name, shape):
    image, text = features(1, [5, 2]), features(2, [4, 3, 1])
    plan = head_of(name, regularization=0.5, num_iterations=300).match(image, text).plan
    assert plan.shape == shape
    torch.testing.assert_close(plan.sum((-2, -1)), torch.ones(2, 3, dtype=torch.float64))
    dustbin = 1 if name == "omit" else 0
    expected = torch.full((2, 3), 1 / (5 + dustbin), dtype=torch.float64)
    torch.testing.assert_close(plan[0].sum(-1)[:, 0], expected[0], rtol=1e-6, atol=1e-9)
    assert (plan[1, :, dustbin:][:, ~image.mask[1]] == 0).all()


@pytest.mark.parametrize("kind", ["uniform", "norm", "self_global", "cross_global"])
def test_marginals_sum_to_one_or_are_zero(kind):
    side, other = features(1, [5, 2, 0], 1), features(2, [4, 3])
    shares = fragment_marginals(kind, side, other)
    assert shares.shape == ((3, 2, 6) if kind == "cross_global" else (3, 6))
    shares = shares if shares.ndim == 3 else shares[:, None]
    total = shares.sum(-1)
    torch.testing.assert_close(total[:2], torch.ones_like(total[:2]))
    assert (total[2] == 0).all()
    assert (shares.transpose(0, 1)[:, ~side.mask] == 0).all()


@pytest.mark.parametrize(("name", "options"), [("omit", {"backend": "reference"}), ("ot", {"regularization": 0.001})])
def test_plans_are_in_memory_for_a_tile_at_a_time(monkeypatch, name, options):
    """Where the reference is asked for, and where it stands in for a backend that cannot serve."""
    pairs = []
    reference = transport_omit.reference_score
    monkeypatch.setattr(
        transport_omit,
        "reference_score",
        lambda images, *others: pairs.append(len(images) * len(others[1])) or reference(images, *others),
    )
    image, text = features(1, [5, 2, 3]), features(2, [4, 3, 1, 2, 2])
    head = head_of(name, **options)
    first = head.num_dustbins
    budget = 4 * transport_omit.PLANS_IN_MEMORY * (5 + first) * (4 + first) * 4
    tiled = head.tiled_similarity(image, text, budget)
    assert max(pairs) <= 4
    assert sum(pairs) == 15
    torch.testing.assert_close(tiled, head(image, text), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mask": torch.ones(2, 4)}, r"image_mask has shape \(2, 4\); expected \(2, 5\)"),
        ({"text_mask": torch.ones(2, 4)}, r"text_mask has shape \(2, 4\); expected \(3, 4\)"),
        (
            {"image_embeds": torch.ones(2, 16)},
            r"image_embeds has shape \(2, 16\); expected \[batch, fragments, width\]",
        ),
        ({"text_pooled": torch.ones(2, 16)}, r"text_pooled has shape \(2, 16\); expected \(3, 16\)"),
        (
            {"text_embeds": torch.ones(3, 4, 8), "text_pooled": torch.ones(3, 8)},
            "16 wide, text_embeds 8; expected the same",
        ),
        ({"regularization": -1.0}, "regularization is -1.0; expected a number greater than 0"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"backend": "fast"}, "backend is 'fast'; expected one of 'auto', 'reference'"),
    ],
)
def test_bad_input(changes, message):
    names = ("image_embeds", "image_mask", "image_pooled", "text_embeds", "text_mask", "text_pooled")
    good = dict(zip(names, arguments(features(1, [5, 2]), features(2, [4, 3, 1])), strict=True))
    with pytest.raises(ValueError, match=message):
        partial_sinkhorn_similarity(**{**good, **changes})
