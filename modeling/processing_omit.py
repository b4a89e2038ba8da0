"""OmitProcessor: images and text to the tensors that OmitModel takes."""

from PIL import Image
from transformers import ProcessorMixin
from transformers.image_utils import is_valid_image


class OmitProcessor(ProcessorMixin):
    """An image processor and a tokenizer under one roof.

    Captions are padded to the longest and cut to the tokenizer's `model_max_length`; tensors are PyTorch's. All of it
    can be changed in the call: `processor(text=…, padding="max_length", max_length=32)`.

    Args:
        image_processor: of the vision backbone.
        tokenizer: of the text backbone.
    """

    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}

    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)

    def __call__(self, images=None, text=None, **kwargs):
        """
        Args:
            images: a picture or a list of pictures: PIL, numpy, torch, a path or a URL.
            text: a caption or a list of captions.
            kwargs: for the image processor or the tokenizer.

        Returns:
            `BatchFeature` with `pixel_values` [B_i, 3, H, W] for images; `input_ids` and `attention_mask` [B_t, L]
            for text.

        Raises:
            ValueError: if neither is given, if something is no picture or no text, or if several captions cannot be
                one tensor because they are not padded.
        """
        if images is None and text is None:
            raise ValueError("OmitProcessor was called with nothing; expected images=…, text=… or both.")
        if images is not None:
            images = [
                _picture(each, n) for n, each in enumerate(images if isinstance(images, list | tuple) else [images])
            ]
            if not images:
                raise ValueError("images is an empty list; expected at least one picture.")
        if text is not None:
            self._check_text([text] if isinstance(text, str) else text, kwargs)
        return super().__call__(images=images, text=text, **kwargs)

    def _check_text(self, text, kwargs):
        if not isinstance(text, list | tuple) or len(text) == 0:
            raise ValueError(f"text is {text!r:.80}; expected a caption or a list of captions, at least one.")
        for number, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(f"text[{number}] is {caption!r:.80}; expected a string.")
        options = {**self.text_kwargs, **kwargs, **kwargs.get("text_kwargs", {})}
        padded = options["padding"] not in (False, "do_not_pad")
        if len(text) == 1 or options["return_tensors"] is None or (padded and self.tokenizer.pad_token is not None):
            return
        lengths = [len(ids) for ids in self.tokenizer(list(text), truncation=options["truncation"])["input_ids"]]
        if len(set(lengths)) > 1:
            remedy = "leave padding=True" if not padded else "give the tokenizer a pad_token"
            raise ValueError(
                f"The {len(text)} captions have {min(lengths)} to {max(lengths)} tokens and are not padded, so they "
                f"make no tensor; {remedy}, or pass return_tensors=None."
            )


def _picture(image, number: int):
    """A picture that an image processor takes: in RGB where the mode is known; paths and URLs it reads by itself."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str) and not (is_valid_image(image) and image.ndim in (2, 3, 4)):
        found = f"an array of shape {tuple(image.shape)}" if hasattr(image, "shape") else f"{image!r:.80}"
        raise ValueError(
            f"images[{number}] is {found}, which is no picture; expected PIL, a path, a URL, or an array or tensor of "
            "shape [H, W], [3, H, W] or [H, W, 3]."
        )
    return image
