import collections
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from sources import CUTOUT_COLORS, CUTOUT_NAMES, CUTOUT_STYLES, cutouts

from omit_hf.data import check_data, load_compositions, load_image_text
from omit_hf.data.pictures import stored_pictures
from omit_hf.data.sources.compositions import RELATION_MARGIN
from omit_hf.data.sources.scene_captions import RELATIONS

SIZES = {"train_size": 40, "validation_size": 6, "test_size": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cutouts(tmp_path_factory.mktemp("cutouts") / "shapes")


@pytest.fixture(scope="module")
def data(folder):
    return load_compositions(folder, **SIZES)


def drawn(row) -> dict[tuple[int, int], list[int]]:
    """The box of each drawing by concept and blue value, from the pixels."""
    pixels = np.asarray(row["image"]).astype(int)
    found = {}
    for number, (red, green) in enumerate(CUTOUT_COLORS):
        for blue in CUTOUT_STYLES.values():
            y, x = np.nonzero((pixels == (red, green, blue)).all(axis=2))
            if len(x):
                found[number, blue] = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    return found


def phrases_of(row, caption):
    return [phrase for phrase in row["phrases"] if phrase["caption"] == caption]


def test_schema(data):
    assert {f"{split}_size": len(rows) for split, rows in data.items()} == SIZES
    check_data(data, read_images=True)
    for row in data["test"]:
        assert row["image"].size == (row["width"], row["height"]) == (224, 224)
        assert len(row["captions"]) == 5
        assert 3 <= len(row["boxes"]) <= 6
    counts = {len(phrases_of(row, number)) for row in data["train"] for number in range(5)}
    assert counts == {1, 2, 3}


def test_boxes_are_those_of_the_drawings_that_phrases_name(data):
    for row in itertools.chain(*data.values()):
        found = drawn(row)
        assert sorted(map(list, row["boxes"])) == sorted(found.values())
        assert all(40 <= max(x1 - x0, y1 - y0) <= 72 for x0, y0, x1, y1 in found.values())
        for phrase in row["phrases"]:
            name = row["captions"][phrase["caption"]][phrase["start"] : phrase["end"]].removeprefix("the ")
            concepts = [number for number, names in enumerate(CUTOUT_NAMES) if name in names]
            boxes = [box for (number, _), box in found.items() if number in concepts]
            assert boxes == [row["boxes"][phrase["object"]]]


def test_styles_and_concepts_of_the_splits(data):
    expected = {"train": {0, 8}, "validation": {16}, "test": {24}}
    for split, rows in data.items():
        styles = [{blue for _, blue in drawn(row)} for row in rows]
        assert all(len(each) == 1 for each in styles)
        assert set().union(*styles) == expected[split]
    counts = collections.Counter(number for row in data["train"] for number, _ in drawn(row))
    assert set(counts) == set(range(10))
    # Two packs of cards, both of them begun; of three fruits a picture shows at most one.
    others = [counts[number] for number in range(10) if number not in (2, 5, 6)]
    assert max(others) - min(others) <= 2


def test_no_two_share_a_name(data):
    for row in itertools.chain(*data.values()):
        names = [name.casefold() for number, _ in drawn(row) for name in CUTOUT_NAMES[number]]
        assert len(set(names)) == len(names)


def is_true(found, other, number) -> bool:
    """Whether a caption of another row is true of what `drawn` found, from captions, phrases and pixels alone."""
    caption = other["captions"][number]
    spans = [(phrase["start"], phrase["end"]) for phrase in phrases_of(other, number)]
    names = [caption[start:end].removeprefix("the ").casefold() for start, end in spans]
    between = caption[spans[0][1] : spans[1][0]] if len(spans) > 1 else ""
    relation = [name for name, words in RELATIONS.items() for word in words if f" {word} " in between]
    for chosen in itertools.permutations(found, len(names)):
        owned = [[name.casefold() for name in CUTOUT_NAMES[concept]] for concept, _ in chosen]
        if not all(name in own for name, own in zip(names, owned, strict=True)):
            continue
        if not relation:
            return True
        (ax, ay), (bx, by) = (((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in (found[each] for each in chosen[:2]))
        if {"left": bx - ax, "right": ax - bx, "above": by - ay, "below": ay - by}[relation[0]] >= RELATION_MARGIN:
            return True
    return False


def test_all_true_pairs_are_known(data):
    rows = list(data["test"])
    others = 0
    for image, row in enumerate(rows):
        found = drawn(row)
        expected = [5 * place + n for place, other in enumerate(rows) for n in range(5) if is_true(found, other, n)]
        assert row["relevant_captions"] == expected
        own = set(range(5 * image, 5 * image + 5))
        assert own <= set(expected)
        others += len(expected) - 5
    assert others > 12
    assert data["train"]["relevant_captions"] == [None] * 40


def content(rows):
    return list(zip(stored_pictures(rows)["image"], rows["captions"], rows["boxes"], rows["phrases"], strict=True))


def test_content_depends_on_the_seed_alone(data, folder):
    small = load_compositions(folder, 3, 2, 2)
    other = load_compositions(folder, 3, 2, 2, seed=1)
    for split, rows in small.items():
        assert content(rows) == content(data[split].select(range(len(rows))))
        assert content(rows) != content(other[split])
    images = [row["bytes"] for rows in data.values() for row in stored_pictures(rows)["image"]]
    assert len(set(images)) == sum(SIZES.values())
    assert Image.open(io.BytesIO(images[0])).format == "PNG"


def test_concepts_that_training_does_not_see_are_left_out(tmp_path):
    left_out = {("ink", 1), ("wax", 1), ("ink", 4), ("clay", 7)}
    data = load_compositions(cutouts(tmp_path, left_out=left_out), **SIZES)
    shown = {split: {number for row in rows for number, _ in drawn(row)} for split, rows in data.items()}
    assert shown == {
        "train": set(range(10)) - {1},
        "validation": set(range(10)) - {1},
        "test": set(range(10)) - {1, 7},
    }


def test_styles_that_are_chosen(folder):
    data = load_compositions(folder, 12, 2, 2, validation_style="ink", test_style="wax")
    blue = {split: {blue for row in rows for _, blue in drawn(row)} for split, rows in data.items()}
    assert blue == {"train": {16, 24}, "validation": {0}, "test": {8}}


def test_any_way_in(folder, data):
    found = load_image_text(folder, **SIZES)
    assert content(found["test"]) == content(data["test"])
    with pytest.raises(ValueError, match="no option 'test_styl'; did you mean 'test_style'"):
        load_image_text(folder, test_styl="ink")
    with pytest.raises(ValueError, match="relevant_captions number all captions"):
        load_image_text(folder, **SIZES, exclude=["compositions-0-test-00000"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected an integer from 0"),
        ({"test_style": "chalk"}, "test_style is 'chalk'; expected a style of .*: ink, wax, oil, clay"),
        ({"validation_style": "chalk"}, "validation_style is 'chalk'; expected a style"),
        ({"validation_style": "clay"}, "validation_style and test_style are both 'clay'"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load_compositions(folder, **{"train_size": 1, "validation_size": 1, "test_size": 1, **options})


def test_too_little_to_compose(tmp_path):
    with pytest.raises(ValueError, match="both 'ink', of the styles ink of"):
        load_compositions(cutouts(tmp_path / "one", styles=["ink"]))
    with pytest.raises(ValueError, match="No style of .* is left for training beside 'ink' for validation and 'wax'"):
        load_compositions(cutouts(tmp_path / "two", styles=["ink", "wax"]))
    with pytest.raises(ValueError, match="Style 'ink' of .* has 5 concepts that training sees; a picture needs 6"):
        load_compositions(cutouts(tmp_path / "five", names=CUTOUT_NAMES[:5]))
    few = cutouts(tmp_path / "fewer", left_out={("clay", number) for number in range(5)})
    with pytest.raises(ValueError, match="Style 'clay' of .* has 5 concepts that training sees"):
        load_compositions(few, 1, 1, 1)
    alike = [[name, "thing"] for name in "abcdefgh"]
    with pytest.raises(
        ValueError, match="Every concept of style '(ink|wax)' shares a name with one of [a-h]; expected"
    ):
        load_compositions(cutouts(tmp_path / "alike", names=alike))
    with pytest.raises(FileNotFoundError, match="No folder of cut-outs at"):
        load_compositions(tmp_path / "nowhere")
