"""The backends of transport against the reference in float64, which is the truth here; its own tests are elsewhere."""

import logging
import os
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracles import logarithms, score_bounds
from samples import features, head_of
from transporting import transport, transport_by

from omit_hf import kernels
from omit_hf.kernels.tiled import problem as tiles
from omit_hf.kernels.tiled.transport import TiledTransport
from omit_hf.modeling.transport_omit import BACKENDS, CannotServe, candidate_backends

# The plain tiles, and the compiled ones, which leave float64 to them.
TILED = ["cpu", "numba"]


def side(seed, counts, padding, width, uneven, others):
    """Rows of items of which so many have mass, at random places, and their mass in every pair."""
    generator = torch.Generator().manual_seed(seed)
    slots = max(counts) + padding
    rows = F.normalize(torch.randn(len(counts), slots, width, generator=generator, dtype=torch.float64), dim=-1)
    mass = torch.zeros(len(counts), others, slots, dtype=torch.float64)
    for each, count in zip(mass, counts, strict=True):
        each[:, torch.randperm(slots, generator=generator)[:count]] = 1
    if uneven:
        mass = mass * (0.2 + torch.rand(mass.shape, generator=generator, dtype=torch.float64))
    return rows, mass / mass.sum(-1, keepdim=True).clamp_min(1e-9)


def problem(seed, image_counts, text_counts, padding=1, width=24, uneven=False, pairwise=False):
    others = (len(text_counts), len(image_counts)) if pairwise else (1, 1)
    image_rows, image_mass = side(seed, image_counts, padding, width, uneven, others[0])
    text_rows, text_mass = side(seed + 1, text_counts, padding, width, uneven, others[1])
    return image_rows, image_mass, text_rows, text_mass.transpose(0, 1)


def score_and_gradients(backend, arguments, weights, **options):
    arguments = [each.detach().requires_grad_() for each in arguments]
    score = transport(*arguments, backend=backend, **options)
    return score.detach(), torch.autograd.grad((score * weights.to(score.dtype)).sum(), arguments)


def assert_parity(backend, arguments, dtype, weights, unequal=False, **options):
    """Scores to their bound; gradients to 2e-5/λ of their norm, or of what comes in where they cancel.

    Of `unequal` masses logarithms may be larger than 1/λ; their gradients are compared by these logarithms.
    """
    rounded = [each.to(dtype) for each in arguments]
    exact = [each.double() for each in rounded]
    truth, true_gradients = score_and_gradients("reference", exact, weights, **options)
    score, gradients = score_and_gradients(backend, rounded, weights, **options)
    assert score.dtype == dtype
    single = dtype == torch.float32
    scale = logarithms(exact[1], exact[3], options["regularization"]) if unequal else 1 / options["regularization"]
    assert ((score - truth).abs() <= score_bounds(exact, single=single, scale=scale, **options)).all()
    bound = (2e-5 if single else 1e-10) * scale
    names = ("images", "μ", "captions", "ν")
    for name, ours, theirs, mass in zip(names, gradients, true_gradients, exact, strict=True):
        assert ours.isfinite().all(), name
        if unequal and name in ("μ", "ν"):
            ours, theirs = ours * mass, theirs * mass
        assert (ours - theirs).norm() <= bound * (theirs.norm() + 0.1 * weights.norm()), name


counts = st.lists(st.integers(0, 7), min_size=1, max_size=5)


@pytest.mark.parametrize("backend", TILED)
@given(
    seed=st.integers(0, 2**31),
    image_counts=counts,
    text_counts=counts,
    padding=st.integers(0, 2),
    uneven=st.booleans(),
    pairwise=st.booleans(),
    num_dustbins=st.integers(0, 1),
    regularization=st.floats(0.01, 1),
    num_iterations=st.integers(1, 50),
    sparse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(  # a single region and word at nearly a right angle, whose cosine cancels
    seed=245,
    image_counts=[0, 0, 1, 0, 5],
    text_counts=[0, 0, 1, 0, 5],
    padding=2,
    uneven=False,
    pairwise=False,
    num_dustbins=0,
    regularization=1.0,
    num_iterations=1,
    sparse=False,
    dtype=torch.float32,
)
def test_tiles_are_the_reference(
    backend,
    seed,
    image_counts,
    text_counts,
    padding,
    uneven,
    pairwise,
    num_dustbins,
    regularization,
    num_iterations,
    sparse,
    dtype,
):
    """Scores and all four gradients; where few pairs have a gradient, by the way that visits only those."""
    arguments = problem(seed, image_counts, text_counts, padding, uneven=uneven, pairwise=pairwise)
    weights = torch.randn(
        len(image_counts), len(text_counts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    if sparse:
        kept = torch.zeros_like(weights)
        kept.view(-1)[seed % kept.numel()] = 1
        weights *= kept
    options = {"regularization": regularization, "num_iterations": num_iterations, "num_dustbins": num_dustbins}
    assume(backend == "cpu" or dtype == torch.float32)
    assert_parity(backend, arguments, dtype, weights, **options)


def unequal_masses(seed, image_counts, text_counts, decades):
    """A problem whose masses go from 1 down to 10^−decades."""
    image_rows, image_mass, text_rows, text_mass = problem(seed, image_counts, text_counts, padding=0, width=3)
    generator = torch.Generator().manual_seed(seed)
    masses = []
    for mass in (image_mass, text_mass):
        mass = mass * 10 ** (-decades * torch.rand(mass.shape, generator=generator, dtype=torch.float64))
        mass = mass / mass.sum(-1, keepdim=True).clamp_min(1e-300)
        masses.append(torch.where(mass > 0, mass.clamp_min(1e-38), 0))
    return image_rows, masses[0], text_rows, masses[1]


@pytest.mark.parametrize("backend", [*TILED, "reference", "auto"])
@settings(max_examples=settings.default.max_examples // 2)
@given(
    seed=st.integers(0, 2**31),
    image_counts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    text_counts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    decades=st.floats(0, 38),
    num_dustbins=st.integers(0, 1),
    regularization=st.floats(0.002, 1),
    num_iterations=st.integers(1, 100),
    sparse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@example(236477, [2], [14], 38, 1, 1 / 25, 8, False, torch.float32)  # b below what float32 can hold
@example(1, [9], [9, 2], 38, 1, 1 / 300, 60, False, torch.float32)
def test_masses_may_be_as_unequal_as_float32_can_say(
    backend,
    seed,
    image_counts,
    text_counts,
    decades,
    num_dustbins,
    regularization,
    num_iterations,
    sparse,
    dtype,
):
    assume(backend in ("reference", "auto") or regularization > 1 / 319)
    assume(backend != "numba" or dtype == torch.float32)
    arguments = unequal_masses(seed, image_counts, text_counts, decades)
    weights = torch.randn(
        len(image_counts), len(text_counts), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    if sparse:
        weights *= torch.arange(weights.numel()).view_as(weights) == seed % weights.numel()
    options = {"regularization": regularization, "num_iterations": num_iterations, "num_dustbins": num_dustbins}
    assert_parity(backend, arguments, dtype, weights, unequal=True, **options)


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("pairwise", [False, True])
def test_a_tile_that_leaves_float64_is_done_in_the_log_domain(monkeypatch, backend, sparse, pairwise):
    monkeypatch.setattr(TiledTransport, "iterate", lambda *_: None)
    monkeypatch.setattr("omit_hf.kernels.numba.transport.CompiledTransport.run", lambda *_: 1)
    arguments = problem(0, [5, 3, 5, 4, 0, 2, 5], [4, 4, 4, 1, 7, 4, 4, 0, 4, 6], uneven=True, pairwise=pairwise)
    weights = torch.randn(7, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if sparse:
        weights[torch.rand(7, 10, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    options = {"regularization": 0.05, "num_iterations": 3, "num_dustbins": 1}
    assert_parity(backend, arguments, torch.float32, weights, **options)


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("sparse", [False, True])
def test_many_tiles_are_one(monkeypatch, sparse, backend):
    """With tiles so small that blocks, runs of captions and chunks of pairs all end unevenly."""
    arguments = problem(0, [5, 3, 5, 4, 0, 2, 5], [4, 4, 4, 1, 7, 4, 4, 0, 4, 6, 6], uneven=True)
    weights = torch.randn(7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if sparse:
        weights[torch.rand(7, 11, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    options = {"regularization": 0.05, "num_iterations": 3, "num_dustbins": 1}
    dtype = torch.float64 if backend == "cpu" else torch.float32
    arguments = [each.to(dtype) for each in arguments]
    whole = score_and_gradients(backend, arguments, weights, **options)
    monkeypatch.setattr(tiles, "IMAGES_PER_BLOCK", 3)
    monkeypatch.setattr(tiles, "TILE_ENTRIES", 150)
    monkeypatch.setattr(tiles, "PRODUCT_ENTRIES", 400)
    monkeypatch.setattr(tiles, "GATHERED_ENTRIES", 700)
    torch.testing.assert_close(score_and_gradients(backend, arguments, weights, **options), whole)
    assert_parity(backend, arguments, dtype, weights, **options)


@pytest.mark.parametrize("backend", TILED)
def test_a_tile_that_leaves_float32_is_done_in_float64(monkeypatch, backend):
    """A column that no row likes: what reaches it is e^-110 of the rest, too little for float32."""
    image_rows = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1, 0, 0]]], dtype=torch.float64)
    text_rows = torch.tensor([[[1.0, 0, 0], [-1, 0, 0], [0.6, 0.8, 0]]], dtype=torch.float64)
    mass = torch.full((1, 1, 3), 1 / 3, dtype=torch.float64)
    types = []
    iterate = TiledTransport.iterate
    monkeypatch.setattr(
        TiledTransport, "iterate", lambda *arguments: types.append(arguments[-1]) or iterate(*arguments)
    )
    options = {"regularization": 1 / 55, "num_iterations": 5, "num_dustbins": 0}
    assert_parity(backend, (image_rows, mass, text_rows, mass), torch.float32, torch.ones(1, 1), **options)
    assert types == [torch.float32, torch.float64] * 2  # forward and backward
    types.clear()
    transport(
        *(each.float() for each in (image_rows, mass, text_rows, mass)),
        **options | {"regularization": 0.1, "backend": backend},
    )
    assert types == ([torch.float32] if backend == "cpu" else [])  # the compiled code does not ask it


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_row_without_mass_plays_no_part_in_a_gradient(backend, iterations, swapped):
    """The first image's second region is the second word itself, of which its only region of mass is far."""
    regions = torch.tensor([[[1.0, 0.0], [-0.36, (1 - 0.36**2) ** 0.5]], [[1.0, 0.0], [0.0, 1.0]]])
    words = torch.tensor([[[1.0, 0.0], [-0.36, (1 - 0.36**2) ** 0.5]]])
    image_mass, text_mass = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]), torch.tensor([[[0.5, 0.5]]])
    sides = (words, text_mass.transpose(0, 1), regions, image_mass.transpose(0, 1))
    sides = sides if swapped else (regions, image_mass, words, text_mass)
    weights = torch.ones(1, 2) if swapped else torch.ones(2, 1)
    assert_parity(
        backend, sides, torch.float32, weights, regularization=0.02, num_iterations=iterations, num_dustbins=0
    )


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_reference(dtype, backend):
    arguments = problem(3, [6, 4, 5], [5, 3, 2], dtype == torch.bfloat16)
    options = {"regularization": 0.02, "num_iterations": 3, "num_dustbins": 1}
    truth = transport(*arguments, backend="reference", **options)
    rows = [arguments[0].to(dtype), arguments[1].float(), arguments[2].to(dtype), arguments[3].float()]
    eager, ours = (transport(*rows, backend=each, **options) for each in ("reference", backend))
    assert ours.dtype == torch.float32
    assert (ours - truth).abs().max() <= 1.1 * (eager - truth).abs().max()


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize("padding", [2, 0])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("image_counts", "text_counts"), [([0] * 4, [3, 1]), ([2, 4], [0] * 4), ([0] * 4, [0, 0])])
def test_nothing_to_transport(image_counts, text_counts, padding, sparse, backend):
    """Also where a side has not even a place for a fragment, and where few pairs have a gradient."""
    arguments = [each.float() for each in problem(4, image_counts, text_counts, padding)]
    weights = torch.ones(len(image_counts), len(text_counts))
    if sparse:
        weights.view(-1)[1:] = 0
    options = {"regularization": 0.1, "num_iterations": 2, "num_dustbins": 0}
    score, gradients = score_and_gradients(backend, arguments, weights, **options)
    assert (score == 0).all()
    assert all((each == 0).all() for each in gradients)


@pytest.mark.parametrize("backend", [*TILED, "reference"])
@pytest.mark.parametrize("images", [0, 2])
def test_an_empty_side(backend, images):
    image_rows, image_mass, text_rows, text_mass = (each.float() for each in problem(5, [3, 2], [4, 1, 2]))
    arguments = (
        image_rows[:images],
        image_mass[:images],
        text_rows[: 3 * (images == 0)],
        text_mass[:, : 3 * (images == 0)],
    )
    score = transport(*arguments, regularization=0.1, num_iterations=2, num_dustbins=1, backend=backend)
    assert score.shape == (images, 3 * (images == 0))


@pytest.mark.parametrize("backend", TILED)
def test_strided_inputs_and_inputs_without_gradient(backend):
    arguments = [each.float() for each in problem(6, [4, 3, 2], [5, 2])]
    options = {"regularization": 0.1, "num_iterations": 3, "num_dustbins": 1, "backend": backend}
    expected = transport(*arguments, **options)
    strided = [each.mT.contiguous().mT for each in arguments]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(transport(*strided, **options), expected)
    text_rows = arguments[2].clone().requires_grad_()
    score = transport(arguments[0], arguments[1], text_rows, arguments[3], **options)
    score.sum().backward()
    assert text_rows.grad.isfinite().all()


def test_the_transport_of_a_compiled_model_under_autocast(model, inputs):
    expected = model(**inputs).similarity
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close = model(**inputs).similarity
    assert close.dtype == torch.float32
    assert (close - expected).abs().max() < 0.1
    compiled = torch.compile(model.matching, backend="eager")
    image, text = model.get_image_features(inputs["pixel_values"]), None
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(compiled(image, text), expected)


def test_auto_falls_back_and_says_why(caplog):
    arguments = [each.float() for each in problem(7, [3, 2], [4, 1])]
    options = {"regularization": 0.002, "num_iterations": 3, "num_dustbins": 1}
    with caplog.at_level(logging.INFO):
        score = transport(*arguments, **options)
    assert "Backend 'cpu' cannot be used: similarity / regularization may reach 500, and it takes 320." in caplog.text
    assert torch.equal(score, transport(*arguments, backend="reference", **options))
    with pytest.raises(ValueError, match="backend 'cpu' cannot be used: .* reach 500"):  # reference knows no product
        transport(*arguments, matmul_dtype="int8", **options)
    with pytest.raises(ValueError, match="backend 'cpu' cannot be used: .* reach 500.*backend='auto' chooses one"):
        transport(*arguments, backend="cpu", **options)


def test_numba_pays_for_many_pairs_and_says_where_it_cannot_be_used(monkeypatch, caplog):
    image_rows, image_mass, text_rows, text_mass = (each.float() for each in problem(13, [3, 2], [4, 1]))
    options = {"regularization": 0.1, "num_iterations": 3, "num_dustbins": 1}
    many = (
        image_rows.repeat(400, 1, 1),
        image_mass.repeat(400, 1, 1),
        text_rows.repeat(100, 1, 1),
        text_mass.repeat(1, 100, 1),
    )
    with caplog.at_level(logging.DEBUG):
        assert candidate_backends("auto", "cpu", 80) == ["cpu", "reference"]
        assert candidate_backends("auto", "cpu", 2**20) == ["numba", "cpu", "reference"]
        scores = transport(*many, **options)
    assert "Backend 'numba' pays from 1048576 cosines, and these are 80." in caplog.text
    assert "Transport on cpu by backend 'numba'." in caplog.text
    torch.testing.assert_close(scores, transport(*many, **options, backend="cpu"), rtol=0, atol=1e-6)
    exact = [each.double() for each in many]
    torch.testing.assert_close(transport(*exact, **options), transport(*exact, **options, backend="cpu"))
    with pytest.raises(ValueError, match="backend 'numba' cannot be used: an input is torch.float64"):
        transport(*exact, **options, backend="numba")
    on_meta = [each.to("meta") for each in many]
    with pytest.raises(CannotServe, match="the tensors are on meta, and it takes a CPU"):
        transport_by("numba", *on_meta, **options)
    monkeypatch.setattr(os, "getpid", lambda: 0)
    with pytest.raises(ValueError, match="'numba' cannot be used: this process was forked from one"):
        transport(*many, **options, backend="numba")
    monkeypatch.undo()
    monkeypatch.delattr(kernels.numba, "transport")
    monkeypatch.setitem(sys.modules, "omit_hf.kernels.numba.transport", None)
    with pytest.raises(
        ValueError, match=r"'numba' cannot be used: Numba cannot be imported .*pip install omit-hf\[numba"
    ):
        transport(*many, **options, backend="numba")
    torch.testing.assert_close(transport(*many, **options), scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_numba_takes_torchs_threads_and_leaves_them(threads):
    arguments = [each.float() for each in problem(14, [5, 3, 5], [4, 4, 4, 1, 7, 4, 4], uneven=True)]
    options = {"regularization": 0.05, "num_iterations": 3, "num_dustbins": 1}
    weights = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    before, expected = torch.get_num_threads(), score_and_gradients("numba", arguments, weights, **options)
    try:
        torch.set_num_threads(threads)
        found = score_and_gradients("numba", arguments, weights, **options)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # torch's product rounds by the number of threads


def test_mass_in_some_pairs_alone_is_for_the_reference():
    image_rows, image_mass, text_rows, text_mass = problem(8, [3, 2], [4, 1], pairwise=True)
    image_mass = image_mass.clone()
    image_mass[0, 1] = 0
    arguments, options = (image_rows, image_mass, text_rows, text_mass), {"num_iterations": 3, "num_dustbins": 1}
    with pytest.raises(ValueError, match="an item has mass in some of its pairs and none in others"):
        transport(*arguments, regularization=0.1, backend="cpu", **options)
    assert transport(*arguments, regularization=0.1, **options)[0, 1] == 0


def test_not_a_number_stays_one():
    image_rows, *others = problem(9, [3, 2], [4, 1])
    image_rows[0, 0, 0] = torch.nan
    score = transport(image_rows, *others, regularization=0.1, num_iterations=3, num_dustbins=1)
    assert score[0].isnan().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_rows": torch.ones(2, 5, 24)},
            r"images are torch.float64 on cpu, the captions torch.float32 on cpu; expected the same. Cast one side",
        ),
        ({"backend": "triton"}, r"backend is 'triton'; expected one of 'auto', .*import omit_hf.kernels"),
        ({"backend": "gpu"}, "backend is 'gpu'; expected one of 'auto', 'reference', 'cpu'"),
    ],
)
def test_bad_input(changes, message, monkeypatch):
    monkeypatch.delitem(BACKENDS, "triton", raising=False)
    names = ("image_rows", "image_mass", "text_rows", "text_mass")
    arguments = dict(zip(names, problem(10, [3, 2], [4, 1]), strict=True))
    with pytest.raises(ValueError, match=message):
        transport(**{**arguments, "regularization": 0.1, "num_iterations": 3, "num_dustbins": 1, **changes})


@pytest.mark.parametrize("backend", TILED)
@pytest.mark.parametrize(("matmul_dtype", "bound"), [("bfloat16", 4e-3), ("int8", 1e-2)])
def test_a_reduced_product_errs_by_the_rounding_of_the_cosines(matmul_dtype, bound, backend):
    """bfloat16 rounds a cosine to 2^-9 of itself, int8 each of the 24 coordinates to 1/254 of the largest."""
    arguments = [each.float() for each in problem(11, [6, 4, 5, 1], [5, 3, 2, 7], uneven=True)]
    options = {"regularization": 0.5, "num_iterations": 3, "num_dustbins": 1}
    expected = transport(*arguments, **options)
    score = transport(*arguments, **options, matmul_dtype=matmul_dtype, backend=backend)
    assert score.dtype == torch.float32
    assert 0 < (score - expected).abs().max() < bound


def test_a_reduced_product_where_there_is_none(model, inputs):
    arguments = [each.float() for each in problem(12, [3, 2], [4, 1])]
    options = {"regularization": 0.1, "num_iterations": 3, "num_dustbins": 1}
    with pytest.raises(ValueError, match="matmul_dtype is 'int4'; expected one of 'float32', 'bfloat16', 'int8'"):
        transport(*arguments, **options, matmul_dtype="int4")
    with pytest.raises(
        ValueError,
        match="matmul_dtype 'int8' is for the backends 'cpu' and 'numba' of omit_hf.kernels on a CPU; this is",
    ):
        transport(*arguments, **options, matmul_dtype="int8", backend="reference")
    arguments[0].requires_grad_()
    with pytest.raises(ValueError, match="matmul_dtype 'int8' has no gradient; score under torch.inference_mode"):
        transport(*arguments, **options, matmul_dtype="int8")
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    with torch.inference_mode():
        close = model.similarity(image, text, matmul_dtype="bfloat16")
    assert (close - model.similarity(image, text)).abs().max() < 0.05


@pytest.mark.parametrize("marginals", ["uniform", "cross_global"])
def test_heads_multiply_in_the_type_that_is_asked_for(marginals):
    """Also where the mass of a pair has to be made tile by tile."""
    head = head_of("omit", marginals=marginals).float()
    image, text = features(1, [6, 4, 5], dtype=torch.float32), features(2, [5, 3, 2, 7], dtype=torch.float32)
    exact, close = head(image, text), head.tiled_similarity(image, text, matmul_dtype="bfloat16")
    assert 0 < (close - exact).abs().max() < 0.05
    image.embeds.requires_grad_()
    with pytest.raises(ValueError, match="matmul_dtype 'bfloat16' has no gradient"):
        head.tiled_similarity(image, text, matmul_dtype="bfloat16")
