"""What a library of pictures costs: disk, time to add and to index, milliseconds a search, memory.

    python examples/benchmarks/library.py outputs/scenes
    python examples/benchmarks/library.py outputs/scenes --sizes 10000 100000 1000000

The fragments are synthetic, with the statistics of real ones: a picture takes each of its grid cells from one of two of
2 000 test pictures that the model encoded, with a little noise, so that cells are as alike as in real pictures and no
two pictures are the same. Queries are captions of the test split, encoded beforehand: the text encoder is not timed. A
search fetches candidates and their fragments from disk, scores them and reads the metadata of the best. Every part runs
in a process of its own, whose peak memory is told; "first" is the first search of a new process, though the system may
hold the files in memory. Exact scoring and one vector a picture are timed in the same run.
"""

import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import environment
from omit_hf.command_line import CommandParser, run_script
from omit_hf.data import ImageTextInputs, load_image_text
from omit_hf.library import Query, rank_candidates, rank_everything
from omit_hf.library.lance import LanceStore, Settings, as_stored
from omit_hf.library.stores import joined
from omit_hf.modeling import OmitFeatures
from omit_hf.training import data_of_model

BASE, BATCH, BLOCK = 2000, 64, 1024
NOISE = 0.02
K = 10


@dataclass
class Arguments:
    sizes: list[int] = field(default_factory=lambda: [10_000, 100_000], metadata={"help": "Pictures in a library."})
    queries: int = field(default=100, metadata={"help": "Searches that are timed."})
    candidates: int = field(default=400, metadata={"help": "C, of the first stage."})
    folder: str | None = field(default=None, metadata={"help": "Of the libraries; by default one that is deleted."})
    seed: int = field(default=0, metadata={"help": "Of the fragments."})


def main() -> None:
    parser = CommandParser(Arguments, description=__doc__)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    arguments = parser.parse_args()
    place = environment()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        apart(encode, arguments.model, folder, arguments.queries)
        print(f"{place['device']}, {torch.get_num_threads()} threads, commit {place['commit']}, seed {arguments.seed}")
        print(f"{arguments.queries} queries, {arguments.candidates} candidates, the best {K}\n")
        rows = []
        for size in arguments.sizes:
            built = apart(build, arguments.model, folder, size, arguments.seed)
            found = apart(search, arguments.model, folder, size, arguments.candidates)
            rows.append({"pictures": size, **built, **found, **apart(search_exactly, arguments.model, folder, size)})
            rows[-1] |= apart(search_vectors, folder, size)
        print(table(rows))


def apart(work, *arguments) -> dict:
    """The result of a function in a process of its own, with what it adds to the memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def encode(model: str, folder: Path, queries: int) -> None:
    """Features of the base pictures and of the queries, to files of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data, options = data_of_model(model)
    split = load_image_text(data, **{**options, "test_size": BASE, "only": ["test"]})["test"]
    model, processor = OmitModel.from_pretrained(model).eval(), OmitProcessor.from_pretrained(model)
    inputs, blocks = ImageTextInputs(split, processor), []
    with torch.inference_mode():
        for start in tqdm(range(0, BASE, BATCH), desc="Encoding pictures", leave=False):
            numbers = range(start, min(start + BATCH, BASE))
            blocks.append(model.get_image_features(**inputs.images(numbers)).select(slice(BATCH)))
        texts = [model.get_text_features(**inputs.texts([5 * n])).select(slice(1)) for n in range(queries)]
    torch.save([saved(joined(blocks)), *map(saved, texts)], folder / "features.pt")


def saved(features: OmitFeatures) -> dict:
    return {name: getattr(features, name) for name in ("embeds", "mask", "pooled", "norms")}


def loaded(folder: Path) -> tuple[OmitFeatures, list[OmitFeatures]]:
    base, *texts = (OmitFeatures(**each) for each in torch.load(folder / "features.pt", weights_only=True))
    return base, texts


def build(model: str, folder: Path, size: int, seed: int) -> dict:
    """Make a library of so many pictures."""
    base, _ = loaded(folder)
    count, fragments, width = base.embeds.shape
    store = LanceStore(str(folder / f"{size}.lance"))
    store.write_settings(Settings("pictures", model, "", width, "items"))
    generator = torch.Generator().manual_seed(seed)
    adding = 0.0
    for start in tqdm(range(0, size, BLOCK), desc=f"Adding {size} pictures", leave=False):
        block = min(BLOCK, size - start)
        parents = torch.randint(count, (2, block), generator=generator)
        first = torch.rand(block, fragments, 1, generator=generator) < 0.5
        embeds = torch.where(first, base.embeds[parents[0]], base.embeds[parents[1]])
        embeds = F.normalize(embeds + NOISE * torch.randn(embeds.shape, generator=generator), dim=-1)
        pooled = F.normalize(base.pooled[parents[0]] + base.pooled[parents[1]], dim=-1)
        mask, norms = torch.ones(block, fragments, dtype=torch.bool), base.norms[parents[0]]
        started = time.perf_counter()
        features = as_stored(OmitFeatures(embeds=embeds, mask=mask, pooled=pooled, norms=norms))
        names = [f"{start + number:08}" for number in range(block)]
        rows = [
            {"key": name, "id": name, "path": f"/pictures/{name}.jpg", "year": 2000 + int(name) % 25} for name in names
        ]
        store.add([row | stored for row, stored in zip(rows, features, strict=True)])
        adding += time.perf_counter() - started
    started = time.perf_counter()
    store.make_index()
    indexing = time.perf_counter() - started
    store.refresh()
    table, index = (
        sum(file.stat().st_size for file in Path(store.uri).rglob(name) if file.is_file())
        for name in ("*.lance", "_indices/**/*")
    )
    return {
        "bytes a picture": (table + index) / size,
        "of them index": index / size,
        "add, s": adding,
        "index, s": indexing,
    }


def queries_of(model: str, folder: Path) -> list[Query]:
    model = OmitModel.from_pretrained(model).eval()
    return [Query(model, text, "text", "image") for text in loaded(folder)[1]]


def search(model: str, folder: Path, size: int, candidates: int) -> dict:
    """Searches in two stages."""
    queries, seconds = queries_of(model, folder), []
    before = peak()
    for query in queries + queries[:1]:
        if not seconds:
            store = LanceStore(str(folder / f"{size}.lance"))
        started = time.perf_counter()
        ranking = rank_candidates(query, store, K, None, candidates)
        store.metadata(ranking.ids)
        seconds.append(1000 * (time.perf_counter() - started))
    warm = sorted(seconds[1:])
    figures = {
        "first, ms": seconds[0],
        "median, ms": statistics.median(warm),
        "99th percentile, ms": warm[int(0.99 * len(warm))],
    }
    filtered = []
    for query in queries[:20]:
        started = time.perf_counter()
        rank_candidates(query, store, K, "year >= 2020", candidates)
        filtered.append(1000 * (time.perf_counter() - started))
    return figures | {
        "with a filter, ms": statistics.median(filtered),
        "memory, MB": peak(),
        "of it before, MB": before,
    }


def search_exactly(model: str, folder: Path, size: int) -> dict:
    """A few searches that score everything, block by block from disk, and those same ones in two stages."""
    queries, seconds, found = queries_of(model, folder)[:3], [], []
    store = LanceStore(str(folder / f"{size}.lance"))
    for query in queries:
        started = time.perf_counter()
        found.append(rank_everything(query, store.scan(), K).ids)
        seconds.append(1000 * (time.perf_counter() - started))
    return {"exact, ms": statistics.median(seconds), "exact, MB": peak()}


def search_vectors(folder: Path, size: int) -> dict:
    """One vector a picture in memory: the least that a search can cost."""
    base, texts = loaded(folder)
    vectors, seconds = F.normalize(torch.randn(size, base.pooled.shape[1]), dim=-1), []
    for text in texts:
        started = time.perf_counter()
        (vectors @ text.pooled[0]).topk(K)
        seconds.append(1000 * (time.perf_counter() - started))
    return {"one vector, ms": statistics.median(seconds)}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[dict]) -> str:
    lines = ["| | " + " | ".join(f"{row['pictures']:,}".replace(",", " ") + " pictures" for row in rows) + " |"]
    lines.append("|---" * (1 + len(rows)) + "|")
    figures = {name: [f"{row[name]:,.1f}".replace(",", " ") for row in rows] for name in rows[0] if name != "pictures"}
    lines += [f"| {name} | " + " | ".join(values) + " |" for name, values in figures.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
