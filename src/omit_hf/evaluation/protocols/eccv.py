"""ECCV Caption: the pairs of COCO's test split that machines proposed and people confirmed."""

import importlib
import warnings

import numpy as np

from omit_hf.data.schema import listed
from omit_hf.evaluation.protocols.coco_numbers import CocoNumbers
from omit_hf.evaluation.protocols.result import ProtocolResult
from omit_hf.evaluation.retrieval import best_ranks, recalls, rows_precision_at_r

ECCV = "ECCV Caption on Karpathy's test split of COCO"
GroundTruth = dict[str, dict[int, list[int]]]


def eccv(similarity, truth: GroundTruth, numbers: CocoNumbers) -> ProtocolResult:
    """Measure mAP@R, R-precision and R@1 of the 1 261 images and 1 332 captions whose true pairs ECCV Caption knows.

    The candidates are all 25 000 captions and 5 000 images. Two of the true captions are not among these (eccv_caption
    0.1.0); as in the package, they count in R and are never found.

    Args:
        similarity: [N_i, N_t].
        truth: true pairs, from `read_eccv`.
        numbers: COCO's numbers of the images and captions.

    Returns:
        `i2t_map_at_r`, `i2t_r_precision`, `i2t_r1`, and the same for `t2i`, in percent.

    Raises:
        ValueError: if the similarity has another shape or holds NaN.

    Source: Chun et al., *ECCV Caption* (arXiv 2204.03359); the pairs are those of its package `eccv_caption`, and the
    tests compare the figures with the package's own.
    """
    similarity = numbers.of_similarity(similarity)
    row = {number: place for place, number in enumerate(numbers.images.tolist())}
    column = {number: place for place, number in enumerate(numbers.captions.tolist())}
    metrics = {}
    for way, scores, queries, candidates in (("i2t", similarity, row, column), ("t2i", similarity.T, column, row)):
        scores = scores[[queries[query] for query in truth[way]]]
        absent = sorted({each for true in truth[way].values() for each in true} - candidates.keys())
        candidates = candidates | {each: len(candidates) + place for place, each in enumerate(absent)}
        scores = np.pad(scores, ((0, 0), (0, len(absent))), constant_values=-np.inf)
        relevant = np.zeros(scores.shape, dtype=bool)
        for place, true in enumerate(truth[way].values()):
            relevant[place, [candidates[each] for each in true]] = True
        metrics |= rows_precision_at_r(way, scores, relevant)
        metrics[f"{way}_r1"] = recalls(way, best_ranks(scores, *np.nonzero(relevant)))[f"{way}_r1"]
    return ProtocolResult("eccv", ECCV, metrics)


def read_eccv(numbers: CocoNumbers) -> GroundTruth:
    """Read the true pairs from the package `eccv_caption`; nothing is downloaded.

    Args:
        numbers: COCO's numbers of the images and captions that are scored.

    Returns:
        `i2t`: captions true of an image, by COCO's numbers; `t2i`: images that a caption is true of.

    Raises:
        ImportError: if the package is not installed.
        ValueError: if the images and captions are not those of COCO's test split.
    """
    try:
        with warnings.catch_warnings():  # it would rather have ujson, for files of half a megabyte
            warnings.simplefilter("ignore")
            package = importlib.import_module("eccv_caption")
    except ImportError as error:
        raise ImportError("The protocol eccv needs the package eccv_caption: pip install 'omit-hf[eccv]'.") from error
    metrics = package.Metrics()
    for what, ours, theirs in (
        ("images", numbers.images, metrics.coco_gts["i2t"]),
        ("captions", numbers.captions, metrics.coco_gts["t2i"]),
    ):
        missing, unknown = sorted(theirs.keys() - set(ours.tolist())), sorted(set(ours.tolist()) - theirs.keys())
        if missing or unknown:
            found = [f"the data lack {listed(missing)}"] if missing else []
            found += [f"{listed(unknown)} are none of them"] if unknown else []
            raise ValueError(
                f"eccv expects the {len(theirs)} {what} of Karpathy's test split of COCO; {'; '.join(found)}."
            )
    return metrics.eccv_gts
