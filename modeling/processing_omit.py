"""OmitProcessor: images or regions and text to the tensors that OmitModel takes."""

import functools

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchFeature, ProcessorMixin

from .backbones_omit import load
from .pictures_omit import as_pictures
from .words_omit import Word, words_of_tokens


class OmitProcessor(ProcessorMixin):
    """The vision backbone's image processor, or None for precomputed regions, and the text backbone's tokenizer.

    Captions are padded to the longest and cut to the tokenizer's `model_max_length`; tensors are PyTorch's. A call can
    change it: `processor(text=…, padding="max_length", max_length=32)`. Where the model reads the padding too, as
    SigLIP, whose tokenizer makes no attention mask, captions are padded to `model_max_length`, and the mask is ones.
    """

    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None):
        if image_processor is None:  # ProcessorMixin cannot hold an attribute that is None
            self.get_attributes = functools.partial(list, ["tokenizer"])
            super().__init__(tokenizer)
            self.image_processor = None
        else:
            super().__init__(image_processor, tokenizer)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """`ProcessorMixin.from_pretrained`; a `ValueError` names the checkpoint if a file of it is broken."""
        return load(super().from_pretrained, *args, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        if processor_dict and processor_dict.get("image_processor", "from a file of its own") is None:
            return [None, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, processor_dict, **kwargs)

    def __call__(self, images=None, text=None, regions=None, **kwargs):
        """
        Args:
            images: a picture or a list of pictures: PIL, numpy, torch, a path or a URL; see `as_pictures`.
            text: a caption or a list of captions.
            regions: in the place of images, precomputed features of their regions: an array or tensor [B, K, width] or,
                of one image, [K, width]; or a list of [K_i, width], one an image.
            kwargs: for the image processor or the tokenizer.

        Returns:
            `BatchFeature` of `pixel_values` [B_i, 3, H, W], or `region_features` float32 [B_i, K, width] and
            `region_mask` bool [B_i, K], false for padding; and of `input_ids` and `attention_mask` [B_t, L].

        Raises:
            ValueError: if nothing is given, or both images and regions; for what is no picture, no regions or no text;
                if pictures or captions of several sizes are not resized or padded to make one tensor.
        """
        if images is None and text is None and regions is None:
            raise ValueError("OmitProcessor was called with nothing; expected images=… or regions=…, text=… or both.")
        if images is not None and regions is not None:
            raise ValueError("OmitProcessor was called with images and regions; expected the one that the model takes.")
        if images is not None and self.image_processor is None:
            why = "this processor has no image_processor, since its model takes precomputed regions"
            raise ValueError(f"images given, but {why}; pass regions=…")
        if regions is not None:
            return BatchFeature({**_padded_regions(regions), **({} if text is None else self(text=text, **kwargs))})
        if images is not None:
            images = as_pictures(images)
            self._check_sizes(images, kwargs)
        if text is None:
            return super().__call__(images=images, **kwargs)
        masked = "attention_mask" in self.tokenizer.model_input_names
        if not masked:
            kwargs.setdefault("padding", "max_length")
        text = list(text) if isinstance(text, tuple) else text
        self._check_text([text] if isinstance(text, str) else text, kwargs)
        inputs = super().__call__(images=images, text=text, **kwargs)
        if not masked and isinstance(inputs["input_ids"], torch.Tensor):
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return inputs

    def words(self, sentence: str, input_ids: torch.Tensor, valid: torch.Tensor) -> list[Word]:
        """The words of a caption, and which of its tokens make each; see `words_of_tokens`."""
        return words_of_tokens(self.tokenizer, sentence, input_ids, valid)

    def _check_sizes(self, images, kwargs):
        options = {**self.images_kwargs, **kwargs, **kwargs.get("images_kwargs", {})}
        sizes = {tuple(each.shape[-2:]) if hasattr(each, "shape") else (each.height, each.width) for each in images}
        steps = ("do_resize", "do_center_crop", "do_pad")  # any of which makes one size
        resized = any(options.get(name, getattr(self.image_processor, name, False)) for name in steps)
        if len(sizes) > 1 and not resized and options["return_tensors"] is not None:
            listed = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
            found = f"The {len(images)} pictures have {len(sizes)} sizes, such as {listed}, and are not resized"
            raise ValueError(f"{found}, so they make no tensor; pass do_resize=True, or pictures of one size.")

    def _check_text(self, text, kwargs):
        if not isinstance(text, list) or len(text) == 0:
            raise ValueError(f"text is {text!r:.80}; expected a caption or a list of captions, at least one.")
        for number, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(f"text[{number}] is {caption!r:.80}; expected a string.")
            if any("\ud800" <= character <= "\udfff" for character in caption):
                raise ValueError(f"text[{number}] is {caption!r:.80}, with half of a surrogate pair; expected text.")
        options = {**self.text_kwargs, **kwargs, **kwargs.get("text_kwargs", {})}
        padded = options["padding"] not in (False, None, "do_not_pad")
        if len(text) == 1 or options["return_tensors"] is None or (padded and self.tokenizer.pad_token is not None):
            return
        lengths = [len(ids) for ids in self.tokenizer(text, truncation=options["truncation"])["input_ids"]]
        if len(set(lengths)) > 1:
            found = f"The {len(text)} captions have {min(lengths)} to {max(lengths)} tokens and are not padded"
            remedy = "leave padding=True" if not padded else "give the tokenizer a pad_token"
            raise ValueError(f"{found}, so they make no tensor; {remedy}, or pass return_tensors=None.")


def _padded_regions(regions) -> dict[str, torch.Tensor]:
    """Regions of all images in one tensor, padded with zeros to the most that an image has, and their mask."""
    if not isinstance(regions, list | tuple):
        regions = torch.as_tensor(regions)
        regions = regions[None] if regions.ndim == 2 else regions
        if regions.ndim != 3:
            raise ValueError(f"regions has shape {tuple(regions.shape)}; expected [B, K, width] or [K, width].")
    images = [torch.as_tensor(each).float() for each in regions]
    if not images:
        raise ValueError("regions is empty; expected those of at least one image.")
    for number, each in enumerate(images):
        shape, width = tuple(each.shape), images[0].shape[-1]
        if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
            raise ValueError(f"regions[{number}] has shape {shape}; expected [K, {width}] with K from 1.")
        if not each.isfinite().all():
            raise ValueError(f"regions[{number}] holds NaN or infinity; expected numbers.")
    mask = pad_sequence([torch.ones(len(each), dtype=torch.bool) for each in images], batch_first=True)
    return {"region_features": pad_sequence(images, batch_first=True), "region_mask": mask}


OmitProcessor.register_for_auto_class()  # so that its code is saved with it
