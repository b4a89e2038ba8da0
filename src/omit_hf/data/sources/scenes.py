"""Scenes: a built-in image-text benchmark whose every truth is known.

A picture shows three to six coloured shapes on a varied background; each of its five captions names one to three of
them among filler words, half of those that name several with a spatial relation. Most grid cells and many words thus
have no counterpart on the other side, which is the case that partial transport is for. The layout is Flickr30K's
(five captions an image, 1 000 test images); nothing is downloaded, and the content depends on the seed alone.

Because the scene behind a picture is known, a row also carries the box of each object, the span of each phrase with
the object that it names and, on the test split, every caption of the split that is true of the picture.
"""

import functools
import io
from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from tqdm.auto import tqdm

from omit_hf.data.schema import check_count, chosen_splits
from omit_hf.data.sources.scene_captions import choose, describe, true_pairs

IMAGE_SIZE = 96  # pixels
SLOT_SIZE = 32  # a picture is a 3 x 3 arrangement of slots, at most one object in each
RELATION_MARGIN = 12  # pixels, see `omit_hf.data.sources.scene_captions`
SPLIT_SIZES = {"train": 4000, "validation": 250, "test": 1000}

SHAPES = {
    "circle": ("circle", "disc", "dot"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "diamond": ("diamond", "rhombus"),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
    "heart": ("heart",),
}
COLORS = {
    "red": (("red", "scarlet"), (214, 39, 40)),
    "orange": (("orange",), (255, 140, 20)),
    "yellow": (("yellow", "golden"), (245, 220, 40)),
    "green": (("green", "emerald"), (40, 150, 50)),
    "blue": (("blue", "azure"), (35, 80, 210)),
    "purple": (("purple", "violet"), (125, 50, 170)),
    "pink": (("pink", "rose"), (250, 130, 190)),
    "brown": (("brown",), (120, 70, 30)),
    "white": (("white",), (252, 252, 252)),
    "black": (("black",), (15, 15, 15)),
}
SIZES = {
    "small": (("small", "tiny", "little"), (6, 8)),  # words, radii in pixels (inclusive)
    "large": (("large", "big", "huge"), (11, 14)),
}

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),
        "image_id": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "boxes": List(List(Value("float32"), length=4)),  # x0, y0, x1, y1 in pixels
        "phrases": List(
            {  # caption number, character span in it, number of the box that it names
                "caption": Value("int32"),
                "start": Value("int32"),
                "end": Value("int32"),
                "object": Value("int32"),
            }
        ),
        # Numbers of all captions of the split (in order) that are true of the image; null where not computed.
        "relevant_captions": List(Value("int32")),
    }
)


def load_scenes(
    train_size: int = SPLIT_SIZES["train"],
    validation_size: int = SPLIT_SIZES["validation"],
    test_size: int = SPLIT_SIZES["test"],
    seed: int = 0,
    only: Sequence[str] | None = None,
) -> DatasetDict:
    """Generate Scenes.

    Args:
        train_size, validation_size, test_size: images in each split. Image number `n` of a split does not depend on
            the sizes, so a smaller split is a prefix of a larger one.
        seed: seed of the content; the same seed gives the same bytes on every machine.
        only: the splits to generate, all three by default.

    Returns:
        `DatasetDict` in the schema of `omit_hf.data`; see `FEATURES`.

    Raises:
        ValueError: if a size is not positive, the seed is negative, or one of them is no integer.
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    check_sizes(sizes, seed)
    return DatasetDict(
        {
            split: generate_split("scenes", split, sizes[split], seed, _make, _true_pairs)
            for split in chosen_splits("scenes", sizes, only)
        }
    )


def check_sizes(sizes: dict[str, int], seed: int) -> None:
    """Raise ValueError if the size of a split is not positive, the seed is negative, or one of them is no integer."""
    for split, size in sizes.items():
        check_count(f"{split}_size", size)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1.")


def generate_split(
    name: str, split: str, size: int, seed: int, make: Callable, pairs: Callable[[list, list], np.ndarray]
) -> Dataset:
    """A split of generated pictures, in order.

    Args:
        name: of the data, for `image_id`.
        make: gives, for a `RandomState` that depends on seed, split and number alone, a picture: the objects of its
            scene, each with its `box`; captions, phrases and statements, as `describe` has them; and the pixels.
        pairs: gives, for all scenes and all statements of the split, which are true of which, bool
            [scenes, statements]; called on the test split alone.
    """
    split_number = list(SPLIT_SIZES).index(split)
    scenes, rows, statements = [], [], []
    for number in tqdm(range(size), desc=f"Scenes: drawing {split}", leave=False):
        # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
        scene, (captions, phrases, stated), pixels = make(np.random.RandomState([seed, split_number, number]))
        height, width, _ = pixels.shape
        rows.append(
            {
                "image": {"bytes": _png(pixels), "path": None},
                "captions": captions,
                "image_id": f"{name}-{seed}-{split}-{number:05d}",
                "width": width,
                "height": height,
                "boxes": [item["box"] for item in scene],
                "phrases": phrases,
                "relevant_captions": None,
            }
        )
        scenes.append(scene)
        statements.extend(stated)
    if split == "test":
        for row, relevant in zip(rows, pairs(scenes, statements), strict=True):
            row["relevant_captions"] = np.flatnonzero(relevant).tolist()
    return Dataset.from_list(rows, features=FEATURES, split=split)


def _make(rng) -> tuple[list[dict], tuple, np.ndarray]:
    scene = _compose(rng)
    described = describe(scene, lambda number: _noun_phrase(scene, number, rng), rng, RELATION_MARGIN)
    return scene, described, _draw(scene, rng)


def _true_pairs(scenes, statements) -> np.ndarray:
    most = max(len(scene) for scene in scenes)
    codes = {
        name: np.array([[*(item[name] for item in scene), *[""] * (most - len(scene))] for scene in scenes])
        for name in ("color", "shape", "size")
    }

    def fits(stated):
        return np.logical_and.reduce([codes[name] == value for name, value in stated.items()])

    return true_pairs(scenes, statements, fits, RELATION_MARGIN)


# --- what a picture shows ---------------------------------------------------------------------------------------------


def _compose(rng) -> list[dict]:
    """Three to six objects, no two alike in colour and shape, each jittered within its own slot."""
    count = rng.randint(3, 7)
    slots = rng.permutation(9)[:count]
    kinds = rng.permutation(len(COLORS) * len(SHAPES))[:count]
    scene = []
    for slot, kind in zip(slots, kinds, strict=True):
        size = choose(rng, list(SIZES))
        low, high = SIZES[size][1]
        radius = rng.randint(low, high + 1)
        room = SLOT_SIZE // 2 - radius - 1
        x, y = (
            int(SLOT_SIZE * place + SLOT_SIZE // 2 + rng.randint(-room, room + 1)) for place in (slot % 3, slot // 3)
        )
        scene.append(
            {
                "shape": list(SHAPES)[kind % len(SHAPES)],
                "color": list(COLORS)[kind // len(SHAPES)],
                "size": size,
                "radius": int(radius),
                "x": x,
                "y": y,
                "box": [float(x - radius), float(y - radius), float(x + radius), float(y + radius)],
            }
        )
    return scene


def _draw(scene, rng) -> np.ndarray:
    """The picture as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    image = background(rng, IMAGE_SIZE)
    for item in scene:
        cover = _shape_mask(item["shape"], item["radius"])[..., None]
        color = np.array(COLORS[item["color"]][1]) + rng.randint(-12, 13, size=3)
        top, left = item["y"] - item["radius"], item["x"] - item["radius"]
        patch = image[top : top + len(cover), left : left + len(cover)]
        patch[:] = cover * color + (1 - cover) * patch
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def background(rng, side: int) -> np.ndarray:
    """A muted two-colour gradient, with soft blotches, stripes or grain, as float64 [side, side, 3].

    `side` is a multiple of 8.
    """
    grey = rng.randint(95, 200)
    start, end = (grey + rng.randint(-25, 26, size=3) for _ in range(2))
    ramp = np.linspace(0.0, 1.0, side)
    weight = (ramp[:, None], ramp[None, :], (ramp[:, None] + ramp[None, :]) / 2)[rng.randint(3)]
    image = start + (end - start) * np.broadcast_to(weight, (side, side))[..., None]
    kind = rng.randint(3)
    if kind == 0:  # blotches: coarse noise, enlarged
        coarse = rng.randint(-18, 19, size=(8, 8)).astype(np.float64)
        image += np.kron(coarse, np.ones((side // 8, side // 8)))[..., None]
    elif kind == 1:  # stripes
        period = rng.randint(6, 15)
        stripe = np.arange(side) % period < period // 2
        image += 16.0 * (stripe[None, :, None] if rng.randint(2) else stripe[:, None, None])
    else:  # grain
        image += rng.randint(-14, 15, size=(side, side, 1))
    return image


@functools.cache
def _shape_mask(shape: str, radius: int) -> np.ndarray:
    """Coverage in [0, 1] of each pixel of a (2 * radius)-sided box, by 8 x 8 supersampling."""
    samples = 8
    axis = (np.arange(2 * radius * samples) + 0.5) / (radius * samples) - 1
    x, y = axis[None, :], axis[:, None]
    far, along, across = x * x + y * y, np.abs(x), np.abs(y)
    if shape == "circle":
        inside = far <= 0.96
    elif shape == "square":
        inside = np.maximum(along, across) <= 0.84
    elif shape == "triangle":
        inside = (y <= 0.8) & (y >= 2 * along - 0.95)
    elif shape == "diamond":
        inside = along + across <= 0.98
    elif shape == "star":  # four sharp points
        inside = np.sqrt(along) + np.sqrt(across) <= 0.99
    elif shape == "cross":
        inside = (np.minimum(along, across) <= 0.3) & (np.maximum(along, across) <= 0.95)
    elif shape == "ring":
        inside = (far <= 0.96) & (far >= 0.36)
    elif shape == "heart":
        lobes = (along - 0.46) ** 2 + (y + 0.38) ** 2 <= 0.25
        inside = lobes | ((y >= -0.2) & (1.05 * along + y <= 0.92)) | ((across <= 0.4) & (along <= 0.46))
    else:
        raise ValueError(f"unknown shape {shape!r}")
    side = 2 * radius
    return np.broadcast_to(inside, (len(axis), len(axis))).reshape(side, samples, side, samples).mean(axis=(1, 3))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="png", compress_level=1)
    return buffer.getvalue()


# --- what is said of it -----------------------------------------------------------------------------------------------


def _noun_phrase(scene, number, rng) -> tuple[str, dict]:
    """A noun phrase that fits object `number` alone of its scene, and the attributes that it states."""
    item = scene[number]
    stated = {"color": item["color"], "shape": item["shape"]}
    if rng.randint(5) < 2:
        stated["size"] = item["size"]
    if rng.randint(8) == 0:  # "a red thing", where there is only one
        general = {name: value for name, value in stated.items() if name != "shape"}
        if sum(_fits(other, general) for other in scene) == 1:
            stated = general
    words = [choose(rng, SIZES[item["size"]][0])] if "size" in stated else []
    words.append(choose(rng, COLORS[item["color"]][0]))
    words.append(choose(rng, SHAPES[item["shape"]]) if "shape" in stated else choose(rng, ("thing", "shape")))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words]), stated


def _fits(item, stated) -> bool:
    return all(item[name] == value for name, value in stated.items())
