"""Regions whose number differs from image to image: loaders, inputs, scores."""

import numpy as np
import pytest
import sources
import torch
from datasets import Dataset, Features, List, Value
from region_writers import COUNTS, LAYOUTS, array, corners, tsv
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe

from omit_hf import OmitModel, OmitProcessor
from omit_hf.data import ImageTextInputs, cache_states, find_problems, load_image_text
from omit_hf.evaluation import evaluate_split, split_similarity
from omit_hf.training import Recipe, train


@pytest.fixture
def region_model(processor):
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    model = OmitModel(tiny_config(vision_config={**REGIONS, "feature_size": 8}, text_config=text)).eval()
    return model, OmitProcessor(None, processor.tokenizer)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, region_model):
    options = LAYOUTS[layout](tmp_path) or {}
    data = load_image_text(tmp_path, **options)
    assert find_problems(data, read_images=True) == []
    for split, numbers in sources.NUMBERS.items():
        assert data[split]["image_id"][:] == [str(number) for number in numbers]
        for row, number in zip(data[split], numbers, strict=True):
            assert row["captions"] == sources.captions(number)
            assert np.array_equal(np.float32(row["region_features"]), array(number))
            if layout != "one_npy_an_image":
                assert np.array_equal(np.float32(row["boxes"]), corners(number))
            if layout in ("flat", "one_npz_an_image", "tsv"):
                assert (row["width"], row["height"]) == (640, 480)

    model, processor = region_model
    numbers = sources.NUMBERS["train"]
    inputs = ImageTextInputs(data["train"], processor).images(range(len(numbers)))
    assert inputs["region_mask"].sum(1).tolist() == [COUNTS[number] for number in numbers]
    assert inputs["region_features"].dtype == torch.float32
    padded = torch.zeros(len(numbers), max(COUNTS[number] for number in numbers), 8)
    for row, number in zip(padded, numbers, strict=True):
        row[: COUNTS[number]] = torch.from_numpy(array(number))
    assert torch.equal(inputs["region_features"], padded)

    scores = split_similarity(model, processor, data["train"], batch_size=3, progress=False)
    words = processor(text=[text for number in numbers for text in sources.captions(number)])
    with torch.no_grad():
        alone = [model(**words, region_features=torch.from_numpy(array(n))[None]).similarity for n in numbers]
    torch.testing.assert_close(torch.from_numpy(scores), torch.cat(alone), rtol=0, atol=1e-6)


def test_images_of_one_number_have_no_mask(tmp_path, region_model):
    rows = load_image_text(sources.regions(tmp_path)[0])["train"]
    assert set(ImageTextInputs(rows, region_model[1]).images([0, 1])) == {"region_features"}


def test_an_image_without_regions(region_model):
    """In a data set that is made by hand, which no loader has checked."""
    kinds = {"region_features": List(List(Value("float32"))), "captions": List(Value("string"))}
    rows = [
        {"region_features": each, "captions": ["a"], "image_id": f"im{n}"} for n, each in enumerate([[[1.0] * 8], []])
    ]
    split = Dataset.from_list(rows, features=Features({**kinds, "image_id": Value("string")}))
    with pytest.raises(ValueError, match="Image 'im1' has region_features of shape .*; expected .* K from 1"):
        ImageTextInputs(split, region_model[1]).images([0, 1])


@pytest.mark.parametrize("matching", ["omit", "ot", "maxsim", "chan", "scan_t2i", "scan_i2t", "mean", "gpo", "pem"])
def test_scores_do_not_depend_on_padding(matching):
    """Neither on how much there is, nor on what it holds, nor on where it is; images of no region have defined ones."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config(vision_config=REGIONS, matching=matching)).eval()
    ids = torch.randint(1, 30, (3, 5))
    counts = torch.tensor([3, 6, 1, 0])
    mask = torch.arange(6) < counts[:, None]
    regions = torch.randn(4, 6, 10)
    order = torch.stack([torch.randperm(9) for _ in range(4)])
    wide = torch.cat([regions, 1e6 * torch.randn(4, 3, 10)], 1).gather(1, order[..., None].expand(-1, -1, 10))
    wide_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], 1).gather(1, order)
    with torch.no_grad():
        scores = model(ids, region_features=regions, region_mask=mask).similarity
        other = model(ids, region_features=wide, region_mask=wide_mask).similarity
    assert scores.isfinite().all()
    if matching != "gpo":  # sorts values, whose ties keep the order
        torch.testing.assert_close(other, scores, rtol=0, atol=2e-6)
    for number, count in enumerate(counts[:3]):
        with torch.no_grad():
            alone = model(ids, region_features=regions[number : number + 1, :count]).similarity[0]
        torch.testing.assert_close(scores[number], alone, rtol=0, atol=2e-6)


def test_training_drops_a_share_of_each_images_own():
    """Exactly int(0.8 · K) stay, of padding nothing, and padding is in no statistic of the batch norm."""
    torch.manual_seed(0)
    model = OmitModel(tiny_config(vision_config={**REGIONS, "kept_share": 0.8})).train()
    counts = torch.arange(1, 101)
    mask = torch.arange(100) < counts[:, None]
    regions = torch.randn(100, 100, 10).masked_fill(~mask[..., None], 1e9)
    out = model.get_image_features(region_features=regions, region_mask=mask)
    assert out.mask.sum(1).tolist() == [max(1, int(0.8 * count)) for count in range(1, 101)]
    assert out.mask.shape[1] == 80
    assert model.vision_encoder.mlp[1].running_var.max() < 10


@pytest.mark.parametrize("layout", ["flat", "tsv", "parquet"])
def test_training(tmp_path, layout):
    """Of an image of one region too, with workers that read the files; then evaluation of what was saved."""
    options = LAYOUTS[layout](tmp_path / "data") or {}
    recipe = tiny_recipe(
        data=str(tmp_path / "data"),
        data_options=options,
        vision_config={**REGIONS, "feature_size": 8},
        image_processor=None,
        num_epochs=1,
        num_workers=2 if layout == "tsv" else 0,
        eval_batch_size=2,  # as below: all images have the same captions, and rounding orders what ties
        output_dir=str(tmp_path / "run"),
    )
    metrics = train(Recipe(**recipe))
    model, processor = (each.from_pretrained(tmp_path / "run") for each in (OmitModel, OmitProcessor))
    found, _ = evaluate_split(model, processor, load_image_text(tmp_path / "data", **options)["test"], batch_size=2)
    assert {name: metrics["test"][name] for name in found} == pytest.approx(found)


def test_states_of_words_beside_them(tmp_path, region_model):
    model, processor = region_model
    tsv(tmp_path / "data")
    data = load_image_text(tmp_path / "data")
    cached = cache_states(model, processor, data, tmp_path / "cache", image=False, text=True)
    own, kept = (ImageTextInputs(each["train"], processor).pairs(range(12)) for each in (data, cached))
    assert kept.keys() - own.keys() == {"text_states"}
    with torch.no_grad():
        torch.testing.assert_close(model(**kept).similarity, model(**own).similarity)


def test_a_folder_that_only_ends_so_is_none_of_regions(tmp_path):
    sources.image_folder(tmp_path)
    (tmp_path / "other_ims").mkdir()
    assert "image" in load_image_text(tmp_path)["train"].column_names
