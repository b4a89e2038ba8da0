"""OmitProcessor: images and text to the tensors that OmitModel takes."""

from transformers import ProcessorMixin

from .pictures_omit import as_pictures


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
            images: a picture or a list of pictures: PIL, numpy, torch, a path or a URL; see `as_pictures`.
            text: a caption or a list of captions.
            kwargs: for the image processor or the tokenizer.

        Returns:
            `BatchFeature` with `pixel_values` [B_i, 3, H, W] for images; `input_ids` and `attention_mask` [B_t, L]
            for text.

        Raises:
            ValueError: if neither is given, if something is no picture or no text, or if several pictures or captions
                cannot be one tensor because they are not resized or padded.
        """
        if images is None and text is None:
            raise ValueError("OmitProcessor was called with nothing; expected images=…, text=… or both.")
        if images is not None:
            images = as_pictures(images)
            self._check_sizes(images, kwargs)
        if text is not None:
            self._check_text([text] if isinstance(text, str) else text, kwargs)
        return super().__call__(images=images, text=text, **kwargs)

    def _check_sizes(self, images, kwargs):
        options = {**self.images_kwargs, **kwargs, **kwargs.get("images_kwargs", {})}
        sizes = {tuple(each.shape[-2:]) if hasattr(each, "shape") else (each.height, each.width) for each in images}
        makes_one_size = any(
            options.get(name, getattr(self.image_processor, name, False))
            for name in ("do_resize", "do_center_crop", "do_pad")
        )
        if len(sizes) > 1 and not makes_one_size and options["return_tensors"] is not None:
            listed = " and ".join(f"{height} x {width}" for height, width in sorted(sizes)[:2])
            raise ValueError(
                f"The {len(images)} pictures have {len(sizes)} sizes, such as {listed}, and are not resized, so they "
                "make no tensor; pass do_resize=True, or pictures of one size."
            )

    def _check_text(self, text, kwargs):
        if not isinstance(text, list | tuple) or len(text) == 0:
            raise ValueError(f"text is {text!r:.80}; expected a caption or a list of captions, at least one.")
        for number, caption in enumerate(text):
            if not isinstance(caption, str):
                raise ValueError(f"text[{number}] is {caption!r:.80}; expected a string.")
        options = {**self.text_kwargs, **kwargs, **kwargs.get("text_kwargs", {})}
        padded = options["padding"] not in (False, None, "do_not_pad")
        if len(text) == 1 or options["return_tensors"] is None or (padded and self.tokenizer.pad_token is not None):
            return
        lengths = [len(ids) for ids in self.tokenizer(list(text), truncation=options["truncation"])["input_ids"]]
        if len(set(lengths)) > 1:
            remedy = "leave padding=True" if not padded else "give the tokenizer a pad_token"
            raise ValueError(
                f"The {len(text)} captions have {min(lengths)} to {max(lengths)} tokens and are not padded, so they "
                f"make no tensor; {remedy}, or pass return_tensors=None."
            )
