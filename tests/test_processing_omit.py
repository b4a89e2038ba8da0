import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ViTImageProcessor

from omit_hf import OmitProcessor

PICTURE = Image.new("RGB", (96, 96), "red")


def test_images_and_text(processor):
    inputs = processor(images=[PICTURE, PICTURE], text=["a red circle", "a small blue star and a ring", "a red circle"])
    assert inputs["pixel_values"].shape == (2, 3, 96, 96)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 7)
    assert inputs["attention_mask"].sum(1).tolist() == [3, 7, 3]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode(processor, mode):
    assert processor(images=PICTURE.convert(mode))["pixel_values"].shape == (1, 3, 96, 96)


def test_arrays_tensors_and_paths(processor, tmp_path):
    PICTURE.save(tmp_path / "red.png")
    expected = processor(images=PICTURE)["pixel_values"]
    array = np.asarray(PICTURE)
    for images in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), str(tmp_path / "red.png"), [array]):
        torch.testing.assert_close(processor(images=images)["pixel_values"], expected)


def test_one_of_two_is_enough(processor):
    assert set(processor(images=PICTURE)) == {"pixel_values"}
    assert set(processor(text="a red circle")) == {"input_ids", "attention_mask"}


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    expected = processor(images=PICTURE, text=["a red circle", "a star"])
    for loaded in (OmitProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded).__name__ == "OmitProcessor"
        for name, tensor in loaded(images=PICTURE, text=["a red circle", "a star"]).items():
            assert torch.equal(tensor, expected[name])


def test_parts_load_by_themselves(processor, tmp_path):
    """As pipelines load them."""
    processor.save_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(["a red circle"])["input_ids"]
    assert ids == processor.tokenizer(["a red circle"])["input_ids"]
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.image_processor.to_dict()


def test_unpadded_lists_are_fine_without_tensors(processor):
    ids = processor(text=["a red circle", "a star"], padding=False, return_tensors=None)["input_ids"]
    assert [len(each) for each in ids] == [3, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "called with nothing; expected images=…, text=… or both"),
        ({"images": []}, "images is an empty list"),
        ({"images": 42}, r"images\[0\] is 42, which is no picture"),
        ({"images": [PICTURE, None]}, r"images\[1\] is None, which is no picture"),
        ({"images": np.zeros(5)}, r"images\[0\] is an array of shape \(5,\), which is no picture"),
        ({"text": []}, r"text is \[\]; expected a caption"),
        ({"text": 7}, "text is 7; expected a caption"),
        ({"text": ["a star", 7]}, r"text\[1\] is 7; expected a string"),
        (
            {"text": ["a star", "a red circle"], "padding": False},
            "The 2 captions have 2 to 3 tokens and are not padded, so they make no tensor; leave padding=True",
        ),
    ],
)
def test_bad_input(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_more_captions_than_a_tokenizer_without_padding_can_take(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = None
    bare = OmitProcessor(ViTImageProcessor(), tokenizer)
    with pytest.raises(ValueError, match="give the tokenizer a pad_token"):
        bare(text=["a star", "a red circle"])


def test_files_that_are_no_pictures(processor, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Exception, match=r"text\.png"):
        processor(images=str(tmp_path / "text.png"))
    with pytest.raises(Exception, match=r"missing\.png"):
        processor(images=str(tmp_path / "missing.png"))
