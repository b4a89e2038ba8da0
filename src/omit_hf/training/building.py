"""From a recipe to a model and its processor."""

import transformers
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoImageProcessor, BaseImageProcessor

from omit_hf.data import build_word_tokenizer
from omit_hf.modeling import OmitConfig, OmitModel, OmitProcessor
from omit_hf.modeling.configuration_omit import check_fields
from omit_hf.modeling.encoders_omit import pretrained_backbone, pretrained_tokenizer, text_settings
from omit_hf.training.recipe import Recipe

# Fields that a recipe and an OmitConfig share.
SHARED_FIELDS = (
    "projection_dim",
    "matching",
    "regularization",
    "num_iterations",
    "dustbin",
    "marginals",
    "loss",
    "margin",
    "logit_scale_init_value",
)


def build_model(recipe: Recipe, train: Dataset) -> tuple[OmitModel, OmitProcessor]:
    """The untrained model of a recipe; backbones that it freezes have no gradient.

    Args:
        recipe: names the backbones, or configures them.
        train: the training split, whose captions make the vocabulary of an `omit_bigru`.

    Raises:
        ValueError: if the recipe's configurations or image processor are none, or no word occurs often enough.
        OSError: if a pretrained backbone, its image processor or its tokenizer is not found.
    """
    vision_backbone = text_backbone = None
    if recipe.vision_model is not None:
        vision_backbone = pretrained_backbone(recipe.vision_model, "vision_config", "float32")
        vision_config = vision_backbone.config.to_dict()
        image_processor = AutoImageProcessor.from_pretrained(recipe.vision_model)
    else:
        vision_config = recipe.vision_config
        image_processor = _image_processor(recipe.image_processor)
    if recipe.text_model is not None:
        tokenizer = pretrained_tokenizer(recipe.text_model)
        text_backbone = pretrained_backbone(recipe.text_model, "text_config", "float32")
        text_config = text_backbone.config.to_dict()
    else:
        captions = (caption for captions in train["captions"] for caption in captions)
        tokenizer = build_word_tokenizer(captions, recipe.min_word_count)
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        text_config = {**recipe.text_config, **vocabulary}
    settings = text_settings(tokenizer)
    if recipe.text_pooling is not None:
        settings["text_pooling"] = recipe.text_pooling
    shared = {name: getattr(recipe, name) for name in SHARED_FIELDS}
    try:
        config = OmitConfig(vision_config=vision_config, text_config=text_config, **shared, **settings)
    except StrictDataclassError as error:
        raise ValueError(f"The recipe makes no model: {error.__cause__}") from error
    model = OmitModel(config, vision_backbone, text_backbone)
    model.vision_encoder.backbone.requires_grad_(not recipe.freeze_vision)
    model.text_encoder.backbone.requires_grad_(not recipe.freeze_text)
    return model, OmitProcessor(image_processor, tokenizer)


def _image_processor(options: dict) -> BaseImageProcessor:
    options = dict(options)
    name = options.pop("image_processor_type", None)
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and name.endswith(("ImageProcessor", "ImageProcessorPil"))):
        raise ValueError(
            f"image_processor has image_processor_type {name!r}; expected an image processor of transformers, such as "
            "'ViTImageProcessor'."
        )
    check_fields("image_processor", options, found.valid_kwargs.__annotations__)
    return found(**options)
