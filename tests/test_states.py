import os

import pytest
import sources
import torch
from datasets import DatasetDict
from tiny import VISION, tiny_config
from transformers import BertConfig

from omit_hf import OmitModel
from omit_hf.data import ImageTextInputs, cache_states, load_image_text


@pytest.fixture
def data(scenes):
    return DatasetDict({"train": scenes["train"].select(range(6)), "test": scenes["test"].select(range(4))})


@pytest.fixture
def bert_model(processor):
    torch.manual_seed(0)
    text = BertConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    return OmitModel(tiny_config(text_config=text, special_token_ids=[0])).eval()


@pytest.mark.parametrize("kind", ["bigru", "bert"])
def test_cached_states_score_as_live_ones(data, processor, scenes_model, bert_model, tmp_path, kind):
    model = {"bigru": scenes_model, "bert": bert_model}[kind]
    cached = cache_states(model, processor, data, tmp_path, image=True, text=True, batch_size=4)
    assert cached["train"].column_names[-3:] == ["image_states", "text_states", "text_lengths"]
    numbers = [7, 0, 19, 3, 3]
    live, from_disk = (ImageTextInputs(each["test"], processor).pairs(numbers) for each in (data, cached))
    assert "pixel_values" not in from_disk
    assert {"image_states", "text_states"} <= from_disk.keys()
    with torch.no_grad():
        expected, found = model(**live, return_loss=True), model(**from_disk, return_loss=True)
    torch.testing.assert_close(found.similarity, expected.similarity, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.loss, expected.loss)


def test_only_one_side(data, processor, scenes_model, tmp_path):
    cached = cache_states(scenes_model, processor, data, tmp_path, image=False, text=True)
    batch = ImageTextInputs(cached["train"], processor).pairs([0, 1])
    assert "pixel_values" in batch
    assert "text_states" in batch
    assert not list(tmp_path.glob("image-*"))


def fails(*_, **__):
    raise RuntimeError("broken")


def files(folder):
    return {file.name for file in folder.iterdir()}


def test_the_backbones_run_once(data, processor, scenes_model, tmp_path, monkeypatch):
    runs = []
    scenes_model.vision_encoder.backbone.register_forward_hook(lambda *_: runs.append(1))
    first = cache_states(scenes_model, processor, data, tmp_path, image=True, text=False)
    before, made = len(runs), files(tmp_path)
    again = cache_states(scenes_model, processor, data, tmp_path, image=True, text=False)
    assert len(runs) - before == len(data)  # one image a split, for the shape
    assert files(tmp_path) == made
    assert first["test"][3]["image_states"] == again["test"][3]["image_states"]


def test_a_change_makes_new_files(data, processor, scenes_model, tmp_path):
    cache_states(scenes_model, processor, data, tmp_path, image=True, text=True)
    assert len(files(tmp_path)) == 4
    with torch.no_grad():
        next(scenes_model.vision_encoder.backbone.parameters()).view(-1)[0] += 1
    cache_states(scenes_model, processor, data, tmp_path, image=True, text=True)
    assert len(files(tmp_path)) == 6  # other weights on the image side
    processor.tokenizer.model_max_length, length = 5, processor.tokenizer.model_max_length
    try:
        cache_states(scenes_model, processor, data, tmp_path, image=True, text=True)
    finally:
        processor.tokenizer.model_max_length = length
    assert len(files(tmp_path)) == 8  # another tokenizer
    data["test"] = data["test"].select(range(3))
    cache_states(scenes_model, processor, data, tmp_path, image=True, text=True)
    assert len(files(tmp_path)) == 10  # other data in one split


def test_an_interrupted_computation_leaves_no_file(data, processor, scenes_model, tmp_path):
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt

    handle = scenes_model.vision_encoder.backbone.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        cache_states(scenes_model, processor, data, tmp_path, image=True, text=False, batch_size=2)
    assert not list(tmp_path.glob("image-*.arrow"))
    handle.remove()
    cached = cache_states(scenes_model, processor, data, tmp_path, image=True, text=False)
    assert len(cached["train"]) == 6


def test_regions_have_no_states_of_a_vision_backbone(data, processor, scenes_model, tmp_path):
    regions = load_image_text(sources.regions(tmp_path / "regions")[0])
    with pytest.raises(ValueError, match="The data have no pictures for the vision backbone"):
        cache_states(scenes_model, processor, regions, tmp_path, image=True, text=False)
    cached = cache_states(scenes_model, processor, regions, tmp_path, image=False, text=True)
    batch = ImageTextInputs(cached["test"], processor).pairs([0, 7])
    assert batch["region_features"].shape == (2, 4, 8)
    assert batch["text_states"].shape[:2] == batch["input_ids"].shape


def test_the_model_comes_back_in_its_mode(data, processor, scenes_model, tmp_path, monkeypatch):
    scenes_model.train()
    with monkeypatch.context() as broken:
        broken.setattr(scenes_model.vision_encoder, "encode", fails)
        with pytest.raises(RuntimeError, match="broken"):
            cache_states(scenes_model, processor, data, tmp_path, image=True, text=False)
    assert scenes_model.training
    cache_states(scenes_model, processor, data, tmp_path, image=True, text=False)
    assert scenes_model.training
    assert VISION["hidden_sizes"][-1] == scenes_model.vision_encoder.projection.in_features


CONTENTS = {"empty": b"", "other": b"no arrow file" * 9, "zeros": bytes(4096), "cut": None}


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_file_is_named(data, processor, scenes_model, tmp_path, side, content):
    data = DatasetDict(test=data["test"])

    def states():
        rows = cache_states(scenes_model, processor, data, tmp_path, image=True, text=True)["test"]
        return [row[f"{side}_states"] for row in rows]  # read, since a map of a file that is cut off ends the process

    expected = states()
    [file] = tmp_path.glob(f"{side}-*.arrow")
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ValueError, match=f"^{file} is damaged .*; delete it, and it is computed anew.$") as caught:
        states()
    assert str(caught.value).isprintable()
    file.unlink()
    assert states() == expected


def test_a_file_of_other_images(data, processor, scenes_model, tmp_path):
    def cache(rows):
        cache_states(scenes_model, processor, DatasetDict(test=rows), tmp_path, image=True, text=False)

    cache(data["test"])
    [of_four] = tmp_path.glob("image-*")
    cache(data["test"].select([0, 1]))
    [of_two] = set(tmp_path.glob("image-*")) - {of_four}
    os.replace(of_two, of_four)
    with pytest.raises(ValueError, match="is damaged .it holds image_states of 2 images, not 4.; delete it"):
        cache(data["test"])
