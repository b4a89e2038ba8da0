"""Compositions: Scenes made of real drawings, of which every truth is known as well.

A picture shows three to six cut-outs of one style on a varied background, its five captions name one to three of them
by any of their names. The vocabulary is as large as the folder of cut-outs, and the styles of the validation and test
splits are never seen in training, though what they show is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from PIL import Image

from omit_hf.data.schema import chosen_splits, listed
from omit_hf.data.sources.cutouts import Cutouts, open_cutout, read_cutouts
from omit_hf.data.sources.scene_captions import choose, describe, true_pairs
from omit_hf.data.sources.scenes import background, check_sizes, generate_split

IMAGE_SIZE = 224  # pixels
SLOT_SIZE = 74  # a picture is a 3 x 3 arrangement of slots in a frame of one pixel, at most one drawing in each
DRAWING_SIZE = (40, 72)  # pixels of the longer side, inclusive
OBJECTS = (3, 6)  # in a picture, inclusive
RELATION_MARGIN = 28  # pixels, see `omit_hf.data.sources.scene_captions`


def load_compositions(
    folder: str | Path,
    train_size: int = 3000,
    validation_size: int = 300,
    test_size: int = 500,
    seed: int = 0,
    validation_style: str | None = None,
    test_style: str | None = None,
    only: Sequence[str] | None = None,
) -> DatasetDict:
    """Compose pictures from a folder of cut-outs.

    The concepts are dealt out like cards, so that a split shows all of them about equally often; validation and test
    show none that the training styles lack. Two concepts that share a name are never in one picture.

    Args:
        folder: of cut-outs, see `omit_hf.data.sources.cutouts`.
        train_size, validation_size, test_size: images in each split. Image number `n` of a split does not depend on
            the sizes, so a smaller split is a prefix of a larger one.
        seed: seed of the content; the same seed gives the same bytes for the same folder.
        validation_style, test_style: the styles of these splits, which training does not see; the last but one and the
            last style of the folder by default, in the order in which `cutouts.jsonl` first names them.
        only: the splits to compose, all three by default. Styles of the others need not be there: with none for
            training, all concepts count as seen.

    Returns:
        `DatasetDict` in the schema of `omit_hf.data`; see `omit_hf.data.sources.scenes.FEATURES`. `relevant_captions`
        of the test split are exact: a caption is true of a picture where every thing that it names, and the relation if
        it states one, is there.

    Raises:
        ValueError: if the sizes, the seed or a style is none, no style is left for training, or there are too few
            concepts; and what `read_cutouts` raises.
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    check_sizes(sizes, seed)
    chosen = chosen_splits(folder, sizes, only)
    cutouts = read_cutouts(folder)
    styles = _styles_of_splits(folder, list(cutouts.drawings), validation_style, test_style, chosen)
    trained = set().union(*(cutouts.drawings[style] for style in styles["train"] or cutouts.drawings))
    truth = _Truth(cutouts.names)
    data = {}
    for number, (split, size) in enumerate(sizes.items()):
        if split not in chosen:
            continue
        hands = {}
        for style in styles[split]:
            concepts = [concept for concept in cutouts.drawings[style] if concept in trained]
            if len(concepts) < OBJECTS[1]:
                raise ValueError(
                    f"Style {style!r} of {folder} has {len(concepts)} concepts that training sees; a picture needs "
                    f"{OBJECTS[1]}."
                )
            hands[style] = concepts
        dealer = _Dealer(hands, truth, np.random.RandomState([seed, number]))
        data[split] = generate_split(
            "compositions", split, size, seed, lambda rng, dealer=dealer: _make(rng, dealer, cutouts), truth.pairs
        )
    return DatasetDict(data)


def _styles_of_splits(
    folder, styles: list[str], validation: str | None, test: str | None, chosen: list[str]
) -> dict[str, list[str]]:
    for name, style in (("validation_style", validation), ("test_style", test)):
        if style is not None and style not in styles:
            raise ValueError(f"{name} is {style!r}; expected a style of {folder}: {listed(styles)}.")
    test = test if test is not None else styles[-1]
    others = [style for style in styles if style != test]
    validation = validation if validation is not None else (others or styles)[-1]
    if validation == test and {"train", "validation"} & set(chosen):
        raise ValueError(
            f"validation_style and test_style are both {test!r}, of the styles {listed(styles)} of {folder}; expected "
            "two different ones beside those of training."
        )
    seen = [style for style in others if style != validation]
    if not seen and "train" in chosen:
        raise ValueError(
            f"No style of {folder} is left for training beside {validation!r} for validation and {test!r} for test; "
            f"expected at least three styles, and it has {listed(styles)}."
        )
    return {"train": seen, "validation": [validation], "test": [test]}


class _Truth:
    """Which concepts a name holds of. Names that differ in case are one."""

    def __init__(self, names: dict[str, list[str]]):
        self.names = names
        self.numbers = {concept: number for number, concept in enumerate(names)}
        self.keys = {concept: {name.casefold() for name in own} for concept, own in names.items()}
        self.holders: dict[str, list[int]] = {}
        for concept, keys in self.keys.items():
            for key in keys:
                self.holders.setdefault(key, []).append(self.numbers[concept])

    def pairs(self, scenes: list[list[dict]], statements: list[dict]) -> np.ndarray:
        """Which statement is true of which scene, as bool [scenes, statements]."""
        shown = np.full((len(scenes), OBJECTS[1]), -1)
        for row, scene in zip(shown, scenes, strict=True):
            row[: len(scene)] = [self.numbers[item["concept"]] for item in scene]
        shown = shown[:, : max(map(len, scenes))]
        return true_pairs(
            scenes, statements, lambda name: np.isin(shown, self.holders[name.casefold()]), RELATION_MARGIN
        )


class _Dealer:
    """Deals each style's concepts out like cards: all of them once, shuffled, before any comes again.

    Args:
        concepts: of each style.
        rng: decides the order, and the style of each picture.
    """

    def __init__(self, concepts: dict[str, list[str]], truth: _Truth, rng):
        self.concepts, self.truth, self.rng = concepts, truth, rng
        self.waiting: dict[str, list[str]] = {style: [] for style in concepts}

    def deal(self) -> tuple[str, list[str]]:
        """The style of the next picture and its concepts, no two of which share a name."""
        style = choose(self.rng, list(self.concepts))
        chosen: list[str] = []
        for _ in range(self.rng.randint(OBJECTS[0], OBJECTS[1] + 1)):
            chosen.append(self._next(style, chosen))
        return style, chosen

    def _next(self, style: str, beside: list[str]) -> str:
        taken = set().union(*(self.truth.keys[concept] for concept in beside))
        waiting = self.waiting[style]
        for is_new in (False, True):
            if is_new:
                waiting += self.rng.permutation(self.concepts[style]).tolist()
            for place, concept in enumerate(waiting):
                if not self.truth.keys[concept] & taken:
                    return waiting.pop(place)
        raise ValueError(
            f"Every concept of style {style!r} shares a name with one of {listed(beside)}; expected {OBJECTS[1]} "
            "concepts for a picture, no two of which share a name."
        )


def _make(rng, dealer: _Dealer, cutouts: Cutouts) -> tuple[list[dict], tuple, np.ndarray]:
    """A picture: the objects of its scene, what is said of them, and uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    style, concepts = dealer.deal()
    image = np.clip(np.rint(background(rng, IMAGE_SIZE)), 0, 255).astype(np.uint8)
    picture, scene = Image.fromarray(image), []
    for slot, concept in zip(rng.permutation(9), concepts, strict=False):
        drawing = open_cutout(choose(rng, cutouts.drawings[style][concept]))
        scale = rng.randint(DRAWING_SIZE[0], DRAWING_SIZE[1] + 1) / max(drawing.size)
        drawing = drawing.resize([max(1, round(scale * side)) for side in drawing.size], Image.Resampling.LANCZOS)
        left, top = (
            int(1 + SLOT_SIZE * place + rng.randint(SLOT_SIZE - side + 1))
            for place, side in zip((slot % 3, slot // 3), drawing.size, strict=True)
        )
        picture.paste(drawing, (left, top), drawing)
        right, bottom = left + drawing.width, top + drawing.height
        box = [float(side) for side in (left, top, right, bottom)]
        scene.append({"concept": concept, "x": (left + right) / 2, "y": (top + bottom) / 2, "box": box})

    def noun_phrase(number):
        name = choose(rng, dealer.truth.names[scene[number]["concept"]])
        return f"the {name}", name

    return scene, describe(scene, noun_phrase, rng, RELATION_MARGIN), np.asarray(picture)
