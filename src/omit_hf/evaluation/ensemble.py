"""Similarity matrices on disk, and their mean: an ensemble of models that need not be in memory together."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from omit_hf.data.schema import listed
from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.evaluation.retrieval import checked_matrix
from omit_hf.parsing import parse_json, shown
from omit_hf.writing import appears_when_complete

SUFFIX = ".safetensors"
KIND = "omit_hf.similarity"


def save_similarity(file: str | Path, similarity: np.ndarray, pairs: SplitPairs) -> None:
    """Write a similarity with the ids of its images and its captions, so that it cannot be mixed up with other data.

    Args:
        file: `….safetensors`; it appears when it is complete.
        similarity: [N_i, N_t], kept in float32.
        pairs: its images and captions.

    Raises:
        ValueError: if the file has another suffix, or the similarity is not a matrix of these pairs.
    """
    file = check_similarity_file(file)
    similarity = checked_matrix(similarity)
    if similarity.shape != pairs.shape:
        raise ValueError(f"similarity has shape {similarity.shape}; expected {pairs.shape}, images and captions.")
    tensors = {"similarity": np.ascontiguousarray(similarity, dtype=np.float32)}
    if pairs.relevant is not None:
        tensors["relevant"] = pairs.relevant
    metadata = {
        "kind": KIND,
        "split": pairs.split,
        "source": pairs.source,
        "image_ids": json.dumps(pairs.image_ids),
        "captions": json.dumps(pairs.captions),
    }
    with appears_when_complete(file) as partial:
        partial.write_bytes(save(tensors, metadata))  # save_file makes it readable to its owner alone


def load_similarity(file: str | Path) -> tuple[np.ndarray, SplitPairs]:
    """Read what `save_similarity` wrote: the similarity, float32 [N_i, N_t], and its images and captions.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if `save_similarity` did not write it, or the matrix does not fit its ids or holds NaN.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"No similarity at {file}; evaluate.py --save_similarity writes one.")
    try:
        with safe_open(file, "numpy") as content:
            metadata = content.metadata() or {}
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}.") from error
    if metadata.get("kind") != KIND or "similarity" not in tensors:
        raise ValueError(f"{file} holds no similarity; expected what evaluate.py --save_similarity wrote.")
    try:
        pairs = SplitPairs(
            _texts("image_ids", parse_json(metadata["image_ids"])),
            [
                _texts(f"captions[{n}]", each)
                for n, each in enumerate(_list("captions", parse_json(metadata["captions"])))
            ],
            tensors.get("relevant"),
            metadata["split"],
            metadata["source"],
        )
        if pairs.relevant is not None and pairs.relevant.dtype != bool:
            raise ValueError(f"relevant is of type {pairs.relevant.dtype}; expected true and false.")
        similarity = checked_matrix(tensors["similarity"])
    except KeyError as error:
        raise ValueError(f"{file} has no {error}; expected what evaluate.py --save_similarity wrote.") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if similarity.shape != pairs.shape:
        raise ValueError(f"{file}: similarity has shape {similarity.shape}; expected {pairs.shape}, those of its ids.")
    return similarity, pairs


def ensemble(files: Sequence[str | Path]) -> tuple[np.ndarray, SplitPairs]:
    """Average saved similarities: float32 [N_i, N_t], and their images and captions.

    Heads differ in the range of their similarities; a head with a wider range counts for more.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if no file is given, one is given twice or is not a similarity, or the files differ in their images
            or captions, or in the order of these.
    """
    if not files:
        raise ValueError("No similarity given; expected at least one file.")
    places = [os.path.realpath(file) for file in files]
    twice = sorted({os.path.basename(place) for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"{listed(twice)} is given more than once; expected each file once.")
    total, first = load_similarity(files[0])
    total = total.astype(np.float64)
    for file in files[1:]:
        similarity, pairs = load_similarity(file)
        if pairs != first:
            raise ValueError(f"{file} is of other data than {files[0]}: {_difference(first, pairs)}.")
        total += similarity
    return (total / len(files)).astype(np.float32), first


def _list(name: str, value) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {shown(value)}; expected a list.")
    return value


def _texts(name: str, value) -> list[str]:
    wrong = [each for each in _list(name, value) if not isinstance(each, str)]
    if wrong:
        raise ValueError(f"{name} holds {shown(wrong[0])}; expected texts.")
    return value


def check_similarity_file(file: str | Path) -> Path:
    """Check that a similarity can be written to a file, and return its path.

    Raises:
        FileNotFoundError: if its folder is not there.
        ValueError: if it has another suffix.
    """
    file = Path(file)
    if file.suffix != SUFFIX:
        raise ValueError(f"The similarity's file is {file}; expected a name that ends with {SUFFIX}.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {file.parent} for {file.name}; make it first.")
    return file


def _difference(first: SplitPairs, other: SplitPairs) -> str:
    if first.split != other.split:
        return f"split {other.split!r}, not {first.split!r}"
    if first.shape != other.shape:
        return f"{other.shape[0]} images and {other.shape[1]} captions, not {first.shape[0]} and {first.shape[1]}"
    for ours, theirs in zip(first.image_ids, other.image_ids, strict=True):
        if ours != theirs:
            return f"where the one has image {ours!r}, the other has {theirs!r}"
    different = next(n for n, ours in enumerate(first.captions) if ours != other.captions[n])
    return f"image {first.image_ids[different]!r} has other captions"
