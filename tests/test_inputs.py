import numpy as np
import pytest
import torch
from datasets import Dataset, Image

from omit_hf.data import ImageTextInputs


def test_captions_are_numbered_through_the_split(scenes, processor):
    inputs = ImageTextInputs(scenes["test"], processor)
    assert len(inputs) == 40
    assert inputs.captions[7] == scenes["test"][1]["captions"][2]
    assert inputs.caption_image_index.tolist() == [image for image in range(8) for _ in range(5)]
    assert list(inputs.captions_of(1)) == [5, 6, 7, 8, 9]


def test_images_may_have_different_numbers_of_captions(scenes, processor):
    rows = scenes["test"].select(range(3)).to_list()
    rows[1]["captions"] = rows[1]["captions"][:2]
    split = Dataset.from_list(rows, features=scenes["test"].features)
    inputs = ImageTextInputs(split, processor)
    assert inputs.caption_image_index.tolist() == [0] * 5 + [1] * 2 + [2] * 5
    assert list(inputs.captions_of(2)) == [7, 8, 9, 10, 11]


def test_a_pair_is_a_caption_with_its_image(scenes, processor):
    inputs = ImageTextInputs(scenes["test"], processor)
    batch = inputs.pairs([12, 3, 14])
    assert batch["image_ids"].tolist() == [2, 0, 2]
    rows = scenes["test"]
    expected = processor(
        images=[rows[image]["image"] for image in (2, 0, 2)],
        text=[rows[2]["captions"][2], rows[0]["captions"][3], rows[2]["captions"][4]],
    )
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(batch[name], expected[name])


def test_pictures_in_other_modes_become_rgb(processor):
    from PIL import Image as PIL

    pictures = [PIL.new(mode, (32, 32), 1) for mode in ("L", "RGBA", "P", "CMYK")]
    split = Dataset.from_dict({"image": pictures, "captions": [["a"]] * 4, "image_id": list("abcd")})
    assert ImageTextInputs(split, processor).images(range(4))["pixel_values"].shape == (4, 3, 32, 32)


def test_pictures_are_read_as_the_processor_reads_them(processor):
    from PIL import Image as PIL

    pictures = [PIL.fromarray(np.full((32, 32), 30000, np.uint16)), PIL.new("RGBA", (32, 32))]
    split = Dataset.from_dict({"image": pictures, "captions": [["a"]] * 2, "image_id": list("ab")})
    found = ImageTextInputs(split, processor).images(range(2))["pixel_values"]
    assert torch.equal(found, processor(images=pictures)["pixel_values"])


def test_a_picture_that_cannot_be_read_is_named(scenes, processor, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = tmp_path / "good.png"
    scenes["test"][0]["image"].save(good)
    names = [str(good), str(tmp_path / "broken.png")]
    split = Dataset.from_dict({"image": names, "captions": [["a"], ["b"]], "image_id": ["good", "broken"]})
    inputs = ImageTextInputs(split.cast_column("image", Image()), processor)
    with pytest.raises(ValueError, match="Image 'broken' cannot be read"):
        inputs.images(np.arange(2))
