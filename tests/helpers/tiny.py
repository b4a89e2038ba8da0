"""Models small enough to build in every test."""

from pathlib import Path

from omit_hf import OmitConfig, modeling

PROGRAMS = Path(__file__).with_name("programs")  # which tests run in processes of their own
CODE = {file.name for file in Path(modeling.__file__).parent.glob("*_omit.py")}  # what travels with a checkpoint
VISION = {"model_type": "convnext", "patch_size": 8, "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
REGIONS = {"model_type": "omit_region", "feature_size": 10, "hidden_size": 8}
TEXT = {"model_type": "omit_bigru", "vocab_size": 30, "embedding_size": 8, "hidden_size": 16}


def tiny_config(**options) -> OmitConfig:
    return OmitConfig(**{"vision_config": VISION, "text_config": TEXT, "projection_dim": 16, **options})


def lay_evenly(model, height: int, width: int, cell: int = 16):
    """Let the cells of a model's images of a size divide them evenly, wherever its backbone looks; returns it."""
    spans = [[[start, start + cell] for start in range(0, side, cell)] for side in (height, width)]
    model.config.fragment_boxes = {**(model.config.fragment_boxes or {}), f"{height} x {width}": spans}
    return model


def tiny_recipe(**options) -> dict:
    """Fields of a recipe that trains in a second an epoch: 4 steps of 10 pairs."""
    return {
        "data": "scenes",
        "data_options": {"train_size": 8, "validation_size": 4, "test_size": 6},
        "vision_config": VISION,
        "image_processor": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
        "text_config": {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16},
        "projection_dim": 16,
        "num_epochs": 2,
        "batch_size": 10,
        "learning_rate": 0.01,
        "tensorboard": False,
        "cpu_threads": 1,
        **options,
    }
