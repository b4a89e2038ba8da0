"""Every protocol against a naive double loop on random matrices with ties, and against the package eccv_caption."""

import csv
import json
import math
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_retrieval import naive_average_precision, naive_metrics, naive_precision_at_r

from omit_hf.data import DataError
from omit_hf.evaluation import SplitPairs, retrieval_metrics
from omit_hf.evaluation.protocols import (
    PROTOCOLS,
    ProtocolResult,
    coco_1k,
    coco_5k,
    coco_numbers,
    cxc,
    eccv,
    exhaustive,
    flickr30k_1k,
    prepare,
    read_cxc,
    read_eccv,
)
from omit_hf.evaluation.protocols.coco_numbers import image_number

KARPATHY = "omit_hf.evaluation.protocols.karpathy"


def naive_ranks(similarity, positives, itself=False):
    """Rank of the best positive of each query that has one; `positives` is a set of (query, candidate)."""
    ranks = []
    for query, row in enumerate(similarity):
        own = [c for c in range(len(row)) if (query, c) in positives]
        if own:
            best = max(row[c] for c in own)
            others = [c for c in range(len(row)) if c not in own and not (itself and c == query)]
            ranks.append(1 + sum(row[c] >= best for c in others))
    return ranks


def naive_recalls(way, ranks):
    metrics = {f"{way}_r{k}": 100 * (sum(rank <= k for rank in ranks) / len(ranks)) for k in (1, 5, 10)}
    return metrics | {f"{way}_medr": float(np.median(ranks)), f"{way}_meanr": sum(ranks) / len(ranks)}


# --- Karpathy's splits ---


@pytest.fixture
def small_coco(monkeypatch):
    """COCO with 20 images, and folds of 4."""
    monkeypatch.setattr(f"{KARPATHY}.COCO_IMAGES", 20)


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_the_mean_of_a_double_loop_on_each(small_coco, seed):
    rng = np.random.default_rng(seed)
    similarity, index = rng.integers(0, 30, (20, 100)) / 30, np.repeat(np.arange(20), 5)
    folds = []
    for fold in range(5):
        part = [[similarity[i, t] for t in range(20 * fold, 20 * fold + 20)] for i in range(4 * fold, 4 * fold + 4)]
        folds.append(naive_metrics(part, [t // 5 for t in range(20)]))
    result = coco_1k(similarity, index)
    assert result.folds == folds
    assert result.metrics == {name: float(np.mean([fold[name] for fold in folds])) for name in folds[0]}
    assert coco_5k(similarity, index).metrics == naive_metrics(similarity.tolist(), index.tolist())


def test_captions_beyond_the_fifth_do_not_count(small_coco):
    rng = np.random.default_rng(0)
    similarity, index = rng.normal(size=(20, 103)), np.sort([*np.repeat(np.arange(20), 5), 0, 7, 7])
    first_five = [column for column in range(103) if column not in (5, 41, 42)]
    for protocol in (coco_5k, coco_1k):
        result = protocol(similarity, index)
        assert result == protocol(similarity[:, first_five], index[first_five])


def test_flickr30k_at_its_size():
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(1000), 5)
    similarity = rng.normal(size=(1000, 5000)).astype(np.float32)
    similarity[index, np.arange(5000)] += 2
    result = flickr30k_1k(similarity, index)
    assert result.metrics == retrieval_metrics(similarity, index)
    assert (result.name, result.folds) == ("flickr30k_1k", [])
    assert 100 < result.metrics["rsum"] < 500


@pytest.mark.parametrize(
    ("protocol", "counts", "message"),
    [
        ("flickr30k_1k", [5] * 1014, r"There are 1014 images of 5 to 5 captions; flickr30k_1k expects 1000 of 5"),
        ("flickr30k_1k", [5] * 999 + [6], r"There are 1000 images of 5 to 6 captions; flickr30k_1k expects 1000 of 5"),
        ("coco_5k", [5] * 1000, r"There are 1000 images of 5 to 5 captions; coco_5k and coco_1k expect 5000 of at"),
        ("coco_1k", [5] * 4999 + [4], r"There are 5000 images of 4 to 5 captions"),
        ("coco_1k", [5] * 5001, r"There are 5001 images"),
    ],
)
def test_other_data_than_karpathys(protocol, counts, message):
    pairs = SplitPairs([str(n) for n in range(len(counts))], [["a"] * count for count in counts])
    with pytest.raises(ValueError, match=message):
        prepare(protocol, pairs)
    with pytest.raises(ValueError, match=message):
        {"flickr30k_1k": flickr30k_1k, "coco_5k": coco_5k, "coco_1k": coco_1k}[protocol](
            np.zeros((2, 2)), pairs.caption_image_index
        )


def test_matrices_that_do_not_fit(small_coco):
    index = np.repeat(np.arange(20), 5)
    nan = np.zeros((20, 100))
    nan[3, 7] = np.nan
    for protocol in (coco_5k, coco_1k):
        with pytest.raises(ValueError, match=r"similarity has shape \(20, 99\); expected \(20, 100\)"):
            protocol(np.zeros((20, 99)), index)
        with pytest.raises(ValueError, match=r"similarity has shape \(19, 100\); expected \(20, 100\)"):
            protocol(np.zeros((19, 100)), index)
        with pytest.raises(ValueError, match="similarity is NaN at row 3, column 7"):
            protocol(nan, index)


def test_prepared_protocols_measure_the_same(small_coco, monkeypatch):
    monkeypatch.setattr(f"{KARPATHY}.FLICKR30K_IMAGES", 20)
    pairs = SplitPairs([str(n) for n in range(20)], [["a"] * 5] * 20)
    similarity = np.random.default_rng(0).normal(size=(20, 100))
    for name, protocol in {"flickr30k_1k": flickr30k_1k, "coco_5k": coco_5k, "coco_1k": coco_1k}.items():
        assert prepare(name, pairs)(similarity) == protocol(similarity, pairs.caption_image_index)


def test_only_the_test_split_has_protocols():
    pairs = SplitPairs(["a"], [["b"]], split="validation")
    for protocol in PROTOCOLS:
        with pytest.raises(ValueError, match=f"The split is 'validation'; {protocol} expects 'test'"):
            prepare(protocol, pairs)
    with pytest.raises(ValueError, match="protocol is 'coco'; expected one of flickr30k_1k"):
        prepare("coco", pairs)


# --- all true pairs ---


@settings(max_examples=settings.default.max_examples // 2)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([1, 3, 1000]))
def test_exhaustive_is_a_double_loop(seed, levels):
    rng = np.random.default_rng(seed)
    similarity, relevant = rng.integers(0, levels, (7, 12)) / levels, rng.random((7, 12)) < 0.3
    relevant[2], relevant[3, 4] = False, True
    expected = {}
    for way, scores, truth in (("i2t", similarity, relevant), ("t2i", similarity.T, relevant.T)):
        queries = [(s.tolist(), r.tolist()) for s, r in zip(scores, truth, strict=True) if r.any()]
        expected[f"{way}_map"] = 100 * (math.fsum(naive_average_precision(*query) for query in queries) / len(queries))
        expected |= naive_precision_at_r(way, queries)
        positives = {(int(q), int(c)) for q, c in np.argwhere(truth)}
        expected |= naive_recalls(way, naive_ranks(scores.tolist(), positives))
    found = exhaustive(similarity, relevant).metrics
    for name, value in expected.items():
        assert found[name] == value, name
    assert found.keys() == expected.keys()


def test_exhaustive_needs_all_true_pairs():
    pairs = SplitPairs(["a"], [["b", "c"]])
    with pytest.raises(ValueError, match="The split has no relevant_captions; exhaustive expects data whose every"):
        prepare("exhaustive", pairs)
    with pytest.raises(ValueError, match="relevant is false everywhere"):
        exhaustive(np.zeros((1, 2)), np.zeros((1, 2)))
    known = SplitPairs(["a"], [["b", "c"]], np.array([[True, False]]), source="scenes")
    result = prepare("exhaustive", known)(np.array([[1.0, 0.0]]))
    assert (result.dataset, result.metrics["i2t_map_at_r"]) == ("scenes, all true pairs, annotated or not", 100)


# --- COCO's numbers ---

IMAGES = [391895, 7, 522418, 184613, 60, 318219]


def sentences(image: int, count: int = 5) -> list[dict]:
    return [{"sentid": 10 * image + n, "raw": f"A picture, no. {n}, of {image}."} for n in range(count)]


def file_of(image: int) -> str:
    return f"COCO_val2014_{image:012d}.jpg"


@pytest.fixture
def annotations(tmp_path):
    """dataset_coco.json, whose second test image has two captions more, and Crisscrossed Captions' files."""
    entries = [
        {
            "filepath": "val2014",
            "filename": file_of(image),
            "cocoid": image,
            "split": "test" if image in IMAGES else "train",
            "sentences": sentences(image, 7 if image == 7 else 5),
        }
        for image in [1, *IMAGES, 2]
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    write_cxc(tmp_path)
    return tmp_path


def write_cxc(folder, **rows):
    """Files of random ratings; `rows` of a file are added to it."""
    rng = np.random.default_rng(0)

    def image():
        return file_of(int(rng.choice(IMAGES)))

    def caption():
        return f"COCO_val2014:sentid:{10 * int(rng.choice(IMAGES)) + int(rng.integers(5))}"

    for name, columns, make in (
        ("sits_test", ("caption", "image"), (caption, image)),
        ("sis_test", ("image1", "image2"), (image, image)),
        ("sts_test", ("caption1", "caption2"), (caption, caption)),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, "agg_score", "sampling_method"])
            for _ in range(30):
                writer.writerow([make[0](), make[1](), f"{rng.integers(0, 11) / 2:g}", "any"])
            writer.writerows(rows.get(name, []))


def coco_pairs(surplus: bool = True) -> SplitPairs:
    """The test images with their captions in another order, with or without those beyond the fifth."""
    rows = []
    for image in IMAGES:
        texts = [each["raw"] for each in sentences(image, 7 if image == 7 and surplus else 5)]
        rows.append([text.lower().replace(".", " ") for text in texts[2:] + texts[:2]])
    return SplitPairs([f"val2014/{file_of(image)}" for image in IMAGES], rows)


@pytest.mark.parametrize("surplus", [True, False])
def test_numbers_are_found_by_file_name_and_words(annotations, surplus):
    pairs = coco_pairs(surplus)
    numbers = coco_numbers(pairs, annotations / "dataset_coco.json")
    assert numbers.images.tolist() == IMAGES
    assert numbers.surplus == {75, 76}
    assert numbers.width == pairs.shape[1] == (32 if surplus else 30)
    flat = [caption for captions in pairs.captions for caption in captions]
    for number, column, row in zip(numbers.captions, numbers.columns, numbers.caption_image_index, strict=True):
        assert flat[column] == f"a picture, no  {number % 10}, of {number // 10} "
        assert IMAGES[row] == number // 10
    assert sorted(numbers.captions.tolist()) == sorted(10 * image + n for image in IMAGES for n in range(5))


def test_captions_of_the_same_words_have_each_their_number(annotations):
    file = annotations / "dataset_coco.json"
    content = json.loads(file.read_text())
    content["images"][1]["sentences"][3]["raw"] = content["images"][1]["sentences"][1]["raw"]
    file.write_text(json.dumps(content))
    pairs = coco_pairs()
    captions = [[each["raw"] for each in content["images"][1]["sentences"]], *pairs.captions[1:]]
    numbers = coco_numbers(SplitPairs(pairs.image_ids, captions), file)
    assert numbers.captions[:5].tolist() == [3918950 + n for n in range(5)]


@pytest.mark.parametrize(
    ("name", "number"),
    [("train2014/COCO_train2014_000000000042.jpg", 42), ("391895", 391895), ("7.png", 7), ("picture.jpg", None)],
)
def test_image_numbers(name, number):
    assert image_number(name) == number


def test_every_image_and_caption_that_does_not_fit(annotations):
    pairs = coco_pairs()
    pairs.image_ids[0], pairs.image_ids[3], pairs.image_ids[5] = "a.jpg", file_of(1), pairs.image_ids[1]
    pairs.captions[2][0] = "something else"
    with pytest.raises(DataError, match=r"The data, beside .*dataset_coco.json, has 7 problems") as caught:
        coco_numbers(pairs, annotations / "dataset_coco.json")
    for problem in (
        "image 'a.jpg' is none of the test images",
        "image 'COCO_val2014_000000000001.jpg' is none of the test images",
        "image 'val2014/COCO_val2014_000000000007.jpg' is there already, as 'val2014/COCO_val2014_000000000007.jpg'",
        "image 'val2014/COCO_val2014_000000522418.jpg' lacks the caption 5224182, 'A picture, no. 2, of 522418.'",
        "the data lack the image 391895",
        "the data lack the image 184613",
        "the data lack the image 318219",
    ):
        assert problem in caught.value.problems


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no Karpathy JSON"),
        ('{"images": []}', "has no image of the split 'test'"),
        ('{"images": [{"split": "test"}]}', r"images\[0\]: not the expected fields, cocoid, split and sentences"),
        ('{"images": [{"split": "test", "cocoid": 1, "sentences": [{"raw": "a"}]}]}', r"images\[0\]: not the expected"),
    ],
)
def test_other_jsons(tmp_path, content, message):
    (tmp_path / "dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        coco_numbers(coco_pairs(), tmp_path / "dataset_coco.json")


# --- Crisscrossed Captions ---


def naive_cxc(folder, pairs):
    """Positives of every task as sets of (row, column) of the captions that count, from the definition."""
    flat = [(row, caption) for row, captions in enumerate(pairs.captions) for caption in captions]
    sentid = {f"a picture, no  {n}, of {image} ": 10 * image + n for image in IMAGES for n in range(5)}
    counted = [(row, sentid[caption]) for row, caption in flat if caption in sentid]
    row_of = {file_of(image): row for row, image in enumerate(IMAGES)}
    column_of = {f"COCO_val2014:sentid:{number}": column for column, (_, number) in enumerate(counted)}
    rated = {}
    for name in ("sits", "sis", "sts"):
        with (folder / f"{name}_test.csv").open() as file:
            rated[name] = [(line[0], line[1], float(line[2])) for line in list(csv.reader(file))[1:]]
    positives = {"t2i": set(), "i2i": set(), "t2t": set()}
    seen = {"t2i": set(), "t2t": set()}
    for caption, image, score in rated["sits"]:
        if caption in column_of:
            pair = column_of[caption], row_of[image]
            seen["t2i"].add(pair)
            if score >= 3:
                positives["t2i"].add(pair)
    for first, second, score in rated["sis"]:
        if score >= 2.5 and first != second:
            positives["i2i"] |= {(row_of[first], row_of[second]), (row_of[second], row_of[first])}
    for first, second, score in rated["sts"]:
        if first in column_of and second in column_of and first != second:
            both = {(column_of[first], column_of[second]), (column_of[second], column_of[first])}
            seen["t2t"] |= both
            if score >= 3:
                positives["t2t"] |= both
    for column, (row, _) in enumerate(counted):
        if (column, row) not in seen["t2i"]:
            positives["t2i"].add((column, row))
        for other, (its_row, _) in enumerate(counted):
            if row == its_row and other != column and (column, other) not in seen["t2t"]:
                positives["t2t"].add((column, other))
    positives["i2t"] = {(image, caption) for caption, image in positives["t2i"]}
    return positives, [column for column, (_, caption) in enumerate(flat) if caption in sentid]


def ratings_that_matter() -> dict:
    """At the thresholds, below them for pairs of COCO's own, twice with two scores, of a caption beyond the fifth."""
    image, other = file_of(IMAGES[0]), file_of(IMAGES[2])
    captions = [f"COCO_val2014:sentid:{10 * IMAGES[0] + n}" for n in range(5)]
    return {
        "sits_test": [
            (captions[0], image, "2.47", "c2i_original"),
            (captions[1], other, "3.0", "c2i_intrasim"),
            (captions[2], other, "1.0", "c2i_intrasim"),
            (captions[2], other, "4.0", "c2i_intrasim"),
            ("COCO_val2014:sentid:76", other, "5.0", "c2i_intrasim"),
        ],
        "sis_test": [(image, other, "2.5", "i2i_csim"), (other, image, "0.5", "i2i_csim"), (image, image, "5", "x")],
        "sts_test": [(captions[0], captions[1], "1.61", "c2c_cocaption"), (captions[0], captions[0], "5.0", "x")],
    }


@pytest.mark.parametrize("surplus", [True, False])
@pytest.mark.parametrize("levels", [2, 7, 10**6])
def test_cxc_is_a_double_loop(annotations, surplus, levels):
    write_cxc(annotations, **ratings_that_matter())
    pairs = coco_pairs(surplus)
    images, captions = pairs.shape
    rng = np.random.default_rng(levels)
    between, image, text = (
        rng.integers(0, levels, shape) / levels
        for shape in ((images, captions), (images, images), (captions, captions))
    )
    positives, columns = naive_cxc(annotations, pairs)
    scores = {
        "i2t": between[:, columns],
        "t2i": between[:, columns].T,
        "i2i": image,
        "t2t": text[np.ix_(columns, columns)],
    }
    expected = {}
    for task, matrix in scores.items():
        expected |= naive_recalls(task, naive_ranks(matrix.tolist(), positives[task], itself=task in ("i2i", "t2t")))
    measure = prepare("cxc", pairs, annotations)
    result = measure(between, image_similarity=image, text_similarity=text)
    assert result.metrics == expected
    part = prepare("cxc", pairs, annotations, ["t2i"])(between)
    assert part.metrics == {name: value for name, value in expected.items() if name.startswith("t2i")}


def test_ratings_decide_as_the_paper_says(annotations):
    write_cxc(annotations, **ratings_that_matter())
    numbers = coco_numbers(coco_pairs(), annotations / "dataset_coco.json")
    positives = {
        task: set(zip(*map(np.ndarray.tolist, pairs), strict=True))
        for task, pairs in read_cxc(annotations, numbers).items()
    }
    column = {number: place for place, number in enumerate(numbers.captions.tolist())}
    first = 10 * IMAGES[0]
    assert (0, column[first]) not in positives["i2t"]  # COCO's own, rated below 3
    assert (0, column[first + 3]) in positives["i2t"]  # COCO's own, not rated
    assert (column[first + 1], 2) in positives["t2i"]  # 3.0
    assert (column[first + 2], 2) in positives["t2i"]  # 1.0 and 4.0
    assert {(0, 2), (2, 0)} <= positives["i2i"]  # 2.5 one way
    assert (column[first], column[first + 1]) not in positives["t2t"]
    assert not any(a == b for task in ("i2i", "t2t") for a, b in positives[task])


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        (
            "sits_test",
            ("COCO_val2014:sentid:12", file_of(7), "3", "x"),
            "line 32: 'COCO_val2014:sentid:12' is not in the",
        ),
        ("sits_test", ("COCO_val2014:sentid:70", file_of(8), "3", "x"), f"line 32: '{file_of(8)}' is not in the data"),
        ("sis_test", (file_of(7), "picture.jpg", "3", "x"), "line 32: 'picture.jpg' is not in the data"),
        ("sts_test", ("COCO_val2014:sentid:70", "seventy", "3", "x"), "line 32: 'seventy' is not in the data"),
        ("sts_test", ("COCO_val2014:sentid:70",), "line 32: None is not in the data"),
        (
            "sits_test",
            ("COCO_val2014:sentid:70", file_of(7), "good", "x"),
            "line 32: agg_score is 'good'; expected 0 to 5",
        ),
        ("sits_test", ("COCO_val2014:sentid:70", file_of(7), "5.1", "x"), "agg_score is '5.1'; expected 0 to 5"),
        ("sits_test", ("COCO_val2014:sentid:70", file_of(7), "nan", "x"), "agg_score is 'nan'; expected 0 to 5"),
    ],
)
def test_lines_that_do_not_fit_the_data(annotations, name, row, problem):
    write_cxc(annotations, **{name: [row, row]})
    numbers = coco_numbers(coco_pairs(), annotations / "dataset_coco.json")
    with pytest.raises(DataError, match=f"{name}.csv has [24] problems") as caught:
        read_cxc(annotations, numbers)
    assert any(problem in each for each in caught.value.problems)


def test_files_that_are_missing_or_others(annotations):
    pairs = coco_pairs()
    (annotations / "sts_test.csv").write_text("caption1,score\n")
    numbers = coco_numbers(pairs, annotations / "dataset_coco.json")
    with pytest.raises(
        ValueError, match=r"sts_test.csv has no column agg_score, caption2; expected caption1, caption2"
    ):
        read_cxc(annotations, numbers)
    (annotations / "sis_test.csv").write_text(f"image1,image2,agg_score\n{file_of(7)},{file_of(60)},2.4\n")
    with pytest.raises(ValueError, match=r"sis_test.csv has no pair with a score of at least 2.5"):
        read_cxc(annotations, numbers, ["i2i"])
    for file in ("sits_test.csv", "sts_test.csv"):
        (annotations / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no sits_test.csv, sts_test.csv; expected the files of Crisscr"):
        prepare("cxc", pairs, annotations)
    with pytest.raises(ValueError, match=r"tasks is \['i2x'\]; expected some of i2t, t2i, i2i, t2t"):
        prepare("cxc", pairs, annotations, ["i2x"])
    (annotations / "dataset_coco.json").unlink()
    with pytest.raises(FileNotFoundError, match="No annotations at .*dataset_coco.json"):
        prepare("eccv", pairs, annotations)
    with pytest.raises(
        ValueError, match="cxc needs annotations; expected a folder with dataset_coco.json and the files"
    ):
        prepare("cxc", pairs)


def test_matrices_that_cxc_cannot_use(annotations):
    pairs = coco_pairs()
    numbers = coco_numbers(pairs, annotations / "dataset_coco.json")
    positives = read_cxc(annotations, numbers)
    good = {
        "similarity": np.zeros((6, 32)),
        "image_similarity": np.zeros((6, 6)),
        "text_similarity": np.zeros((32, 32)),
    }
    cxc(**good, positives=positives, numbers=numbers)
    for name, matrix, message in (
        ("similarity", np.zeros((6, 30)), r"similarity has shape \(6, 30\); expected \(6, 32\)"),
        ("image_similarity", None, r"image_similarity is None; expected shape \(6, 6\)"),
        ("image_similarity", np.zeros((6, 32)), r"image_similarity has shape \(6, 32\); expected \(6, 6\)"),
        ("text_similarity", np.zeros((30, 30)), r"text_similarity has shape \(30, 30\); expected \(32, 32\)"),
        ("text_similarity", np.full((32, 32), np.nan), "text_similarity is NaN at row 0, column 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            cxc(**{**good, name: matrix}, positives=positives, numbers=numbers)


# --- ECCV Caption, against its package ---


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("eccv_caption", reason="the extra eccv is not installed")


def rankings(similarity, rows, columns, relevant=None):
    """What the package wants: candidates' ids, the best first; among ties the irrelevant first."""
    found = {}
    for number, (query, scores) in enumerate(zip(rows, similarity, strict=True)):
        truth = [False] * len(columns) if relevant is None else relevant[number]
        order = sorted(range(len(columns)), key=lambda c: (-scores[c], truth[c]))
        found[query] = [columns[c] for c in order]
    return found


def relevance(truth, rows, columns):
    return [[column in truth.get(row, ()) for column in columns] for row in rows]


@pytest.fixture
def small_eccv(package, monkeypatch, annotations):
    """The package with a ground truth of the small data: its code is what is compared with."""
    rng = np.random.default_rng(1)
    numbers = coco_numbers(coco_pairs(), annotations / "dataset_coco.json")
    images, captions = numbers.images.tolist(), numbers.captions.tolist()
    own = dict(zip(captions, (images[row] for row in numbers.caption_image_index), strict=True))
    coco = {"t2i": {c: [i] for c, i in own.items()}, "i2t": {i: [c for c in own if own[c] == i] for i in images}}
    truth = {
        "i2t": {i: rng.choice(captions, rng.integers(1, 9), replace=False).tolist() for i in images[:4]},
        "t2i": {c: rng.choice(images, rng.integers(1, 5), replace=False).tolist() for c in captions[3:20]},
    }

    class Metrics(package.Metrics):
        def __init__(self):
            self.coco_gts, self.eccv_gts, self.verbose = coco, truth, False

    monkeypatch.setattr(package, "Metrics", Metrics)
    return Metrics, numbers, images, captions


@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_eccv_is_what_the_package_measures(small_eccv, levels):
    Metrics, numbers, images, captions = small_eccv
    similarity = np.random.default_rng(levels).integers(0, levels, (6, 32)) / levels
    counted = similarity[:, numbers.columns]
    truth = Metrics().eccv_gts
    i2t = rankings(counted.tolist(), images, captions, relevance(truth["i2t"], images, captions))
    t2i = rankings(counted.T.tolist(), captions, images, relevance(truth["t2i"], captions, images))
    theirs = Metrics().compute_all_metrics(i2t, t2i, target_metrics=("eccv_map_at_r", "eccv_rprecision", "eccv_r1"))
    ours = eccv(similarity, read_eccv(numbers), numbers).metrics
    for name, way in ((name, way) for name in ("map_at_r", "r_precision", "r1") for way in ("i2t", "t2i")):
        expected = 100 * float(theirs[f"eccv_{name.replace('_precision', 'precision')}"][way])
        assert ours[f"{way}_{name}"] == pytest.approx(expected, rel=1e-14, abs=1e-14), (name, way)
    assert len(ours) == 6


def test_folds_are_what_the_package_measures(package, small_coco):
    rng = np.random.default_rng(0)
    similarity, index = rng.normal(size=(20, 100)), np.repeat(np.arange(20), 5)
    metrics = package.Metrics()
    metrics.coco_ids = np.arange(100) + 1000
    metrics.coco_gts = {
        "i2t": {image: [1000 + 5 * image + n for n in range(5)] for image in range(20)},
        "t2i": {1000 + caption: [caption // 5] for caption in range(100)},
    }
    captions, images = list(range(1000, 1100)), list(range(20))
    i2t, t2i = rankings(similarity, images, captions), rankings(similarity.T, captions, images)
    theirs = metrics.compute_all_metrics(i2t, t2i, ("coco_1k_recalls", "coco_5k_recalls"), Ks=(1, 5, 10))
    for name, ours in (("coco_1k", coco_1k(similarity, index)), ("coco_5k", coco_5k(similarity, index))):
        for way in ("i2t", "t2i"):
            for k in (1, 5, 10):
                assert ours.metrics[f"{way}_r{k}"] == pytest.approx(100 * theirs[f"{name}_r{k}"][way], rel=1e-14)


def test_cxc_is_what_the_package_measures(package, annotations):
    """Given the pairs of a score of at least 3 as its ground truth, where COCO's own are all rated, as they are."""
    write_cxc(
        annotations,
        sits_test=[
            (f"COCO_val2014:sentid:{10 * i + n}", file_of(i), 3 + n / 2, "c2i_original")
            for i in IMAGES
            for n in range(5)
        ],
    )
    numbers = coco_numbers(coco_pairs(), annotations / "dataset_coco.json")
    metrics = package.Metrics()
    metrics.cxc_gts = {"i2t": {}, "t2i": {}}
    with (annotations / "sits_test.csv").open() as file:
        for caption, image, score, _ in list(csv.reader(file))[1:]:
            if float(score) >= 3:
                caption, image = int(caption.split(":")[-1]), image_number(image)
                metrics.cxc_gts["i2t"].setdefault(image, []).append(caption)
                metrics.cxc_gts["t2i"].setdefault(caption, []).append(image)
    similarity = np.random.default_rng(0).normal(size=(6, 32))
    counted = similarity[:, numbers.columns]
    images, captions = numbers.images.tolist(), numbers.captions.tolist()
    i2t, t2i = rankings(counted, images, captions), rankings(counted.T, captions, images)
    theirs = metrics.compute_all_metrics(i2t, t2i, ("cxc_recalls",), Ks=(1, 5, 10))
    ours = prepare("cxc", coco_pairs(), annotations, ["i2t", "t2i"])(similarity).metrics
    for way in ("i2t", "t2i"):
        for k in (1, 5, 10):
            assert ours[f"{way}_r{k}"] == pytest.approx(100 * float(theirs[f"cxc_r{k}"][way]), rel=1e-14)


@pytest.fixture(scope="module")
def coco_test(package, tmp_path_factory):
    """COCO's test split as the package numbers it, with made-up captions, and its dataset_coco.json."""
    metrics = package.Metrics()
    truth = metrics.coco_gts["t2i"]
    images = {}
    for caption in metrics.coco_ids.tolist():
        images.setdefault(truth[caption][0], []).append(caption)
    entries = [
        {
            "filename": file_of(image),
            "cocoid": image,
            "split": "test",
            "sentences": [{"sentid": caption, "raw": f"caption {caption}"} for caption in captions],
        }
        for image, captions in images.items()
    ]
    folder = tmp_path_factory.mktemp("coco")
    (folder / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    captions = [[f"caption {caption}" for caption in each] for each in images.values()]
    return SplitPairs([file_of(image) for image in images], captions), folder


def test_eccv_at_its_size(package, coco_test):
    pairs, folder = coco_test
    measure = prepare("eccv", pairs, folder)
    similarity = np.zeros((5000, 25000), dtype=np.float32)
    rng = np.random.default_rng(0)
    similarity[:] = rng.normal(size=25000).astype(np.float32)
    similarity += rng.normal(size=(5000, 1)).astype(np.float32) * similarity[:, ::-1]
    similarity[pairs.caption_image_index, np.arange(25000)] += 3
    ours = measure(similarity).metrics
    metrics = package.Metrics()
    numbers = coco_numbers(pairs, folder / "dataset_coco.json")
    retrieved = []
    for scores, way, queries, candidates in (
        (similarity, "i2t", numbers.images, numbers.captions),
        (similarity.T, "t2i", numbers.captions, numbers.images),
    ):
        places = {query: place for place, query in enumerate(queries.tolist())}
        most = max(map(len, metrics.eccv_gts[way].values()))
        best = {}
        for query in metrics.eccv_gts[way]:
            row = scores[places[query]]
            top = np.argpartition(-row, most)[:most]
            best[query] = candidates[top[np.argsort(-row[top])]].tolist()
        retrieved.append(best)
    theirs = metrics.compute_all_metrics(*retrieved, target_metrics=("eccv_map_at_r", "eccv_rprecision", "eccv_r1"))
    for name, way in ((name, way) for name in ("map_at_r", "r_precision", "r1") for way in ("i2t", "t2i")):
        expected = 100 * float(theirs[f"eccv_{name.replace('_precision', 'precision')}"][way])
        assert ours[f"{way}_{name}"] == pytest.approx(expected, rel=1e-14), (name, way)
        assert 0 < expected < 100


def test_eccv_on_other_data(package, annotations):
    with pytest.raises(
        ValueError, match=r"eccv expects the 5000 images .*; the data lack .*; 7, 60, 184613, 318219, 522418 are none"
    ):
        prepare("eccv", coco_pairs(), annotations)


def test_without_the_package(annotations, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "eccv_caption", None)
    with pytest.raises(
        ImportError, match=r"The protocol eccv needs the package eccv_caption: pip install 'omit-hf\[ecc"
    ):
        prepare("eccv", coco_pairs(), annotations)


# --- tables ---


def test_a_result_as_markdown(small_coco):
    similarity = np.random.default_rng(0).normal(size=(20, 100))
    result = coco_1k(similarity, np.repeat(np.arange(20), 5))
    lines = result.markdown().splitlines()
    assert lines[0] == "### coco_1k"
    assert "| direction | R@1 | R@5 | R@10 | median rank | mean rank |" in lines
    start = lines.index("| fold | i2t R@1 | i2t R@5 | i2t R@10 | t2i R@1 | t2i R@5 | t2i R@10 | RSUM |")
    assert [line.split(" | ")[0] for line in lines[start + 2 :]] == [f"| {n}" for n in range(1, 6)]
    assert lines[-1].endswith(f"| {result.folds[4]['rsum']:.1f} |")
    assert {len(re.findall(r"\|", line)) for line in lines[start:]} == {9}
    plain = ProtocolResult("eccv", "ECCV", {"i2t_map_at_r": 1.26, "t2i_r1": math.pi}).markdown()
    assert "| direction | R@1 | mAP@R |" in plain
    assert "| image → text | – | 1.3 |" in plain
    assert "RSUM" not in plain
    assert "fold" not in plain


def test_numbers_of_any_length():
    assert image_number("COCO_val2014_000000391895.jpg") == 391895
    assert image_number("a1b22.png") == 22
    began = time.process_time()
    for name in ("1" * 100_000, "1" * 100_000 + "x", "a" + "0" * 5000 + "1.jpg", "1." + "a" * 100_000 + "1x"):
        assert image_number(name) in (None,)
    assert time.process_time() - began < 1  # their square is minutes
