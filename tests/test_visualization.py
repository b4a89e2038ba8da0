import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

from omit_hf import OmitModel
from omit_hf.visualization import _grid, draw_plan, explain


def test_a_panel_for_the_picture_and_one_for_each_word(scenes, scenes_model, processor, tmp_path):
    row = scenes["test"][0]
    figure = explain(scenes_model, processor, row["image"], row["captions"][0])
    words = processor.tokenizer.tokenize(row["captions"][0])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0].startswith("similarity ")
    assert [title.split()[0] for title in titles[1:]] == words
    figure.savefig(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_the_number_is_the_share_that_is_not_from_the_dustbin(scenes):
    plan = np.array([[0.1, 0.1, 0.3], [0.1, 0.3, 0.1], [0.1, 0.0, 0.0]])  # dustbins first; 2 cells, 2 words
    figure = draw_plan(scenes["test"][0]["image"], ["left", "star"], plan, (1, 2), similarity=0.25)
    assert [axis.get_title() for axis in figure.axes][:3] == ["similarity 0.25", "left  75%", "star  25%"]


def test_full_transport_has_no_dustbins(scenes, processor, scenes_model):
    torch.manual_seed(0)
    model = OmitModel(tiny_config(matching="ot", text_config=scenes_model.config.text_config.to_dict()))
    figure = explain(model, processor, scenes["test"][0]["image"], "a red star")
    assert [axis.get_title().split()[-1] for axis in figure.axes][1:4] == ["100%"] * 3


def test_cells_of_a_wide_picture(processor, scenes_model):
    """A ViT's states are a list; 32 x 64 pixels make 4 x 8 patches, not a square."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"model_type": "vit", **small, "image_size": [32, 64], "patch_size": 8}
    model = OmitModel(tiny_config(vision_config=vision, text_config=scenes_model.config.text_config.to_dict()))
    figure = explain(model, processor, Image.new("RGBA", (64, 32), "red"), "a red star")
    assert figure.axes[1].get_images()[1].get_array().shape == (4, 8)


@pytest.mark.parametrize(
    ("cells", "pixels", "expected"),
    [
        (49, (224, 224), (7, 7)),
        (20, (64, 80), (4, 5)),
        (12, (96, 32), (6, 2)),
        (1, (8, 8), (1, 1)),
        (3, (8, 24), (1, 3)),
    ],
)
def test_grids(cells, pixels, expected):
    assert _grid(cells, pixels) == expected


def test_cells_that_are_no_grid():
    with pytest.raises(ValueError, match="image of 224 x 224 pixels has 50 cells, which are no grid of square ones"):
        _grid(50, (224, 224))


def test_the_model_comes_back_in_its_mode(processor, scenes_model, scenes):
    scenes_model.train()
    explain(scenes_model, processor, scenes["test"][0]["image"], "a red star")
    assert scenes_model.training


@pytest.mark.parametrize("sentence", ["", "..."])
def test_a_sentence_without_a_word(processor, scenes_model, scenes, sentence):
    with pytest.raises(ValueError, match="The sentence .* has no word that the model matches; expected at least one"):
        explain(scenes_model, processor, scenes["test"][0]["image"], sentence)


def test_a_plan_that_does_not_fit(scenes):
    with pytest.raises(ValueError, match=r"plan has shape \(3, 3\); expected \(5, 3\) with dustbins, or \(4, 2\)"):
        draw_plan(scenes["test"][0]["image"], ["a", "star"], np.ones((3, 3)), (2, 2))


def test_a_head_without_a_plan(scenes, processor, scenes_model):
    model = OmitModel(tiny_config(matching="mean", text_config=scenes_model.config.text_config.to_dict()))
    with pytest.raises(ValueError, match="'mean' does not transport"):
        explain(model, processor, scenes["test"][0]["image"], "a red star")
