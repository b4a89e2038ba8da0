"""The parts of a model that become files: modules of tensors alone, with inputs to trace and to test them."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.features_omit import FEATURES


@dataclass
class Part:
    """A module that becomes a file.

    Args:
        module: module that takes and returns only tensors.
        truth: the same part of the original model.
        examples: inputs by name. The first ones are traced; in them every size that may vary is 2 or more.
        inputs: dimensions of every input; those that may vary have names.
        outputs: dimensions of every output, likewise.
    """

    module: nn.Module
    truth: nn.Module
    examples: list[dict[str, Tensor]]
    inputs: dict[str, list[str | int]]
    outputs: dict[str, list[str | int]]


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
    """Scores every image against every caption, all at once: memory grows with the product of their numbers."""

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


def picture_part(model, original, image_size: tuple[int, int], num_images: int | None) -> Part:
    examples = [{"pixel_values": torch.rand(count, 3, *image_size)} for count in _counts(num_images)]
    return _image_part(PictureEncoder(model), PictureEncoder(original), examples, num_images)


def region_part(model, original, num_regions: int | None, num_images: int | None) -> Part:
    """The encoder of regions, of `num_regions` an image with those that the mask leaves out, or of any number."""
    width = model.config.vision_config.feature_size
    examples = []
    for images, regions in zip(_counts(num_images), (36, 10, 100), strict=False):
        most = regions if num_regions is None else num_regions
        mask = torch.arange(most) < torch.randint(1, most + 1, (images, 1))
        examples.append({"region_features": torch.randn(images, most, width), "region_mask": mask})
    regions = "regions" if num_regions is None else num_regions
    return _image_part(RegionEncoder(model), RegionEncoder(original), examples, num_images, regions)


def _counts(num_images: int | None) -> list[int]:
    return [3, 1, 5] if num_images is None else [num_images]


def _image_part(
    module: nn.Module,
    truth: nn.Module,
    examples: list[dict[str, Tensor]],
    num_images: int | None,
    regions: str | int | None = None,
) -> Part:
    count = "images" if num_images is None else num_images
    inputs = {name: [count, *each.shape[1:]] for name, each in examples[0].items()}
    for shape in () if regions is None else inputs.values():
        shape[1] = regions
    with torch.no_grad():
        _, fragments, width = module(**examples[0])[0].shape
    fragments = fragments if regions is None else regions
    return Part(module, truth, examples, inputs, _feature_shapes("image", count, fragments, width))


def text_part(model, original) -> Part:
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


def head_part(model, original, image: Part, text: Part) -> Part:
    """Make the head's part; its examples are the outputs of the encoders."""
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
    """Make examples of 3, 1 and 5 images, whatever number the encoder is fixed to."""
    return [{name: torch.cat([each] * count)[:count] for name, each in examples[0].items()} for count in _counts(None)]


def _feature_shapes(side: str, count: str | int, fragments: str | int, width: int) -> dict[str, list[str | int]]:
    shapes = ([count, fragments, width], [count, fragments], [count, width], [count, fragments])
    return {f"{side}_{name}": shape for name, shape in zip(FEATURES, shapes, strict=True)}


def picture_size(processor, image_size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Find the height and width in pixels of processed pictures.

    Raises:
        ValueError: if the processor does not resize and `image_size` is not given, or the processor changes that size.
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
