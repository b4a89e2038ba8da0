"""Print what libraries cost in disk, memory and time, from what was measured with a small one.

    python examples/library_costs.py
    python examples/library_costs.py --fragments 50 --width 512 --pictures_per_second 400
    python examples/library_costs.py --measure 10000

The last makes a library of so many pictures in a temporary folder, measures it, and prints the constants of this
machine, which stand in omit_hf/library/calculator.py. Its fragments are random, and near 512 centres.
"""

import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from omit_hf import OmitConfig, OmitModel
from omit_hf.command_line import CommandParser, run_script
from omit_hf.library import calculator
from omit_hf.library.calculator import FLOAT32, Measured, Size
from omit_hf.library.columns import as_stored
from omit_hf.library.lance import LanceStore, Settings
from omit_hf.modeling import OmitFeatures

CENTRES, NOISE = 512, 0.05
BLOCK = 1000  # pictures that are added at once
QUERIES = 15
WORDS = (5, 20)


def main() -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--pictures", type=float, nargs="+", default=[1e5, 1e6, 1e7, 1e8], help="sizes")
    parser.add_argument("--fragments", type=int, default=36, help="K, of a picture")
    parser.add_argument("--width", type=int, default=256, help="D, of a fragment")
    parser.add_argument("--words", type=int, default=10, help="L, of a sentence")
    parser.add_argument("--candidates", type=int, default=400, help="C, of the first stage")
    parser.add_argument("--pictures_per_second", type=float, default=100, help="that all encoders encode together")
    parser.add_argument("--measure", type=int, metavar="PICTURES", help="measure this machine instead")
    arguments = parser.parse_args()
    form = {name: getattr(arguments, name) for name in ("fragments", "width", "words", "candidates")}
    if arguments.measure is not None:
        found = measure(Size(arguments.measure, **form))
        print("\n".join(f"{field.name}={getattr(found, field.name):.3g}," for field in fields(found)))
        return
    print(table([Size(int(pictures), **form) for pictures in arguments.pictures], arguments.pictures_per_second))


def table(sizes: list[Size], pictures_per_second: float) -> str:
    """A row a size."""
    titles = ["pictures", "table", "index", "memory", "to encode", "to write", "to index", "a query"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for size in sizes:
        cells = [f"{size.pictures:,}".replace(",", " ")]
        cells += [shown_bytes(calculator.table_bytes(size)), shown_bytes(calculator.index_bytes(size))]
        cells.append(shown_bytes(calculator.search_memory(size)))
        cells.append(shown_seconds(calculator.encode_seconds(size, pictures_per_second)))
        cells += [shown_seconds(calculator.write_seconds(size)), shown_seconds(calculator.index_seconds(size))]
        cells.append(f"{calculator.query_milliseconds(size):.0f} ms")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown_bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return "–" if count == 0 else f"{count:.0f} B"


def shown_seconds(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return "–" if seconds == 0 else f"{seconds:.2g} s"


def measure(size: Size) -> Measured:
    """Make a library of a size, and what is known of this machine then."""
    centres = torch.nn.functional.normalize(torch.randn(CENTRES, size.width), dim=-1)
    with tempfile.TemporaryDirectory() as folder:
        store = LanceStore(folder)
        store.write_settings(Settings.of_model("pictures", "measured", "0" * 32, size.width))
        times = []
        wrote = fill(store, centres, size, 0, size.pictures // 2)
        store.make_index()
        times += [(words, size.pictures // 2, first_stage(store, centres, size, words)) for words in WORDS]
        store.table.drop_index(store.index)
        wrote += fill(store, centres, size, size.pictures // 2, size.pictures)
        store.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        features = calculator.table_bytes(size, nothing(row_bytes=0))
        row_bytes = (bytes_of(f"{store.table.uri}/data") - features) / size.pictures
        loaded = in_process(load, folder)
        started = time.perf_counter()
        store.make_index()
        index_seconds = time.perf_counter() - started
        indexed = bytes_of(store.table.uri + "/_indices")
        times += [(words, size.pictures, first_stage(store, centres, size, words)) for words in WORDS]
        gather, score = second_stage(store, centres, size)
        searched = in_process(search, folder, centres[: size.words], size.candidates)
    pairs = [1e-6 * words * pictures * size.fragments * size.width for words, pictures, _ in times]
    search_ns, query_ms = np.polyfit(pairs, [milliseconds for _, _, milliseconds in times], 1)
    in_memory = FLOAT32 * size.numbers
    candidates = size.candidates * (size.fragments + 1) * size.width * (size.vector_bytes + FLOAT32)
    process_bytes = searched - indexed - candidates
    return Measured(
        row_bytes=row_bytes,
        code_bytes=indexed / (size.pictures * size.fragments) - size.width * size.index_bits / 8,
        write_seconds=wrote / size.numbers,
        index_seconds=index_seconds / size.numbers,
        query_ms=query_ms,
        search_ns=search_ns,
        gather_ns=1e9 * gather / (size.candidates * (size.fragments + 1) * size.width),
        score_ns=1e9 * score / (size.candidates * size.fragments * size.words * size.width),
        process_bytes=process_bytes,
        load_factor=(loaded - process_bytes) / in_memory,
    )


def nothing(**known) -> Measured:
    return Measured(**{field.name: known.get(field.name, 0) for field in fields(Measured)})


def fill(store: LanceStore, centres: torch.Tensor, size: Size, first: int, last: int) -> float:
    """Add pictures of numbers from `first` to `last`, merge their files, and return how many seconds that took."""
    seconds = 0.0
    for start in range(first, last, BLOCK):
        numbers = range(start, min(start + BLOCK, last))
        rows = as_stored(synthetic(centres, len(numbers), size.fragments))
        for number, row in zip(numbers, rows, strict=True):
            path = f"/home/somebody/pictures/2024/a-journey/IMG_{number:08}.jpg"
            row |= {"key": f"{hash(path) % 2**128:032x}", "id": path, "path": path, "folder": "/home/somebody/pictures"}
            row |= {"digest": os.urandom(32).hex(), "bytes": 3_000_000 + number, "modified": 10**18 + number**2}
            row |= {"width": 4000, "height": 3000, "grid": [6, 6]}
        started = time.perf_counter()
        store.add(rows)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    store.tidy()
    return seconds + time.perf_counter() - started


def synthetic(centres: torch.Tensor, count: int, fragments: int) -> OmitFeatures:
    """Features of pictures whose fragments are near centres."""
    chosen = centres[torch.randint(len(centres), (count, fragments))]
    embeds = torch.nn.functional.normalize(chosen + NOISE * torch.randn_like(chosen), dim=-1)
    mask = torch.ones(count, fragments, dtype=torch.bool)
    pooled = torch.nn.functional.normalize(embeds.mean(1), dim=-1)
    return OmitFeatures(embeds=embeds, mask=mask, pooled=pooled, norms=1 + torch.rand(count, fragments))


def first_stage(store: LanceStore, centres: torch.Tensor, size: Size, words: int) -> float:
    """Milliseconds to find the candidates, the least of several queries."""
    times = []
    for _ in range(QUERIES):
        query = synthetic(centres, 1, words).embeds[0]
        started = time.perf_counter()
        store.candidates(query, torch.full((words,), 1 / words), None, size.candidates)
        times.append(1000 * (time.perf_counter() - started))
    return min(times)


def second_stage(store: LanceStore, centres: torch.Tensor, size: Size) -> tuple[float, float]:
    """Seconds to fetch the candidates, and to score them, the least of several queries."""
    small = {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
    text = {"model_type": "omit_bigru", "vocab_size": 30, "embedding_size": 8, "hidden_size": 8}
    model = OmitModel(OmitConfig(vision_config=small, text_config=text, projection_dim=size.width)).eval()
    fetched, scored = [], []
    for _ in range(QUERIES):
        query = synthetic(centres, 1, size.words)
        found = store.candidates(query.embeds[0], torch.full((size.words,), 1 / size.words), None, size.candidates)
        started = time.perf_counter()
        items = store.fragments(found.ids)
        fetched.append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            model.similarity(items, query)
        scored.append(time.perf_counter() - started)
    return min(fetched), min(scored)


def in_process(function, *arguments):
    """The result of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def load(folder: str) -> int:
    """Peak memory of a process that reads all features, as a search in memory does."""
    blocks = list(LanceStore(folder).scan())
    peak = peak_memory()
    del blocks  # only now
    return peak


def search(folder: str, words: torch.Tensor, count: int) -> int:
    """Peak memory of a process that searches with the index."""
    store = LanceStore(folder)
    for _ in range(3):
        store.fragments(store.candidates(words, torch.full((len(words),), 1 / len(words)), None, count).ids)
    return peak_memory()


def peak_memory() -> int:
    """Bytes of this process, as Linux counts them since it began; what `resource` says includes who started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found.group(1))


def bytes_of(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


if __name__ == "__main__":
    run_script(main)
