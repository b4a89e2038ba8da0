import numpy as np
import ot
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import log_domain_plan, logarithms, textbook_plan

from omit_hf import sinkhorn


def problem(seed, rows, columns, padded_rows=0, padded_columns=0, uneven=False):
    """A similarity, and marginals whose last entries are padding."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, size=(rows + padded_rows, columns + padded_columns))
    mu, nu = (rng.uniform(0.2, 1, size=n) if uneven else np.ones(n) for n in (rows, columns))
    mu = np.concatenate([mu / mu.sum(), np.zeros(padded_rows)])
    nu = np.concatenate([nu / nu.sum(), np.zeros(padded_columns)])
    return similarity, mu, nu


def tensors(*arrays, dtype=torch.float64):
    return [torch.tensor(array, dtype=dtype) for array in arrays]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    columns=st.integers(1, 7),
    padded=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    uneven=st.booleans(),
    regularization=st.floats(0.01, 1),
    num_iterations=st.integers(1, 50),
)
def test_plan_is_the_textbook_plan(seed, rows, columns, padded, uneven, regularization, num_iterations):
    similarity, mu, nu = problem(seed, rows, columns, *padded, uneven=uneven)
    expected = textbook_plan(similarity, mu, nu, regularization, num_iterations)
    exact = sinkhorn(*tensors(similarity, mu, nu), regularization, num_iterations)
    np.testing.assert_allclose(exact, expected, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(
        (exact.numpy() * similarity).sum(), (expected * similarity).sum(), rtol=1e-10, atol=1e-13
    )

    single = tensors(similarity, mu, nu, dtype=torch.float32)
    rounded = [tensor.double().numpy() for tensor in single]
    expected = textbook_plan(*rounded, regularization, num_iterations)
    plan = sinkhorn(*single, regularization, num_iterations)
    assert plan.dtype == torch.float32
    assert np.abs(plan.numpy() - expected).sum() <= 2e-6 / regularization


def unequal(rng, entries, decades):
    """Marginals from 1 down to 10^−decades, in a float32's values."""
    shares = 10.0 ** -rng.uniform(0, decades, entries)
    shares[rng.integers(entries)] = 1
    return np.maximum(shares / shares.sum(), 1e-38).astype(np.float32).astype(np.float64)


def plan_and_gradients(similarity, mu, nu, weights, dtype, *options):
    inputs = [each.requires_grad_() for each in tensors(similarity, mu, nu, dtype=dtype)]
    plan = sinkhorn(*inputs, *options)
    gradients = torch.autograd.grad((plan * torch.tensor(weights, dtype=dtype)).sum(), inputs)
    return [each.detach().double().numpy() for each in (plan, *gradients)]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    decades=st.floats(0, 38),
    regularization=st.floats(0.002, 1),
    num_iterations=st.integers(1, 100),
)
@example(seed=0, rows=8, columns=8, decades=30, regularization=0.02, num_iterations=3)  # was NaN
@example(seed=1, rows=5, columns=9, decades=12, regularization=0.002, num_iterations=100)
def test_marginals_may_be_as_unequal_as_float32_can_say(seed, rows, columns, decades, regularization, num_iterations):
    """Plans; and gradients, those of the marginals by their logarithms: of a mass of 1e-38 no float32 holds a share."""
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, (rows, columns)).astype(np.float32).astype(np.float64)
    mu, nu = unequal(rng, rows, decades), unequal(rng, columns, decades)
    weights, options = rng.uniform(-1, 1, (rows, columns)), (regularization, num_iterations)
    expected = log_domain_plan(similarity, mu, nu, *options)
    exact, *exact_gradients = plan_and_gradients(similarity, mu, nu, weights, torch.float64, *options)
    plan, *gradients = plan_and_gradients(similarity, mu, nu, weights, torch.float32, *options)
    scale = logarithms(mu, nu, regularization)
    assert np.abs(exact - expected).sum() <= 1e-11 * scale
    assert np.abs(plan - expected).sum() <= 2e-6 * scale
    for name, ours, theirs, mass in zip("Sμν", gradients, exact_gradients, (1, mu, nu), strict=True):
        assert np.isfinite(ours).all(), name
        size = np.linalg.norm(theirs * mass)
        unit = 1 / regularization if name == "S" else 1
        assert np.linalg.norm((ours - theirs) * mass) <= 2e-5 * scale * (size + 0.1 * unit), name


@pytest.mark.parametrize("num_iterations", [1, 4, 5, 9, 50])
def test_entries_that_float32_lost_come_back(num_iterations):
    """All rows but one want column 0; e^-150 elsewhere must grow for some twenty passes before it matters."""
    similarity = np.full((12, 6), -1.0)
    similarity[:11, 0], similarity[11, 1:] = 1.0, 0.5
    mu, nu = np.full(12, 1 / 12), np.full(6, 1 / 6)
    expected = textbook_plan(similarity, mu, nu, 0.01, num_iterations)
    plan = sinkhorn(*tensors(similarity, mu, nu, dtype=torch.float32), 0.01, num_iterations)
    assert np.abs(plan.numpy() - expected).sum() <= 2e-6 / 0.01


@pytest.mark.parametrize("regularization", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("uneven", [False, True])
def test_converged_plan_is_that_of_pot(regularization, uneven):
    similarity, mu, nu = problem(3, 8, 5, uneven=uneven)
    expected = ot.sinkhorn(
        mu, nu, 1 - similarity, regularization, method="sinkhorn_log", numItermax=100_000, stopThr=1e-14
    )
    plan = sinkhorn(*tensors(similarity, mu, nu), regularization, 5000)
    np.testing.assert_allclose(plan, expected, atol=1e-9)
    np.testing.assert_allclose((plan.numpy() * similarity).sum(), (expected * similarity).sum(), rtol=1e-6)


def test_weak_regularisation_approaches_the_exact_optimum():
    similarity, mu, nu = problem(4, 6, 6)
    best = (ot.emd(mu, nu, 1 - similarity) * similarity).sum()
    plan = sinkhorn(*tensors(similarity, mu, nu), 0.005, 2000)
    assert (plan.numpy() * similarity).sum() == pytest.approx(best, abs=5e-3)


def test_columns_hold_their_marginal_exactly_and_rows_in_the_limit():
    similarity, mu, nu = tensors(*problem(5, 7, 4, 2, 1, uneven=True))
    early, late = sinkhorn(similarity, mu, nu, 0.1, 1), sinkhorn(similarity, mu, nu, 0.1, 500)
    torch.testing.assert_close(early.sum(0), nu, rtol=0, atol=1e-14)
    assert (early.sum(1) - mu).abs().max() > 1e-3
    torch.testing.assert_close(late.sum(1), mu, rtol=0, atol=1e-10)
    assert (late >= 0).all()


def test_shifting_the_cost_of_a_row_or_column_changes_nothing_in_the_limit():
    similarity, mu, nu = tensors(*problem(6, 5, 6))
    shifted = similarity + torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None] + torch.linspace(0, 2, 6).double()
    torch.testing.assert_close(
        sinkhorn(shifted, mu, nu, 0.3, 2000), sinkhorn(similarity, mu, nu, 0.3, 2000), rtol=1e-6, atol=1e-12
    )


def test_scaling_similarity_and_regularisation_together_changes_nothing():
    similarity, mu, nu = tensors(*problem(7, 5, 6))
    torch.testing.assert_close(sinkhorn(3 * similarity, mu, nu, 0.3, 7), sinkhorn(similarity, mu, nu, 0.1, 7))


def test_equal_similarities_give_the_product_of_the_marginals():
    _, mu, nu = tensors(*problem(8, 5, 6, uneven=True))
    plan = sinkhorn(torch.full((5, 6), 0.3, dtype=torch.float64), mu, nu, 0.02, 1)
    torch.testing.assert_close(plan, mu[:, None] * nu)


def test_batches_broadcast():
    similarity = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    mu, nu = torch.full((3, 1, 4), 0.25, dtype=torch.float64), torch.full((1, 2, 5), 0.2, dtype=torch.float64)
    plan = sinkhorn(similarity, mu, nu, 0.1, 6)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(plan[i, j], sinkhorn(similarity[i, j], mu[i, 0], nu[0, j], 0.1, 6))


@pytest.mark.parametrize("num_iterations", [1, 3, 6])
def test_gradients(num_iterations):
    similarity, mu, nu = tensors(*problem(9, 3, 4, uneven=True))
    arguments = [tensor.requires_grad_() for tensor in (similarity, mu, nu)]
    assert torch.autograd.gradcheck(lambda s, m, n: sinkhorn(s, m, n, 0.2, num_iterations), arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("regularization", [0.001, 0.01, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(4, 3), (1, 1), (4, 0), (0, 3), (0, 0)])
def test_always_a_number(dtype, regularization, rows, columns):
    """Whatever the input's type, and also where one side is nothing but padding."""
    similarity, mu, nu = problem(10, 4, 3)
    similarity = torch.tensor(similarity).to(dtype).requires_grad_()
    mu = torch.tensor([1 / max(rows, 1)] * rows + [0.0] * (4 - rows))
    nu = torch.tensor([1 / max(columns, 1)] * columns + [0.0] * (3 - columns))
    plan = sinkhorn(similarity, mu, nu, regularization, 9)
    (plan * similarity).sum().backward()
    assert plan.dtype == torch.float32
    assert plan.isfinite().all()
    assert similarity.grad.isfinite().all()
    assert plan.sum().item() == pytest.approx(1.0 if rows and columns else 0.0, abs=1e-5)


def test_autocast_does_not_reach_the_transport():
    similarity, mu, nu = tensors(*problem(11, 6, 5), dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = sinkhorn(similarity, mu, nu, 0.02, 3)
    assert torch.equal(plan, sinkhorn(similarity, mu, nu, 0.02, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularization": 0}, "regularization is 0; expected a number greater than 0"),
        ({"regularization": float("nan")}, "regularization is nan"),
        ({"num_iterations": 0}, "num_iterations is 0; expected at least 1"),
        ({"row_marginals": torch.ones(4) / 4}, "row_marginals has 4 entries; expected 3"),
        ({"column_marginals": torch.ones(3) / 3}, "column_marginals has 3 entries; expected 2"),
    ],
)
def test_bad_input(changes, message):
    arguments = {
        "similarity": torch.zeros(3, 2),
        "row_marginals": torch.ones(3) / 3,
        "column_marginals": torch.ones(2) / 2,
        "regularization": 0.1,
        "num_iterations": 3,
    }
    with pytest.raises(ValueError, match=message):
        sinkhorn(**{**arguments, **changes})
