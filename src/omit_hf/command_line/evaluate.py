"""Measure image-text retrieval of a model on a split, or by the protocols of the literature.

    omit-hf evaluate outputs/scenes
    omit-hf evaluate outputs/scenes --split validation --json validation.json
    omit-hf evaluate outputs/scenes --protocol exhaustive --card outputs/scenes/README.md
    accelerate launch --multi_gpu -m omit_hf evaluate user/model --data dataset_flickr30k.json \\
        --data_options '{"image_folder": "flickr30k-images"}' --protocol flickr30k_1k
    omit-hf evaluate outputs/coco --protocol coco_5k coco_1k cxc eccv --annotations annotations
    omit-hf evaluate outputs/one --save_similarity one.safetensors
    omit-hf evaluate --ensemble one.safetensors two.safetensors --protocol coco_5k
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator

from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import eval_results, with_results
from omit_hf.command_line.parser import CommandParser, json_object
from omit_hf.evaluation import (
    SplitPairs,
    check_similarity_file,
    ensemble,
    metrics_table,
    pairs_metrics,
    same_side_similarity,
    save_similarity,
    split_similarity,
)
from omit_hf.evaluation.protocols import PROTOCOLS, TASKS, prepare
from omit_hf.parsing import read_text
from omit_hf.training import data_of_model, holding_runs, load_split, use_cpu_threads
from omit_hf.writing import write_atomically


@dataclass
class Arguments:
    data: str | None = field(
        default=None, metadata={"help": "Any source that training takes; by default what the model's recipe.yaml says."}
    )
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    annotations: str | None = field(
        default=None,
        metadata={
            "help": "Folder of dataset_coco.json (cxc, eccv), sits_test.csv, sis_test.csv and sts_test.csv (cxc)."
        },
    )
    batch_size: int = field(default=128, metadata={"help": "Images or captions encoded at once."})
    memory: int = field(
        default=2**26, metadata={"help": "Bytes for the intermediate results of scoring a tile of pairs."}
    )
    json: str | None = field(
        default=None, metadata={"help": "File to write the metrics to, as JSON; of protocols, by their names."}
    )
    markdown: str | None = field(default=None, metadata={"help": "File to write the tables to."})
    card: str | None = field(
        default=None, metadata={"help": "README.md of a model, whose model-index gets the results of --protocol."}
    )
    save_similarity: str | None = field(
        default=None, metadata={"help": "File to write the similarity of all pairs to, .safetensors, for --ensemble."}
    )
    cpu_threads: int = field(default=0, metadata={"help": "Threads of each process on a CPU; 0 shares out the cores."})


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(Arguments, prog=prog, description=__doc__)
    parser.add_argument("model", nargs="?", help="Folder or Hub id of an OmitModel.")
    parser.add_argument("--data_options", type=json_object, default={}, help="Options of the data's loader, as JSON.")
    parser.add_argument(
        "--protocol",
        nargs="+",
        choices=PROTOCOLS,
        default=[],
        help="What to measure instead of retrieval on the split as it is; several share the similarity.",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=[],
        help="Of cxc; by default all four, or i2t and t2i with --ensemble. t2t compares 25 000 captions.",
    )
    parser.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="FILE",
        help="In place of a model: files of --save_similarity, whose mean is measured.",
    )
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    accelerator = Accelerator()
    use_cpu_threads(accelerator, arguments.cpu_threads)
    with holding_outputs(arguments, accelerator.is_main_process):
        measure(arguments, accelerator)
    accelerator.end_training()


def measure(arguments, accelerator) -> None:
    """Score, and report."""
    similarity, model, split = None, None, None
    if arguments.ensemble:
        similarity, pairs = ensemble(arguments.ensemble)
    else:
        model, processor, split = load(arguments, accelerator.device)
        pairs = SplitPairs.of(split, arguments.split, Path(arguments.data).stem)
    tasks = arguments.tasks or [task for task in TASKS if model is not None or task in ("i2t", "t2i")]
    measures = {name: prepare(name, pairs, arguments.annotations, tasks) for name in arguments.protocol}

    options = {"batch_size": arguments.batch_size, "memory_budget": arguments.memory}
    among = {}  # the similarity of images, and of captions, among each other
    if model is not None:
        similarity = split_similarity(model, processor, split, **options)
        for task, side in (("i2i", "image"), ("t2t", "text")):
            if "cxc" in measures and task in tasks:
                among[f"{side}_similarity"] = same_side_similarity(model, processor, split, side, **options)
    if accelerator.is_main_process:
        report(arguments, similarity, pairs, measures, among)


@contextlib.contextmanager
def holding_outputs(arguments, is_main_process: bool):
    """Hold the runs that will be written into, on the process that writes.

    Raises a ValueError or OSError for options that do not go together, before anything is loaded.
    """
    if (arguments.model is None) != bool(arguments.ensemble):
        given = "Neither a model nor --ensemble is" if arguments.model is None else "A model and --ensemble are both"
        raise ValueError(f"{given} given; expected one of them.")
    if arguments.ensemble and arguments.data is not None:
        raise ValueError("--data is given with --ensemble, whose files hold their images and captions; leave it out.")
    wrong = sorted({"i2i", "t2t"} & set(arguments.tasks))
    if arguments.ensemble and wrong:
        raise ValueError(f"--tasks has {', '.join(wrong)}, which need a model; --ensemble has i2t and t2i alone.")
    if arguments.tasks and "cxc" not in arguments.protocol:
        raise ValueError("--tasks is given without --protocol cxc; leave it out.")
    if arguments.card is not None:
        if not arguments.protocol:
            raise ValueError("--card is given without --protocol; expected one, to name the results by.")
        with_results(read_text(arguments.card), "", [])
    if arguments.save_similarity is not None:
        check_similarity_file(arguments.save_similarity)
    files = (arguments.json, arguments.markdown, arguments.card, arguments.save_similarity)
    with holding_runs(*files, purpose="evaluation") if is_main_process else contextlib.nullcontext():
        yield


def load(arguments, device):
    """The model, its processor and the split."""
    arguments.data, options = data_of_model(arguments.model, arguments.data, arguments.data_options)
    model = OmitModel.from_pretrained(arguments.model).to(device)
    processor = OmitProcessor.from_pretrained(arguments.model)
    return model, processor, load_split(arguments.data, options, arguments.split)


def report(arguments, similarity, pairs, measures, among) -> None:
    """Measure, write what was asked for, and print, whatever becomes of the files."""
    if measures:
        results = [measure(similarity, **(among if name == "cxc" else {})) for name, measure in measures.items()]
        text = "\n".join(result.markdown() for result in results)
        content = {result.name: asdict(result) for result in results}
    else:
        content = pairs_metrics(similarity, pairs)
        text = metrics_table(content) + "\n"
    try:
        if arguments.json is not None:
            write_atomically(Path(arguments.json), json.dumps(content, indent=2) + "\n")
        if arguments.markdown is not None:
            write_atomically(Path(arguments.markdown), text)
        if arguments.card is not None:
            card = Path(arguments.card)
            entries = [
                entry
                for result in results
                for entry in eval_results(result.metrics, result.name, result.dataset, pairs.split)
            ]
            write_atomically(card, with_results(read_text(card), card.resolve().parent.name, entries))
        if arguments.save_similarity is not None:
            save_similarity(arguments.save_similarity, similarity, pairs)
    finally:
        print(text, end="")
