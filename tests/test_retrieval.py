import math

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_retrieval import naive_average_precision, naive_metrics, naive_precision_at_r

from omit_hf import retrieval_metrics
from omit_hf.evaluation import mean_average_precision, metrics_table, precision_at_r
from omit_hf.metrics import IMAGE_TEXT_RETRIEVAL


@given(data=st.data(), images=st.integers(1, 8), texts=st.integers(1, 15), levels=st.integers(1, 30))
def test_metrics_are_those_of_a_double_loop(data, images, texts, levels):
    """With ties, and any number of captions an image, zero included."""
    values = data.draw(st.lists(st.integers(-levels, levels), min_size=images * texts, max_size=images * texts))
    similarity = np.array(values, dtype=np.float32).reshape(images, texts) / levels
    index = data.draw(st.lists(st.integers(0, images - 1), min_size=texts, max_size=texts))
    expected = naive_metrics(similarity.tolist(), index)
    assert retrieval_metrics(similarity, index) == expected
    assert retrieval_metrics(torch.from_numpy(similarity), torch.tensor(index)) == retrieval_metrics(similarity, index)


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    similarity, index = rng.normal(size=(37, 91)), rng.integers(0, 37, size=91)
    relevant = rng.random((37, 91)) < 0.1
    measures = (mean_average_precision, precision_at_r)
    whole = retrieval_metrics(similarity, index), *(measure(similarity, relevant) for measure in measures)
    monkeypatch.setattr("omit_hf.evaluation.retrieval.ELEMENTS_AT_ONCE", 200)
    assert (retrieval_metrics(similarity, index), *(measure(similarity, relevant) for measure in measures)) == whole


@settings(max_examples=settings.default.max_examples // 2)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 1000]))
def test_mean_average_precision_is_that_of_a_loop(seed, levels):
    rng = np.random.default_rng(seed)
    similarity = rng.integers(0, levels, size=(6, 9)) / levels
    relevant = rng.random((6, 9)) < 0.3
    relevant[2], relevant[3, 4] = False, True
    ways = {}
    for way, scores, truth in (("i2t_map", similarity, relevant), ("t2i_map", similarity.T, relevant.T)):
        queries = [
            naive_average_precision(s, r) for s, r in zip(scores.tolist(), truth.tolist(), strict=True) if any(r)
        ]
        ways[way] = 100 * (math.fsum(queries) / len(queries))
    assert mean_average_precision(similarity, relevant) == ways


@settings(max_examples=settings.default.max_examples // 2)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 1000]))
def test_precision_at_r_is_that_of_a_loop(seed, levels):
    """To the last digit."""
    rng = np.random.default_rng(seed)
    similarity, relevant = rng.integers(0, levels, size=(6, 40)) / levels, rng.random((6, 40)) < 0.4
    relevant[2], relevant[3, 4] = False, True
    expected = {}
    for way, scores, truth in (("i2t", similarity, relevant), ("t2i", similarity.T, relevant.T)):
        queries = [(s.tolist(), r.tolist()) for s, r in zip(scores, truth, strict=True) if r.any()]
        expected |= naive_precision_at_r(way, queries)
    assert precision_at_r(similarity, relevant) == expected
    rows, columns = rng.permutation(6), rng.permutation(40)
    assert precision_at_r(similarity[rows][:, columns], relevant[rows][:, columns]) == expected


def test_perfect_and_constant():
    index = np.repeat(np.arange(20), 5)
    truth = index[None] == np.arange(20)[:, None]
    perfect = retrieval_metrics(truth.astype(float), index)
    assert perfect["rsum"] == 600
    assert perfect["i2t_medr"] == perfect["t2i_meanr"] == 1
    assert mean_average_precision(truth.astype(float), truth) == {"i2t_map": 100.0, "t2i_map": 100.0}
    assert set(precision_at_r(truth.astype(float), truth).values()) == {100.0}
    assert set(precision_at_r(np.zeros((20, 100)), truth).values()) == {0.0}
    constant = retrieval_metrics(np.zeros((20, 100)), index)
    assert constant["rsum"] == 0
    assert (constant["i2t_medr"], constant["t2i_medr"]) == (96, 20)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, bool, np.float16])
def test_scores_of_any_real_type(dtype):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 2 if dtype is bool else 120, (4, 8)).astype(dtype)
    scores[0, :2] = np.iinfo(np.int8).min if dtype is np.int8 else 0  # the negative of which wraps
    index, relevant = np.repeat(np.arange(4), 2), rng.random((4, 8)) < 0.5
    for given_scores in (scores, torch.from_numpy(scores)):
        assert retrieval_metrics(given_scores, index) == retrieval_metrics(scores.astype(float), index)
        expected = mean_average_precision(scores.astype(float), relevant)
        assert mean_average_precision(given_scores, relevant) == expected


@pytest.mark.parametrize("scores", [np.eye(2) * 1j, np.array([["a", "b"]]), np.array([[None, 1]])])
def test_scores_that_are_no_real_numbers(scores):
    with pytest.raises(ValueError, match=r"similarity has type .*; expected real numbers"):
        retrieval_metrics(scores, [0, 0])


def test_half_precision_tensors():
    similarity = torch.tensor([[0.5, 0.25], [0.125, 1.0]])
    for dtype in (torch.bfloat16, torch.float16):
        assert retrieval_metrics(similarity.to(dtype), [0, 1])["rsum"] == 600


@pytest.mark.parametrize(
    ("similarity", "index", "message"),
    [
        (np.zeros(3), [0, 0, 0], r"similarity has shape \(3,\); expected \[images, captions\]"),
        (np.zeros((0, 3)), [0, 0, 0], r"similarity has shape \(0, 3\)"),
        ([[0.0, float("nan")]], [0, 0], "similarity is NaN at row 0, column 1"),
        (np.zeros((2, 3)), [0, 1], r"caption_image_index has shape \(2,\).*expected 3 integers"),
        (np.zeros((2, 3)), [0.0, 1.0, 1.0], "type float64; expected 3 integers"),
        (np.zeros((2, 3)), [0, 1, 2], r"caption_image_index\[2\] is 2; expected an image from 0 to 1"),
        (np.zeros((2, 3)), [0, -1, 1], r"caption_image_index\[1\] is -1"),
    ],
)
def test_bad_input(similarity, index, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(similarity, index)


@pytest.mark.parametrize("measure", [mean_average_precision, precision_at_r])
def test_bad_relevance(measure):
    with pytest.raises(ValueError, match=r"relevant has shape \(2, 2\); expected that of the similarity, \(2, 3\)"):
        measure(np.zeros((2, 3)), np.ones((2, 2)))
    with pytest.raises(ValueError, match="relevant is false everywhere"):
        measure(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="similarity is NaN at row 1, column 0"):
        measure([[0.0], [math.nan]], [[True], [True]])


def test_table():
    metrics = retrieval_metrics(np.eye(12), np.arange(12))
    assert metrics_table(metrics).splitlines() == [
        "| direction | R@1 | R@5 | R@10 | median rank | mean rank |",
        "|---|---|---|---|---|---|",
        "| image → text | 100.0 | 100.0 | 100.0 | 1 | 1.0 |",
        "| text → image | 100.0 | 100.0 | 100.0 | 1 | 1.0 |",
        "",
        "RSUM 600.0",
    ]
    lines = metrics_table({"t2t_r1": 50.0, "i2t_map": 12.34, "i2t_map_at_r": 5}).splitlines()
    assert lines[0] == "| direction | R@1 | mAP | mAP@R |"
    assert lines[2:] == ["| image → text | – | 12.3 | 5.0 |", "| text → text | 50.0 | – | – |"]


def test_evaluate_module():
    rng = np.random.default_rng(0)
    similarity, index = rng.normal(size=(6, 13)).astype(np.float32), rng.integers(0, 6, size=13)
    metric = evaluate.load(IMAGE_TEXT_RETRIEVAL)
    references = [np.flatnonzero(index == image).tolist() for image in range(6)]
    found = metric.compute(predictions=similarity.tolist(), references=references)
    assert found == pytest.approx(retrieval_metrics(similarity, index))
    truth = rng.random((6, 13)) < 0.5
    relevant = [np.flatnonzero(row).tolist() for row in truth]
    found = metric.compute(predictions=similarity.tolist(), references=references, relevant=relevant)
    expected = retrieval_metrics(similarity, index) | mean_average_precision(similarity, truth)
    assert found == pytest.approx(expected | precision_at_r(similarity, truth))


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([[0, 1], [1, 2]], r"Caption 1 is in references\[0\] and references\[1\]; expected it in one"),
        ([[0, 1], [-1]], r"references\[1\] has caption -1; expected 0 to 2, the columns of predictions"),
        ([[0, 1], [3]], r"references\[1\] has caption 3; expected 0 to 2"),
        ([[0], [2]], "Caption 1 is in none of the references"),
    ],
)
def test_references_that_do_not_fit(references, message):
    metric = evaluate.load(IMAGE_TEXT_RETRIEVAL)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]], references=references)


@pytest.mark.parametrize(
    ("relevant", "message"),
    [
        ([[0]], "relevant is of 1 images; expected 2, one for each of predictions"),
        ([[0], [3]], r"relevant\[1\] has caption 3; expected 0 to 2"),
        ([[-1], [2]], r"relevant\[0\] has caption -1; expected 0 to 2"),
        ([[], []], "relevant is false everywhere"),
    ],
)
def test_relevant_captions_that_do_not_fit(relevant, message):
    metric = evaluate.load(IMAGE_TEXT_RETRIEVAL)
    predictions = [[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]]
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=[[0, 1], [2]], relevant=relevant)


def test_predictions_of_different_lengths():
    metric = evaluate.load(IMAGE_TEXT_RETRIEVAL)
    with pytest.raises(ValueError, match="predictions have 1 to 2 scores; expected one for every caption"):
        metric.compute(predictions=[[0.9, 0.1], [0.2]], references=[[0], [1]])
