import json

import numpy as np
import pytest
import torch
from miniatures import VISION, save_clip, text_options, text_tokenizer
from PIL import Image
from tiny import REGIONS, lay_evenly, tiny_config
from transformers import CLIPImageProcessor, ViTImageProcessor

from omit_hf import OmitModel, OmitProcessor
from omit_hf.alignment import align_sentence, encode_picture, word_alignment, words_of_tokens

PICTURE = Image.new("RGB", (96, 64), "teal")


def scenes_like(scenes_model, **options) -> OmitModel:
    torch.manual_seed(0)
    return OmitModel(tiny_config(text_config=scenes_model.config.text_config.to_dict(), **options)).eval()


def test_mass_is_the_share_of_a_words_column(scenes_model, processor):
    out = scenes_model(**processor(images=PICTURE, text="a red star"), output_transport=True)
    plan = out.transport_plan[0, 0].detach().numpy()
    found = word_alignment(scenes_model, processor, PICTURE, "a red star")
    assert found.words == ["a", "red", "star"]
    assert found.similarity == out.similarity.item()
    assert found.grid == (4, 6)
    for word in range(3):
        total = sum(plan[row, 1 + word] for row in range(25))
        for cell in range(24):
            assert found.mass[cell, word] == pytest.approx(plan[1 + cell, 1 + word] / total)
        assert found.matched[word] == pytest.approx(1 - plan[0, 1 + word] / total)
    np.testing.assert_array_equal(found.plan, plan)
    np.testing.assert_allclose(found.plan.sum(axis=0), found.column_marginals, rtol=1e-5)
    np.testing.assert_allclose(found.row_marginals, 1 / 25, rtol=1e-5)


def test_full_transport_matches_all_of_a_word(scenes_model, processor):
    found = word_alignment(scenes_like(scenes_model, matching="ot"), processor, PICTURE, "a red star")
    assert not found.has_dustbins
    assert found.plan.shape == (24, 3)
    np.testing.assert_allclose(found.matched, 1, rtol=1e-5)


def test_places_of_a_grid_are_where_its_cells_look(scenes_model, processor):
    found = word_alignment(scenes_model, processor, PICTURE, "a star")
    np.testing.assert_array_equal(found.places(), scenes_model.fragment_boxes(64, 96))
    places = word_alignment(lay_evenly(scenes_model, 64, 96), processor, PICTURE, "a star").places()
    assert places[0].tolist() == [0, 0, 16, 16]
    assert places[5].tolist() == [80, 0, 96, 16]
    assert places[-1].tolist() == [80, 48, 96, 64]


def test_to_dict_is_json(scenes_model, processor):
    found = json.loads(json.dumps(word_alignment(scenes_model, processor, PICTURE, "a red zebra").to_dict()))
    assert [(word["word"], word["known"]) for word in found["words"]] == [("a", True), ("red", True), ("zebra", False)]
    assert sum(found["words"][1]["mass"]) == pytest.approx(found["words"][1]["matched"])
    assert len(found["places"]) == len(found["words"][0]["mass"]) == 24
    assert (found["matching"], found["width"], found["height"]) == ("omit", 96, 64)


@pytest.mark.parametrize(
    ("kind", "sentence", "expected"),
    [
        ("bert", "a small café.", ["a", "small", "café", "."]),
        ("roberta", " red café don't 20", ["red", "café", "don't", "20"]),
        ("clip_text_model", "red café don't!!", ["red", "café", "don't", "!!"]),
        ("siglip_text_model", "red. a cab", ["red", ".", "a", "cab"]),
    ],
)
def test_sub_words_are_merged(kind, sentence, expected):
    tokenizer = text_tokenizer(kind)
    ids = torch.tensor(tokenizer(sentence)["input_ids"])
    valid = torch.tensor([each not in tokenizer.all_special_ids or each == tokenizer.unk_token_id for each in ids])
    if kind == "clip_text_model":
        valid[-1] = False  # its unknown token is EOS
    words = words_of_tokens(tokenizer, sentence, ids, valid)
    assert [word.text for word in words] == expected
    assert [token for word in words for token in word.tokens] == valid.nonzero()[:, 0].tolist()


def merged(kind: str, sentence: str) -> list[str]:
    """The words of the tokens that are a sentence's own, all of which are in one."""
    tokenizer = text_tokenizer(kind)
    ids = torch.tensor(tokenizer(sentence)["input_ids"])
    special = set(tokenizer.all_special_ids) - ({tokenizer.unk_token_id} if kind == "bert" else set())
    valid = torch.tensor([each not in special for each in ids.tolist()])
    words = words_of_tokens(tokenizer, sentence, ids, valid)
    assert sorted(token for word in words for token in word.tokens) == valid.nonzero()[:, 0].tolist()
    return [word.text for word in words]


@pytest.mark.parametrize("kind", ["bert", "roberta", "clip_text_model"])
@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("a café, a cafe\u0301", ["a", "café", ",", "a", "cafe\u0301"]),
        ("كِتَابٌ جَمِيلٌ", ["كِتَابٌ", "جَمِيلٌ"]),
        ("வணக்கம் உலகம்", ["வணக்கம்", "உலகம்"]),
        ("नमस्ते क्\u200dष", ["नमस्ते", "क्\u200dष"]),
        ("שָׁלוֹם", ["שָׁלוֹם"]),
        ("don\u2019t l'été", ["don\u2019t", "l'été"]),
        ("the U.S. 3.5 well-known...", ["the", "U.S", ".", "3.5", "well", "-", "known", "..."]),
        ('"no!" (yes?)', ['"', "no", '!"', "(", "yes", "?)"]),
        ("👩\u200d👩\u200d👧 👍🏽", ["👩\u200d👩\u200d👧", "👍🏽"]),
        ("我爱北京", ["我", "爱", "北", "京"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("co\u00adoperate \u200fa\u200e", ["co\u00adoperate", "a\u200e"]),
        ("  a  red\t\n star ", ["a", "red", "star"]),
    ],
)
def test_words_are_unicodes(kind, sentence, words):
    assert merged(kind, sentence) == words


def test_characters_of_a_script_without_blanks():
    assert merged("roberta", "สวัสดี") == ["ส", "วั", "ส", "ดี"]
    assert merged("roberta", "カタカナの日本語") == ["カタカナ", "の", "日", "本", "語"]


def test_tokens_of_blanks_belong_to_the_word_after_them():
    tokenizer = text_tokenizer("roberta")
    for sentence, expected in {
        " a   b  ": [("a", [1, 2]), ("b", [3, 4, 5, 6, 7, 8])],  # at the end, to the one before
        "   ": [],
    }.items():
        ids = torch.tensor(tokenizer(sentence)["input_ids"])
        words = words_of_tokens(tokenizer, sentence, ids, ids > 2)
        assert [(word.text, word.tokens) for word in words] == expected


def test_a_special_token_is_a_word_of_its_own():
    tokenizer = text_tokenizer("bert")
    ids = torch.tensor(tokenizer("a star", padding="max_length", max_length=12)["input_ids"])
    words = words_of_tokens(tokenizer, "a star", ids, torch.arange(12) < 8)
    assert [word.text for word in words] == ["[CLS]", "a", "star", "[SEP]", "[PAD]"]


def test_tokens_of_another_sentence():
    tokenizer = text_tokenizer("bert")
    ids = torch.tensor(tokenizer("a star")["input_ids"])
    with pytest.raises(ValueError, match="input_ids is not what BertTokenizer makes of 'a dot'; expected that"):
        words_of_tokens(tokenizer, "a dot", ids, ids > 3)


def test_two_blanks_make_no_word():
    tokenizer = text_tokenizer("roberta")
    text = {"model_type": "roberta", **text_options("roberta", tokenizer)}
    model = OmitModel(tiny_config(text_config=text, special_token_ids=[0, 1, 2])).eval()
    processor = OmitProcessor(ViTImageProcessor(do_resize=False), tokenizer)
    found = word_alignment(model, processor, PICTURE, "a  red ")
    assert found.words == ["a", "red"]
    assert found.plan.sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found.plan.sum(axis=0), found.column_marginals, rtol=1e-4)
    np.testing.assert_allclose(found.column_marginals, [1 / 8, 1 / 8, 6 / 8], rtol=1e-5)


class SentencePieces:
    """The part of a tokenizer without offsets that is used."""

    is_fast, unk_token_id = False, 0
    tokens = ("<unk>", "▁a", "▁st", "ar", "▁", "red", ".", "</s>")

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[each] for each in ids]


def test_sub_words_of_a_tokenizer_without_offsets():
    valid = torch.tensor([True] * 8 + [False])
    words = words_of_tokens(SentencePieces(), "", torch.tensor([1, 2, 3, 4, 5, 6, 4, 0, 7]), valid)
    assert [word.text for word in words] == ["a", "star", "red", ".", "<unk>"]
    assert [word.tokens for word in words] == [[0], [1, 2], [3, 4], [5], [6, 7]]
    assert [word.known for word in words] == [True] * 4 + [False]


def test_a_word_of_several_tokens_has_the_mass_of_all_of_them(tmp_path):
    model = OmitModel.from_clip(save_clip("clip", tmp_path))
    processor = OmitProcessor(CLIPImageProcessor.from_pretrained(tmp_path), text_tokenizer("clip_text_model"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    out = model(**processor(images=picture, text="red a"), output_transport=True)
    plan = out.transport_plan[0, 0].detach().numpy()  # CLS, r e d a, EOS after the dustbin
    found = word_alignment(model, processor, picture, "red a")
    assert found.words == ["red", "a"]
    np.testing.assert_allclose(found.plan[:, 1], plan[:, 2] + plan[:, 3] + plan[:, 4], rtol=1e-5)
    np.testing.assert_allclose(found.mass[:, 0], found.plan[1:, 1] / found.plan[:, 1].sum(), rtol=1e-5)
    np.testing.assert_allclose(found.column_marginals, [1 / 5, 3 / 5, 1 / 5], rtol=1e-5)
    np.testing.assert_allclose(found.area, (15, 0, 75, 60), atol=0.5)  # the square in the middle, scaled to 32 x 32
    assert found.grid == (4, 4)


STRIPS = [(20, 2), (2, 20), (200, 3), (3, 200), (4000, 40), (5, 3), (1, 30), (1, 1), (95, 31)]
SHOWN = {
    "as it is": ViTImageProcessor(do_resize=False),
    "squeezed": ViTImageProcessor(size={"height": 32, "width": 32}),
    "cropped": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "padded": CLIPImageProcessor(do_resize=False, crop_size={"height": 64, "width": 64}),
}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("kind", ["resnet", "convnext", "vit", "swin"])
def test_a_picture_that_scores_can_be_aligned(kind, shown, processor):
    vision = {"model_type": kind, **VISION[kind]}
    text = {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16, "vocab_size": len(processor.tokenizer)}
    processor = OmitProcessor(SHOWN[shown], processor.tokenizer)
    aligned = 0
    for size in STRIPS:
        torch.manual_seed(0)
        model = OmitModel(tiny_config(vision_config=vision, text_config=text)).eval()
        picture = Image.new("RGB", size, "teal")
        refusal = None
        try:
            model(**processor(images=picture, text="a star"))
        except ValueError as error:  # smaller than a patch; of Swin, than a window
            refusal = str(error)
        if refusal is not None:
            assert "takes at least" in refusal
            assert shown == "as it is"
            continue
        found = word_alignment(model, processor, picture, "a star")
        assert len(found.places()) == len(found.mass) == found.grid[0] * found.grid[1]
        assert (found.grid[0] > found.grid[1]) == (size[0] < size[1]) or shown != "as it is"
        aligned += 1
    assert aligned == len(STRIPS) or shown == "as it is"
    assert aligned


@pytest.fixture
def region_model(scenes_model) -> OmitModel:
    return scenes_like(scenes_model, vision_config=REGIONS)


BOXES = np.array([[0, 0, 10, 10], [5, 5, 30, 20], [40, 2, 60, 50]])


def test_regions_with_boxes(region_model, processor):
    regions = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    found = word_alignment(region_model, processor, sentence="a red star", regions=regions, boxes=BOXES)
    assert (found.grid, found.area, found.width, found.height) == (None, None, 60, 50)
    assert found.mass.shape == (3, 3)
    np.testing.assert_array_equal(found.places(), BOXES)
    with_picture = word_alignment(region_model, processor, PICTURE, "a red star", regions=regions)
    assert (with_picture.width, with_picture.height, with_picture.places()) == (96, 64, None)
    np.testing.assert_array_equal(with_picture.mass, found.mass)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BOXES[:2], r"boxes has shape \(2, 4\); expected \(3, 4\)"),
        (BOXES[:, ::-1], "ends before it begins"),
        (BOXES * np.nan, "not finite"),
    ],
)
def test_boxes_that_do_not_fit(region_model, processor, boxes, message):
    with pytest.raises(ValueError, match=message):
        word_alignment(region_model, processor, sentence="a star", regions=np.ones((3, 10)), boxes=boxes)


def test_what_the_model_does_not_take(region_model, scenes_model, processor):
    with pytest.raises(ValueError, match="'omit_region', which takes regions=.* got a picture and no regions"):
        word_alignment(region_model, processor, PICTURE, "a star")
    with pytest.raises(ValueError, match="'convnext', which takes a picture and no regions; got a picture and regions"):
        word_alignment(scenes_model, processor, PICTURE, "a star", regions=np.ones((3, 10)))
    with pytest.raises(ValueError, match="got no picture and no regions"):
        word_alignment(scenes_model, processor, sentence="a star")


@pytest.mark.parametrize("matching", ["maxsim", "chan", "scan_t2i", "scan_i2t"])
def test_heads_without_a_plan(scenes_model, processor, matching):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    found = word_alignment(scenes_model, processor, picture, "a red star", matching=matching)
    trained = scenes_like(scenes_model, matching=matching)
    aligned = trained(**processor(images=picture, text="a red star"), output_transport=True).alignment[0, 0]
    aligned = aligned.detach().numpy()
    for word in range(3):
        np.testing.assert_allclose(found.mass[:, word], aligned[:, word] / sum(aligned[:, word]), rtol=1e-4)
    np.testing.assert_allclose(found.matched, 1, rtol=1e-5)
    assert (found.plan, found.row_marginals, found.column_marginals) == (None, None, None)
    assert not found.has_dustbins


def test_another_head_on_the_same_features(scenes_model, processor):
    other = word_alignment(scenes_model, processor, PICTURE, "a red star", matching="ot")
    expected = word_alignment(scenes_like(scenes_model, matching="ot"), processor, PICTURE, "a red star")
    np.testing.assert_allclose(other.mass, expected.mass, rtol=1e-4)
    assert (other.matching, scenes_model.config.matching) == ("ot", "omit")
    learned = scenes_like(scenes_model, matching="ot", dustbin="learned")
    with pytest.raises(ValueError, match="matching is 'omit', which has parameters of its own, and the model was"):
        word_alignment(learned, processor, PICTURE, "a star", matching="omit")
    with pytest.raises(ValueError, match="matching is 'magic'; expected one of omit"):
        word_alignment(scenes_model, processor, PICTURE, "a star", matching="magic")


def test_a_head_that_does_not_align(scenes_model, processor):
    with pytest.raises(
        ValueError, match="matching is 'mean', which does not align words .* these do: 'omit', 'ot', 'maxsim'"
    ):
        word_alignment(scenes_like(scenes_model, matching="mean"), processor, PICTURE, "a red star")


def test_the_model_comes_back_in_its_mode(scenes_model, processor):
    scenes_model.train()
    word_alignment(scenes_model, processor, PICTURE, "a red star")
    assert scenes_model.training


@pytest.mark.parametrize("sentence", ["", "...", "  "])
def test_a_sentence_without_a_word(processor, scenes_model, sentence):
    with pytest.raises(ValueError, match="The sentence .* has no word that the model matches; expected at least one"):
        word_alignment(scenes_model, processor, PICTURE, sentence)


def test_a_picture_encoded_once_serves_many_sentences(scenes_model, processor, monkeypatch):
    encoded, calls = encode_picture(scenes_model, processor, PICTURE), []
    monkeypatch.setattr(scenes_model, "get_image_features", lambda *a, **k: calls.append(1))
    found = [align_sentence(scenes_model, processor, encoded, each, matching="ot") for each in ("a star", "two dots")]
    monkeypatch.undo()
    assert not calls
    for sentence, each in zip(("a star", "two dots"), found, strict=True):
        expected = word_alignment(scenes_model, processor, PICTURE, sentence, matching="ot")
        assert each.to_dict() == expected.to_dict()
        np.testing.assert_array_equal(each.plan, expected.plan)
