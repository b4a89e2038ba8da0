"""What regions of any number cost beside a fixed number: throughput in regions a second, as ratios in one run.

    python examples/benchmarks/regions.py
    python examples/benchmarks/regions.py --images 128 --width 2048 --repeats 11

Three batches have as many regions in all: `fixed`, 36 an image, without a mask; `masked`, the same with a mask that is
true throughout; `any`, 10 to 62 an image, padded to the most. Each goes through what makes a batch of its arrays, the
region encoder in evaluation and a training step of it. The three take turns, so that what else the machine does falls
on all of them; the numbers are medians, and the ratios medians of those within a turn.
"""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset, Features, List, Value

from omit_hf import OmitConfig, OmitModel, OmitProcessor
from omit_hf.command_line import CommandParser, run_script
from omit_hf.data import ImageTextInputs, build_word_tokenizer

FIXED, LEAST = 36, 10


@dataclass
class Arguments:
    images: int = field(default=64, metadata={"help": "Images of a batch."})
    width: int = field(default=2048, metadata={"help": "Of a region's features."})
    repeats: int = field(default=7, metadata={"help": "Turns."})
    threads: int = field(default=1, metadata={"help": "Of torch."})


def main():
    parser = CommandParser(Arguments, description=__doc__)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    spread = random.permutation(np.linspace(LEAST, 2 * FIXED - LEAST, arguments.images).round().astype(int))
    counts = {"fixed": [FIXED] * arguments.images, "any": spread.tolist()}
    arrays = {name: [random.standard_normal((n, arguments.width)) for n in each] for name, each in counts.items()}

    processor = OmitProcessor(None, build_word_tokenizer(["a caption"]))
    vision = {"model_type": "omit_region", "feature_size": arguments.width}
    text = {"model_type": "omit_bigru", "vocab_size": len(processor.tokenizer)}
    model = OmitModel(OmitConfig(vision_config=vision, text_config=text))
    features = {name: inputs_of(each, processor) for name, each in arrays.items()}
    batches = {name: each.images(range(arguments.images)) for name, each in features.items()}
    full = torch.ones(arguments.images, FIXED, dtype=torch.bool)
    batches = {"fixed": batches["fixed"], "masked": {**batches["fixed"], "region_mask": full}, "any": batches["any"]}

    def encode(name):
        model.eval()
        with torch.inference_mode():
            model.get_image_features(**batches[name])

    def train(name):
        model.train()
        model.get_image_features(**batches[name]).embeds.square().sum().backward()
        model.zero_grad()

    def load(name):
        features[name].images(range(arguments.images))

    for what, run, names in (("batch", load, features), ("encode", encode, batches), ("train", train, batches)):
        seconds = {name: [] for name in names}
        for turn in range(arguments.repeats + 1):
            for name in names:
                started = time.perf_counter()
                run(name)
                if turn > 0:  # the first warms up
                    seconds[name].append(time.perf_counter() - started)
        for name, each in seconds.items():
            speed = sum(counts.get(name, counts["fixed"])) / statistics.median(each)
            totals = sum(counts["fixed"]) / sum(counts.get(name, counts["fixed"]))
            ratio = statistics.median(f / s / totals for f, s in zip(seconds["fixed"], each, strict=True))
            print(f"{what:7} {name:7} {speed:10.0f} regions/s   {ratio:5.2f} of fixed")


def inputs_of(arrays: list[np.ndarray], processor) -> ImageTextInputs:
    kinds = Features(
        {
            "region_features": List(List(Value("float32"))),
            "captions": List(Value("string")),
            "image_id": Value("string"),
        }
    )
    rows = [{"region_features": each, "captions": ["a caption"], "image_id": str(n)} for n, each in enumerate(arrays)]
    return ImageTextInputs(Dataset.from_list(rows, features=kinds), processor)


if __name__ == "__main__":
    run_script(main)
