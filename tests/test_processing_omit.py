import base64
import io
import pickle

import numpy as np
import pytest
import torch
from broken_pictures import FILES, huge_png, jpeg
from broken_pictures import PICTURE as WHOLE
from PIL import Image
from tiny import REGIONS, TEXT, tiny_config
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ViTImageProcessor

from omit_hf import OmitModel, OmitProcessor

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
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    base64_text = base64.b64encode((tmp_path / "red.png").read_bytes()).decode()
    for images in (array, tensor, str(tmp_path / "red.png"), tmp_path / "red.png", base64_text, [array], tensor[None]):
        torch.testing.assert_close(processor(images=images)["pixel_values"], expected)


GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


@pytest.mark.parametrize(
    "layout",
    [
        GREY,
        GREY[..., None],
        GREY[None],
        np.stack([GREY] * 3),
        np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]),
        np.stack([GREY] * 3 + [np.full_like(GREY, 255)]),
        GREY.astype(np.int64),
        GREY.astype(np.float32),
        GREY.astype(np.uint16) * 257,
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY.astype(np.int32) * 257),
        Image.fromarray(GREY).convert("LA"),
    ],
    ids=lambda each: f"{each.mode}" if isinstance(each, Image.Image) else f"{each.shape}-{each.dtype}",
)
def test_one_picture_in_every_form(processor, layout):
    expected = processor(images=Image.fromarray(GREY).convert("RGB"))["pixel_values"]
    torch.testing.assert_close(processor(images=layout)["pixel_values"], expected)


def test_transparency_lies_on_white(processor):
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, 3:] = (200, 0, 0, 51)
    expected = np.full((4, 6, 3), 255, np.uint8)
    expected[:, 3:] = (244, 204, 204)  # a fifth of the red
    expected = processor(images=expected)["pixel_values"]
    for form in (clear, clear.transpose(2, 0, 1), Image.fromarray(clear), Image.fromarray(clear).convert("PA")):
        torch.testing.assert_close(processor(images=form)["pixel_values"], expected)
    floats = processor(images=clear / 255, do_rescale=False)["pixel_values"]
    torch.testing.assert_close(floats.float(), expected, atol=0.01, rtol=0)


def test_pictures_are_upright(processor, tmp_path):
    picture = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = processor(images=picture.transpose(Image.Transpose.ROTATE_270))["pixel_values"]
    for form in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(processor(images=form)["pixel_values"], expected)


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


class TestRegions:
    @pytest.fixture
    def region_processor(self, processor):
        return OmitProcessor(tokenizer=processor.tokenizer)

    def test_arrays_and_tensors(self, region_processor):
        regions = np.random.default_rng(0).normal(size=(2, 3, 4))
        expected = torch.from_numpy(regions).float()
        for given in (regions, regions.astype(np.float32), torch.from_numpy(regions), list(regions)):
            inputs = region_processor(regions=given, text=["a red circle", "a star"])
            assert set(inputs) == {"region_features", "region_mask", "input_ids", "attention_mask"}
            assert inputs["region_features"].dtype == torch.float32
            assert torch.equal(inputs["region_features"], expected)
            assert inputs["region_mask"].all()
        assert torch.equal(region_processor(regions=regions[1])["region_features"], expected[1:])

    def test_different_numbers_are_padded(self, region_processor):
        inputs = region_processor(regions=[np.ones((2, 4)), np.ones((3, 4))])
        assert inputs["region_features"][..., 0].tolist() == [[1, 1, 0], [1, 1, 1]]
        assert inputs["region_mask"].tolist() == [[True, True, False], [True, True, True]]

    def test_a_model_scores_them(self, region_processor):
        config = tiny_config(vision_config=REGIONS, text_config={**TEXT, "vocab_size": len(region_processor.tokenizer)})
        model = OmitModel(config).eval()
        inputs = region_processor(regions=[np.ones((2, 10)), np.ones((5, 10))], text="a red circle")
        assert model(**inputs).similarity.shape == (2, 1)

    def test_save_and_load(self, region_processor, tmp_path):
        region_processor.save_pretrained(tmp_path)
        for loaded in (OmitProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
            assert type(loaded) is OmitProcessor
            assert loaded.image_processor is None
            ids = loaded(regions=np.ones((1, 2, 4)), text="a red circle")["input_ids"]
            assert torch.equal(ids, region_processor(text="a red circle")["input_ids"])
            loaded.save_pretrained(tmp_path / "again")

    def test_it_can_be_sent_to_a_worker(self, region_processor):
        copy = pickle.loads(pickle.dumps(region_processor))
        assert set(copy(regions=np.ones((1, 2, 4)))) == {"region_features", "region_mask"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"images": PICTURE}, "this processor has no image_processor, since its model takes precomputed regions"),
            ({"images": PICTURE, "regions": np.ones((1, 2, 4))}, "called with images and regions; expected the one"),
            ({"regions": []}, "regions is empty"),
            ({"regions": np.ones(4)}, r"regions has shape \(4,\); expected \[B, K, width\]"),
            ({"regions": [np.ones((2, 4)), np.ones((2, 5))]}, r"regions\[1\] has shape \(2, 5\); expected \[K, 4\]"),
            ({"regions": [np.ones((0, 4))]}, r"regions\[0\] has shape \(0, 4\)"),
            ({"regions": [np.full((2, 4), np.nan)]}, r"regions\[0\] holds NaN or infinity"),
        ],
    )
    def test_bad_input(self, region_processor, arguments, message):
        with pytest.raises(ValueError, match=message):
            region_processor(**arguments)


def test_unpadded_lists_are_fine_without_tensors(processor):
    ids = processor(text=["a red circle", "a star"], padding=False, return_tensors=None)["input_ids"]
    assert [len(each) for each in ids] == [3, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "called with nothing; expected images=… or regions=…, text=… or both"),
        ({"images": []}, "images is an empty list"),
        ({"images": [PICTURE.convert("F")]}, r"images\[0\]: it is of PIL's mode F, in which white may be 1, 255"),
        ({"images": Image.new("I", (4, 4), -1)}, r"integers from -1 to -1; expected 16 bits, 0 to 65535"),
        ({"images": Image.new("RGB", (0, 4))}, r"it has 0 x 4 pixels; expected at least 1 x 1"),
        ({"images": np.full((4, 4), np.nan)}, r"images\[0\]: it holds NaN or infinity"),
        ({"images": np.full((4, 4), 256)}, "integers from 256 to 256; expected 0 to 255, or uint16"),
        ({"images": np.zeros((5, 4, 2))}, r"shape \(5, 4, 2\) and type float64, which is no picture"),
        ({"images": np.zeros((0, 4, 3))}, r"shape \(0, 4, 3\) .*, which is no picture"),
        ({"images": np.zeros((4, 4), complex)}, "type complex128, which is no picture"),
        ({"images": np.full((4, 4), "red")}, "type <U3, which is no picture"),
        (
            {"images": "missing.png"},
            r"images\[0\]: no file at 'missing.png', and it is no URL and no picture in base64",
        ),
        (
            {"images": [PICTURE, PICTURE.resize((96, 64))]},
            "The 2 pictures have 2 sizes, such as 64 x 96 and 96 x 96, and are not resized.*do_resize=True",
        ),
        ({"images": 42}, r"images\[0\] is 42, which is no picture"),
        ({"images": [PICTURE, None]}, r"images\[1\] is None, which is no picture"),
        ({"images": np.zeros(5)}, r"images\[0\]: an array of shape \(5,\) .* no picture"),
        ({"text": []}, r"text is \[\]; expected a caption"),
        ({"text": 7}, "text is 7; expected a caption"),
        ({"text": ["a star", 7]}, r"text\[1\] is 7; expected a string"),
        ({"text": "a \ud83d star"}, r"text\[0\] is 'a .ud83d star', with half of a surrogate pair; expected text"),
        ({"text": ["a star", "a red circle"], "padding": None}, "2 to 3 tokens and are not padded"),
        (
            {"text": ["a star", "a red circle"], "padding": False},
            "The 2 captions have 2 to 3 tokens and are not padded, so they make no tensor; leave padding=True",
        ),
    ],
)
def test_bad_input(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_captions_in_a_tuple(processor):
    captions = ["a star", "a red circle"]
    assert processor(text=tuple(captions))["input_ids"].equal(processor(text=captions)["input_ids"])


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


@pytest.mark.parametrize("name", ["png header", "webp noise", "png raw profile", "tiff xmp of numbers"])
def test_pictures_with_broken_metadata(processor, tmp_path, name):
    """Whole, in each form that a file may come in."""
    content, expected = FILES[name], processor(images=WHOLE)["pixel_values"]
    (tmp_path / "picture").write_bytes(content)
    text = base64.b64encode(content).decode()
    opened = Image.open(io.BytesIO(content))
    for form in (str(tmp_path / "picture"), tmp_path / "picture", text, f"data:image/png;base64,{text}", opened):
        assert torch.equal(processor(images=form)["pixel_values"], expected)


def broken_pictures(folder) -> list[tuple]:
    """Each with what an error must say of it, beside its number."""
    contents = {
        "cut.jpg": jpeg()[:-300],
        "cut.png": FILES["png xmp"][:200],
        "empty.png": b"",
        "text.png": b"no picture",
    }
    contents |= {"huge.png": huge_png(50_000, 50_000), "nothing.png": huge_png(0, 5)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return [
        *((str(folder / name), name) for name in (*contents, "folder.png")),
        (folder / "cut.jpg", "cut.jpg"),
        (Image.open(folder / "cut.jpg"), "cut.jpg"),
        (Image.open(io.BytesIO(contents["cut.jpg"])), "truncated"),
        (base64.b64encode(contents["cut.jpg"]).decode(), "truncated"),
        (base64.b64encode(contents["huge.png"]).decode(), "exceeds limit"),
        ("http://127.0.0.1:9/picture.png", "http://127.0.0.1:9/picture.png"),
        ("a\0b", "no file at 'a"),
    ]


def test_every_error_says_which_picture_it_is(processor, tmp_path):
    for number, (broken, said) in enumerate(broken_pictures(tmp_path)):
        images = [PICTURE] * (3 + number) + [broken, "missing.png"]
        with pytest.raises((ValueError, OSError), match=rf"^images\[{3 + number}\]") as error:
            processor(images=images)
        assert said in str(error.value)
        assert type(error.value) in (ValueError, OSError)
        assert len(str(error.value)) < 700


def test_whatever_pil_raises_says_which_picture_it_is(processor, monkeypatch, tmp_path):
    PICTURE.save(tmp_path / "red.png")
    for kind in (SyntaxError, KeyError, TypeError, OverflowError, ZeroDivisionError, MemoryError, PermissionError):

        def fail(*_, kind=kind, **__):
            raise kind

        monkeypatch.setattr(Image.Image, "load", fail)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail, raising=False)
        with pytest.raises((ValueError, OSError), match=rf"images\[0\] \(.*red\.png\): {kind.__name__}"):
            processor(images=[tmp_path / "red.png"])
        monkeypatch.undo()
