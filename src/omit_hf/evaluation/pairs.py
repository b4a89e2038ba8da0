"""The images and captions that a similarity matrix scores."""

from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset

from omit_hf.data.schema import DataError


@dataclass(frozen=True)
class SplitPairs:
    """The images (rows) and captions (columns) of a similarity matrix.

    Args:
        image_ids: id of every image.
        captions: captions of every image; those of image 0 are the first columns, then those of image 1.
        relevant: true where a caption is true of an image, bool [N_i, N_t]; None if only the annotated pairs are known.
        split: name of the split: train, validation or test.
        source: name of the data, for people.
    """

    image_ids: list[str]
    captions: list[list[str]]
    relevant: np.ndarray | None = field(default=None, repr=False, compare=False)
    split: str = "test"
    source: str = field(default="", compare=False)

    def __post_init__(self):
        if len(self.image_ids) != len(self.captions):
            raise ValueError(
                f"There are {len(self.image_ids)} image_ids and captions of {len(self.captions)} images; expected as "
                "many."
            )
        if self.relevant is not None and self.relevant.shape != self.shape:
            raise ValueError(f"relevant has shape {self.relevant.shape}; expected {self.shape}, images and captions.")

    @classmethod
    def of(cls, rows: Dataset, split: str = "test", source: str = "") -> "SplitPairs":
        """Collect the pairs of a split in the schema of `omit_hf.data`.

        Raises:
            DataError: lists every image whose `relevant_captions` are null while others have some, or name a caption
                that is not there.
        """
        pairs = cls(list(rows["image_id"]), list(rows["captions"]), split=split, source=source)
        listed = list(rows["relevant_captions"]) if "relevant_captions" in rows.column_names else []
        if all(captions is None for captions in listed):
            return pairs
        relevant, problems = np.zeros(pairs.shape, dtype=bool), []
        for image, captions in enumerate(listed):
            wrong = [None] if captions is None else [each for each in captions if not 0 <= each < pairs.shape[1]]
            if wrong:
                wanted = f"numbers of captions from 0 to {pairs.shape[1] - 1}"
                problems.append(f"{pairs.image_ids[image]} has {wrong[0]}; expected {wanted}")
            else:
                relevant[image, captions] = True
        if problems:
            raise DataError("The column relevant_captions", problems)
        return replace(pairs, relevant=relevant)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of images and captions, N_i and N_t."""
        return len(self.image_ids), sum(map(len, self.captions))

    @property
    def caption_image_index(self) -> np.ndarray:
        """The image that each caption belongs to, int64 [N_t]."""
        return np.repeat(np.arange(len(self.captions)), [len(captions) for captions in self.captions])
