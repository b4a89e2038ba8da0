"""Score random problems with every backend, forward and backward, and compare them to the definition in float64.

    python examples/reliability/numerical_campaign.py --cases 100000
    python examples/reliability/numerical_campaign.py --cases 300 --backends cpu reference --seed 7

A case draws its sizes, padding, types, masses (down to 1e-38), λ (down to 0.002), n and one backend. Counts are printed
by kind; the command fails if there was a NaN, an exception or an error beyond its bound. A case is found again by its
number: `--first 1234 --cases 1`.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from omit_hf import kernels
from omit_hf.command_line import CommandParser, run_script
from omit_hf.modeling.sinkhorn_omit import row_similarity, sinkhorn
from omit_hf.modeling.transport_omit import Side, TransportOptions, transport_similarity

assert kernels  # registers the backends
INPUTS = ("image rows", "image masses", "caption rows", "caption masses")
HALF = (torch.bfloat16, torch.float16)


@dataclass
class Arguments:
    cases: int = field(default=100_000, metadata={"help": "How many."})
    first: int = field(default=0, metadata={"help": "Number of the first case."})
    seed: int = field(default=0, metadata={"help": "Of all cases."})
    backends: list[str] = field(
        default_factory=lambda: ["auto", "cpu", "numba", "reference"],
        metadata={"help": "triton takes a GPU, or seconds a case with TRITON_INTERPRET=1."},
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    seconds: float = field(default=float("inf"), metadata={"help": "Stop after so many."})


@dataclass
class Case:
    """A problem; `sides` are float64 tensors with values of `dtype`, in the order of `INPUTS`."""

    backend: str
    dtype: torch.dtype
    kind: str
    sides: list[Tensor]
    weights: Tensor
    options: dict


def draw_case(rng: np.random.Generator, backends: list[str]) -> Case:
    backend = str(rng.choice(backends))
    dtypes = [torch.float32, torch.float32, torch.float64, *HALF]
    dtype = dtypes[rng.integers(len(dtypes))]
    if backend in ("numba", "triton") and dtype == torch.float64:
        dtype = torch.float32
    largest = 12 if backend == "triton" else 40
    lowest = 0.002 if backend in ("auto", "reference", "triton") else 1 / 310
    width, pairwise = int(rng.choice([1, 2, 3, 16, 64])), rng.random() < 0.2
    masses = str(rng.choice(["even", "uneven", "very unequal"]))
    items = rng.integers(1, 4, 2)
    sides = []
    for number, others in ((0, 1), (1, 0)):
        counts = rng.integers(0, largest + 1, items[number])
        slots = int(counts.max() + rng.integers(0, 3))
        rows = rng.standard_normal((items[number], slots, width))
        rows /= np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-9)
        mass = np.zeros((items[number], items[others] if pairwise else 1, slots))
        decades = {"even": 0, "uneven": 1, "very unequal": rng.uniform(1, 38)}[masses]
        for item, count in enumerate(counts):
            share = 10 ** -(decades * rng.random((mass.shape[1], count)))
            share = np.maximum(share / share.sum(-1, keepdims=True), 1e-38)
            mass[item][:, rng.permutation(slots)[:count]] = share
        mass = torch.tensor(mass).float().double()
        sides += [torch.tensor(rows).to(dtype).double(), mass if number == 0 else mass.transpose(0, 1)]
    weights = torch.tensor(rng.standard_normal(items))
    if rng.random() < 0.3:  # as with hardest negatives
        weights *= torch.tensor(rng.random(items) < 0.2)
    options = {
        "regularization": float(np.exp(rng.uniform(np.log(lowest), 0))),
        "num_iterations": int(rng.integers(1, 21 if backend == "triton" else 101)),
        "num_dustbins": int(rng.integers(0, 2)),
    }
    return Case(backend, dtype, masses, sides, weights, options)


def score(sides: list[Tensor], case: Case, backend: str) -> tuple[Tensor, list[Tensor]]:
    """Scores, and the gradients of all sides."""
    inputs = [each.detach().requires_grad_() for each in sides]
    scores = transport_similarity(
        Side(*inputs[:2]), Side(*inputs[2:]), TransportOptions(backend=backend, **case.options)
    )
    gradients = torch.autograd.grad(scores, inputs, case.weights.to(scores), allow_unused=True)
    return scores.detach(), [torch.zeros_like(a) if g is None else g for g, a in zip(gradients, inputs, strict=True)]


def check_case(case: Case, device: str) -> str | None:
    """What is wrong with a case: the kind of fault, or None."""
    # Half precision holds rows; masses stay in float32.
    kinds = [case.dtype, torch.float32 if case.dtype in HALF else case.dtype] * 2
    given = [each.to(device, kind) for each, kind in zip(case.sides, kinds, strict=True)]
    truth, true_gradients = score(case.sides, case, "reference")
    try:
        scores, gradients = score(given, case, case.backend)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    if not all(each.isfinite().all() for each in (scores, *gradients)):
        return "NaN or infinity"
    epsilon, unit, smallest = (1e-11, 2**-53, 2**-1074) if case.dtype == torch.float64 else (2e-6, 2**-24, 2**-149)
    # A logarithm is held to so many parts of itself, be it S/λ or that of a mass.
    scale = 1 / case.options["regularization"]
    if case.kind != "even":
        for mass in (case.sides[1], case.sides[3]):
            scale -= mass[mass > 0].min().log().item() if (mass > 0).any() else 0
    image_rows, mu, text_rows, nu = case.sides
    similarity, first = row_similarity(image_rows, text_rows), case.options["num_dustbins"]
    plan = sinkhorn(similarity, mu, nu, case.options["regularization"], case.options["num_iterations"])
    size, product_size = (
        (plan * each)[..., first:, first:].sum((-2, -1))
        for each in (similarity.abs(), row_similarity(image_rows.abs(), text_rows.abs()))
    )
    allowed = epsilon * scale * size + 8 * unit * product_size + smallest * plan[0, 0].numel()
    if ((scores.double().cpu() - truth).abs() > allowed).any():
        return "score beyond its bound"
    for number, (name, ours, theirs) in enumerate(zip(INPUTS, gradients, true_gradients, strict=True)):
        ours, bound = ours.double().cpu(), 10 * epsilon * scale
        if "masses" in name and case.kind != "even":  # by their logarithms: of 1e-38 no float32 holds a share
            ours, theirs = ours * case.sides[number], theirs * case.sides[number]
        elif "rows" in name and case.dtype in HALF:
            bound += 2 * torch.finfo(case.dtype).eps
        if (ours - theirs).norm() > bound * (theirs.norm() + 0.1 * case.weights.norm()):
            return f"gradient of {name} beyond its bound"
    return None


def main() -> None:
    arguments = CommandParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0]
    done, faults, started = Counter(), Counter(), time.monotonic()
    for number in range(arguments.first, arguments.first + arguments.cases):
        if time.monotonic() - started > arguments.seconds:
            break
        case = draw_case(np.random.default_rng([arguments.seed, number]), arguments.backends)
        kind = f"{case.backend}, {str(case.dtype).removeprefix('torch.')}, {case.kind} masses"
        done[kind] += 1
        fault = check_case(case, arguments.device)
        if fault is not None:
            faults[kind, fault] += 1
            print(f"case {number}: {kind}: {fault}; {case.options}", flush=True)
    for kind, count in sorted(done.items()):
        print(f"{count:8d}  {kind}")
    print(f"{done.total():8d}  cases, {faults.total()} faults")
    for (kind, fault), count in sorted(faults.items()):
        print(f"{count:8d}  {kind}: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_script(main)
