"""COCO's own numbers of the images and captions of a split; later annotations name them by these."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omit_hf.data.schema import DataError
from omit_hf.data.sources.karpathy import read_karpathy
from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.evaluation.protocols.karpathy import CAPTIONS
from omit_hf.evaluation.retrieval import checked_matrix

KARPATHY_FILE = "dataset_coco.json"
MAX_DIGITS = 18  # of a number of COCO, which has 12


@dataclass(frozen=True)
class CocoNumbers:
    """COCO's numbers for the rows and columns of a similarity on its test split.

    Args:
        images: COCO's number of every image (row), int64 [N_i].
        captions: COCO's number of every caption that counts, int64 [N_c]: the first five of an image.
        columns: the similarity's column of every caption that counts, int64 [N_c].
        caption_image_index: the image (row) of every caption that counts, int64 [N_c].
        surplus: numbers of the captions of these images that do not count.
        width: N_t, the number of columns of the similarity.
    """

    images: np.ndarray
    captions: np.ndarray
    columns: np.ndarray
    caption_image_index: np.ndarray
    surplus: frozenset[int]
    width: int

    def of_similarity(self, similarity) -> np.ndarray:
        """Select the columns that count of a similarity [N_i, N_t], as [N_i, N_c].

        Raises:
            ValueError: if it has another shape or holds NaN.
        """
        return self._counted(checked_shape("similarity", similarity, (len(self.images), self.width)))

    def of_text_similarity(self, similarity) -> np.ndarray:
        """Select the rows and columns that count of a similarity of captions [N_t, N_t], as [N_c, N_c]; same errors."""
        similarity = checked_shape("text_similarity", similarity, (self.width, self.width))
        return self._counted(self._counted(similarity).T).T

    def _counted(self, similarity: np.ndarray) -> np.ndarray:
        return similarity if len(self.columns) == self.width else similarity[:, self.columns]


def coco_numbers(pairs: SplitPairs, karpathy: str | Path) -> CocoNumbers:
    """Find COCO's numbers of a split: an image by the number in its id, a caption by its words.

    Args:
        pairs: the test split. An `image_id` is COCO's number or a file's name that ends with it.
        karpathy: `dataset_coco.json`, whose images have `cocoid`, `split`, and `sentences` with `raw` and `sentid`.

    Raises:
        FileNotFoundError: if the JSON is not there.
        DataError: lists every image of the split that is not in the JSON's test split, and every image or caption of
            the JSON's test split that the split lacks.
        ValueError: if the file is not such a JSON.
    """
    known = _read_test_split(karpathy)
    problems, images, captions, columns, index, surplus = [], [], [], [], [], set()
    first, rows = 0, {}
    for row, (image_id, texts) in enumerate(zip(pairs.image_ids, pairs.captions, strict=True)):
        places = defaultdict(list)
        for place, text in enumerate(texts):
            places[_words(text)].append(first + place)
        first += len(texts)
        number = image_number(image_id)
        if number not in known:
            problems.append(f"image {image_id!r} is none of the test images")
            continue
        if number in rows:
            problems.append(f"image {image_id!r} is there already, as {pairs.image_ids[rows[number]]!r}")
            continue
        rows[number] = row
        images.append(number)
        found = []
        for sentid, text in known[number][:CAPTIONS]:
            if places[_words(text)]:
                found.append((places[_words(text)].pop(0), sentid))
            else:
                problems.append(f"image {image_id!r} lacks the caption {sentid}, {text!r}")
        for column, sentid in sorted(found):
            captions.append(sentid)
            columns.append(column)
            index.append(row)
        surplus.update(sentid for sentid, _ in known[number][CAPTIONS:])
    problems += [f"the data lack the image {number}" for number in known if number not in rows]
    if problems:
        raise DataError(f"The data, beside {karpathy},", problems)
    arrays = (np.array(values) for values in (images, captions, columns, index))
    return CocoNumbers(*arrays, frozenset(surplus), width=first)


def checked_shape(name: str, similarity, shape: tuple[int, int]) -> np.ndarray:
    """Convert a similarity to an array.

    Raises:
        ValueError: if it is None, has another shape or holds NaN.
    """
    if similarity is None:
        raise ValueError(f"{name} is None; expected shape {shape}.")
    similarity = checked_matrix(similarity, name)
    if similarity.shape != shape:
        raise ValueError(f"{name} has shape {similarity.shape}; expected {shape}.")
    return similarity


def image_number(name: str) -> int | None:
    """Read COCO's number of an image from a file name (`COCO_val2014_000000391895.jpg`) or number; None for others."""
    found = re.search(r"(?<!\d)(\d+)(\.[A-Za-z]+)?$", name)
    return int(found.group(1)) if found and len(found.group(1)) <= MAX_DIGITS else None


def _read_test_split(karpathy: str | Path) -> dict[int, list[tuple[int, str]]]:
    """Read the captions of every test image, with their numbers."""
    known = {}
    for number, entry in enumerate(read_karpathy(karpathy)):
        try:
            if entry["split"] == "test":
                known[int(entry["cocoid"])] = [(int(each["sentid"]), each["raw"]) for each in entry["sentences"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{karpathy} images[{number}]: not the expected fields, cocoid, split and sentences with sentid and "
                f"raw ({error!r})."
            ) from error
    if not known:
        raise ValueError(f"{karpathy} has no image of the split 'test'.")
    return known


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
