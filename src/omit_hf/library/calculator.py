"""What a library costs: bytes on disk, memory, seconds to make it, milliseconds a query; from what was measured."""

from dataclasses import dataclass

from omit_hf.library.lance import PROBES
from omit_hf.library.library import MEMORY

FLOAT16, FLOAT32 = 2, 4  # bytes
PARTITION = 4096  # pictures in a part of the index, as LanceDB makes it


@dataclass(frozen=True)
class Measured:
    """What a machine showed; `python examples/library_costs.py --measure 10000` prints it for another.

    Args:
        row_bytes: of a row on disk beside its features: path, digest, size, time.
        code_bytes: of a fragment in the index beside its bits.
        write_seconds: to write a number of a feature, and to merge its file once.
        index_seconds: to index one.
        query_ms: of a query with an index, whatever the size.
        search_ns: to compare a word with a fragment in the index, for each of its numbers.
        gather_ns: to fetch a number of a candidate.
        score_ns: to score a word with a fragment exactly, for each of its numbers.
        process_bytes: of a process that searches, without features, index and model.
        load_factor: peak memory while features are read, in their size.
    """

    row_bytes: float
    code_bytes: float
    write_seconds: float
    index_seconds: float
    query_ms: float
    search_ns: float
    gather_ns: float
    score_ns: float
    process_bytes: float
    load_factor: float


# 2 cores of a machine that others used too, LanceDB 0.40, 10 000 pictures of 36 x 256: the fastest of several runs.
MEASURED = Measured(
    row_bytes=153,
    code_bytes=13.4,
    write_seconds=5.3e-8,
    index_seconds=4.6e-8,
    query_ms=15,
    search_ns=0.033,
    gather_ns=4.1,
    score_ns=0.3,
    process_bytes=7.3e8,
    load_factor=1.25,
)


@dataclass(frozen=True)
class Size:
    """The size of a library.

    Args:
        pictures: N.
        fragments: K, of a picture.
        width: D, of a fragment.
        vector_bytes: of a number in the table; 2 in float16.
        index_bits: of a number in the index.
        candidates: C, of the first stage.
        words: L, of a sentence.
    """

    pictures: int
    fragments: int = 36
    width: int = 256
    vector_bytes: int = FLOAT16
    index_bits: int = 1
    candidates: int = 400
    words: int = 10

    @property
    def numbers(self) -> int:
        """Numbers of all fragments and global features."""
        return self.pictures * (self.fragments + 1) * self.width

    @property
    def has_index(self) -> bool:
        """Whether its features are too many to be searched in memory."""
        return FLOAT32 * self.numbers > MEMORY

    @property
    def parts(self) -> int:
        """Of its index."""
        return max(1, self.pictures // PARTITION)


def table_bytes(size: Size, measured: Measured = MEASURED) -> float:
    """Of the table on disk: the fragments twice and the global feature, a norm a fragment, and what else a row has.

    While small files are merged, and until `compact` deletes what they were merged from, it is twice that.
    """
    features = (2 * size.fragments + 1) * size.width * size.vector_bytes + size.fragments * FLOAT32
    return size.pictures * (features + measured.row_bytes)


def index_bytes(size: Size, measured: Measured = MEASURED) -> float:
    """Of the index on disk: the codes of the fragments, and the centres of its parts; 0 without one."""
    if not size.has_index:
        return 0
    code = size.width * size.index_bits / 8 + measured.code_bytes
    return size.pictures * size.fragments * code + size.parts * size.width * FLOAT32


def search_memory(size: Size, measured: Measured = MEASURED) -> float:
    """Bytes of a process that searches, without its model: all features, or the index and the candidates."""
    if not size.has_index:
        return measured.process_bytes + measured.load_factor * FLOAT32 * size.numbers
    candidates = size.candidates * (size.fragments + 1) * size.width * (size.vector_bytes + FLOAT32)
    return measured.process_bytes + index_bytes(size, measured) + candidates


def encode_seconds(size: Size, pictures_per_second: float) -> float:
    """To encode all pictures, at the rate of all encoders together."""
    return size.pictures / pictures_per_second


def write_seconds(size: Size, measured: Measured = MEASURED) -> float:
    """To write the rows and merge their files."""
    return measured.write_seconds * size.numbers


def index_seconds(size: Size, measured: Measured = MEASURED) -> float:
    """To make the index, 0 without one."""
    return measured.index_seconds * size.numbers if size.has_index else 0


def query_milliseconds(size: Size, measured: Measured = MEASURED) -> float:
    """Of a query without the text encoder: everything scored in memory, or two stages."""
    pair = size.fragments * size.words * size.width
    if not size.has_index:
        return 1e-6 * measured.score_ns * size.pictures * pair
    searched = size.pictures * min(1, PROBES / size.parts)
    first = measured.query_ms + 1e-6 * measured.search_ns * searched * pair
    each = measured.score_ns * pair + measured.gather_ns * (size.fragments + 1) * size.width
    return first + 1e-6 * size.candidates * each
