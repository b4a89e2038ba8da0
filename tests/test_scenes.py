import hashlib
import itertools

import numpy as np
import pytest

from omit_hf.data import load_scenes
from omit_hf.data.sources.scene_captions import RELATIONS
from omit_hf.data.sources.scenes import COLORS, RELATION_MARGIN, SHAPES, SIZES, _shape_mask

# Of the first images of each split, with seed 0: pixels, captions, boxes and phrases.
CONTENT = "9d059a529c730fc73c0b2d55c42d8417d8a0757fdce5116eab175b4dc3dd1174"


def digest(data) -> str:
    sha = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for row in data[split]:
            sha.update(np.asarray(row["image"]).tobytes())
            sha.update(repr([row[name] for name in sorted(row) if name != "image"]).encode())
    return sha.hexdigest()


def test_content_depends_on_the_seed_alone(scenes):
    assert digest(scenes) == CONTENT
    assert digest(load_scenes(2, 2, 2, seed=1)) != digest(load_scenes(2, 2, 2, seed=0))


def test_a_smaller_split_is_a_prefix(scenes):
    small = load_scenes(train_size=3, validation_size=2, test_size=2)
    for split, rows in small.items():
        for row, other in zip(rows, scenes[split], strict=False):
            assert np.array_equal(row["image"], other["image"])
            assert row["captions"] == other["captions"]


def test_schema(scenes):
    assert {split: len(rows) for split, rows in scenes.items()} == {"train": 24, "validation": 6, "test": 8}
    ids = [row["image_id"] for rows in scenes.values() for row in rows]
    assert len(set(ids)) == 38
    for row in scenes["test"]:
        assert row["image"].size == (row["width"], row["height"]) == (96, 96)
        assert len(set(row["captions"])) == 5
        assert 3 <= len(row["boxes"]) <= 6


def words_of(phrase: str) -> dict:
    """What a noun phrase states, read back from its words."""
    stated = {}
    for word in phrase.split():
        for attribute, table in (("color", COLORS), ("size", SIZES)):
            for value, (names, _) in table.items():
                if word in names:
                    stated[attribute] = value
        for shape, names in SHAPES.items():
            if word in names:
                stated["shape"] = shape
    return stated


def sides(box):
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2


def phrases_of(row, caption):
    return [phrase for phrase in row["phrases"] if phrase["caption"] == caption]


def test_phrases_name_what_is_in_their_box(scenes):
    """The span is a noun phrase, and its box has the size and, at its middle or rim, the colour that it states."""
    for row in [*scenes["train"], *scenes["test"]]:
        pixels = np.asarray(row["image"]).astype(int)
        for number, caption in enumerate(row["captions"]):
            phrases = phrases_of(row, number)
            assert 1 <= len(phrases) <= 3
            assert len({phrase["object"] for phrase in phrases}) == len(phrases)
            for phrase in phrases:
                text = caption[phrase["start"] : phrase["end"]]
                assert text.split()[0] in ("a", "an")
                stated = words_of(text)
                x0, y0, x1, y1 = (int(side) for side in row["boxes"][phrase["object"]])
                radius = (x1 - x0) // 2
                if "size" in stated:
                    low, high = SIZES[stated["size"]][1]
                    assert low <= radius <= high
                patch = pixels[y0:y1, x0:x1].reshape(-1, 3)
                wanted = np.clip(np.array(COLORS[stated["color"]][1]), 0, 255)
                near = (np.abs(patch - wanted).max(axis=1) <= 13).mean()
                assert near > 0.04, (text, near)


def is_true(row, captions_row, number) -> bool:
    """Whether a caption of one row is true of another row, from captions, boxes and phrases alone."""
    caption = captions_row["captions"][number]
    phrases = phrases_of(captions_row, number)
    stated = [words_of(caption[phrase["start"] : phrase["end"]]) for phrase in phrases]
    names = [word for word in itertools.chain.from_iterable(RELATIONS.values()) if f" {word} " in f" {caption} "]
    relation = next((name for name, words in RELATIONS.items() if names and names[0] in words), None)
    kinds = kinds_of(row)
    for chosen in itertools.permutations(range(len(kinds)), len(stated)):
        if not all(all(kinds[c].get(k) == v for k, v in s.items()) for c, s in zip(chosen, stated, strict=True)):
            continue
        if relation is None:
            return True
        (ax, ay, _), (bx, by, _) = (sides(row["boxes"][c]) for c in chosen[:2])
        gap = {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation]
        if gap >= RELATION_MARGIN:
            return True
    return False


KINDS = {}


def kinds_of(row):
    """Colour, shape and size of each object, read from the pixels."""
    if row["image_id"] in KINDS:
        return KINDS[row["image_id"]]
    pixels, kinds = np.asarray(row["image"]).astype(float), []
    for box in row["boxes"]:
        x0, y0, x1, y1 = (int(side) for side in box)
        radius, patch = (x1 - x0) // 2, pixels[y0:y1, x0:x1]
        best = None
        for color, (_, rgb) in COLORS.items():
            close = np.abs(patch - np.array(rgb)).max(axis=2) <= 13
            for shape in SHAPES:
                cover = _shape_mask(shape, radius)
                clear = (cover == 1) | (cover < 0.7)
                score = (close == (cover == 1))[clear].mean()
                if best is None or score > best[0]:
                    best = score, color, shape
        kinds.append({"color": best[1], "shape": best[2], "size": "small" if radius <= 8 else "large"})
    return KINDS.setdefault(row["image_id"], kinds)


def test_all_true_pairs_are_known(scenes):
    """By a loop over captions, boxes and pixels, which knows nothing of how the scenes were made."""
    rows = list(scenes["test"])
    for row in rows:
        expected = [
            5 * other + number
            for other, captions_row in enumerate(rows)
            for number in range(5)
            if is_true(row, captions_row, number)
        ]
        assert row["relevant_captions"] == expected


def test_own_captions_are_true_and_some_others(scenes):
    data = load_scenes(1, 1, 60)["test"]
    found = [set(captions) for captions in data["relevant_captions"]]
    for image, captions in enumerate(found):
        assert set(range(5 * image, 5 * image + 5)) <= captions
    assert sum(map(len, found)) > 5 * 60
    assert scenes["train"]["relevant_captions"] == [None] * 24


def test_most_cells_and_many_words_have_no_counterpart():
    rows = load_scenes(200, 1, 1)["train"]
    area = [sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) / 96**2 for boxes in rows["boxes"]]
    assert np.mean(area) < 0.35
    words = named = 0
    for row in rows:
        for number, caption in enumerate(row["captions"]):
            words += len(caption.split())
            named += sum(len(caption[p["start"] : p["end"]].split()) - 1 for p in phrases_of(row, number))
    assert 0.3 < named / words < 0.7
    counts = [len(phrases_of(row, number)) for row in rows for number in range(5)]
    assert {1, 2, 3} == set(counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size is 0; expected at least 1"),
        ({"test_size": -3}, "test_size is -3"),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        load_scenes(**{"train_size": 1, "validation_size": 1, "test_size": 1, **options})
