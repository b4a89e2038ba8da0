import re
import typing
from dataclasses import asdict

import pytest
from huggingface_hub import ModelCard
from tiny import REGIONS, tiny_recipe

from omit_hf.hub import environment, model_card
from omit_hf.training import Recipe

METRICS = {
    "test": {f"{way}_{name}": 12.5 for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr", "map")}
    | {"rsum": 75.0},
    "validation": {"rsum": 80.25},
    "best_epoch": 1,
    "epochs": 3,
    "steps": 12,
    "training_seconds": 5.5,
    "pairs_per_second": 123.4,
    "peak_memory": 3 * 2**30,
    "parameters": 2000,
    "trained_parameters": 1500,
    "splits": {"train": {"images": 8, "captions": 40}, "test": {"images": 6, "captions": 30}},
    "environment": environment(),
}


def card(**options) -> ModelCard:
    recipe = asdict(Recipe(**tiny_recipe(output_dir="outputs/tiny")))
    return ModelCard(model_card({**METRICS, "recipe": {**recipe, **options}}))


def test_the_metadata_are_the_hubs():
    data = card().data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "zero-shot-image-classification")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == METRICS["test"]
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_text_says_what_was_measured_and_where():
    text = " ".join(card().text.split())
    for said in ("RSUM 75.0", "6 images and 30 captions", "8 images and 40 captions", "validation 80.2", "12 steps"):
        assert said in text
    for said in (METRICS["environment"]["torch"], METRICS["environment"]["device"], "seed 0", "regularization 0.02"):
        assert said in text
    assert "1,500 of 2,000 parameters" in text
    assert "at 123 pairs/s and with at most 3.0 GiB of memory" in text


@pytest.mark.parametrize("matching", typing.get_args(Recipe.__dataclass_fields__["matching"].type))
@pytest.mark.parametrize("loss", typing.get_args(Recipe.__dataclass_fields__["loss"].type))
def test_a_card_tells_of_its_own_head_and_loss(matching, loss):
    published = card(matching=matching, loss=loss)
    text = " ".join(published.text.split())
    assert f"Matching `{matching}`, loss `{loss}` (" in text
    assert ("partial optimal transport" in text) == (matching == "omit")
    assert ("dustbin global" in text) == (matching == "omit")
    assert ("regularization" in text) == ("optimal-transport" in published.data.tags) == (matching in ("omit", "ot"))
    assert ("margin 0.05" in text) == (loss == "triplet")


def test_a_card_claims_no_licence_that_is_not_known():
    assert (card().data.license, card().data.language) == ("apache-2.0", "en")  # all of it generated here
    for options in ({"data": "dataset_coco.json"}, {"text_model": "google-bert/bert-base-uncased"}):
        published = card(**options)
        assert published.data.license is None
        assert "No licence is given here: see those of the data" in " ".join(published.text.split())
    assert card(data="dataset_coco.json").data.language is None


def test_a_folder_on_this_machine_is_no_base_model(tmp_path):
    published = card(vision_model="facebook/dinov2-base", text_model=str(tmp_path))
    assert published.data.base_model == ["facebook/dinov2-base"]
    assert card(clip_model="openai/clip-vit-base-patch32").data.base_model == ["openai/clip-vit-base-patch32"]


def test_a_model_of_regions_is_shown_with_regions():
    published = card(vision_config=REGIONS)
    assert published.data.pipeline_tag is None
    [code] = re.findall(r"```python\n(.*?)```", published.text, flags=re.DOTALL)
    assert 'processor(regions=np.load("regions.npy"), text=' in code
    assert "import numpy as np" in code
    assert "Image" not in code
    compile(code, "card", "exec")
