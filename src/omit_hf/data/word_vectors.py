"""Reads word vectors from a text file: GloVe, word2vec or fastText."""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from omit_hf.parsing import check_encoding, shown, told


@dataclass
class WordVectors:
    """The vectors that a file has for a vocabulary.

    Args:
        ids: ids of the words found, int64 [N].
        vectors: their vectors, float32 [N, size].
        missing: words of the vocabulary that the file lacks.
    """

    ids: torch.Tensor
    vectors: torch.Tensor
    missing: list[str]

    @property
    def coverage(self) -> float:
        """Share of the vocabulary's words that the file has."""
        return len(self.ids) / (len(self.ids) + len(self.missing))


def read_word_vectors(file: str | Path, vocabulary: Mapping[str, int], size: int) -> WordVectors:
    """Read the vectors of a vocabulary's words, line by line; other words are not parsed.

    Args:
        file: text with a word and its numbers a line, separated by spaces; word2vec and fastText (.vec) begin with a
            line that tells how many words of which dimension follow, GloVe does not. Of a word that occurs twice the
            first vector counts.
        vocabulary: words and their ids, without special tokens.
        size: length of a vector, the embedding_size of the model.

    Raises:
        FileNotFoundError: if the file is not there.
        ValueError: if its vectors have another dimension, a line is malformed or missing, or no word of the vocabulary
            is in it.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"No word vectors at {file}; expected a text file such as glove.6B.300d.txt.")
    wanted = {word.encode(): number for word, number in vocabulary.items()}
    found: dict[int, np.ndarray] = {}
    promised, read = None, 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                check_encoding(line, file)
                line = line.removeprefix(codecs.BOM_UTF8)
                if b"\0" in line:
                    raise ValueError(
                        f"{file} line 1 has a null byte, as UTF-16 has; expected UTF-8 text, numbers in it."
                    )
            line = line.rstrip()
            spaces = line.count(b" ")
            if number == 1:
                header = line.split()
                if len(header) == 2 and all(each.isdigit() and len(each) < 19 for each in header):
                    promised, dimension = map(int, header)
                else:
                    dimension = spaces
                if dimension != size:
                    raise ValueError(
                        f"The word vectors in {file} have {dimension} numbers a word; expected {size}, the "
                        "embedding_size of text_config. Choose another file, or that embedding_size."
                    )
                if promised is not None:
                    continue
            if spaces < size:
                raise ValueError(
                    f"{file}, line {number}: {spaces} numbers after the word; expected {size}. Is the file cut off, or "
                    "no text file of word vectors?"
                )
            read += 1
            word, *numbers = line.rsplit(b" ", size) if spaces > size else line.split(b" ", 1)  # words may hold spaces
            if word not in wanted or wanted[word] in found:
                continue
            try:
                vector = np.array(b" ".join(numbers).split(), dtype=np.float32)
            except ValueError as error:
                raise ValueError(
                    f"{file}, line {number}: {told(error)}; expected {size} numbers after the word."
                ) from error
            if not np.isfinite(vector).all():
                raise ValueError(f"{file}, line {number}: the vector of {shown(word.decode())} is not finite.")
            found[wanted[word]] = vector
    if promised is not None and read != promised:
        raise ValueError(f"{file} has {read} words, and its first line tells of {promised}; get it anew.")
    if not found:
        raise ValueError(
            f"{file} has none of the vocabulary's {len(wanted)} words, such as {', '.join(list(vocabulary)[:3])}; "
            "expected vectors of the captions' language, in lower case."
        )
    return WordVectors(
        ids=torch.tensor(list(found)),
        vectors=torch.from_numpy(np.stack(list(found.values()))),
        missing=[word for word, number in vocabulary.items() if number not in found],
    )
