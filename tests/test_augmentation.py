from collections import Counter

import miniatures
import numpy as np
import pytest
import torch
from PIL import Image

from omit_hf.data import Augmentation, ImageTextInputs
from omit_hf.data.augmentation import crop_box, mask_token, perturb_words, words_of

CAPTION = "a small red star above two blue circles"


def test_shares_of_the_perturbed_words():
    """Of 20 % half is masked, a tenth replaced, the rest deleted; the others stay in their order."""
    random = np.random.default_rng(0)
    words = [f"w{n}" for n in range(20000)]
    left = perturb_words(" ".join(words), 0.2, "[M]", ["new"], random).split()
    counts = Counter(word if word in ("[M]", "new") else "kept" for word in left)
    shares = [counts["[M]"], counts["new"], len(words) - len(left), counts["kept"]]
    assert np.array(shares) / len(words) == pytest.approx([0.1, 0.02, 0.08, 0.8], abs=0.01)
    kept = [word for word in left if word.startswith("w")]
    assert kept == sorted(kept, key=lambda word: int(word[1:]))


def test_a_caption_never_ends_up_empty():
    random = np.random.default_rng(0)
    assert all(perturb_words("star", 0.9, "[M]", ["new"], random) in ("star", "[M]", "new") for _ in range(100))


def test_any_word_of_the_vocabulary_may_replace_another():
    random = np.random.default_rng(0)
    seen = Counter(perturb_words("star", 0.999, "[M]", ["x", "y", "z"], random) for _ in range(3000))
    assert {"x", "y", "z"} < set(seen)
    assert max(seen[word] for word in "xyz") < 2 * min(seen[word] for word in "xyz")


def test_crops():
    random = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        left, upper, right, lower = crop_box((200, 100), 0.3, random)
        assert 0 <= left < right <= 200 + 1e-9
        assert 0 <= upper < lower <= 100 + 1e-9
        areas.append((right - left) * (lower - upper) / 20000)
        ratios.append((right - left) / (lower - upper) / 2)
    assert 0.25 < min(areas) < 0.35
    assert max(areas) > 0.9
    assert 0.74 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.34


def test_pictures_keep_their_size():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    seen = [Augmentation(crop=0.5).picture(picture, pair) for pair in range(5)]
    assert {each.size for each in seen} == {(60, 40)}
    assert len({each.tobytes() for each in seen}) == 5
    flipped = [Augmentation(flip=True).picture(picture, pair).tobytes() for pair in range(40)]
    counts = Counter(flipped)
    assert set(counts) == {picture.tobytes(), picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}
    assert min(counts.values()) > 10
    assert Augmentation().picture(picture, 0).tobytes() == picture.tobytes()


def test_randomness_is_of_seed_epoch_and_pair():
    captions = {
        key: Augmentation(words=0.5, mask="[M]", vocabulary=["new"], seed=key[0], epoch=key[1]).caption(CAPTION, key[2])
        for key in [(seed, epoch, pair) for seed in range(2) for epoch in range(3) for pair in range(3)]
    }
    assert len(set(captions.values())) == len(captions)
    again = Augmentation(words=0.5, mask="[M]", vocabulary=["new"], seed=1, epoch=2)
    again.caption("something else", 7)
    assert again.caption(CAPTION, 1) == captions[1, 2, 1]


def test_pairs_alone_are_augmented(scenes, processor):
    captions = [caption for captions in scenes["train"]["captions"] for caption in captions]
    augmentation = Augmentation(words=0.5, crop=0.5, flip=True, mask="<unk>", vocabulary=words_of(captions))
    plain, inputs = (ImageTextInputs(scenes["train"], processor, each) for each in (None, augmentation))
    numbers = [3, 11, 0, 1]
    first, expected = inputs.pairs(numbers), plain.pairs(numbers)
    assert not torch.equal(first["pixel_values"], expected["pixel_values"])
    assert first["attention_mask"].sum() < expected["attention_mask"].sum()
    assert (first["input_ids"] == processor.tokenizer.unk_token_id).any()
    assert torch.equal(first["image_ids"], expected["image_ids"])
    for name, value in inputs.pairs(numbers[1:2]).items():  # in another batch the same
        length = value.shape[1] if name in ("input_ids", "attention_mask") else None
        assert torch.equal(value[0], first[name][1][:length] if length else first[name][1])
    assert not torch.equal(first["pixel_values"][2], first["pixel_values"][3])  # one image, two pairs
    augmentation.epoch = 1
    assert not torch.equal(inputs.pairs(numbers)["pixel_values"], first["pixel_values"])
    for name in ("images", "texts"):
        for key, value in getattr(inputs, name)([3, 1]).items():
            assert torch.equal(value, getattr(plain, name)([3, 1])[key])


@pytest.mark.parametrize(("kind", "token"), [("bert", "[MASK]"), ("roberta", "<mask>"), ("siglip_text_model", "<unk>")])
def test_a_masked_word_is_one_token_and_a_fragment(kind, token):
    tokenizer = miniatures.text_tokenizer(kind)
    assert mask_token(tokenizer) == token
    ids = tokenizer(f"ab {token} c")["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1


def test_clip_has_no_token_for_a_masked_word():
    with pytest.raises(ValueError, match="word_augmentation needs a token .* CLIPTokenizer has neither.* set word_aug"):
        mask_token(miniatures.text_tokenizer("clip_text_model"))


def test_words_of_captions():
    assert words_of(["A red star.", "a blue star, naïve"]) == ["a", "blue", "naïve", "red", "star"]
    assert words_of(["cafe\u0301, don't", "كِتَابٌ 北京 👍"]) == sorted(["café", "don't", "كِتَابٌ", "北", "京", "👍"])


def test_punctuation_stays_and_blanks_go_with_a_deleted_word():
    class Draws:  # one number a word, and which of the vocabulary
        def __init__(self, *draws):
            self.draws = iter(draws)

        def random(self):
            return next(self.draws)

        def integers(self, count):
            return next(self.draws)

    deleted, kept, masked, replaced = 0.45, 0.9, 0.1, 0.27  # of a share of a half
    caption = "a red, small star."
    assert perturb_words(caption, 0.5, "[M]", ["x"], Draws(kept, deleted, kept, kept)) == "a, small star."
    assert perturb_words(caption, 0.5, "[M]", ["x"], Draws(deleted, kept, kept, deleted)) == "red, small."
    assert perturb_words(caption, 0.5, "[M]", ["x"], Draws(masked, kept, replaced, 0, masked)) == "[M] red, x [M]."
    assert perturb_words(caption, 0.5, "[M]", ["x"], Draws(*[deleted] * 4)) == caption
    assert perturb_words("我爱北京", 0.5, "[M]", ["x"], Draws(kept, masked, deleted, kept)) == "我[M]京"
    assert perturb_words("...", 0.5, "[M]", ["x"], Draws()) == "..."
