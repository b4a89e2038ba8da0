import numpy as np
import pytest
from datasets import Dataset

from omit_hf.data import DataError
from omit_hf.data.phrases import NO_BOX, check_phrases, phrases_of
from omit_hf.data.sources.scenes import FEATURES


def row(**changes) -> dict:
    good = {
        "image": None,
        "captions": ["a red dog", "it"],
        "image_id": "dogs.jpg",
        "width": 20,
        "height": 10,
        "boxes": [[0, 0, 5, 5], [10, 2, 20, 10]],
        "phrases": [{"caption": 0, "start": 0, "end": 9, "object": 1}],
        "relevant_captions": None,
    }
    return {**good, **changes}


def phrase(caption, start, end, number) -> dict:
    return {"caption": caption, "start": start, "end": end, "object": number}


def split(*rows) -> Dataset:
    return Dataset.from_list(list(rows), features=FEATURES)


def test_entries_of_one_span_are_one_phrase():
    entries = [phrase(0, 2, 9, 1), phrase(0, 0, 1, NO_BOX), phrase(1, 0, 2, 0), phrase(0, 2, 9, 0)]
    first, second = phrases_of(row(phrases=entries), 0)
    assert (first.start, first.end, first.boxes.shape) == (0, 1, (0, 4))
    assert (second.start, second.end) == (2, 9)
    np.testing.assert_array_equal(second.boxes, [[0, 0, 5, 5], [10, 2, 20, 10]])
    assert phrases_of(row(phrases=entries), 1)[0].boxes.tolist() == [[0, 0, 5, 5]]
    assert phrases_of(row(boxes=[], phrases=[phrase(0, 0, 1, NO_BOX)]), 0)[0].boxes.shape == (0, 4)


def test_scenes_fit_their_pictures(scenes):
    for each in scenes.values():
        check_phrases(each)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"phrases": [phrase(2, 0, 1, 0)]}, "phrases[0] is of caption 2, and there are 2"),
        ({"phrases": [phrase(-1, 0, 1, 0)]}, "phrases[0] is of caption -1, and there are 2"),
        ({"phrases": [phrase(0, 4, 10, 0)]}, "phrases[0] has the characters 4 to 10, and caption 0 has 9"),
        ({"phrases": [phrase(1, 1, 1, 0)]}, "phrases[0] has the characters 1 to 1, and caption 1 has 2"),
        ({"phrases": [phrase(1, -1, 1, 0)]}, "phrases[0] has the characters -1 to 1, and caption 1 has 2"),
        ({"phrases": [phrase(0, 0, 1, 2)]}, "phrases[0] names box 2, and there are 2"),
        ({"phrases": [phrase(0, 0, 1, -2)]}, "phrases[0] names box -2, and there are 2"),
        ({"boxes": [[0, 0, 5, 5], [1, 2, 21, 9]]}, "boxes[1] is [1.0, 2.0, 21.0, 9.0], outside the picture of 20 x 10"),
        ({"boxes": [[0, 0, 5, 5], [1, -1, 2, 9]]}, "boxes[1] is [1.0, -1.0, 2.0, 9.0], outside the picture"),
        ({"boxes": [[0, 0, 5, 5], [1, 1, 1, 9]]}, "boxes[1] is [1.0, 1.0, 1.0, 9.0], which ends before it begins"),
        ({"boxes": [[0, 0, 5, np.nan], [1, 1, 2, 9]]}, "boxes[0] is [0.0, 0.0, 5.0, nan], which holds NaN or infinity"),
        ({"boxes": None}, "width, height, boxes or phrases is null"),
    ],
)
def test_what_does_not_fit(changes, problem):
    with pytest.raises(DataError) as caught:
        check_phrases(split(row(), row(image_id="wrong.jpg", **changes)))
    [found] = caught.value.problems
    assert found.startswith(f"wrong.jpg: {problem}")


def test_all_that_is_wrong_is_listed():
    bad = row(boxes=[[0, 0, 50, 5]], phrases=[phrase(0, 0, 99, 0), phrase(0, 0, 1, 7)])
    with pytest.raises(DataError, match="The boxes and phrases has 6 problems"):
        check_phrases(split(bad, bad))


def test_a_split_without_phrases():
    with pytest.raises(
        ValueError, match="has no column height, phrases; expected boxes, and the phrases that name them"
    ):
        check_phrases(split(row()).remove_columns(["height", "phrases"]))
