"""The Triton backend against the definition in float64: on a GPU as it is, elsewhere in Triton's interpreter.

How `conftest.py` chooses between the two is said there.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from oracles import logarithms, score_bounds
from samples import SIDES
from tiny import PROGRAMS
from transporting import transport, transport_by

from omit_hf import kernels
from omit_hf.modeling.transport_omit import BACKENDS, CannotServe

pytest.importorskip("triton", reason="Triton has wheels for Linux alone; elsewhere the backend says that it is missing")

from omit_hf.kernels.triton import dense as triton_dense
from omit_hf.kernels.triton import transport as triton_transport

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
NAMES = ("image_rows", "image_mass", "text_rows", "text_mass")
reference_similarity = functools.partial(transport_by, "reference")
triton_similarity = functools.partial(transport_by, "triton")


def marginals(shape, present, generator) -> torch.Tensor:
    """Uneven shares of the rows that are present, float64."""
    weights = (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1) * present
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1)


def problem(seed, image_counts, text_counts, *, width=16, padding=0, per_pair=False, dtype=torch.float32) -> dict:
    """Arguments in the given type: items with so many rows with mass, at random places among padding."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {}
    for side, counts in (("image", image_counts), ("text", text_counts)):
        slots = max(1, *counts) + padding
        rows = torch.randn(len(counts), slots, width, generator=generator, dtype=torch.float64)
        present = torch.zeros(len(counts), slots, dtype=torch.bool)
        for row, count in zip(present, counts, strict=True):
            row[torch.randperm(slots, generator=generator)[:count]] = True
        if side == "image":
            shape, present = (len(counts), len(text_counts) if per_pair else 1, slots), present[:, None]
        else:
            shape, present = (len(image_counts) if per_pair else 1, len(counts), slots), present[None]
        arguments[f"{side}_rows"] = F.normalize(rows, dim=-1).to(DEVICE, dtype)
        arguments[f"{side}_mass"] = marginals(shape, present, generator).to(DEVICE, torch.float32)
    return arguments


def scores_and_gradients(function, arguments: dict, weights: torch.Tensor, dtype=None, **options):
    inputs = [arguments[name].to(dtype or arguments[name].dtype).detach().requires_grad_() for name in NAMES]
    scores = function(*inputs, **options)
    gradients = torch.autograd.grad(scores, inputs, weights.to(scores))
    return scores.detach().double(), [gradient.double() for gradient in gradients]


def assert_parity(arguments: dict, weights: torch.Tensor | None = None, unequal: bool = False, **options) -> None:
    """Three ways: the truth in float64, the reference and the kernels. The kernels may be as wrong as the reference,
    plus a tenth, plus a little. Gradients of `unequal` masses are compared by their logarithms."""
    pairs = len(arguments["image_rows"]), len(arguments["text_rows"])
    if weights is None:
        weights = torch.randn(pairs, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    truth, true_gradients = scores_and_gradients(reference_similarity, arguments, weights, torch.float64, **options)
    eager, eager_gradients = scores_and_gradients(reference_similarity, arguments, weights, **options)
    fused, fused_gradients = scores_and_gradients(triton_similarity, arguments, weights, **options)

    exact = [arguments[name].double() for name in NAMES]
    slack = 1.1 if arguments["image_rows"].itemsize == 2 else 0
    masses = arguments["image_mass"].cpu(), arguments["text_mass"].cpu()
    scale = logarithms(*masses, options["regularization"]) if unequal else 1 / options["regularization"]
    allowed = slack * (truth - eager).abs() + score_bounds(exact, scale=scale, **options)
    assert ((truth - fused).abs() <= allowed).all(), ((truth - fused).abs() / allowed).max()
    assert (fused[allowed == 0] == 0).all()
    for name, true, rough, ours in zip(NAMES, true_gradients, eager_gradients, fused_gradients, strict=True):
        assert ours.isfinite().all(), name
        if unequal and name.endswith("mass"):
            true, rough, ours = (each * arguments[name] for each in (true, rough, ours))
        allowed = slack * (true - rough).abs().max() + 2e-5 * scale * max(true.abs().max(), 0.1)
        assert ((true - ours).abs() <= allowed).all(), (name, ((true - ours).abs() / allowed).max())


@settings(max_examples=settings.default.max_examples // 7, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    **SIDES | {name: st.lists(st.integers(0, 20), min_size=1, max_size=3) for name in ("image_counts", "text_counts")},
    padding=st.integers(0, 2),
    width=st.integers(1, 40),
    per_pair=st.booleans(),
    num_dustbins=st.integers(0, 1),
    regularization=st.floats(0.01, 1),
    num_iterations=st.sampled_from([1, 2, 3, 4, 5, 8, 13, 50]),
)
def test_scores_and_gradients_are_those_of_the_definition(
    seed, image_counts, text_counts, padding, width, per_pair, num_dustbins, regularization, num_iterations
):
    arguments = problem(seed, image_counts, text_counts, padding=padding, width=width, per_pair=per_pair)
    assert_parity(arguments, regularization=regularization, num_iterations=num_iterations, num_dustbins=num_dustbins)


@settings(max_examples=settings.default.max_examples // 10, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 2**31),
    counts=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    decades=st.floats(0, 37),
    num_dustbins=st.integers(0, 1),
    regularization=st.floats(0.002, 1),
    num_iterations=st.sampled_from([1, 2, 3, 4, 5, 8, 13]),
)
@example(0, (9, 7), 30, 0, 0.01, 13)
def test_masses_may_be_as_unequal_as_float32_can_say(
    seed, counts, decades, num_dustbins, regularization, num_iterations
):
    """Some items of a tile; beside them others of even masses."""
    arguments = problem(seed, [counts[0]] * 2, [counts[1]] * 2, width=3)
    generator = torch.Generator().manual_seed(seed)
    for name in ("image_mass", "text_mass"):
        mass = arguments[name]
        shrunk = mass * 10 ** (-decades * torch.rand(mass.shape, generator=generator)).to(DEVICE)
        even = torch.arange(2, device=DEVICE).view((2, 1, 1) if name == "image_mass" else (1, 2, 1)) == 0
        arguments[name] = torch.where(even, mass, shrunk / shrunk.sum(-1, keepdim=True))
    options = {"regularization": regularization, "num_iterations": num_iterations, "num_dustbins": num_dustbins}
    assert_parity(arguments, unequal=True, **options)


def test_mass_may_have_to_go_where_the_first_pass_leaves_nothing():
    """0.8 of it to the opposite word, where that pass leaves e^−200, in float32 nothing; by pass 50 it has arrived."""
    opposites = torch.tensor([[[1.0], [-1.0]]], device=DEVICE)
    arguments = {
        "image_rows": opposites,
        "image_mass": torch.tensor([[[0.9, 0.1]]], device=DEVICE),
        "text_rows": opposites,
        "text_mass": torch.tensor([[[0.1, 0.9]]], device=DEVICE),
    }
    scores = []
    for num_iterations in (40, 50):
        options = {"regularization": 0.01, "num_iterations": num_iterations, "num_dustbins": 0}
        assert_parity(arguments, **options)
        scores.append(triton_similarity(*arguments.values(), **options).item())
    assert scores == pytest.approx([1, -0.6], abs=0.01)


def test_what_float32_cannot_scale_is_made_in_the_log_domain():
    """Beside pairs of ordinary size: rows so long that exp(S/λ) overflows, and so short of mass that a or b would."""
    arguments = problem(11, [4, 5, 3], [3, 2, 5], width=8)
    arguments["image_rows"][1] *= 5
    arguments["text_rows"][2] *= 3
    for num_iterations in (1, 4):
        assert_parity(arguments, regularization=0.02, num_iterations=num_iterations, num_dustbins=1)


OPTIONS = {"regularization": 0.05, "num_iterations": 3, "num_dustbins": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_that_of_the_reference(dtype):
    arguments = problem(1, [7, 3, 20], [5, 1], width=70, padding=2, dtype=dtype)
    assert_parity(arguments, regularization=0.02, num_iterations=5, num_dustbins=1)


@pytest.mark.parametrize(
    ("image_counts", "text_counts", "width"),
    [
        ([1, 1], [1], 3),
        ([5, 18, 36, 33, 2], [3, 17, 1, 34, 16, 2, 4, 3, 3, 5], 20),  # several buckets, and several tiles of one
        ([70, 120], [20, 120], 8),  # tiles of one pair
        ([257], [4, 129], 8),  # in blocks
    ],
)
def test_all_sizes(image_counts, text_counts, width):
    arguments = problem(2, image_counts, text_counts, width=width, padding=1)
    assert_parity(arguments, regularization=0.05, num_iterations=2, num_dustbins=1)


def test_in_blocks_as_on_the_chip(monkeypatch):
    """Forward too, with one program that takes tile after tile."""
    arguments = problem(2, [5, 18, 36, 60], [3, 17, 1, 12, 16, 2, 4, 3, 3, 5], width=20)
    on_chip = triton_similarity(*arguments.values(), **OPTIONS)
    monkeypatch.setattr(triton_dense, "MOST_ENTRIES", 0)
    for name, value in {"IMAGE_BLOCK": 16, "WORKSPACE": 1}.items():
        monkeypatch.setattr(triton_transport, name, value)
    torch.testing.assert_close(triton_similarity(*arguments.values(), **OPTIONS), on_chip)
    assert_parity(arguments, **OPTIONS)


def test_marginals_may_leave_an_item_without_mass_in_some_pairs():
    arguments = problem(3, [4, 3], [3, 2, 5], per_pair=True)
    arguments["image_mass"][0, 1] = 0
    arguments["text_mass"][1, 2] = 0
    arguments["text_mass"][0, 0, 1] = 0
    assert_parity(arguments, **OPTIONS)


@pytest.mark.parametrize("workspace", [2**27, 1])
@pytest.mark.parametrize("density", ["hardest", "half", "none"])
def test_few_pairs_with_a_gradient_are_visited_one_by_one(density, workspace, monkeypatch):
    """And what comes of it is exact, also if the workspace holds but one of them, or one tile of all."""
    monkeypatch.setattr(triton_transport, "WORKSPACE", workspace)
    monkeypatch.setattr(triton_dense, "WORKSPACE", workspace)
    visited = []
    transport = triton_transport._transport

    def spy(workspace, tiles, *arguments):
        visited.append(len(tiles) * workspace.captions)
        return transport(workspace, tiles, *arguments)

    monkeypatch.setattr(triton_transport, "_transport", spy)
    arguments = problem(4, [5, 3, 4, 2, 3], [3, 4, 2, 5, 1])
    weights = torch.zeros(5, 5)
    if density == "hardest":
        weights[4, 3], weights[2, 1], weights[0, 3] = 1, -2, 0.5
    elif density == "half":
        weights[1:4] = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert_parity(arguments, weights.to(DEVICE), **OPTIONS)
    tiles, pairs_of_a_tile = {"hardest": (3, 1), "half": (0, 0), "none": (0, 0)}[density]
    assert sum(visited) == tiles * pairs_of_a_tile
    assert len(visited) == (tiles if workspace == 1 else min(tiles, 1))


def test_the_layout_of_the_inputs_does_not_matter():
    arguments = problem(5, [4, 3], [3, 2, 5], per_pair=True)
    expected = triton_similarity(*arguments.values(), **OPTIONS)
    for change in (
        lambda each: each.mT.contiguous().mT,  # rows strided along their width
        lambda each: each.transpose(0, 1).contiguous().transpose(0, 1),
        lambda each: torch.cat([each, each + 1], dim=-1)[..., : each.shape[-1]],
    ):
        strided = {name: change(each).requires_grad_() for name, each in arguments.items()}
        scores = triton_similarity(*strided.values(), **OPTIONS)
        assert torch.equal(scores, expected)
    assert_parity(strided, torch.ones(1, 1).expand(2, 3).to(DEVICE), **OPTIONS)


def test_one_side_alone_may_want_a_gradient():
    arguments = problem(6, [4, 3], [3, 2])
    every = [each.clone().requires_grad_() for each in arguments.values()]
    triton_similarity(*every, **OPTIONS).sum().backward()
    for number, name in enumerate(NAMES):
        alone = {other: each.clone() for other, each in arguments.items()}
        alone[name].requires_grad_()
        triton_similarity(*alone.values(), **OPTIONS).sum().backward()
        assert torch.equal(alone[name].grad, every[number].grad)


def test_no_image_or_no_caption():
    arguments = problem(7, [4, 3], [3])
    for side, shape in (("image", (0, 1)), ("text", (2, 0))):
        empty = {**arguments, f"{side}_rows": arguments[f"{side}_rows"][:0].requires_grad_()}
        empty[f"{side}_mass"] = arguments["image_mass"][:0] if side == "image" else arguments["text_mass"][:, :0]
        scores = triton_similarity(*empty.values(), **OPTIONS)
        assert scores.shape == shape
        scores.sum().backward()
        assert empty[f"{side}_rows"].grad.shape == empty[f"{side}_rows"].shape


def test_a_compiled_model_may_call_it():
    arguments = problem(8, [4, 3], [3, 2])

    def model(image_rows, image_mass, text_rows, text_mass):
        return triton_similarity(image_rows * 2, image_mass, text_rows, text_mass, **OPTIONS) * 3

    gradients = []
    for function in (model, torch.compile(model, backend="eager")):
        inputs = [each.clone().requires_grad_() for each in arguments.values()]
        gradients.append(torch.autograd.grad(function(*inputs).sum(), inputs))
    assert all(map(torch.equal, *gradients))


def test_the_backend_is_registered():
    assert "triton" in BACKENDS
    arguments = problem(8, [4, 3], [3, 2])
    scores = transport(*arguments.values(), **OPTIONS, backend="triton")
    assert torch.equal(scores, triton_similarity(*arguments.values(), **OPTIONS))


@pytest.mark.parametrize(
    ("rows", "words", "dtype", "message"),
    [
        (5, 4, torch.float64, "the rows are torch.float64"),
        (5, 257, torch.float32, "a caption has 257 rows, and it takes 256"),
        (5000, 4, torch.float32, "an image has 5000 rows, and it takes 4096"),
    ],
)
def test_limits_give_a_reason(rows, words, dtype, message):
    tensors = [torch.ones(1, rows, 2), torch.ones(1, 1, rows), torch.ones(1, words, 2), torch.ones(1, 1, words)]
    tensors = [tensor.to(DEVICE, dtype) for tensor in tensors]
    with pytest.raises(ValueError, match=message):
        transport(*tensors, **OPTIONS, backend="triton")


def test_without_triton_or_a_gpu_the_limit_says_so(monkeypatch):
    tensors = [torch.ones(1, 2, 2), torch.ones(1, 1, 2), torch.ones(1, 2, 2), torch.ones(1, 1, 2)]
    monkeypatch.setattr(triton_transport, "INTERPRETED", False)
    with pytest.raises(CannotServe, match="the tensors are on cpu, and it takes an NVIDIA GPU"):
        triton_similarity(*tensors, **OPTIONS)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(CannotServe, match=r"Triton is not installed \(pip install omit-hf\[triton\]\)"):
        triton_similarity(*tensors, **OPTIONS)


@pytest.mark.skipif(not CUDA, reason="measures a GPU's memory")
def test_the_forward_pass_writes_the_scores_and_a_workspace_of_constant_size():
    arguments = problem(9, [36] * 1024, [14] * 1024, width=64, dtype=torch.bfloat16)
    with torch.no_grad():
        triton_similarity(*arguments.values(), **OPTIONS)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        triton_similarity(*arguments.values(), **OPTIONS)
    # 36 MB, of which 26 on a GPU of 132 multiprocessors are the workspace; one plan each would take 2 GB
    assert torch.cuda.max_memory_allocated() - before < 4 * 1024 * 1024 + 2**25


def test_the_kernels_compile_for_hopper_and_fit_its_chip():
    """Needs no GPU: Triton's wheel brings the assembler. In a process of its own, without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = PROGRAMS / "triton_resources.py"
    cases = ["bfloat16:37:14:1024", "float32:37:14:1024:forward", "bfloat16:257:20:1024:forward"]
    out = subprocess.run([sys.executable, script, *cases], env=environment, capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    compiled = [json.loads(line) for line in out.stdout.splitlines()]
    for each in compiled:
        assert each["shared"] <= 227 * 1024, each
        assert each["stack"] <= 32, f"more than a few registers are spilt: {each}"
        assert each["HGMMA"] + each["HMMA"] > 0, f"no tensor cores: {each}"
    of_cases = [{each["kernel"] for each in compiled if each["case"] == case} for case in cases]
    assert of_cases == [
        {"packed_kernel", "transport_kernel", "gradient_kernel"},
        {"packed_kernel"},
        {"transport_kernel"},
    ]
    assert {each["BACKWARD"] for each in compiled if each["kernel"] == "packed_kernel"} == {False, True}
