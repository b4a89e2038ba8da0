import itertools

import numpy as np

from omit_hf.data.sources.scene_captions import CAPTIONS_PER_IMAGE, RELATIONS, describe, true_pairs

MARGIN = 3


def scenes_of(rng, count):
    """Objects with two properties each, on a small board."""
    return [
        [{"x": rng.randint(10), "y": rng.randint(10), "has": set(rng.choice(6, 2))} for _ in range(rng.randint(1, 5))]
        for _ in range(count)
    ]


def gap(relation, a, b):
    return {"left": b["x"] - a["x"], "right": a["x"] - b["x"], "above": b["y"] - a["y"], "below": a["y"] - b["y"]}[
        relation
    ]


def holds(statement, scene) -> bool:
    for chosen in itertools.permutations(scene, len(statement["phrases"])):
        if all(stated in item["has"] for stated, item in zip(statement["phrases"], chosen, strict=True)) and (
            statement["relation"] is None or gap(statement["relation"], *chosen[:2]) >= MARGIN
        ):
            return True
    return False


def test_true_pairs_are_those_of_a_loop():
    """Also where one object fits two phrases, and of statements that need more objects than a scene has."""
    rng = np.random.RandomState(0)
    scenes = scenes_of(rng, 60)
    statements = []
    for _ in range(80):
        count = rng.randint(1, 4)
        relation = [None, *RELATIONS][rng.randint(5)] if count > 1 else None
        statements.append({"phrases": rng.randint(6, size=count).tolist(), "relation": relation})
    most = max(map(len, scenes))

    def fits(stated):
        return np.array([[n < len(scene) and stated in scene[n]["has"] for n in range(most)] for scene in scenes])

    found = true_pairs(scenes, statements, fits, MARGIN)
    expected = np.array([[holds(statement, scene) for statement in statements] for scene in scenes])
    assert np.array_equal(found, expected)
    assert 0.05 < expected.mean() < 0.5


def test_a_description_is_true_and_its_spans_are_the_phrases():
    rng = np.random.RandomState(1)
    for scene in [scene for scene in scenes_of(rng, 60) if len(scene) >= 3]:
        scene = [{**item, "has": {number}} for number, item in enumerate(scene)]
        captions, phrases, statements = describe(scene, lambda number: (f"thing {number}", number), rng, MARGIN)
        assert len(set(captions)) == len(statements) == CAPTIONS_PER_IMAGE
        for number, (caption, statement) in enumerate(zip(captions, statements, strict=True)):
            assert holds(statement, scene)
            own = [phrase for phrase in phrases if phrase["caption"] == number]
            assert [phrase["object"] for phrase in own] == statement["phrases"]
            assert [caption[p["start"] : p["end"]] for p in own] == [f"thing {n}" for n in statement["phrases"]]
            assert "{" not in caption
            stated = [words for words in RELATIONS.get(statement["relation"], ()) if f" {words} " in caption]
            assert bool(stated) == (statement["relation"] is not None)
