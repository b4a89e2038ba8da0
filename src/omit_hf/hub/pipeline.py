"""The pipeline of the task `image-text-matching`."""

import io
import os
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import datasets
from datasets.arrow_dataset import Column
from PIL import Image
from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.pipelines.pt_utils import KeyDataset

from omit_hf.alignment import WordAlignment, word_alignment
from omit_hf.data.pictures import open_picture
from omit_hf.modeling.backbones_omit import fit_tokenizer
from omit_hf.modeling.configuration_omit import MAX_LOGIT_SCALE, check_fields
from omit_hf.modeling.features_omit import OmitFeatures
from omit_hf.modeling.pictures_omit import as_picture

TASK = "image-text-matching"
FUNCTIONS = ("none", "softmax")
PARAMETERS = ("text", "timeout", "function_to_apply", "return_alignment", "return_picture")


class ImageTextMatchingPipeline(Pipeline):
    """Scores sentences against pictures and, on request, aligns their words with places in the picture.

    `pipeline("image-text-matching", model=…)` makes it once `omit_hf` is imported. All arguments of a call can also be
    given when the pipeline is made.

    Example:
        ```python
        import omit_hf
        from transformers import pipeline

        match = pipeline("image-text-matching", model="outputs/scenes")
        match("picture.png", text=["a small red star", "two blue circles"])
        # [{"text": "a small red star", "score": …}, {"text": "two blue circles", "score": …}]
        ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, processor=None, **kwargs):
        """
        Args:
            model: `OmitModel` that takes pixels.
            processor: its `OmitProcessor`.
            kwargs: arguments of `transformers.Pipeline`, such as `device` and `batch_size`, or of a call.

        Raises:
            ValueError: if the model is not an `OmitModel`, or takes regions; if there is no processor.
        """
        kind = model.config.model_type
        if kind != "omit":
            raise ValueError(f"The model is a {kind!r} model; expected 'omit', such as OmitModel.")
        if model.vision_encoder.input_name != "pixel_values":
            raise ValueError(
                f"The image encoder of the model is {model.config.vision_config.model_type!r}, which takes precomputed "
                "regions, and a pipeline takes pictures; use OmitModel and OmitProcessor(regions=…, text=…)."
            )
        if processor is None:
            raise ValueError("processor is None; expected the model's OmitProcessor.")
        fit_tokenizer(model.text_encoder.backbone, processor.tokenizer)
        kwargs.pop("local_files_only", None)  # `pipeline` has used it and passes it on
        super().__init__(model=model, processor=processor, **kwargs)

    def __call__(self, images, **kwargs):
        """Score every picture against every sentence.

        Args:
            images: a picture, or any iterable of pictures: a list, a generator, a data set or a column of one. A
                picture is a PIL image, a path, a URL or base64.
            text: a sentence or a list of sentences.
            timeout: seconds to wait for a picture from a URL. Default: no limit.
            function_to_apply: `none` for the similarity, which is comparable across sentences and across pictures;
                `softmax` for scores that add up to 1 over the sentences of a picture.
            return_alignment: add `alignment`, which tells where the words were found: a dict that JSON can hold, from
                `omit_hf.alignment.WordAlignment.to_dict`. Encodes every pair once more.
            return_picture: add `picture`, a PIL image drawn by `omit_hf.visualization.draw_words`; needs the extra
                `plot`.
            batch_size: pictures encoded at once. Default: 1. The processor must bring them to one size.
            num_workers: processes that load pictures of a data set.

        Returns:
            For one picture: a list with a dict per sentence, in their order, with `text`, `score` and whatever was
            requested. For a list or tuple of pictures: a list of such lists. For any other iterable: an iterator over
            such lists, which reads the pictures as it goes.

        Raises:
            ValueError: if there are no sentences, an item is not a picture or not a sentence, an argument is unknown,
                the head does not align but an alignment is requested, or a picture is smaller than the model takes.
                Errors of a picture name its number and its file.
            OSError: if a picture's file cannot be read, or is damaged.
            ImportError: if `return_picture` is set and matplotlib is not installed.
        """
        if kwargs.get("text", self._forward_params.get("text")) is None:
            raise ValueError("No sentences given; expected text=…, a sentence or a list of sentences.")
        images = _as_stored(images)
        if isinstance(images, list | tuple):
            images = [_Numbered(number, image) for number, image in enumerate(images)]
        elif isinstance(images, Dataset):
            images = _NumberedDataset(images) if isinstance(images, Sized) else images
        elif isinstance(images, Iterable) and not _is_one(images):
            images = (_Numbered(number, image) for number, image in enumerate(images))
        return [] if isinstance(images, list) and not images else super().__call__(images, **kwargs)

    def _sanitize_parameters(self, **parameters):
        check_fields(f"The pipeline {TASK}", parameters, PARAMETERS)
        forward, postprocess = {}, dict(parameters)
        preprocess = {"timeout": postprocess.pop("timeout")} if "timeout" in parameters else {}
        if parameters.get("text") is not None:
            text = parameters["text"]
            postprocess["text"] = [text] if isinstance(text, str) else text
            with self.device_placement(), self.get_inference_context()():  # once for all pictures
                inputs = self.processor(text=text).to(self.device)
                forward["text"] = self.model.get_text_features(**inputs)
        if parameters.get("function_to_apply", "none") not in FUNCTIONS:
            known = " or ".join(map(repr, FUNCTIONS))
            raise ValueError(f"function_to_apply is {parameters['function_to_apply']!r}; expected {known}.")
        if parameters.get("return_picture"):
            import omit_hf.visualization  # noqa: F401 (says what to install, before any work is done)
        return preprocess, forward, postprocess

    def preprocess(self, image, timeout: float | None = None) -> dict:
        number, image = (image.number, image.image) if isinstance(image, _Numbered) else (0, image)
        where = f"images[{number}]"
        if isinstance(image, dict) and image.keys() == {"bytes", "path"}:  # as a data set stores it
            try:
                image = open_picture(image)
            except Exception as error:  # PIL raises many kinds
                name = f" ({image['path']})" if image["path"] else ""
                raise ValueError(f"{where}{name}: {error}") from error
        if not isinstance(image, str | os.PathLike | Image.Image):
            raise ValueError(
                f"{where}: {image!r:.80} is no picture; expected PIL, a path, a URL or base64, or a data set's column "
                "of such."
            )
        name = getattr(image, "filename", image)
        picture = as_picture(image, where, timeout)
        where += f" ({name})" if isinstance(name, str | os.PathLike) and os.path.exists(name) else ""
        return {"pixel_values": self.processor(images=picture)["pixel_values"], "picture": picture, "where": where}

    def _forward(self, inputs: dict, text: OmitFeatures) -> dict:
        try:
            image = self.model.get_image_features(inputs["pixel_values"])
        except ValueError as error:  # too small; those of a batch have one size
            where = inputs["where"]
            raise ValueError(f"{where if isinstance(where, str) else where[0]}: {error}") from error
        similarity = self.model.similarity(image, text)
        scale = self.model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return {"similarity": similarity, "logits": scale * similarity, "picture": inputs["picture"]}

    def postprocess(
        self,
        outputs: dict,
        text: list[str],
        function_to_apply: str = "none",
        return_alignment: bool = False,
        return_picture: bool = False,
    ) -> list[dict]:
        [scores] = outputs["similarity"] if function_to_apply == "none" else outputs["logits"].softmax(dim=-1)
        results = []
        for sentence, score in zip(text, scores.tolist(), strict=True):
            result = {"text": sentence, "score": score}
            if return_alignment or return_picture:
                alignment = word_alignment(self.model, self.processor, outputs["picture"], sentence)
            if return_alignment:
                result["alignment"] = alignment.to_dict()
            if return_picture:
                result["picture"] = _drawn(alignment, outputs["picture"])
            results.append(result)
        return results

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save model and processor, so that `pipeline` can make this pipeline again.

        `Pipeline.save_pretrained` forgets the processor. It also marks the checkpoint in a way that makes `pipeline`
        ask for trust in its code, even if this package is installed.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


@dataclass
class _Numbered:
    """A picture and its number among those of a call."""

    number: int
    image: Any


class _NumberedDataset(Dataset):
    def __init__(self, images: Dataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> _Numbered:
        return _Numbered(number, self.images[number])


def _as_stored(images):
    """Read a data set's pictures as they are stored, since `datasets` gives up on broken metadata."""
    if not isinstance(images, Column | KeyDataset):
        return images
    of_column = isinstance(images, Column)
    rows, name = (images.source, images.column_name) if of_column else (images.dataset, images.key)
    if not isinstance(rows, datasets.Dataset) or not isinstance(rows.features[name], datasets.Image):
        return images
    if rows.format["type"] is not None:  # which may be any function
        return images
    rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows[name] if of_column else KeyDataset(rows, name)


def _is_one(images) -> bool:
    """Tell whether an iterable stands for one picture, valid or not, and not for several."""
    return isinstance(images, str | bytes | Mapping) or hasattr(images, "shape")


def _drawn(alignment: WordAlignment, picture: Image.Image) -> Image.Image:
    from omit_hf.visualization import draw_words  # needs an extra

    buffer = io.BytesIO()
    draw_words(alignment, picture).savefig(buffer, format="png", dpi=150)
    return Image.open(buffer)
