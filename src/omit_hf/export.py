"""Checkpoints for servers without this package: both encoders and the head as ONNX, or as programs of torch.export.

An image is encoded once, a caption once, and the head scores every image against every caption. A program of
torch.export whose text encoder is a BiGRU needs `import omit_hf.export` before it is loaded, which makes its GRU known.
"""

import contextlib
import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers.modeling_outputs import BaseModelOutput

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.alignment_heads_omit import CHAN_TEMPERATURE, ChanMatching, MaxSimMatching
from omit_hf.modeling.sinkhorn_omit import LOG_ZERO

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
DESCRIPTION_FILE = "export.json"
TOLERANCE = 1e-4  # of what a part gives, in float32, against the model
FEATURES = ("embeds", "mask", "pooled", "norms")

logger = logging.getLogger(__name__)


@dataclass
class Part:
    """A module that becomes a file.

    Args:
        module: takes and gives tensors alone.
        truth: the same of the model as it is.
        examples: inputs by name. The first are traced, in which every size that may vary is 2 or more.
        inputs: the dimensions of each input, named where they may vary.
        outputs: those of each output, likewise.
    """

    module: nn.Module
    truth: nn.Module
    examples: list[dict[str, Tensor]]
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]


def export_model(
    model,
    processor,
    folder: str | os.PathLike,
    format: str = "onnx",
    *,
    image_size: tuple[int, int] | None = None,
    num_regions: int = 36,
    num_images: int | None = None,
) -> dict:
    """Write a model's encoders and head, and its processor, into a new folder.

    The numbers of images, captions and words vary. The size of pictures, and with it the number of their cells, or the
    number of regions is fixed. All is in float32. Each file is run, on other numbers than it was made with too, and
    compared with the model before the folder appears.

    Args:
        model: an `OmitModel`.
        processor: its `OmitProcessor`.
        folder: to write: `image_encoder`, `text_encoder` and `head`, as `.onnx` or `.pt2`, `export.json`, which tells
            their inputs and outputs, and the processor's files.
        format: `onnx`, which needs `pip install 'omit-hf[onnx]'`, or `torch_export`.
        image_size: height and width in pixels of what the processor makes of pictures, where it does not resize them.
        num_regions: of an image, for a model that takes regions.
        num_images: fixes how many images the image encoder takes at a time, for one that cannot be exported otherwise.

    Returns:
        The content of `export.json`.

    Raises:
        FileExistsError: if the folder is there and not empty.
        ImportError: if packages of the extra are missing.
        RuntimeError: if torch cannot export a part, or the part gives something else than the model.
        ValueError: for an unknown format, sizes below 1, or an `image_size` that is missing or not the processor's.
    """
    folder = Path(folder)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; expected one of {', '.join(FORMATS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose another folder.")
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
        _region_part(*both, num_regions, num_images) if takes_regions else _picture_part(*both, image_size, num_images)
    )
    text = _text_part(*both)
    parts = {"image_encoder": image, "text_encoder": text, "head": _head_part(*both, image, text)}
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
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export.") as scratch:
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


def picture_size(processor, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width in pixels of what a processor makes of pictures.

    Raises:
        ValueError: if it leaves their sizes as they are and `image_size` is not given, or makes another size of one.
    """
    height, width = image_size or (96, 160)
    made = [
        tuple(processor(images=Image.new("RGB", size))["pixel_values"].shape[-2:])
        for size in ((width, height), *(() if image_size else ((96, 96),)))
    ]
    if len(set(made)) > 1:
        raise ValueError(
            "The processor does not resize pictures to one size; pass image_size, the height and width in pixels of "
            "those that the exported model is for."
        )
    if image_size is not None and made[0] != tuple(image_size):
        raise ValueError(
            f"image_size is {height} x {width}, but the processor makes {made[0][0]} x {made[0][1]} pixels of such a "
            "picture; expected the size that it makes, or none."
        )
    return made[0]


def exportable(model):
    """A copy of a model that torch.export can trace, with the same weights in memory."""
    model = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    if model.config.text_config.model_type == "omit_bigru":
        model.text_encoder.backbone = ExportedBiGRU(model.text_encoder.backbone)
    if hasattr(model.matching, "backend"):
        model.matching.backend = "reference"
    if isinstance(model.matching, MaxSimMatching):
        model.matching = ExportedMaxSim(model.matching)
    return model


# --- parts ------------------------------------------------------------------------------------------------------------


class PictureEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model.get_image_features(pixel_values))


class RegionEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, region_features: Tensor, region_mask: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model.get_image_features(region_features=region_features, region_mask=region_mask))


class TextEncoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model.get_text_features(input_ids, attention_mask))


class Head(nn.Module):
    """The similarity of every image and every caption, all at once: memory grows with their product."""

    def __init__(self, model):
        super().__init__()
        self.head = model.matching

    def forward(
        self,
        image_embeds: Tensor,
        image_mask: Tensor,
        image_pooled: Tensor,
        image_norms: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor,
        text_pooled: Tensor,
        text_norms: Tensor,
    ) -> Tensor:
        image = OmitFeatures(embeds=image_embeds, mask=image_mask, pooled=image_pooled, norms=image_norms)
        text = OmitFeatures(embeds=text_embeds, mask=text_mask, pooled=text_pooled, norms=text_norms)
        return self.head(image, text)


def _tensors(features: OmitFeatures) -> tuple[Tensor, ...]:
    return tuple(features[name] for name in FEATURES)


def _picture_part(model, original, image_size: tuple[int, int], num_images: int | None) -> Part:
    examples = [{"pixel_values": torch.rand(count, 3, *image_size)} for count in _counts(num_images)]
    return _image_part(PictureEncoder(model), PictureEncoder(original), examples, num_images)


def _region_part(model, original, num_regions: int, num_images: int | None) -> Part:
    shape = (num_regions, model.config.vision_config.feature_size)
    examples = [
        {
            "region_features": torch.randn(count, *shape),
            "region_mask": torch.arange(num_regions) < torch.randint(1, num_regions + 1, (count, 1)),
        }
        for count in _counts(num_images)
    ]
    return _image_part(RegionEncoder(model), RegionEncoder(original), examples, num_images)


def _counts(num_images: int | None) -> list[int]:
    return [3, 1, 5] if num_images is None else [num_images]


def _image_part(module: nn.Module, truth: nn.Module, examples: list[dict[str, Tensor]], num_images: int | None) -> Part:
    count = "images" if num_images is None else num_images
    inputs = {name: [count, *each.shape[1:]] for name, each in examples[0].items()}
    with torch.no_grad():
        _, fragments, width = module(**examples[0])[0].shape
    return Part(module, truth, examples, inputs, _feature_shapes("image", count, fragments, width))


def _text_part(model, original) -> Part:
    highest, fixed = model.config.text_config.vocab_size, model.text_encoder.fixed_length
    examples = []
    for captions, words in ((4, 7), (1, 1), (2, 11)):
        lengths = torch.randint(1, words + 1, (captions, 1))
        lengths[0] = words
        examples.append(
            {
                "input_ids": torch.randint(0, highest, (captions, words)),
                "attention_mask": (torch.arange(words) < lengths).long(),
            }
        )
    inputs = {name: ["captions", "words"] for name in examples[0]}
    outputs = _feature_shapes("text", "captions", "words" if fixed is None else fixed, model.config.projection_dim)
    return Part(TextEncoder(model), TextEncoder(original), examples, inputs, outputs)


def _head_part(model, original, image: Part, text: Part) -> Part:
    """Its examples are what the encoders make of theirs."""
    examples = []
    with torch.no_grad():
        for of_image, of_text in zip(_all_counts(image.examples), text.examples, strict=True):
            values = (*image.truth(**of_image), *text.truth(**of_text))
            examples.append(dict(zip((*image.outputs, *text.outputs), values, strict=True)))
    inputs = {**image.outputs, **text.outputs}
    for name in image.outputs:
        inputs[name] = ["images", *inputs[name][1:]]
    return Part(Head(model), Head(original), examples, inputs, {"similarity": ["images", "captions"]})


def _all_counts(examples: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Examples of 3, 1 and 5 images, whatever the encoder is fixed to."""
    return [{name: torch.cat([each] * count)[:count] for name, each in examples[0].items()} for count in _counts(None)]


def _feature_shapes(side: str, count: str | int, fragments: str | int, width: int) -> dict[str, list[str | int]]:
    shapes = ([count, fragments, width], [count, fragments], [count, width], [count, fragments])
    return {f"{side}_{name}": shape for name, shape in zip(FEATURES, shapes, strict=True)}


# --- writing and checking ---------------------------------------------------------------------------------------------

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
    """What `export.json` tells of a part, whose file does what the model does.

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
    """Without what torch says of itself while it exports."""
    chatty = logging.getLogger("torch.onnx")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)


# --- what can be traced in the place of what cannot -------------------------------------------------------------------


class ExportedMaxSim(nn.Module):
    """What `MaxSimMatching` and `ChanMatching` compute, on padding too, since a trace leaves nothing out."""

    def __init__(self, head: MaxSimMatching):
        super().__init__()
        self.sums_exponentials = isinstance(head, ChanMatching)

    def forward(self, image: OmitFeatures, text: OmitFeatures) -> Tensor:
        similarity = torch.einsum("ikd,tld->itkl", image.embeds, text.embeds)
        best = similarity.masked_fill(~image.mask[:, None, :, None], LOG_ZERO).amax(dim=2)  # [B_i, B_t, L]
        if self.sums_exponentials:
            logits = (best / CHAN_TEMPERATURE).masked_fill(~text.mask, LOG_ZERO)
            score = CHAN_TEMPERATURE * logits.logsumexp(dim=-1)
        else:
            score = best.masked_fill(~text.mask, 0).sum(dim=-1) / text.mask.sum(dim=-1).clamp_min(1)
        return score.masked_fill(~(image.mask.any(dim=1)[:, None] & text.mask.any(dim=1)), 0)


class ExportedBiGRU(nn.Module):
    """What `BiGRU` computes, by an operator of its own: torch.export would write a GRU out for one number of words."""

    def __init__(self, bigru):
        super().__init__()
        self.embeddings, self.layers, self.width = bigru.embeddings, bigru.gru.num_layers, bigru.gru.hidden_size
        for layer in range(self.layers):
            for kind, names in (
                ("weights", ["weight_ih"]),
                ("recurrence", ["weight_hh"]),
                ("biases", ["bias_ih", "bias_hh"]),
            ):
                both = [
                    torch.cat([_in_onnx_order(getattr(bigru.gru, f"{name}_l{layer}{way}")) for name in names])
                    for way in ("", "_reverse")
                ]
                self.register_buffer(f"{kind}_{layer}", torch.stack(both).detach())

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs) -> BaseModelOutput:
        lengths = attention_mask.bool().sum(dim=1).clamp_min(1)
        states = self.embeddings(input_ids)
        for layer in range(self.layers):
            arguments = (getattr(self, f"{kind}_{layer}") for kind in ("weights", "recurrence", "biases"))
            both = torch.ops.omit_hf.bidirectional_gru(states, lengths, *arguments, self.width)
            states = both.flatten(-2)
        return BaseModelOutput(last_hidden_state=both.mean(dim=-2))


def _in_onnx_order(parameter: Tensor) -> Tensor:
    """From the gates reset, update, new to update, reset, new; or back."""
    reset, update, new = parameter.chunk(3)
    return torch.cat([update, reset, new])


@torch.library.custom_op("omit_hf::bidirectional_gru", mutates_args=())
def bidirectional_gru(
    words: Tensor, lengths: Tensor, weights: Tensor, recurrence: Tensor, biases: Tensor, width: int
) -> Tensor:
    """One layer of a GRU in both directions, with the weights as ONNX has them.

    Args:
        words: [B, L, E].
        lengths: of the captions, [B].
        weights, recurrence, biases: [2, 3H, E], [2, 3H, H] and [2, 6H].
        width: H.

    Returns:
        States [B, L, 2, H], zero after a caption's end.
    """
    parameters = []
    for way in range(2):
        parameters += [_in_onnx_order(weights[way]), _in_onnx_order(recurrence[way])]
        parameters += [_in_onnx_order(each) for each in biases[way].chunk(2)]
    packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
    start = words.new_zeros(2, words.shape[0], width)
    states, _ = torch._VF.gru(packed.data, packed.batch_sizes, start, parameters, True, 1, 0.0, False, True)
    states, _ = pad_packed_sequence(packed._replace(data=states), batch_first=True, total_length=words.shape[1])
    return states.unflatten(-1, (2, -1)).contiguous()


@bidirectional_gru.register_fake
def _(words, lengths, weights, recurrence, biases, width):
    return words.new_empty(*words.shape[:2], 2, width)
