"""Measure whether a model finds the words of a phrase in the box of what the phrase names.

    omit-hf evaluate-alignment outputs/scenes
    omit-hf evaluate-alignment outputs/flickr30k_clip --entities flickr30k_entities --markdown alignment.md

Scenes know their boxes. Flickr30K gets them from the annotations of Flickr30K Entities, of which those are used that
are of the images of the split; never its own split for a model that was trained on Karpathy's.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import alignment_table, evaluate_alignment
from omit_hf.command_line.parser import CommandParser, json_object
from omit_hf.data import load_entities
from omit_hf.training import data_of_model, holding_runs, load_split
from omit_hf.writing import write_atomically


@dataclass
class Arguments:
    data: str | None = field(
        default=None, metadata={"help": "Any source that training takes; by default what the model's recipe.yaml says."}
    )
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    entities: str | None = field(
        default=None, metadata={"help": "Folder of Flickr30K Entities, with its Sentences and Annotations."}
    )
    batch_size: int = field(default=32, metadata={"help": "Images encoded at once, with their captions."})
    json: str | None = field(default=None, metadata={"help": "File to write the scores to, as JSON."})
    markdown: str | None = field(default=None, metadata={"help": "File to write the table to."})


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(Arguments, prog=prog, description=__doc__)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    parser.add_argument("--data_options", type=json_object, default={}, help="Options of the data's loader, as JSON.")
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    state = PartialState()
    if not state.is_main_process:  # one is enough, and alone writes the files
        return
    with holding_runs(arguments.json, arguments.markdown, purpose="evaluation"):
        measure(arguments, state.device)


def measure(arguments, device) -> None:
    """Measure, write what was asked for, and print, whatever becomes of the files."""
    model = OmitModel.from_pretrained(arguments.model).to(device)
    processor = OmitProcessor.from_pretrained(arguments.model)
    data, options = data_of_model(arguments.model, arguments.data, arguments.data_options)
    split = load_split(data, options, arguments.split)
    report = ""
    if arguments.entities is not None:
        split, found = load_entities(arguments.entities, split)
        report = f"{found}\n\n"
    metrics = evaluate_alignment(model, processor, split, batch_size=arguments.batch_size)
    table = alignment_table(metrics)
    try:
        if arguments.json is not None:
            write_atomically(Path(arguments.json), json.dumps(metrics, indent=2) + "\n")
        if arguments.markdown is not None:
            write_atomically(Path(arguments.markdown), table + "\n")
    finally:
        print(f"{report}{table}")
