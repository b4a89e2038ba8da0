"""Writes the files of an export; tries them and compares them with the model before they appear."""

import contextlib
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from omit_hf.export.parts import Part, head_part, picture_part, picture_size, region_part, text_part
from omit_hf.export.stand_ins import exportable
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.writing import names_what_fails

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
DESCRIPTION_FILE = "export.json"
TOLERANCE = 1e-4  # between the outputs of a part and of the model, in float32

logger = logging.getLogger(__name__)


def export_model(
    model,
    processor,
    folder: str | os.PathLike,
    format: str = "onnx",
    *,
    image_size: tuple[int, int] | None = None,
    num_regions: int | None = None,
    num_images: int | None = None,
) -> dict:
    """Write a model's encoders and head, and its processor, into a new folder.

    The numbers of images, regions, captions and words may vary. The size of pictures (and so the number of cells) is
    fixed. Everything is in float32. Before the folder appears, every file is run and compared with the
    model, also with other numbers of items than it was traced with.

    Args:
        model: an `OmitModel`.
        processor: its `OmitProcessor`.
        folder: folder to write. It gets `image_encoder`, `text_encoder` and `head`, as `.onnx` or `.pt2`; `export.json`
            with their inputs and outputs; and the processor's files.
        format: `onnx`, which needs `pip install 'omit-hf[onnx]'`, or `torch_export`.
        image_size: height and width in pixels of processed pictures, for a processor that does not resize them.
        num_regions: number of regions of an image, padding with it, for a model that takes regions; any by default.
        num_images: fixed number of images per call, for an image encoder that cannot be exported otherwise.

    Returns:
        The content of `export.json`.

    Raises:
        FileExistsError: if the folder is there and not empty.
        ImportError: if packages of the extra are missing.
        RuntimeError: if torch cannot export a part, or its output differs from the model's.
        ValueError: for an unknown format, sizes below 1, or an `image_size` that is missing or not the processor's.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose another folder.")
    if format not in model.matching.exports:
        able = ", ".join(name for name, head in MATCHING.items() if format in head.exports)
        raise ValueError(
            f"matching is {model.config.matching!r}, which cannot be exported as {format!r}; these can: {able}."
        )
    write = _onnx_writer() if format == "onnx" else _write_program
    sizes = [
        ("num_regions", num_regions),
        ("num_images", num_images),
        *(("image_size", each) for each in image_size or ()),
    ]
    for name, value in sizes:
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    takes_regions = model.vision_encoder.input_name == "region_features"
    if not takes_regions:
        image_size = picture_size(processor, image_size)

    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    both = exportable(model), model
    image = (
        region_part(*both, num_regions, num_images) if takes_regions else picture_part(*both, image_size, num_images)
    )
    text = text_part(*both)
    parts = {"image_encoder": image, "text_encoder": text, "head": head_part(*both, image, text)}
    description = {
        "format": format,
        "matching": model.config.matching,
        "logit_scale": model.logit_scale.exp().clamp(max=100).item(),
        "parts": {},
    }

    config = model.config
    kinds = {"image_encoder": config.vision_config.model_type, "text_encoder": config.text_config.model_type}
    kinds["head"] = config.matching

    folder.parent.mkdir(parents=True, exist_ok=True)
    with names_what_fails(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export.") as scratch:
        partial = Path(scratch) / folder.name
        processor.save_pretrained(partial)
        for name, part in parts.items():
            logger.info("Exporting the %s.", name)
            file = partial / f"{name}{FORMATS[format]}"
            try:
                with torch.no_grad(), _quiet():
                    run = write(part, file)
            except Exception as error:  # of many classes
                remedy = ""
                if name == "image_encoder" and num_images is None:
                    remedy = " With a fixed number of images at a time, such as num_images=1, it may be possible."
                raise RuntimeError(
                    f"torch cannot export the {name} ({kinds[name]!r}) as {format}: {_first_line(error)}{remedy}"
                ) from error
            description["parts"][name] = {"file": file.name, **_described(name, part, run)}
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, folder)
    return description


Run = Callable[[dict[str, Tensor]], list[Tensor]]


def _program(part: Part) -> torch.export.ExportedProgram:
    varies = {
        name: {place: Dim.DYNAMIC for place, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in part.inputs.items()
    }
    return torch.export.export(part.module, (), part.examples[0], dynamic_shapes=varies, strict=False)


def _write_program(part: Part, file: Path) -> Run:
    torch.export.save(_program(part), file)
    loaded = torch.export.load(file).module()

    def run(inputs):
        outputs = loaded(**inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run


def _onnx_writer() -> Callable[[Part, Path], Run]:
    try:
        import onnxruntime
        from onnx_ir import Shape
        from onnxscript import opset20 as op
    except ImportError as error:
        raise ImportError(
            "Export to ONNX needs onnx, onnxscript and onnxruntime: pip install 'omit-hf[onnx]'."
        ) from error

    def gru(words, lengths, weights, recurrence, biases, width):
        """`bidirectional_gru` as an operator of ONNX, which wants words first."""
        states, _ = op.GRU(
            op.Transpose(words, perm=[1, 0, 2]),
            weights,
            recurrence,
            biases,
            op.Cast(lengths, to=6),  # int32
            direction="bidirectional",
            hidden_size=width,
            linear_before_reset=1,
        )
        return op.Transpose(states, perm=[2, 0, 1, 3])

    def write(part: Part, file: Path) -> Run:
        program = torch.onnx.export(
            _program(part),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            custom_translation_table={torch.ops.omit_hf.bidirectional_gru.default: gru},
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
        for values, shapes in ((program.model.graph.inputs, part.inputs), (program.model.graph.outputs, part.outputs)):
            for value in values:
                value.shape = Shape(shapes[value.name])
        program.save(file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(inputs):
            return [
                torch.from_numpy(each)
                for each in session.run(None, {name: each.numpy() for name, each in inputs.items()})
            ]

        return run

    return write


def _described(name: str, part: Part, run: Run) -> dict:
    """Describe a part for `export.json`, after a check that its file does what the model does.

    Raises:
        RuntimeError: if it does not.
    """
    largest = 0.0
    for example in part.examples:
        with torch.no_grad():
            expected = part.truth(**example)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for output, found, wanted in zip(part.outputs, run(example), expected, strict=True):
            same_kind = found.shape == wanted.shape and found.dtype == wanted.dtype
            difference = (found.double() - wanted.double()).abs().max() if same_kind else torch.tensor(torch.nan)
            difference = float(difference / wanted.double().abs().max().clamp_min(1))
            if not difference <= TOLERANCE:
                shapes = ", ".join(f"{name} {list(each.shape)}" for name, each in example.items())
                raise RuntimeError(
                    f"The exported {name} gives another {output} than the model, by {difference:.1e}, for {shapes}; "
                    f"expected at most {TOLERANCE:.0e}."
                )
            largest = max(largest, difference)
    types = {each: str(value.dtype).removeprefix("torch.") for each, value in part.examples[0].items()}
    types |= {each: str(value.dtype).removeprefix("torch.") for each, value in zip(part.outputs, expected, strict=True)}
    told = {
        kind: [{"name": each, "type": types[each], "shape": shape} for each, shape in shapes.items()]
        for kind, shapes in (("inputs", part.inputs), ("outputs", part.outputs))
    }
    return {**told, "largest_difference_from_the_model": largest}


def _first_line(error: Exception) -> str:
    return f"{str(error).strip().partition(chr(10))[0] or type(error).__name__:.300}"


@contextlib.contextmanager
def _quiet():
    """Silence torch's messages during the export."""
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)
