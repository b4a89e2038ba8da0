"""Measure image-text retrieval of a model on a split.

    python examples/evaluate.py outputs/scenes
    python examples/evaluate.py outputs/scenes --split validation --json validation.json
    accelerate launch --multi_gpu examples/evaluate.py user/model --data dataset_flickr30k.json \\
        --data_options '{"image_folder": "flickr30k-images"}'
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from omit_hf import OmitModel, OmitProcessor
from omit_hf.evaluation import evaluate_split, metrics_table
from omit_hf.training import HelpFormatter, json_object, load_split, use_cpu_threads


@dataclass
class Arguments:
    data: str | None = field(
        default=None, metadata={"help": "Any source that training takes; by default what the model's recipe.yaml says."}
    )
    split: str = field(default="test", metadata={"help": "train, validation or test."})
    batch_size: int = field(default=128, metadata={"help": "Images or captions encoded at once."})
    memory: int = field(
        default=2**26, metadata={"help": "Bytes for the intermediate results of scoring a tile of pairs."}
    )
    json: str | None = field(default=None, metadata={"help": "File to write the metrics to, as JSON."})
    cpu_threads: int = field(default=0, metadata={"help": "Threads of each process on a CPU; 0 shares out the cores."})


def main() -> None:
    parser = HfArgumentParser(Arguments, description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    parser.add_argument("--data_options", type=json_object, default={}, help="Options of the data's loader, as JSON.")
    arguments = parser.parse_args()
    accelerator = Accelerator()
    use_cpu_threads(accelerator, arguments.cpu_threads)

    model = OmitModel.from_pretrained(arguments.model).to(accelerator.device)
    processor = OmitProcessor.from_pretrained(arguments.model)
    split = load_split(arguments.model, arguments.split, arguments.data, arguments.data_options)
    metrics, _ = evaluate_split(
        model, processor, split, batch_size=arguments.batch_size, memory_budget=arguments.memory
    )
    accelerator.print(metrics_table(metrics))
    if arguments.json is not None and accelerator.is_main_process:
        Path(arguments.json).write_text(json.dumps(metrics, indent=2) + "\n")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except StrictDataclassError as error:
        sys.exit(f"error: {error.__cause__}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
