"""What `gpu_report.sh` runs: every part in a process of its own, which may fail, and one report of all of them.

    bash examples/benchmarks/gpu_report.sh --output report
    bash examples/benchmarks/gpu_report.sh --parts parity speed

Parts: parity with the definition in float64, races, speed and memory, COCO 5K's matrix, a search among 1 000
candidates, an epoch of training on Scenes. Figures are medians; compare those of one report alone.
"""

import functools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import triton
from similarity import (
    ITERATIONS,
    REGULARIZATION,
    Problem,
    fused,
    hardest_triplet,
    in_blocks,
    info_nce,
    late_interaction,
    ot,
    plain,
    pot,
    product_alone,
    with_gradient,
)
from torch import Tensor
from tqdm.auto import tqdm

from omit_hf.cards import environment
from omit_hf.command_line import CommandParser, run_script
from omit_hf.modeling.sinkhorn_omit import reference_score
from omit_hf.writing import write_atomically

ROOT = Path(__file__).parents[2]
SECONDS = {"parity": 90, "races": 60, "speed": 120, "coco": 30, "query": 30, "epoch": 120}  # at most, of each part
SCORE, GRADIENT = 2e-6, 2e-5  # what float32 may be off, times 1/λ; as the tests have it
# Compiled side by side: the first run of a kernel takes seconds.
CASES = {"parity": [f"{dtype}:{kind}" for dtype in ("bfloat16", "float16", "float32") for kind in ("even", "odd")]}


@dataclass
class Arguments:
    output: str = field(default=".", metadata={"help": "Folder for gpu_report.json and gpu_report.md."})
    parts: list[str] = field(default_factory=lambda: list(SECONDS), metadata={"help": f"Of: {', '.join(SECONDS)}."})
    device: str = field(default="cuda", metadata={"help": "cuda; or cpu, for tests in Triton's interpreter."})
    tiny: bool = field(default=False, metadata={"help": "Sizes for a test: its figures mean nothing."})
    part: str | None = field(default=None, metadata={"help": "For the script itself: print one part as JSON."})
    case: str | None = field(default=None, metadata={"help": "For the script itself: a case of the part."})


@dataclass
class Inputs:
    """What `Problem.random` reads."""

    device: str
    dtype: str
    seed: int = 0


def random(images: int, captions: int, width: int, arguments: Arguments, dtype: str = "bfloat16") -> Problem:
    sizes = (4, 4, 32) if arguments.tiny else (images, captions, width)
    return Problem.random(*sizes, Inputs(arguments.device, dtype))


def milliseconds(function: Callable[[], object], arguments: Arguments, most: float = 1.0) -> float:
    """Median time of a call on the device, of so many as fit `most` seconds, three at least."""
    cuda = arguments.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(1 if arguments.tiny else 3):
        function()
    times, started = [], time.perf_counter()
    while len(times) < (1 if arguments.tiny else 3) or (time.perf_counter() - started < most and len(times) < 50):
        wait()
        begin = time.perf_counter()
        function()
        wait()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def megabytes(function: Callable[[], object], arguments: Arguments) -> float | None:
    """What a call needs beyond its inputs at its peak."""
    if arguments.device != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


# --- parts ------------------------------------------------------------------------------------------------------------


def parity(arguments: Arguments) -> list[dict]:
    """Scores and gradients against float64; a float32 bound is `SCORE`/λ, half precision is held to the reference's."""
    dtype, kind = arguments.case.split(":")
    rows = []
    for width in [64, 1024, 2048] if kind == "even" else [301]:
        problem = random(40, 300, width, arguments, dtype)
        mask, masses = problem.mask, (problem.image_mass.double(), problem.text_mass.double())
        exact = Problem(problem.image.double(), problem.text.double(), mask, *masses)
        weights = torch.randn(len(problem.image), len(problem.text), generator=torch.Generator().manual_seed(1))
        truth = _scores_and_gradients(fused("reference"), exact, weights)
        eager = _scores_and_gradients(fused("reference"), problem, weights)
        ours = _scores_and_gradients(fused("triton"), problem, weights)
        row = {"dtype": dtype, "D": width}
        for name, right, rough, found in zip(("score", "image", "text"), truth, eager, ours, strict=True):
            error, of_eager = ((each - right).abs().max().item() for each in (found, rough))
            least = (SCORE if name == "score" else GRADIENT * right.abs().max().clamp_min(0.1).item()) / REGULARIZATION
            bound = least + (1.1 * of_eager if dtype != "float32" else 0)
            row |= {f"{name}_error": error, f"{name}_of_bound": error / bound}
        rows.append(row | {"holds": all(row[key] <= 1 for key in row if key.endswith("of_bound"))})
    return rows


def _scores_and_gradients(method: Callable, problem: Problem, weights: Tensor) -> list[Tensor]:
    sides = [each.detach().requires_grad_() for each in (problem.image, problem.text)]
    scores = method(Problem(*sides, problem.mask, problem.image_mass, problem.text_mass))
    gradients = torch.autograd.grad(scores, sides, weights.to(scores))
    return [each.detach().double() for each in (scores, *gradients)]


def races(arguments: Arguments) -> list[dict]:
    """Ten runs give the same bits; and what compute-sanitizer finds, where it is installed."""
    problem = random(60, 90, 128, arguments)
    weights = torch.ones(len(problem.image), len(problem.text))
    runs = [_scores_and_gradients(fused("triton"), problem, weights) for _ in range(2 if arguments.tiny else 10)]
    same = all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
    rows = [{"check": f"{len(runs)} runs are equal to the last bit", "result": "yes" if same else "NO"}]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer is None or arguments.device != "cuda":
            rows.append({"check": tool, "result": "compute-sanitizer was not found"})
            continue
        child = [sys.executable, __file__, "--part", "sanitized", "--tiny"]
        try:
            done = subprocess.run([sanitizer, "--tool", tool, *child], capture_output=True, text=True, timeout=25)
            last = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line]
            rows.append({"check": tool, "result": last[-1] if last else f"status {done.returncode}"})
        except subprocess.TimeoutExpired:
            rows.append({"check": tool, "result": "not done in 25 s"})
    return rows


def sanitized(arguments: Arguments) -> list[dict]:
    problem = random(3, 4, 32, arguments)
    _scores_and_gradients(fused("triton"), problem, torch.ones(len(problem.image), len(problem.text)))
    return []


def compiled_reference() -> Callable[[Problem], Tensor]:
    compiled = torch.compile(reference_score)
    settings = REGULARIZATION, ITERATIONS, 1
    return lambda p: compiled(p.image, p.image_mass, p.text, p.text_mass, *settings)


def speed(arguments: Arguments) -> list[dict]:
    """Forward, and forward with backward; share of the tensor cores' peak, which a large product gives."""
    size = 64 if arguments.tiny else 8192
    square = torch.randn(size, size, device=arguments.device).bfloat16()
    peak = 2 * size**3 / milliseconds(lambda: square @ square, arguments) / 1e9  # TFLOP/s
    rows = [{"what": f"bfloat16 product of {size} x {size}, TFLOP/s", "peak": peak}]
    for dtype, images, captions, width in (
        ("bfloat16", 128, 256, 1024),
        ("bfloat16", 128, 256, 256),
        ("bfloat16", 384, 384, 1024),
        ("bfloat16", 1000, 5000, 1024),
        ("float32", 384, 384, 1024),
    ):
        problem = random(images, captions, width, arguments, dtype)
        useful = 2 * len(problem.image) * problem.image.shape[1] * problem.mask.sum().item() * problem.image.shape[2]
        large = images * captions > 10**6
        methods = {"OMIT": fused("triton"), "plain": plain, "product alone": product_alone}
        methods |= {"reference": fused("reference"), "late interaction, plain": late_interaction}
        if large:
            methods = {name: in_blocks(each) for name, each in methods.items() if name in ("plain",)}
            methods = {"OMIT": fused("triton"), **methods}
        elif dtype == "bfloat16" and not arguments.tiny and images == 384:
            methods["reference, torch.compile"] = compiled_reference()
            methods |= {"POT": pot} if ot is not None else {}
        for name, method in methods.items():
            with torch.no_grad():
                row = {"pass": "forward", "pairs": f"{images} x {captions}", "D": width, "dtype": dtype, "method": name}
                rows.append(
                    row | _timed(lambda method=method, problem=problem: method(problem), arguments, useful, peak)
                )
    for dtype in ("bfloat16", "float32"):
        problem = random(384, 384, 1024, arguments, dtype)
        for loss in (info_nce, hardest_triplet):
            for name, method in (("OMIT", fused("triton")), ("plain", plain)):
                run = functools.partial(with_gradient(method, loss), problem)
                row = {"pass": f"with gradient, {loss.__name__}", "pairs": "384 x 384", "D": 1024, "dtype": dtype}
                rows.append(row | {"method": name} | _timed(run, arguments))
    return rows


def _timed(run: Callable, arguments: Arguments, useful: float = 0, peak: float = 0) -> dict:
    try:
        time_of_run = milliseconds(run, arguments)
        figures = {"ms": time_of_run, "memory_mb": megabytes(run, arguments)}
    except Exception as error:  # out of memory, or a compiler that is not there: the other methods go on
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    return figures | ({"share_of_peak": useful / time_of_run / 1e9 / peak} if useful else {})


def coco(arguments: Arguments) -> list[dict]:
    """All pairs of COCO 5K's 5 000 images and 25 000 captions."""
    problem = random(5000, 25000, 1024, arguments)
    pairs = len(problem.image) * len(problem.text)
    with torch.no_grad():
        time_of_run = milliseconds(lambda: fused("triton")(problem), arguments, most=4)
    return [{"pairs": pairs, "ms": time_of_run, "pairs_a_second": pairs / time_of_run * 1000}]


def query(arguments: Arguments) -> list[dict]:
    """One caption against 1 000 images, as a library ranks its candidates: called, and replayed from a CUDA graph."""
    problem = random(1000, 1, 1024, arguments, "float16")
    rows = []
    with torch.no_grad():
        rows.append({"how": "called", "ms": milliseconds(lambda: fused("triton")(problem), arguments)})
        if arguments.device == "cuda":
            expected, graph = fused("triton")(problem), torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                scores = fused("triton")(problem)
            graph.replay()
            row = {"how": "replayed", "ms": milliseconds(graph.replay, arguments)}
            rows.append(row | {"largest_difference": (scores - expected).abs().max().item()})
    return rows


def epoch(arguments: Arguments) -> list[dict]:
    """An epoch of `make scenes`: seconds of the whole command, which makes the pictures, and what it logs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "examples/train.py", "examples/configs/scenes.yaml", "--output_dir", folder]
        command += ["--overwrite_output_dir", "true", "--num_epochs", "1", "--test", "false", "--report_to", "none"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS["epoch"] - 10)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr[-500:]}")
        logged = [json.loads(line) for line in (Path(folder) / "train_log.jsonl").read_text().splitlines()]
    return [{"seconds": time.perf_counter() - started, "logged": logged[-1]}]


PARTS = {"parity": parity, "races": races, "speed": speed, "coco": coco, "query": query, "epoch": epoch}


# --- the report -------------------------------------------------------------------------------------------------------


def run_part(name: str, arguments: Arguments) -> dict:
    """Rows of a part that ran in processes of its own, or why it did not."""
    command = [sys.executable, __file__, "--part", name, "--device", arguments.device, "--tiny", str(arguments.tiny)]
    started = time.perf_counter()

    def run(case: str) -> tuple[list, str | None]:
        try:
            done = subprocess.run([*command, "--case", case], capture_output=True, text=True, timeout=SECONDS[name])
            if done.returncode == 0:
                return json.loads(done.stdout.splitlines()[-1]), None
            return [], f"{case}: status {done.returncode}: {done.stderr.strip()[-600:]}"
        except subprocess.TimeoutExpired:
            return [], f"{case}: not done in {SECONDS[name]} s"
        except (ValueError, IndexError) as error:
            return [], f"{case}: {type(error).__name__}: {error}"

    cases = CASES.get(name, ["all"])
    with ThreadPoolExecutor(1 if arguments.device == "cpu" else len(cases)) as pool:
        results = list(pool.map(run, cases))
    failed = [why for _, why in results if why is not None]
    rows = [row for found, _ in results for row in found]
    return {"rows": rows, "failed": failed, "seconds": time.perf_counter() - started}


def as_markdown(report: dict) -> str:
    lines = ["# GPU report", "", ", ".join(f"{name} {value}" for name, value in report["environment"].items()), ""]
    for name, part in report["parts"].items():
        lines += [f"## {name}, {part['seconds']:.0f} s", "", f"{PARTS[name].__doc__.splitlines()[0]}", ""]
        lines += [line for why in part["failed"] for line in (f"**Failed**, {why}", "")]
        rows = part["rows"]
        for columns in dict.fromkeys(tuple(row) for row in rows):
            lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            lines += [
                "| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()) + " |"
                for row in rows
                if tuple(row) == columns
            ]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = CommandParser(Arguments, description=__doc__)
    [arguments] = parser.parse_args_into_dataclasses()
    if arguments.part is not None:
        print(json.dumps({**PARTS, "sanitized": sanitized}[arguments.part](arguments)))
        return
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"parts are {unknown}; expected some of {list(PARTS)}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu --tiny true tries the script in Triton's interpreter")
    place = environment(device=torch.device(arguments.device)) | {"triton": triton.__version__}
    report = {"environment": place, "parts": {}}
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in tqdm(arguments.parts):
        report["parts"][name] = run_part(name, arguments)
        write_atomically(folder / "gpu_report.json", json.dumps(report, indent=1))  # after every part: nothing is lost
        write_atomically(folder / "gpu_report.md", as_markdown(report))
    print(as_markdown(report))
    sys.exit(1 if any(part["failed"] for part in report["parts"].values()) else 0)


if __name__ == "__main__":
    run_script(main)
