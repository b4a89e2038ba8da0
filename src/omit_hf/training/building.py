"""Builds a model and its processor from a recipe."""

import transformers
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoImageProcessor, BaseImageProcessor

from omit_hf.data import Augmentation, build_word_tokenizer, read_word_vectors
from omit_hf.data.augmentation import mask_token, words_of
from omit_hf.modeling import OmitConfig, OmitModel, OmitProcessor
from omit_hf.modeling.backbones_omit import fit_tokenizer, pretrained_backbone, pretrained_tokenizer, text_settings
from omit_hf.modeling.configuration_omit import check_fields
from omit_hf.training.low_rank import LowRank, add_adapters
from omit_hf.training.recipe import Recipe


def build_model(recipe: Recipe, train: Dataset) -> tuple[OmitModel, OmitProcessor]:
    """Build the untrained model of a recipe. Frozen backbones have no gradient.

    Args:
        recipe: names the backbones, or configures them.
        train: training split; its captions make the vocabulary of an `omit_bigru`.

    Raises:
        ValueError: if the recipe's configurations or image processor are invalid, or no word occurs often enough.
        OSError: if a pretrained backbone, its image processor or its tokenizer is not found.
        ImportError: for `lora` without peft.
    """
    if recipe.clip_model is not None:
        model = OmitModel.from_clip(recipe.clip_model, **recipe.config_values())
        tokenizer = pretrained_tokenizer(recipe.clip_model)
        fit_tokenizer(model.text_encoder.backbone, tokenizer)
        processor = OmitProcessor(_image_processor(recipe), tokenizer)
    else:
        model, processor = _from_two_sides(recipe, train)
    if not recipe.takes_regions:
        model.vision_encoder.backbone.requires_grad_(not recipe.freeze_vision)
        model.vision_encoder.batch_norm_frozen = recipe.freeze_batch_norm
    model.text_encoder.backbone.requires_grad_(not recipe.freeze_text)
    if recipe.lora is not None:
        add_adapters(model, LowRank.of(recipe.lora))
    return model, processor


def _from_two_sides(recipe: Recipe, train: Dataset) -> tuple[OmitModel, OmitProcessor]:
    vision_backbone = text_backbone = None
    vision_config = recipe.vision_config
    if recipe.vision_model is not None:
        vision_backbone = pretrained_backbone(recipe.vision_model, "vision_config", "float32")
        vision_config = vision_backbone.config.to_dict()
    if recipe.text_model is not None:
        tokenizer = pretrained_tokenizer(recipe.text_model)
        text_backbone = pretrained_backbone(recipe.text_model, "text_config", "float32")
        fit_tokenizer(text_backbone, tokenizer)
        text_config = text_backbone.config.to_dict()
    else:
        tokenizer = build_word_tokenizer(captions_of(train), recipe.min_word_count)
        vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        text_config = {**recipe.text_config, **vocabulary}
    settings = {**text_settings(tokenizer), **recipe.config_values()}
    try:
        config = OmitConfig(vision_config=vision_config, text_config=text_config, **settings)
    except StrictDataclassError as error:
        raise ValueError(f"The recipe makes no model: {error.__cause__}") from error
    model = OmitModel(config, vision_backbone, text_backbone)
    return model, OmitProcessor(None if recipe.takes_regions else _image_processor(recipe), tokenizer)


def use_word_vectors(recipe: Recipe, model: OmitModel, processor: OmitProcessor) -> dict:
    """Start the word embeddings of an `omit_bigru` from the recipe's file.

    Returns:
        `words`, the size of the vocabulary, and `found`, how many of its words the file has.
    """
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    vocabulary = {word: number for word, number in tokenizer.get_vocab().items() if number not in special}
    embeddings = model.text_encoder.backbone.embeddings.weight
    read = read_word_vectors(recipe.word_vectors, vocabulary, embeddings.shape[1])
    embeddings.data[read.ids] = read.vectors
    return {"words": len(vocabulary), "found": len(read.ids)}


def build_augmentation(recipe: Recipe, train: Dataset, processor: OmitProcessor) -> Augmentation | None:
    """Build the augmentation of training pairs; None if the recipe has none."""
    if not recipe.word_augmentation and recipe.image_crop == 1 and not recipe.image_flip:
        return None
    mask, vocabulary = "", []
    if recipe.word_augmentation:
        mask, vocabulary = mask_token(processor.tokenizer), words_of(captions_of(train))
    return Augmentation(
        words=recipe.word_augmentation,
        crop=recipe.image_crop,
        flip=recipe.image_flip,
        mask=mask,
        vocabulary=vocabulary,
        seed=recipe.seed,
    )


def captions_of(split: Dataset):
    """Yield all captions of a split."""
    return (caption for captions in split["captions"] for caption in captions)


def _image_processor(recipe: Recipe) -> BaseImageProcessor:
    options = dict(recipe.image_processor or {})
    pretrained = recipe.clip_model or recipe.vision_model
    if pretrained is not None:
        return AutoImageProcessor.from_pretrained(pretrained, **options)
    name = options.pop("image_processor_type", None)
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and name.endswith(("ImageProcessor", "ImageProcessorPil"))):
        raise ValueError(
            f"image_processor has image_processor_type {name!r}; expected an image processor of transformers, such as "
            "'ViTImageProcessor'."
        )
    check_fields("image_processor", options, found.valid_kwargs.__annotations__)
    return found(**options)
