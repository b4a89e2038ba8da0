import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image
from tiny import REGIONS, lay_evenly, tiny_config
from transformers import CLIPImageProcessor

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment.split import Aligner
from omit_hf.data.sources.scenes import FEATURES

PHRASES = [{"caption": 0, "start": 0, "end": 5, "object": 0}]


def picture_row(width, height, **changes) -> dict:
    row = {"image": Image.new("RGB", (width, height)), "captions": ["a red star", "it"], "image_id": "1.png"}
    row |= {"width": width, "height": height, "boxes": [[0, 0, 8, 8]], "phrases": PHRASES, "relevant_captions": None}
    return {**row, **changes}


def pictures(*rows) -> Dataset:
    return Dataset.from_list(list(rows), features=FEATURES)


@torch.no_grad()
def test_pairs_are_the_valid_fragments_of_the_plan(scenes, scenes_model, processor):
    split = scenes["test"]
    pairs = Aligner(scenes_model, processor, split).pairs([2, 0])
    assert [pair.caption for pair in pairs] == split[2]["captions"] + split[0]["captions"]
    for place, number in ((0, 2), (1, 0)):
        row = split[number]
        for caption, pair in zip(row["captions"], pairs[5 * place : 5 * place + 5], strict=True):
            out = scenes_model(**processor(images=row["image"], text=caption), output_transport=True)
            expected = out.transport_plan[0, 0].numpy()
            np.testing.assert_allclose(pair.plan, expected, atol=1e-6)
            np.testing.assert_allclose(pair.alignment, expected[1:, 1:], atol=1e-6)
            words = [caption[start:end].lower() for start, end in pair.offsets]
            assert words == processor.tokenizer.tokenize(caption)
            assert pair.boxes.tolist() == row["boxes"]


def test_cells_of_a_cropped_picture_are_in_its_own_pixels(scenes_model, processor):
    """Of 160 x 80 pixels the middle is seen, twice as fine: cells of 16 pixels there are 8 here."""
    cropping = CLIPImageProcessor(size={"shortest_edge": 160}, crop_size={"height": 160, "width": 160})
    model = lay_evenly(scenes_model, 160, 160)
    aligner = Aligner(model, OmitProcessor(cropping, processor.tokenizer), pictures(picture_row(160, 80)))
    cells = aligner.pairs([0])[0].cells
    assert len(cells) == 100
    np.testing.assert_allclose(cells[[0, 1, -1]], [[40, 0, 48, 8], [48, 0, 56, 8], [112, 72, 120, 80]])


def test_pictures_of_many_sizes(scenes_model, processor):
    squeezed = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    split = pictures(picture_row(160, 80), picture_row(80, 160), picture_row(160, 80))
    model = lay_evenly(scenes_model, 64, 64)
    pairs = Aligner(model, OmitProcessor(squeezed, processor.tokenizer), split).pairs(range(3))
    assert [pair.cells[0].tolist() for pair in pairs[::2]] == [[0, 0, 40, 20], [0, 0, 20, 40], [0, 0, 40, 20]]


def test_a_picture_that_is_not_the_one_of_the_boxes(scenes_model, processor):
    split = pictures({**picture_row(96, 96), "width": 192, "height": 192, "image_id": "small.png"})
    with pytest.raises(ValueError, match="picture of small.png has 96 x 96 pixels, and its boxes are of 192 x 192"):
        Aligner(scenes_model, processor, split).pairs([0])


@pytest.fixture
def region_model(processor):
    torch.manual_seed(0)
    text = {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16, "vocab_size": len(processor.tokenizer)}
    return OmitModel(tiny_config(vision_config=REGIONS, text_config=text)).eval()


def regions(**changes) -> Dataset:
    columns = {"region_features": [np.random.default_rng(0).normal(size=(3, 10)).tolist()]}
    columns |= {name: [value] for name, value in picture_row(20, 10).items() if name in FEATURES and name != "image"}
    columns |= {"region_boxes": [[[0.0, 0.0, 5.0, 5.0], [1.0, 1.0, 20.0, 10.0], [4.0, 4.0, 6.0, 6.0]]], **changes}
    del columns["relevant_captions"]
    floats = List(List(Value("float32")))
    features = {name: FEATURES[name] for name in columns if name in FEATURES}
    features |= {name: floats for name in ("region_features", "region_boxes") if name in columns}
    return Dataset.from_dict(columns, features=Features(features)).with_format("numpy", ["region_features"], True)


def test_cells_of_regions_are_their_boxes(region_model, processor):
    text_only = OmitProcessor(None, processor.tokenizer)
    pairs = Aligner(region_model, text_only, regions()).pairs([0])
    assert pairs[0].cells.tolist() == [[0, 0, 5, 5], [1, 1, 20, 10], [4, 4, 6, 6]]
    assert pairs[0].alignment.shape == (3, 3)


def test_regions_that_lie_nowhere(region_model, processor):
    text_only = OmitProcessor(None, processor.tokenizer)
    with pytest.raises(ValueError, match="no column region_boxes; expected where its regions lie"):
        Aligner(region_model, text_only, regions().remove_columns("region_boxes"))
    for boxes in ([[0.0, 0.0, 5.0, 5.0]], [[0.0, 0.0, 5.0, float("nan")]] * 3):
        split = regions(region_boxes=[boxes])
        with pytest.raises(ValueError, match=r"region_boxes of 1.png has shape .*; expected \(3, 4\), numbers"):
            Aligner(region_model, text_only, split).pairs([0])


def test_a_stream(scenes, scenes_model, processor):
    with pytest.raises(TypeError, match="expected a datasets.Dataset"):
        Aligner(scenes_model, processor, scenes["test"].to_iterable_dataset())
