"""Write a model as files that need neither this package nor transformers: ONNX, or programs of torch.export.

    pip install 'omit-hf[onnx]'
    omit-hf export outputs/scenes outputs/scenes_onnx --image_size 96 96
    omit-hf export user/model exported --format torch_export

The new folder has an image encoder, a text encoder, a head that scores all images against all captions, the processor,
and export.json, which tells their inputs and outputs. After the second line above:

    import onnxruntime
    from omit_hf import OmitProcessor  # any other code that makes these pixels and token ids will do

    folder = "outputs/scenes_onnx"
    inputs = OmitProcessor.from_pretrained(folder)(images="picture.png", text=["a red star", "two rings"])
    inputs = {name: value.numpy() for name, value in inputs.items()}
    encode_image = onnxruntime.InferenceSession(f"{folder}/image_encoder.onnx")
    encode_text = onnxruntime.InferenceSession(f"{folder}/text_encoder.onnx")
    head = onnxruntime.InferenceSession(f"{folder}/head.onnx")
    image = encode_image.run(None, {each.name: inputs[each.name] for each in encode_image.get_inputs()})
    text = encode_text.run(None, {each.name: inputs[each.name] for each in encode_text.get_inputs()})
    names = [each.name for each in head.get_inputs()]
    [similarity] = head.run(None, dict(zip(names, image + text)))  # [1, 2]

There may be any number of images, captions and words; any number of regions; the size of a picture is fixed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from omit_hf import OmitModel, OmitProcessor
from omit_hf.command_line.parser import CommandParser
from omit_hf.command_line.running import errors_in_one_line
from omit_hf.export import export_model


@dataclass
class Arguments:
    format: Literal["onnx", "torch_export"] = field(default="onnx", metadata={"help": "What to write."})
    num_regions: int | None = field(
        default=None, metadata={"help": "Regions of an image, for a model that takes regions; any by default."}
    )
    num_images: int | None = field(
        default=None, metadata={"help": "Fix how many images are encoded at a time, where any number cannot be had."}
    )


def build_parser(prog: str | None = None) -> CommandParser:
    parser = CommandParser(Arguments, prog=prog, description=__doc__)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    parser.add_argument("output", help="Folder to write, which must not be there yet, or be empty.")
    parser.add_argument(
        "--image_size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="Of pictures, in pixels, for a processor that does not resize them.",
    )
    return parser


def main(given: Sequence[str] | None = None, prog: str | None = None) -> None:
    arguments = build_parser(prog).parse_args(given)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("omit_hf.export").setLevel(logging.INFO)
    with errors_in_one_line(RuntimeError):  # of the exporters
        written = export(arguments)
    print("| part | file | inputs | largest difference from the model |\n|---|---|---|---|")
    for name, part in written["parts"].items():
        inputs = ", ".join(f"{each['name']} {each['shape']}" for each in part["inputs"]).replace("'", "")
        print(f"| {name} | {part['file']} | {inputs} | {part['largest_difference_from_the_model']:.0e} |")


def export(arguments) -> dict:
    """Write the files; what export.json says of them."""
    sizes = {name: getattr(arguments, name) for name in ("image_size", "num_regions", "num_images")}
    model, processor = OmitModel.from_pretrained(arguments.model), OmitProcessor.from_pretrained(arguments.model)
    return export_model(model, processor, arguments.output, arguments.format, **sizes)
