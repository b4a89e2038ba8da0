"""Time and memory of OMIT's similarity, and of its gradient, against what one would write otherwise.

    python examples/benchmarks/similarity.py                        # batches, as in training
    python examples/benchmarks/similarity.py --scale gallery        # all pairs of Flickr30K's test set, minutes
    python examples/benchmarks/similarity.py --model outputs/scenes # what a coarser product costs in recall
    python examples/benchmarks/similarity.py --device cuda --scale all

Every figure is the median of several runs, taken in turns; compare the ratios, which hold within one run. Captions have
lengths as in Flickr30K (13 words on average, a tail to 50), images 36 regions; both sides have a dustbin. OMIT is
backend="auto", on a CPU `numba` where Numba is installed; "plain torch" is `cpu`.
"""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import environment
from omit_hf.command_line import CommandParser, run_script
from omit_hf.data import ImageTextInputs, load_image_text
from omit_hf.evaluation import retrieval_metrics
from omit_hf.kernels.tiled import score_late_interaction
from omit_hf.modeling.transport_omit import Side, TransportOptions, transport_similarity
from omit_hf.training import read_recipe_file

try:
    import ot
except ImportError:
    ot = None

REGIONS = 36
REGULARIZATION, ITERATIONS = 0.02, 3
GALLERIES = {"Flickr30K test": (1000, 5000), "COCO 5K": (5000, 25000)}


@dataclass
class Arguments:
    scale: str = field(
        default="batch",
        metadata={
            "help": "batch: 128 x 256 pairs, and 128 x 128 with gradient; gallery: 1 000 x 5 000; all: COCO too."
        },
    )
    images: int | None = field(
        default=None, metadata={"help": "Of the batches, in place of 128 and, on a GPU with gradient, 384."}
    )
    widths: list[int] = field(default_factory=lambda: [1024, 256], metadata={"help": "D, of the batches."})
    repeats: int = field(default=7, metadata={"help": "Runs of each method."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves torch's choice."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    dtype: str = field(default="float32", metadata={"help": "Of the inputs: float32, bfloat16 or float16."})
    seed: int = field(default=0, metadata={"help": "Of the inputs."})
    model: str | None = field(
        default=None, metadata={"help": "Measure recall with coarser products on its test split."}
    )


@dataclass
class Problem:
    """Unit rows of both sides, a dustbin first, [B_i, 37, D] and [B_t, C, D]; their mass, and which words are valid."""

    image: Tensor
    text: Tensor
    mask: Tensor
    image_mass: Tensor
    text_mass: Tensor

    @classmethod
    def random(cls, images: int, captions: int, width: int, arguments: Arguments) -> "Problem":
        device, dtype = arguments.device, getattr(torch, arguments.dtype)
        generator = torch.Generator(device).manual_seed(arguments.seed)
        common = torch.randn(width, generator=generator, device=device)  # so that cosines are not all near zero

        def rows(items: int, size: int) -> Tensor:
            result = torch.empty(items, size, width, device=device, dtype=dtype)
            for some in result.split(1000):
                random = torch.randn(some.shape, generator=generator, device=device) + 0.5 * common
                some.copy_(F.normalize(random, dim=-1))
            return result

        lengths = torch.empty(captions, device=device).log_normal_(2.5, 0.4, generator=generator).round().clamp(3, 50)
        mask = torch.arange(int(lengths.max()) + 1, device=device) <= lengths[:, None]
        text = rows(*mask.shape).masked_fill(~mask[..., None], 0)
        image_mass = torch.full((images, 1, REGIONS + 1), 1 / (REGIONS + 1), device=arguments.device)
        return cls(rows(images, REGIONS + 1), text, mask, image_mass, (mask / mask.sum(1, keepdim=True))[None])


def fused(backend: str = "auto", matmul_dtype: str = "float32") -> Callable[[Problem], Tensor]:
    def similarity(p: Problem) -> Tensor:
        options = TransportOptions(REGULARIZATION, ITERATIONS, backend=backend, matmul_dtype=matmul_dtype)
        return transport_similarity(Side(p.image, p.image_mass), Side(p.text, p.text_mass), options)

    return similarity


def plain(p: Problem) -> Tensor:
    """(a) As the family writes it: the padded similarity of all pairs, and its plan rescaled n times."""
    similarity = torch.einsum("ird,tcd->itrc", p.image, p.text).float()
    plan = (similarity / REGULARIZATION).exp() * p.mask[:, None]
    for _ in range(ITERATIONS):
        plan = plan * (p.image_mass[..., None] / plan.sum(-1, keepdim=True))
        plan = plan * (p.text_mass[:, :, None] / plan.sum(-2, keepdim=True).clamp_min(1e-30))
    return (plan * similarity)[..., 1:, 1:].sum((-2, -1))


def product_alone(p: Problem) -> Tensor:
    """(b) The matrix product of what is valid, which every method needs: the floor."""
    return p.text[p.mask] @ p.image.flatten(0, 1).T


def late_interaction(p: Problem) -> Tensor:
    """(c) Per word its best region, mean over words, written the plain way."""
    best = torch.einsum("ird,tcd->itrc", p.image, p.text).amax(2)
    return (best * p.mask).sum(-1) / p.mask.sum(-1)


def late_interaction_in_tiles(p: Problem) -> Tensor:
    """The same by the CPU backend, as `matching="maxsim"` computes it; the dustbins are rows like others, as in (c)."""
    regions = torch.ones(p.image.shape[:2], dtype=torch.bool)
    sides = Side(p.image, regions[:, None]), Side(p.text, p.mask[None])
    return score_late_interaction(*sides, temperature=None, matmul_dtype="float32")


def pot(p: Problem) -> Tensor:
    """(d) POT's batched solver on the padded pairs, stopped after as many iterations."""
    similarity = torch.einsum("ird,tcd->itrc", p.image, p.text).flatten(0, 1).float()
    pairs = len(p.image), len(p.text)
    mu = p.image_mass.expand(*pairs, -1).flatten(0, 1)
    nu = p.text_mass.expand(*pairs, -1).flatten(0, 1).clamp_min(1e-12)  # it has no padding
    plan = ot.solve_batch(1 - similarity, REGULARIZATION, mu, nu, max_iter=ITERATIONS, tol=0, grad="detach").plan
    return (plan * similarity)[:, 1:, 1:].sum((-2, -1)).view(pairs)


def in_blocks(method: Callable[[Problem], Tensor]) -> Callable[[Problem], Tensor]:
    """What cannot hold a gallery's pairs in memory, 128 images and 256 captions at a time."""

    def similarity(p: Problem) -> Tensor:
        images = zip(p.image.split(128), p.image_mass.split(128), strict=True)
        captions = list(zip(p.text.split(256), p.mask.split(256), p.text_mass.split(256, dim=1), strict=True))
        blocks = [
            [method(Problem(image, text, mask, image_mass, text_mass)) for text, mask, text_mass in captions]
            for image, image_mass in images
        ]
        return torch.cat([torch.cat(row, dim=1) for row in blocks])

    return similarity


def info_nce(similarity: Tensor) -> Tensor:
    target = torch.arange(len(similarity), device=similarity.device)
    return F.cross_entropy(20 * similarity, target) + F.cross_entropy(20 * similarity.T, target)


def hardest_triplet(similarity: Tensor) -> Tensor:
    positive = similarity.diag()
    own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    violations = [(0.05 - positive[:, None] + s).clamp_min(0).masked_fill(own, 0) for s in (similarity, similarity.T)]
    return sum(each.max(dim=1).values.mean() for each in violations)


def with_gradient(method: Callable, loss: Callable) -> Callable[[Problem], None]:
    def run(p: Problem) -> None:
        sides = [each.detach().requires_grad_() for each in (p.image, p.text)]
        similarity = method(Problem(*sides, p.mask, p.image_mass, p.text_mass))
        torch.autograd.grad(loss(similarity), sides)

    return run


def measure(methods: dict[str, Callable], problem: Problem, repeats: int, gradient: bool) -> dict[str, dict]:
    """Seconds of each run, in turns, and the memory that a run takes beyond what was there, in MB."""
    runs = {name: {"seconds": []} for name in methods}
    with torch.set_grad_enabled(gradient):
        for turn in tqdm(range(repeats + 1), leave=False):
            for name, method in methods.items():
                if turn == 0:  # the warm-up
                    runs[name]["memory"] = memory_of(method, problem)
                    continue
                start = time.perf_counter()
                method(problem)
                if problem.image.is_cuda:
                    torch.cuda.synchronize()
                runs[name]["seconds"].append(time.perf_counter() - start)
    return runs


def memory_of(method: Callable, problem: Problem) -> float:
    method(problem)  # compiles, allocates what is kept
    if problem.image.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        method(problem)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL(None).malloc_trim(0)  # so that memory which was freed counts again
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except (OSError, AttributeError):  # not Linux
        return float("nan")
    before = status("VmRSS")
    method(problem)
    return max(0.0, (status("VmHWM") - before) / 1024)


def status(name: str) -> int:
    """A figure of this process in kB, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def table(title: str, runs: dict[str, dict], baseline: str, floor: str | None) -> str:
    median = {name: statistics.median(run["seconds"]) for name, run in runs.items()}
    lines = [
        f"**{title}**",
        "",
        "| method | ms, median (least–most) | times faster than (a) | × floor (b) | memory, MB |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, run in runs.items():
        spread = f"{1000 * median[name]:.0f} ({1000 * min(run['seconds']):.0f}–{1000 * max(run['seconds']):.0f})"
        over = f"{median[name] / median[floor]:.2f}" if floor else "–"
        lines.append(f"| {name} | {spread} | {median[baseline] / median[name]:.1f} | {over} | {run['memory']:.0f} |")
    return "\n".join([*lines, ""])


def batches(arguments: Arguments) -> None:
    size = arguments.images or 128
    for width in arguments.widths:
        problem = Problem.random(size, 2 * size, width, arguments)
        methods = {"OMIT": fused(), "(a) plain": plain, "(b) product alone": product_alone}
        if arguments.device == "cpu":
            methods |= {
                "OMIT, bfloat16 product": fused(matmul_dtype="bfloat16"),
                "OMIT, int8 product": fused(matmul_dtype="int8"),
                "OMIT, plain torch": fused("cpu"),
            }
        methods |= {"OMIT, reference": fused("reference"), "(c) late interaction, plain": late_interaction}
        if arguments.device == "cpu":
            methods["late interaction, in tiles"] = late_interaction_in_tiles
        if ot is not None:
            methods["(d) POT, batched"] = pot
        difference = (fused()(problem) - plain(problem)).abs().max().item()
        runs = measure(methods, problem, arguments.repeats, gradient=False)
        title = f"Forward, {size} × {2 * size} pairs, D = {width} (OMIT and (a) differ by {difference:.0e})"
        print(table(title, runs, "(a) plain", "(b) product alone"), flush=True)

    size = arguments.images or (384 if arguments.device == "cuda" else 128)
    problem = Problem.random(size, size, max(arguments.widths), arguments)
    for loss in (info_nce, hardest_triplet):
        methods = {"OMIT": with_gradient(fused(), loss), "(a) plain": with_gradient(plain, loss)}
        methods["OMIT, reference"] = with_gradient(fused("reference"), loss)
        if arguments.device == "cpu":
            methods["OMIT, plain torch"] = with_gradient(fused("cpu"), loss)
            methods["(c) late interaction, plain"] = with_gradient(late_interaction, loss)
            methods["late interaction, in tiles"] = with_gradient(late_interaction_in_tiles, loss)
        runs = measure(methods, problem, arguments.repeats, gradient=True)
        title = f"Forward and backward, {size} × {size} pairs, D = {max(arguments.widths)}, {loss.__name__}"
        print(table(title, runs, "(a) plain", None), flush=True)


def gallery(name: str, arguments: Arguments) -> None:
    problem = Problem.random(*GALLERIES[name], 1024, arguments)
    methods = {"OMIT": fused(), "(a) plain": in_blocks(plain)}
    if arguments.device == "cpu":
        methods |= {
            "OMIT, bfloat16 product": fused(matmul_dtype="bfloat16"),
            "OMIT, int8 product": fused(matmul_dtype="int8"),
        }
        methods["OMIT, plain torch"] = fused("cpu")
    methods["(c) late interaction, plain"] = in_blocks(late_interaction)
    if arguments.device == "cpu":
        methods["late interaction, in tiles"] = late_interaction_in_tiles
    runs = {each: {"seconds": [], "memory": float("nan")} for each in methods}
    with torch.inference_mode():
        for each, method in methods.items():
            start = time.perf_counter()
            method(problem)
            if problem.image.is_cuda:
                torch.cuda.synchronize()
            runs[each]["seconds"].append(time.perf_counter() - start)
    images, captions = GALLERIES[name]
    print(table(f"{name}, {images} × {captions} pairs, D = 1024, one run each", runs, "(a) plain", None), flush=True)


def recall_of_products(folder: str) -> None:
    """What a coarser product changes for a trained model: recall, and the ten best captions of each image."""
    model, processor = OmitModel.from_pretrained(folder).eval(), OmitProcessor.from_pretrained(folder)
    recipe = read_recipe_file(Path(folder) / "recipe.yaml")
    data = load_image_text(recipe["data"], **{**(recipe["data_options"] or {}), "only": ["test"]})
    inputs = ImageTextInputs(data["test"], processor)
    with torch.inference_mode():
        image = model.get_image_features(**inputs.images(range(inputs.num_images)))
        text = model.get_text_features(**inputs.texts(range(len(inputs))))
        lines = ["| product | s | RSUM | i2t R@1 | t2i R@1 | same top 10 captions |", "|---|---|---|---|---|---|"]
        exact = None
        for matmul_dtype in ("float32", "bfloat16", "int8"):
            start = time.perf_counter()
            similarity = model.similarity(image, text, matmul_dtype=matmul_dtype).numpy()
            seconds = time.perf_counter() - start
            best = np.argsort(-similarity, axis=1)[:, :10]
            exact = best if exact is None else exact
            overlap = np.mean([len(np.intersect1d(*rows)) / best.shape[1] for rows in zip(best, exact, strict=True)])
            found = retrieval_metrics(similarity, inputs.caption_image_index)
            recalls = f"{found['rsum']:.1f} | {found['i2t_r1']:.1f} | {found['t2i_r1']:.1f}"
            lines.append(f"| {matmul_dtype} | {seconds:.1f} | {recalls} | {overlap:.1%} |")
        for dim, what in ((1, "captions of every image"), (0, "images of every caption")):
            start = time.perf_counter()
            model.topk(image, text, min(10, inputs.num_images), dim)
            lines.append(f"\n`topk(10)`, the {what}: {time.perf_counter() - start:.1f} s")
    print("\n".join(lines))


def main() -> None:
    parser = CommandParser(Arguments, description=__doc__)
    [arguments] = parser.parse_args_into_dataclasses()
    if arguments.scale not in ("batch", "gallery", "all"):
        parser.error(f"scale is {arguments.scale!r}; expected 'batch', 'gallery' or 'all'")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    place = environment()
    print(
        f"{place['device']}, {torch.get_num_threads()} threads, torch {place['torch']}, inputs {arguments.dtype} on "
        f"{arguments.device}, commit {place['commit']}, {arguments.repeats} runs\n"
    )
    if arguments.model is not None:
        recall_of_products(arguments.model)
    elif arguments.scale == "batch":
        batches(arguments)
    else:
        for name in GALLERIES if arguments.scale == "all" else ["Flickr30K test"]:
            gallery(name, arguments)
    print(
        f"\nPeak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB", file=sys.stderr
    )


if __name__ == "__main__":
    run_script(main)
