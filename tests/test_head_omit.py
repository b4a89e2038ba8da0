"""A head of one's own: one class and one line, and all of the package works with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import word_alignment
from omit_hf.comparison.plan import READ_BY_HEADS
from omit_hf.data import load_scenes
from omit_hf.export import export_model
from omit_hf.modeling.matching_omit import MATCHING, Match, MatchingHead
from omit_hf.modeling.sinkhorn_omit import row_similarity
from omit_hf.training import Recipe, train


class BestPairMatching(MatchingHead):
    """The similarity of the two fragments that are most alike."""

    title, summary, formula = "the best pair", "it scores the two fragments that are most alike", "max_kl ⟨v_k, t_l⟩"
    aligns = True

    def similarity(self, image, text):
        return row_similarity(image.embeds, text.embeds).amax(dim=(2, 3))

    def match(self, image, text):
        similarity = row_similarity(image.embeds, text.embeds)
        return Match(None, (similarity == similarity.amax(dim=(2, 3), keepdim=True)).float())


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(MATCHING, "toy", BestPairMatching)


def test_it_trains_evaluates_aligns_exports_and_has_a_card(tmp_path):
    folder = tmp_path / "run"
    metrics = train(Recipe(**tiny_recipe(matching="toy", output_dir=str(folder))))
    assert np.isfinite(metrics["test"]["rsum"])
    assert json.loads((folder / "metrics.json").read_text())["test"] == metrics["test"]

    card = (folder / "README.md").read_text()
    assert "A baseline of [OMIT]" in card
    assert "it scores the two fragments that are most alike" in card

    model, processor = OmitModel.from_pretrained(folder).eval(), OmitProcessor.from_pretrained(folder)
    row = load_scenes(train_size=1, validation_size=1, test_size=1)["test"][0]
    found = word_alignment(model, processor, row["image"], row["captions"][0])
    assert found.mass.sum() == 1  # the best pair, and nothing else
    assert found.plan is None

    description = export_model(model, processor, tmp_path / "exported", "torch_export", image_size=(96, 96))
    assert description["matching"] == "toy"
    assert Path(tmp_path / "exported" / "head.pt2").is_file()


def test_a_configuration_knows_it_and_no_other():
    assert tiny_config(matching="toy").matching == "toy"
    with pytest.raises(StrictDataclassError, match="matching is 'best'; expected one of 'omit', .*'toy'"):
        OmitModel(tiny_config(matching="best"))


def test_it_is_tiled_and_searched(model, inputs):
    head = BestPairMatching(tiny_config())
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    whole = head(image, text)
    assert torch.equal(head.tiled_similarity(image, text, memory_budget=1), whole)
    with pytest.raises(ValueError, match="matmul_dtype is 'int8', which heads that transport and late interaction"):
        head.tiled_similarity(image, text, matmul_dtype="int8")


def test_a_class_without_a_score_is_no_head():
    with pytest.raises(TypeError, match="abstract"):
        MatchingHead(tiny_config())


def test_a_head_that_pools_has_no_match(model, inputs):
    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(ValueError, match="MeanMatching pools each side and aligns nothing"):
        MATCHING["mean"](tiny_config()).match(image, text)


@pytest.mark.parametrize("name", [name for name in MATCHING if name != "toy"])
def test_what_a_head_says_of_itself_is_true(name, model, inputs):
    """The fields that it reads, no more and no fewer, and whether it aligns and transports."""
    head = MATCHING[name]
    assert all([head.title, head.summary, head.formula])
    assert set(head.fields) <= READ_BY_HEADS
    read = []

    class Watched:
        def __init__(self, config):
            self.config = config

        def __getattr__(self, field):
            read.append(field)
            return getattr(self.config, field)

    made = head(Watched(tiny_config(matching=name)))
    assert set(read) - {"projection_dim", "backend"} == set(head.fields)
    if head.aligns:
        image = model.get_image_features(inputs["pixel_values"])
        text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        match = made.match(image, text)
        assert head.transports == (match.plan is not None)
        if match.plan is not None:
            assert torch.equal(match.fragments, match.alignment)
            assert match.plan.shape[-1] == match.alignment.shape[-1] + head.num_dustbins
