"""Captions of a picture whose content is known, and of which other pictures they are true.

A caption names one to three objects of a scene among filler words, half of those that name several with a spatial
relation. What it states is kept in a form that can be checked against every scene.
"""

from collections.abc import Callable

import numpy as np
from tqdm.auto import tqdm

CAPTIONS_PER_IMAGE = 5
# The words of a relation. It holds when the first centre lies at least a margin to that side of the second.
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


def choose(rng, options):
    return options[rng.randint(len(options))]


def describe(scene: list[dict], noun_phrase: Callable, rng, margin: float) -> tuple[list[str], list[dict], list[dict]]:
    """Five different captions of a scene.

    Args:
        scene: objects, of which `x` and `y` are the centre.
        noun_phrase: gives a phrase for an object of the scene, by its number, and what the phrase states.
        rng: a `numpy.random.RandomState`.
        margin: of a relation, in pixels.

    Returns:
        The captions; their phrases, as `omit_hf.data.sources.scenes.FEATURES` has them; and the statement of each
        caption: what its `phrases` state, and its `relation` between the first two of them, or None.
    """
    captions, phrases, statements = [], [], []
    while len(captions) < CAPTIONS_PER_IMAGE:
        count = (1, 2, 3)[np.searchsorted([0.1, 0.5], rng.random_sample(), side="right")]
        chosen = [int(n) for n in rng.permutation(len(scene))[:count]]
        wanted = [noun_phrase(n) for n in chosen]
        holding = _relations(scene[chosen[0]], scene[chosen[1]], margin) if count > 1 else []
        relation = choose(rng, holding) if holding else None
        if relation is not None and rng.randint(2):
            relation = None
        template = choose(rng, TEMPLATES[count, relation is not None])
        caption, spans = _fill(template, [text for text, _ in wanted], relation and choose(rng, RELATIONS[relation]))
        if caption in captions:
            continue
        phrases += [
            {"caption": len(captions), "start": start, "end": end, "object": chosen[n]}
            for n, (start, end) in enumerate(spans)
        ]
        statements.append({"phrases": [stated for _, stated in wanted], "relation": relation})
        captions.append(caption)
    return captions, phrases, statements


def _relations(first, second, margin) -> list[str]:
    offsets = {
        "left": second["x"] - first["x"],
        "right": first["x"] - second["x"],
        "above": second["y"] - first["y"],
        "below": first["y"] - second["y"],
    }
    return [name for name, offset in offsets.items() if offset >= margin]


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


def true_pairs(scenes: list[list[dict]], statements: list[dict], fits: Callable, margin: float) -> np.ndarray:
    """Which statement is true of which scene, as bool [scenes, statements].

    A statement is true where its noun phrases fit distinct objects between which its relation holds.

    Args:
        scenes, statements, margin: those of `describe`, of all pictures.
        fits: gives, for what a phrase states, the objects that it fits, as bool [scenes, objects of the largest scene].
    """
    most = max(len(scene) for scene in scenes)
    x, y = (np.array([[*(item[a] for item in s), *[0] * (most - len(s))] for s in scenes]) for a in ("x", "y"))
    offset_x, offset_y = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]  # [scene, first, second]
    holds = {
        "left": offset_x >= margin,
        "right": -offset_x >= margin,
        "above": offset_y >= margin,
        "below": -offset_y >= margin,
        None: np.ones_like(offset_x, dtype=bool),
    }
    different = ~np.eye(most, dtype=bool)
    truth = np.empty((len(scenes), len(statements)), dtype=bool)
    for number, statement in enumerate(tqdm(statements, desc="Scenes: finding all true pairs", leave=False)):
        found = [fits(stated) for stated in statement["phrases"]]  # one [scene, object] for each noun phrase
        if len(found) == 1:
            truth[:, number] = found[0].any(axis=1)
            continue
        pairs = found[0][:, :, None] & found[1][:, None, :] & holds[statement["relation"]] & different
        if len(found) == 2:
            truth[:, number] = pairs.any(axis=(1, 2))
        else:
            triples = pairs[..., None] & found[2][:, None, None, :] & different[:, None, :] & different[None, :, :]
            truth[:, number] = triples.any(axis=(1, 2, 3))
    return truth
