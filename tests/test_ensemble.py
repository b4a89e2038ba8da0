import dataclasses
import json

import numpy as np
import pytest
from datasets import Dataset
from safetensors import safe_open
from safetensors.numpy import save_file

from omit_hf.data.schema import DataError
from omit_hf.evaluation import SplitPairs, ensemble, load_similarity, pairs_metrics, save_similarity

PAIRS = SplitPairs(["a", "b", "c"], [["one", "two"], ["three"], ["four", "fünf"]], source="tiny")


def scores(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    for seed in range(3):
        save_similarity(tmp_path / f"{seed}.safetensors", scores(seed), PAIRS)
    return [tmp_path / f"{seed}.safetensors" for seed in range(3)]


def test_what_is_saved_comes_back(files):
    similarity, pairs = load_similarity(files[1])
    np.testing.assert_array_equal(similarity, scores(1))
    assert (pairs, pairs.source, pairs.split, pairs.relevant) == (PAIRS, "tiny", "test", None)
    assert not list(files[1].parent.glob(".*"))
    (files[1].parent / "other").touch()
    assert files[1].stat().st_mode == (files[1].parent / "other").stat().st_mode


def rows(relevant):
    return Dataset.from_dict({"image_id": ["a", "b"], "captions": [["x", "y"], ["z"]], "relevant_captions": relevant})


def test_true_pairs_of_a_split():
    assert SplitPairs.of(rows([None, None])).relevant is None
    assert SplitPairs.of(rows([[0, 2], []])).relevant.tolist() == [[True, False, True], [False, False, False]]


def test_true_pairs_that_are_none():
    """None of them may count as a pair, or as all pairs of an image."""
    with pytest.raises(DataError, match="2 problems:\n  a has None; expected numbers of .* 0 to 2\n  b has -1"):
        SplitPairs.of(rows([None, [0, -1]]))
    with pytest.raises(DataError, match="a has 3; expected"):
        SplitPairs.of(rows([[3], [0]]))


def test_all_true_pairs_are_saved_too(tmp_path):
    relevant = np.random.default_rng(0).random((3, 5)) < 0.5
    save_similarity(tmp_path / "s.safetensors", scores(0).T.copy().T, dataclasses.replace(PAIRS, relevant=relevant))
    similarity, pairs = load_similarity(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(similarity, scores(0))
    np.testing.assert_array_equal(pairs.relevant, relevant)
    assert {"rsum", "i2t_map", "t2i_map_at_r"} <= pairs_metrics(similarity, pairs).keys()


def test_the_ensemble_is_the_mean(files):
    similarity, pairs = ensemble(files)
    expected = [[sum(float(scores(s)[i, t]) for s in range(3)) / 3 for t in range(5)] for i in range(3)]
    np.testing.assert_array_equal(similarity, np.float32(expected))
    assert pairs == PAIRS
    np.testing.assert_array_equal(ensemble(files[:1])[0], scores(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": ["a", "x", "c"]}, "where the one has image 'b', the other has 'x'"),
        ({"captions": [["one", "two"], ["3"], ["four", "fünf"]]}, "image 'b' has other captions"),
        ({"captions": [["one"], ["two", "three"], ["four", "fünf"]]}, "image 'a' has other captions"),
        ({"split": "validation"}, "split 'validation', not 'test'"),
        ({"image_ids": ["a", "b"], "captions": [["one", "two"], ["three"]]}, "2 images and 3 captions, not 3 and 5"),
    ],
)
def test_matrices_of_different_data(files, tmp_path, change, message):
    other = dataclasses.replace(PAIRS, **change)
    save_similarity(tmp_path / "other.safetensors", np.zeros(other.shape), other)
    with pytest.raises(ValueError, match=rf"other.safetensors is of other data than .*0.safetensors: {message}"):
        ensemble([files[0], tmp_path / "other.safetensors"])


def test_files_that_are_no_similarities(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="No similarity at .*nowhere.safetensors; evaluate.py --save_simil"):
        ensemble([files[0], tmp_path / "nowhere.safetensors"])
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="text.safetensors is no safetensors file"):
        load_similarity(tmp_path / "text.safetensors")
    save_file({"similarity": scores(0)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors holds no similarity"):
        load_similarity(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"0.safetensors is given more than once"):
        ensemble([files[0], files[1], tmp_path / "." / "0.safetensors"])
    with pytest.raises(ValueError, match="No similarity given"):
        ensemble([])


def write(file, similarity, **metadata):
    whole = {"kind": "omit_hf.similarity", "split": "test", "source": ""}
    whole |= {"image_ids": json.dumps(PAIRS.image_ids), "captions": json.dumps(PAIRS.captions), **metadata}
    save_file({"similarity": similarity}, file, whole)


@pytest.mark.parametrize(
    ("similarity", "metadata", "message"),
    [
        (np.zeros((3, 4), np.float32), {}, r"similarity has shape \(3, 4\); expected \(3, 5\), those of its ids"),
        (np.full((3, 5), np.nan, np.float32), {}, "similarity is NaN at row 0, column 0"),
        (np.zeros((3, 5), np.float32), {"image_ids": '["a"]'}, "There are 1 image_ids and captions of 3 images"),
        (np.zeros((3, 5), np.float32), {"image_ids": "a, b"}, "Expecting value"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, similarity, metadata, message):
    write(tmp_path / "s.safetensors", similarity, **metadata)
    with pytest.raises(ValueError, match=f"s.safetensors: {message}"):
        load_similarity(tmp_path / "s.safetensors")


def test_similarities_that_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"file is .*s.npz; expected a name that ends with .safetensors"):
        save_similarity(tmp_path / "s.npz", scores(0), PAIRS)
    with pytest.raises(FileNotFoundError, match="There is no folder .*none for s.safetensors"):
        save_similarity(tmp_path / "none" / "s.safetensors", scores(0), PAIRS)
    with pytest.raises(ValueError, match=r"similarity has shape \(5, 3\); expected \(3, 5\), images and captions"):
        save_similarity(tmp_path / "s.safetensors", scores(0).T, PAIRS)
    with pytest.raises(ValueError, match=r"relevant has shape \(1, 1\); expected \(3, 5\)"):
        dataclasses.replace(PAIRS, relevant=np.ones((1, 1), dtype=bool))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"captions": '[["one", 2], ["three"], ["four", "five"]]'}, {}, r"captions\[0\] holds 2; expected texts"),
        ({"captions": '["xx", "y", "zz"]'}, {}, r"captions\[0\] is 'xx'; expected a list"),
        ({"captions": "[2, 1, 2]"}, {}, r"captions\[0\] is 2; expected a list"),
        ({"captions": '{"a": []}'}, {}, r"captions is \{'a': \[\]\}; expected a list"),
        ({"image_ids": '"abc"'}, {}, "image_ids is 'abc'; expected a list"),
        ({"image_ids": '["a", NaN, "c"]'}, {}, "image_ids holds nan; expected texts"),
        ({"image_ids": "[" * 100_000}, {}, "values nested too deep"),
        ({"image_ids": "["}, {}, ": Expecting value"),
        ({}, {"relevant": np.ones((3, 5), np.float32)}, "relevant is of type float32; expected true and false"),
    ],
)
def test_a_file_that_says_other_things_of_its_pairs(tmp_path, changes, tensors, message):
    save_similarity(tmp_path / "one.safetensors", scores(0), PAIRS)
    with safe_open(tmp_path / "one.safetensors", "numpy") as content:
        metadata = content.metadata()
    save_file({"similarity": scores(0), **tensors}, tmp_path / "one.safetensors", {**metadata, **changes})
    with pytest.raises(ValueError, match=f"one.safetensors.*{message}"):
        load_similarity(tmp_path / "one.safetensors")


def test_a_file_without_its_captions(tmp_path):
    save_file(
        {"similarity": scores(0)}, tmp_path / "one.safetensors", {"kind": "omit_hf.similarity", "image_ids": "[]"}
    )
    with pytest.raises(ValueError, match="one.safetensors has no 'captions'; expected what evaluate.py"):
        load_similarity(tmp_path / "one.safetensors")
