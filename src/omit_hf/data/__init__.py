"""Loads images and captions from many sources into one schema, and makes the inputs of a model from it.

A row is an image: `image` (a picture) or `region_features` (float32 [K, width]), `captions` (list of str) and
`image_id` (str); if the source has them, also `width`, `height`, `boxes`, `phrases` and `relevant_captions` (see
`omit_hf.data.sources.scenes`). The splits are `train`, `validation` and `test`.
"""

from omit_hf.data.augmentation import Augmentation
from omit_hf.data.checks import check_data, describe_split, find_duplicates, find_problems, unreadable_images
from omit_hf.data.entities import load_entities
from omit_hf.data.inputs import ImageTextInputs
from omit_hf.data.loading import load_image_text
from omit_hf.data.noise import shuffle_captions
from omit_hf.data.schema import DataError
from omit_hf.data.sources.coco import load_coco_captions
from omit_hf.data.sources.compositions import load_compositions
from omit_hf.data.sources.hub import load_hub
from omit_hf.data.sources.image_folder import load_image_folder
from omit_hf.data.sources.karpathy import load_karpathy
from omit_hf.data.sources.regions import load_regions
from omit_hf.data.sources.scenes import load_scenes
from omit_hf.data.sources.webdataset import load_webdataset
from omit_hf.data.states import cache_states
from omit_hf.data.vocabulary import build_word_tokenizer
from omit_hf.data.word_vectors import read_word_vectors

__all__ = [
    "Augmentation",
    "DataError",
    "ImageTextInputs",
    "build_word_tokenizer",
    "cache_states",
    "check_data",
    "describe_split",
    "find_duplicates",
    "find_problems",
    "load_coco_captions",
    "load_entities",
    "load_compositions",
    "load_hub",
    "load_image_folder",
    "load_image_text",
    "load_karpathy",
    "load_regions",
    "load_scenes",
    "load_webdataset",
    "read_word_vectors",
    "shuffle_captions",
    "unreadable_images",
]
