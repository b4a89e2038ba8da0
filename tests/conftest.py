"""Small models and data that many tests share."""

import os
import random

# A thread for each worker of pytest and for what it starts: more than the cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from accelerate.state import AcceleratorState

# Triton reads it when it is imported, which transformers does: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from hypothesis import settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from tiny import TEXT, tiny_config, tiny_recipe
from transformers import ViTImageProcessor
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import build_word_tokenizer, load_scenes
from omit_hf.training import Recipe, write_recipe_file

torch.set_num_threads(1)

# The same examples in every run; and of a campaign, `--hypothesis-profile=campaign`, fresh ones and many. A test that
# takes long asks for a part of `settings.default.max_examples`.
settings.register_profile("repeatable", max_examples=100, derandomize=True, deadline=None)
settings.register_profile("campaign", max_examples=5000, derandomize=False, deadline=None)
settings.load_profile("repeatable")
# Hypothesis also draws numbers that stand in our modules: in those that other tests happen to have imported so far.
providers._get_local_constants = Constants


def pytest_addoption(parser):
    parser.addoption(
        "--screenshots",
        nargs=2,
        metavar=("MODEL", "FOLDER"),
        help="of test_word_page_in_browser.py, or with a library test_library_page_in_browser.py: make the README's "
        "pictures in this folder",
    )


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def model() -> OmitModel:
    torch.manual_seed(0)
    return OmitModel(tiny_config()).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Three images of 6 x 4 cells and two captions of 4 and 2 words."""
    torch.manual_seed(1)
    return {
        "pixel_values": torch.rand(3, 3, 96, 64),
        "input_ids": torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }


@pytest.fixture(scope="session")
def scenes():
    return load_scenes(train_size=24, validation_size=6, test_size=8)


@pytest.fixture(scope="session")
def processor(scenes) -> OmitProcessor:
    captions = [caption for captions in scenes["train"]["captions"] for caption in captions]
    image_processor = ViTImageProcessor(do_resize=False)
    return OmitProcessor(image_processor, build_word_tokenizer(captions))


@pytest.fixture
def scenes_model(processor) -> OmitModel:
    torch.manual_seed(0)
    return OmitModel(tiny_config(text_config={**TEXT, "vocab_size": len(processor.tokenizer)})).eval()


@pytest.fixture
def published(scenes_model, processor, tmp_path):
    """Folder of a model with its processor and recipe, as a run leaves it."""
    scenes_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    write_recipe_file(Recipe(**tiny_recipe()), tmp_path / "model" / "recipe.yaml")
    return tmp_path / "model"


@pytest.fixture
def pictures(scenes, tmp_path):
    """A folder of 24 pictures."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number, row in enumerate(scenes["train"]):
        row["image"].save(folder / ("more" if number % 2 else ".") / f"{number:02}.png")
    return folder


@pytest.fixture
def library(pictures, scenes_model, processor, tmp_path):
    """A library of them."""
    from omit_hf.library import PictureLibrary  # needs LanceDB

    made = PictureLibrary(tmp_path / "photos.lance", scenes_model, processor)
    made.add(pictures, progress=False)
    return made


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    from browser import start_chromium  # needs Selenium

    driver = start_chromium(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache of `datasets` for the test alone, and Accelerate as in a new process."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def lasting_length(request):
    """`fit_tokenizer` cuts a tokenizer to a model's positions; the one that tests share gets its length back."""
    found = request.getfixturevalue("processor") if "processor" in request.fixturenames else None
    yield
    if isinstance(found, OmitProcessor):
        found.tokenizer.model_max_length = VERY_LARGE_INTEGER
