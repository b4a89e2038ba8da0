"""Models small enough to build in every test."""

from omit_hf import OmitConfig

VISION = {"model_type": "convnext", "patch_size": 8, "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
TEXT = {"model_type": "omit_bigru", "vocab_size": 30, "embedding_size": 8, "hidden_size": 16}


def tiny_config(**options) -> OmitConfig:
    return OmitConfig(**{"vision_config": VISION, "text_config": TEXT, "projection_dim": 16, **options})
