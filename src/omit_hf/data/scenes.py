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

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from tqdm.auto import tqdm

IMAGE_SIZE = 96  # pixels
SLOT_SIZE = 32  # a picture is a 3 x 3 arrangement of slots, at most one object in each
CAPTIONS_PER_IMAGE = 5
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
# A relation holds when the first centre lies at least RELATION_MARGIN pixels to that side of the second.
RELATION_MARGIN = 12
RELATIONS = {
    "left": ("left of", "leftward of"),
    "right": ("right of", "rightward of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# Templates by how many objects they name, and whether with a relation {r} between {a} and {b}.
TEMPLATES = {
    (1, False): (
        "there is {a} somewhere in this picture",
        "you can see {a} among other things",
        "a drawing with {a} in it",
        "somebody put {a} on the page",
        "{a}, and whatever else is around",
    ),
    (2, False): (
        "{a} and {b}",
        "{a} together with {b}",
        "a picture of {a} and {b} with some other things",
        "both {a} and {b} can be seen here",
        "one of the things is {a}, another {b}",
    ),
    (2, True): (
        "{a} {r} {b}",
        "{a} is {r} {b}",
        "in this drawing {a} sits {r} {b}",
        "we notice {a} {r} {b}",
    ),
    (3, False): (
        "{a}, {b} and {c}",
        "a scene with {a}, {b} and {c}",
        "there are {a}, {b} and also {c}",
        "find {a}, {b} and {c}",
    ),
    (3, True): (
        "{a} {r} {b}, and {c}",
        "{a} is {r} {b}, also {c}",
        "besides {c} we see {a} {r} {b}",
    ),
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
) -> DatasetDict:
    """Generate Scenes.

    Args:
        train_size, validation_size, test_size: images in each split. Image number `n` of a split does not depend on
            the sizes, so a smaller split is a prefix of a larger one.
        seed: seed of the content; the same seed gives the same bytes on every machine.

    Returns:
        `DatasetDict` in the schema of `omit_hf.data`; see `FEATURES`.

    Raises:
        ValueError: if a size is not positive, the seed is negative, or one of them is no integer.
    """
    sizes = {"train": train_size, "validation": validation_size, "test": test_size}
    for split, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{split}_size is {size!r}; expected at least 1 image, as an integer.")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2**32 - 1.")
    return DatasetDict({split: _generate_split(split, size, seed) for split, size in sizes.items()})


def _generate_split(split: str, size: int, seed: int) -> Dataset:
    split_number = list(SPLIT_SIZES).index(split)
    scenes, rows, statements = [], [], []
    for number in tqdm(range(size), desc=f"Scenes: drawing {split}", leave=False):
        # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
        rng = np.random.RandomState([seed, split_number, number])
        scene = _compose(rng)
        captions, phrases, stated = _describe(scene, rng)
        rows.append(
            {
                "image": {"bytes": _png(_draw(scene, rng)), "path": None},
                "captions": captions,
                "image_id": f"scenes-{seed}-{split}-{number:05d}",
                "width": IMAGE_SIZE,
                "height": IMAGE_SIZE,
                "boxes": [_box(item) for item in scene],
                "phrases": phrases,
                "relevant_captions": None,
            }
        )
        scenes.append(scene)
        statements.extend(stated)
    if split == "test":
        for row, relevant in zip(rows, _true_pairs(scenes, statements), strict=True):
            row["relevant_captions"] = np.flatnonzero(relevant).tolist()
    return Dataset.from_list(rows, features=FEATURES, split=split)


# --- what a picture shows ---------------------------------------------------------------------------------------------


def _choose(rng, options):
    return options[rng.randint(len(options))]


def _compose(rng) -> list[dict]:
    """Three to six objects, no two alike in colour and shape, each jittered within its own slot."""
    count = rng.randint(3, 7)
    slots = rng.permutation(9)[:count]
    kinds = rng.permutation(len(COLORS) * len(SHAPES))[:count]
    scene = []
    for slot, kind in zip(slots, kinds, strict=True):
        size = _choose(rng, list(SIZES))
        low, high = SIZES[size][1]
        radius = rng.randint(low, high + 1)
        room = SLOT_SIZE // 2 - radius - 1
        x, y = (SLOT_SIZE * (slot % 3) + SLOT_SIZE // 2, SLOT_SIZE * (slot // 3) + SLOT_SIZE // 2)
        scene.append(
            {
                "shape": list(SHAPES)[kind % len(SHAPES)],
                "color": list(COLORS)[kind // len(SHAPES)],
                "size": size,
                "radius": int(radius),
                "x": int(x + rng.randint(-room, room + 1)),
                "y": int(y + rng.randint(-room, room + 1)),
            }
        )
    return scene


def _box(item) -> list[float]:
    return [float(item[axis] + sign * item["radius"]) for sign in (-1, 1) for axis in ("x", "y")]


def _draw(scene, rng) -> np.ndarray:
    """The picture as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    image = _background(rng)
    for item in scene:
        cover = _shape_mask(item["shape"], item["radius"])[..., None]
        color = np.array(COLORS[item["color"]][1]) + rng.randint(-12, 13, size=3)
        top, left = item["y"] - item["radius"], item["x"] - item["radius"]
        patch = image[top : top + len(cover), left : left + len(cover)]
        patch[:] = cover * color + (1 - cover) * patch
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _background(rng) -> np.ndarray:
    """A muted two-colour gradient, with soft blotches, stripes or grain, as float64 [H, W, 3]."""
    grey = rng.randint(95, 200)
    start, end = (grey + rng.randint(-25, 26, size=3) for _ in range(2))
    ramp = np.linspace(0.0, 1.0, IMAGE_SIZE)
    weight = (ramp[:, None], ramp[None, :], (ramp[:, None] + ramp[None, :]) / 2)[rng.randint(3)]
    image = start + (end - start) * np.broadcast_to(weight, (IMAGE_SIZE, IMAGE_SIZE))[..., None]
    kind = rng.randint(3)
    if kind == 0:  # blotches: coarse noise, enlarged
        coarse = rng.randint(-18, 19, size=(8, 8)).astype(np.float64)
        image += np.kron(coarse, np.ones((IMAGE_SIZE // 8, IMAGE_SIZE // 8)))[..., None]
    elif kind == 1:  # stripes
        period = rng.randint(6, 15)
        stripe = np.arange(IMAGE_SIZE) % period < period // 2
        image += 16.0 * (stripe[None, :, None] if rng.randint(2) else stripe[:, None, None])
    else:  # grain
        image += rng.randint(-14, 15, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
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


def _describe(scene, rng) -> tuple[list[str], list[dict], list[dict]]:
    """Five different captions, their phrases, and what each caption states in a form that can be checked."""
    captions, phrases, statements = [], [], []
    while len(captions) < CAPTIONS_PER_IMAGE:
        count = (1, 2, 3)[np.searchsorted([0.1, 0.5], rng.random_sample(), side="right")]
        chosen = [int(n) for n in rng.permutation(len(scene))[:count]]
        wanted = [_noun_phrase(scene, n, rng) for n in chosen]
        relation = _choose(rng, _relations(scene[chosen[0]], scene[chosen[1]])) if count > 1 else None
        if relation is not None and rng.randint(2):
            relation = None
        template = _choose(rng, TEMPLATES[count, relation is not None])
        caption, spans = _fill(template, [text for text, _ in wanted], relation and _choose(rng, RELATIONS[relation]))
        if caption in captions:
            continue
        phrases += [
            {"caption": len(captions), "start": start, "end": end, "object": chosen[n]}
            for n, (start, end) in enumerate(spans)
        ]
        statements.append({"attributes": [attributes for _, attributes in wanted], "relation": relation})
        captions.append(caption)
    return captions, phrases, statements


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
    words = [_choose(rng, SIZES[item["size"]][0])] if "size" in stated else []
    words.append(_choose(rng, COLORS[item["color"]][0]))
    words.append(_choose(rng, SHAPES[item["shape"]]) if "shape" in stated else _choose(rng, ("thing", "shape")))
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words]), stated


def _fits(item, stated) -> bool:
    return all(item[name] == value for name, value in stated.items())


def _relations(first, second) -> list[str]:
    offsets = {
        "left": second["x"] - first["x"],
        "right": first["x"] - second["x"],
        "above": second["y"] - first["y"],
        "below": first["y"] - second["y"],
    }
    return [name for name, offset in offsets.items() if offset >= RELATION_MARGIN]


def _fill(template, texts, relation) -> tuple[str, list[tuple[int, int]]]:
    """Fill a template from left to right, and note where each noun phrase lies."""
    caption, spans = "", {}
    for part in template.replace("{", "\0{").replace("}", "}\0").split("\0"):
        if part == "{r}":
            part = relation
        elif part.startswith("{"):
            number = "abc".index(part[1])
            part = texts[number]
            spans[number] = (len(caption), len(caption) + len(part))
        caption += part
    return caption, [spans[n] for n in range(len(texts))]


def _true_pairs(scenes, statements) -> np.ndarray:
    """Which statement is true of which scene, as bool [scenes, statements].

    A statement is true where its noun phrases fit distinct objects between which its relation holds.
    """
    most = max(len(scene) for scene in scenes)
    codes = {
        name: np.array([[*(item[name] for item in scene), *[""] * (most - len(scene))] for scene in scenes])
        for name in ("color", "shape", "size")
    }
    x, y = (np.array([[*(item[a] for item in s), *[0] * (most - len(s))] for s in scenes]) for a in ("x", "y"))
    offset_x, offset_y = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]  # [scene, first, second]
    holds = {
        "left": offset_x >= RELATION_MARGIN,
        "right": -offset_x >= RELATION_MARGIN,
        "above": offset_y >= RELATION_MARGIN,
        "below": -offset_y >= RELATION_MARGIN,
        None: np.ones_like(offset_x, dtype=bool),
    }
    different = ~np.eye(most, dtype=bool)
    truth = np.empty((len(scenes), len(statements)), dtype=bool)
    for number, statement in enumerate(tqdm(statements, desc="Scenes: finding all true pairs", leave=False)):
        fits = [
            np.logical_and.reduce([codes[name] == value for name, value in stated.items()])
            for stated in statement["attributes"]
        ]  # one [scene, object] for each noun phrase
        if len(fits) == 1:
            truth[:, number] = fits[0].any(axis=1)
            continue
        pairs = fits[0][:, :, None] & fits[1][:, None, :] & holds[statement["relation"]] & different
        if len(fits) == 2:
            truth[:, number] = pairs.any(axis=(1, 2))
        else:
            triples = pairs[..., None] & fits[2][:, None, None, :] & different[:, None, :] & different[None, :, :]
            truth[:, number] = triples.any(axis=(1, 2, 3))
    return truth
