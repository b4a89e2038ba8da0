"""Protocols of the literature: which metrics they measure, on which data."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.evaluation.protocols.coco_numbers import KARPATHY_FILE, CocoNumbers, coco_numbers
from omit_hf.evaluation.protocols.cxc import TASKS, check_files, cxc, read_cxc
from omit_hf.evaluation.protocols.eccv import eccv, read_eccv
from omit_hf.evaluation.protocols.exhaustive import exhaustive
from omit_hf.evaluation.protocols.karpathy import check_flickr30k, coco_1k, coco_5k, coco_captions, flickr30k_1k
from omit_hf.evaluation.protocols.result import ProtocolResult

__all__ = [
    "PROTOCOLS",
    "CocoNumbers",
    "ProtocolResult",
    "coco_1k",
    "coco_5k",
    "coco_numbers",
    "cxc",
    "eccv",
    "exhaustive",
    "flickr30k_1k",
    "prepare",
    "read_cxc",
    "read_eccv",
]

PROTOCOLS = ("flickr30k_1k", "coco_5k", "coco_1k", "cxc", "eccv", "exhaustive")


def prepare(
    protocol: str, pairs: SplitPairs, annotations: str | Path | None = None, tasks: Sequence[str] = TASKS
) -> Callable[..., ProtocolResult]:
    """Prepare a protocol for some pairs. Makes every check that needs no similarity, so that nothing is scored in vain.

    Args:
        protocol: one of `PROTOCOLS`.
        pairs: images and captions of the split.
        annotations: folder of `dataset_coco.json` (`cxc`, `eccv`) and of the files of Crisscrossed Captions (`cxc`).
        tasks: tasks of `cxc`.

    Returns:
        A function of the similarity [N_i, N_t]; for `cxc` it takes `image_similarity` and `text_similarity` too.

    Raises:
        FileNotFoundError: if an annotation file is missing.
        ImportError: if `eccv` lacks its package.
        ValueError: if the protocol is unknown, or the pairs or annotations do not fit it.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; expected one of {', '.join(PROTOCOLS)}.")
    if pairs.split != "test":
        raise ValueError(f"The split is {pairs.split!r}; {protocol} expects 'test'.")
    index = pairs.caption_image_index
    if protocol == "flickr30k_1k":
        check_flickr30k(index)
        return partial(flickr30k_1k, caption_image_index=index)
    if protocol in ("coco_5k", "coco_1k"):
        coco_captions(index)
        return partial(coco_5k if protocol == "coco_5k" else coco_1k, caption_image_index=index)
    if protocol == "exhaustive":
        if pairs.relevant is None:
            raise ValueError(
                "The split has no relevant_captions; exhaustive expects data whose every true pair is known, such as "
                "the test split of scenes."
            )
        return partial(exhaustive, relevant=pairs.relevant, source=pairs.source)
    if annotations is None:
        files = f"{KARPATHY_FILE} and the files of Crisscrossed Captions" if protocol == "cxc" else KARPATHY_FILE
        raise ValueError(f"{protocol} needs annotations; expected a folder with {files}.")
    if protocol == "cxc":
        check_files(annotations, tasks)
    numbers = coco_numbers(pairs, Path(annotations) / KARPATHY_FILE)
    if protocol == "cxc":
        return partial(cxc, positives=read_cxc(annotations, numbers, tasks), numbers=numbers)
    return partial(eccv, truth=read_eccv(numbers), numbers=numbers)
