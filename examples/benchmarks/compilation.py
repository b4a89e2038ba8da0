"""What torch.compile does to a training step and to an evaluation pass: graphs, graph breaks, and time.

    python examples/benchmarks/compilation.py
    python examples/benchmarks/compilation.py --models CLIP --batch_size 128 --device cuda

Two models take random pairs: that of `scenes.yaml` (a ResNet, a BiGRU), and a CLIP in miniature (two transformers). A
step is the loss and its gradients. Times are medians of runs taken in turns, as they are and compiled; compare the
ratios. What compiling costs is in the first call.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from omit_hf import OmitConfig, OmitModel
from omit_hf.cards import environment
from omit_hf.command_line import CommandParser, run_script
from omit_hf.training.recipe_files import find_recipe, read_recipe_file

SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
CLIP = {
    "vision_config": {**SMALL, "model_type": "clip_vision_model", "image_size": 96, "patch_size": 16},
    "text_config": {**SMALL, "model_type": "clip_text_model", "vocab_size": 1000, "max_position_embeddings": 16},
    "text_pooling": "last",
}
PIXELS, WORDS, VOCABULARY = 96, 16, 1000
MODELS = ("Scenes", "CLIP")


@dataclass
class Arguments:
    models: list[str] = field(default_factory=lambda: list(MODELS), metadata={"help": f"Of {', '.join(MODELS)}."})
    batch_size: int = field(default=64, metadata={"help": "Pairs."})
    repeats: int = field(default=11, metadata={"help": "Runs of each."})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0 leaves torch's choice."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    compiler: str = field(default="inductor", metadata={"help": "Backend of torch.compile."})


def main() -> None:
    arguments = CommandParser(Arguments, description=__doc__).parse_args()
    for name in arguments.models:
        if name not in MODELS:
            raise ValueError(f"models has {name!r}; expected some of {', '.join(MODELS)}.")
    torch.compiler.config.force_disable_caches = True  # or a second run would find what the first has compiled
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    place = environment()
    print(
        f"{place['device']}, {torch.get_num_threads()} threads, torch {place['torch']}, {arguments.device}, commit "
        f"{place['commit']}, {arguments.batch_size} pairs, {arguments.repeats} runs\n"
    )
    print("| model | pass | graphs | breaks | first call, s | as it is, ms | compiled, ms | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for what, plain, compiled in passes(name, arguments):
            print(f"| {name} | {what} | {row(plain, compiled, arguments)} |", flush=True)


def passes(name: str, arguments: Arguments) -> list[tuple[str, Callable, Callable]]:
    """What is timed: a name, and the same pass as it is and compiled."""
    torch.manual_seed(0)
    model = OmitModel(OmitConfig(loss="infonce", projection_dim=256, **config(name))).to(arguments.device)
    size, words = arguments.batch_size, torch.randint(1, VOCABULARY, (arguments.batch_size, WORDS))
    lengths = torch.randint(4, WORDS + 1, (size, 1))
    mask = (torch.arange(WORDS) < lengths).long()
    inputs = {"pixel_values": torch.randn(size, 3, PIXELS, PIXELS), "input_ids": words * mask, "attention_mask": mask}
    inputs = {key: each.to(arguments.device) for key, each in inputs.items()}
    training, scoring = model.train(), copy.deepcopy(model).eval()

    def step(call: Callable) -> None:
        training.zero_grad()
        call(**inputs, return_loss=True).loss.backward()

    @torch.inference_mode()
    def score(call: Callable) -> None:
        call(**inputs)

    result = []
    for what, function, each in (("training step", step, training), ("scores", score, scoring)):
        compiled = torch.compile(each, backend=arguments.compiler)
        result.append((what, lambda f=function, m=each: f(m), lambda f=function, m=compiled: f(m)))
    return result


def config(name: str) -> dict:
    if name == "CLIP":
        return CLIP
    recipe = read_recipe_file(find_recipe("scenes"))
    text = {**recipe["text_config"], "vocab_size": VOCABULARY}
    return {"vision_config": recipe["vision_config"], "text_config": text}


def row(plain: Callable, compiled: Callable, arguments: Arguments) -> str:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    first = seconds(compiled, arguments)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    plain()
    runs = [
        (seconds(plain, arguments), seconds(compiled, arguments)) for _ in tqdm(range(arguments.repeats), leave=False)
    ]
    before, after = (statistics.median(each) for each in zip(*runs, strict=True))
    return f"{graphs} | {breaks} | {first:.0f} | {1000 * before:.0f} | {1000 * after:.0f} | {before / after:.2f}"


def seconds(function: Callable, arguments: Arguments) -> float:
    started = time.perf_counter()
    function()
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_script(main)
