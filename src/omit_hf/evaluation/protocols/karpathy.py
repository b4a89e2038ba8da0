"""Retrieval on Karpathy's test splits of Flickr30K and COCO; see ``docs/concepts/method.md#evaluation-protocol``."""

import numpy as np

from omit_hf.evaluation.protocols.result import ProtocolResult
from omit_hf.evaluation.retrieval import checked_matrix, retrieval_metrics

CAPTIONS = 5  # an image
FLICKR30K_IMAGES, COCO_IMAGES, FOLDS = 1000, 5000, 5
FLICKR30K = "Flickr30K, Karpathy's test split of 1 000 images and 5 000 captions"
COCO_5K = "COCO, Karpathy's test split of 5 000 images and 25 000 captions"
COCO_1K = "COCO, mean over five folds of 1 000 images and 5 000 captions of Karpathy's test split"


def flickr30k_1k(similarity, caption_image_index) -> ProtocolResult:
    """Measure retrieval among the 1 000 images and 5 000 captions of Flickr30K's test split.

    Args:
        similarity: [1000, 5000].
        caption_image_index: the image of every caption, integers [5000].

    Raises:
        ValueError: if the number of images, or of captions of an image, is another; and as `retrieval_metrics`.
    """
    check_flickr30k(caption_image_index)
    return ProtocolResult("flickr30k_1k", FLICKR30K, retrieval_metrics(similarity, caption_image_index))


def coco_5k(similarity, caption_image_index) -> ProtocolResult:
    """Measure retrieval among the 5 000 images of COCO's test split and their first five captions.

    Some images have more captions; the literature leaves these out.

    Args:
        similarity: [5000, N_t].
        caption_image_index: the image of every caption, integers [N_t].

    Raises:
        ValueError: if the number of images is another, or an image has fewer captions; and as `retrieval_metrics`.
    """
    columns = coco_captions(caption_image_index)
    similarity, index = _columns(similarity, caption_image_index, columns)
    return ProtocolResult("coco_5k", COCO_5K, retrieval_metrics(similarity, index))


def coco_1k(similarity, caption_image_index) -> ProtocolResult:
    """Average retrieval over five contiguous folds of COCO's test split. A fold holds only its own images and captions.

    Args:
        similarity: [5000, N_t], in the order of Karpathy's JSON.
        caption_image_index: the image of every caption, integers [N_t].

    Raises:
        ValueError: as `coco_5k`.
    """
    columns = coco_captions(caption_image_index)
    similarity, index = _columns(similarity, caption_image_index, columns)
    size = COCO_IMAGES // FOLDS
    folds = []
    for start in range(0, COCO_IMAGES, size):
        own = np.flatnonzero((index >= start) & (index < start + size))
        folds.append(retrieval_metrics(similarity[start : start + size][:, own], index[own] - start))
    return ProtocolResult.mean_of("coco_1k", COCO_1K, folds)


def check_flickr30k(caption_image_index) -> None:
    """Raise a ValueError unless there are 1 000 images of five captions."""
    counts = np.bincount(caption_image_index)
    if len(counts) != FLICKR30K_IMAGES or (counts != CAPTIONS).any():
        raise ValueError(
            f"There are {len(counts)} images of {counts.min()} to {counts.max()} captions; flickr30k_1k expects "
            f"{FLICKR30K_IMAGES} of {CAPTIONS}, Karpathy's test split of Flickr30K."
        )


def coco_captions(caption_image_index) -> np.ndarray:
    """Select the captions that count in COCO's test split: the first five of every image, in their order.

    Raises:
        ValueError: unless there are 5 000 images with at least five captions.
    """
    index = np.asarray(caption_image_index)
    counts = np.bincount(index)
    if len(counts) != COCO_IMAGES or counts.min() < CAPTIONS:
        raise ValueError(
            f"There are {len(counts)} images of {counts.min()} to {counts.max()} captions; coco_5k and coco_1k expect "
            f"{COCO_IMAGES} of at least {CAPTIONS}, Karpathy's test split of COCO."
        )
    seen = np.zeros(COCO_IMAGES, dtype=int)
    kept = []
    for caption, image in enumerate(index):
        if seen[image] < CAPTIONS:
            kept.append(caption)
        seen[image] += 1
    return np.array(kept)


def _columns(similarity, caption_image_index, columns) -> tuple[np.ndarray, np.ndarray]:
    similarity, index = checked_matrix(similarity), np.asarray(caption_image_index)
    if similarity.shape != (COCO_IMAGES, len(index)):
        raise ValueError(f"similarity has shape {similarity.shape}; expected {(COCO_IMAGES, len(index))}.")
    return (similarity, index) if len(columns) == len(index) else (similarity[:, columns], index[columns])
