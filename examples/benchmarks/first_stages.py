"""How many of OMIT's best pictures a first stage finds, and what two stages cost in recall.

    python examples/benchmarks/first_stages.py outputs/scenes
    python examples/benchmarks/first_stages.py outputs/scenes --pictures 10000 --queries 2000

The model encodes pictures and captions like those of the test split that it was trained for, generated from several
seeds. The
first table has, for each first stage, the share of OMIT's best k pictures that are among its first C. The second one
has recall of a library with an index, two stages, beside scoring everything in float32: R@K counts the captions whose
own picture is among the first K.

The stages are the cosine of the global features; MUVERA's fixed-dimensional encodings (Dhulipala et al., 2024), which
turn fragments into one vector whose product approximates late interaction; late interaction itself, Σ_l ν_l max(0,
max_k S_kl), which bounds OMIT's score from above; and the index of the library, which approximates it.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from tqdm.auto import tqdm

from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import environment
from omit_hf.command_line import CommandParser, json_object, run_script
from omit_hf.data import ImageTextInputs, load_image_text
from omit_hf.library import Query, rank_candidates
from omit_hf.library.lance import LanceStore, Settings, as_stored
from omit_hf.library.stores import joined
from omit_hf.modeling import OmitFeatures
from omit_hf.training import data_of_model

BATCH = 64
PER_SEED = 500
CHUNK = 256  # captions that are scored against all pictures at once


@dataclass
class Arguments:
    pictures: int = field(default=4000, metadata={"help": "Pictures of the test split."})
    queries: int = field(default=1000, metadata={"help": "Captions of them, drawn at random."})
    k: int = field(default=10, metadata={"help": "The best pictures that are to be found."})
    counts: list[int] = field(default_factory=lambda: [50, 100, 200, 400], metadata={"help": "C, of candidates."})
    repetitions: int = field(default=20, metadata={"help": "Of MUVERA, 16 x 32 dimensions each."})
    seed: int = field(default=0, metadata={"help": "Of the captions and of MUVERA's projections."})


class Muvera:
    """MUVERA's encodings: space is cut into 2^5 cells by random planes; of each cell the sum of a query's fragments, or
    the mean of an item's, in 16 random directions; repeated with other planes.

    An item's empty cell takes the fragment whose own cell is the nearest.
    """

    planes, directions = 5, 16

    def __init__(self, width: int, repetitions: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.normals = torch.randn(repetitions, width, self.planes, generator=generator)
        signs = torch.randint(0, 2, (repetitions, width, self.directions), generator=generator) * 2.0 - 1
        self.projections = signs / self.directions**0.5

    def encode(self, fragments: Tensor, mask: Tensor, is_query: bool) -> Tensor:
        """[B, repetitions · 32 · 16] of fragments [B, K, D] with their mask [B, K]."""
        cells = 2**self.planes
        bits = torch.arange(cells)[:, None].bitwise_and(2 ** torch.arange(self.planes)).ne(0)
        parts = []
        for normals, projection in zip(self.normals, self.projections, strict=True):
            sides = fragments @ normals > 0
            differ = (sides[:, :, None] != bits).sum(-1).masked_fill(~mask[..., None], 99)  # [B, K, cells]
            inside = (differ == 0).to(fragments)
            sums = torch.einsum("bkc,bkd->bcd", inside, fragments @ projection)
            if not is_query:
                sums = sums / inside.sum(1).clamp_min(1)[..., None]
                nearest = differ.argmin(1)[..., None].expand(-1, -1, self.directions)
                filled = (fragments @ projection).gather(1, nearest)
                sums = torch.where((inside.sum(1) == 0)[..., None], filled, sums)
            parts.append(sums.flatten(1))
        return torch.cat(parts, dim=1)


def main() -> None:
    parser = CommandParser(Arguments, description=__doc__)
    parser.add_argument("model", help="Folder or Hub id of an OmitModel.")
    parser.add_argument("--data", help="By default the model's own, from its recipe.")
    parser.add_argument("--data_options", type=json_object, default={}, help="Options of the data's loader, as JSON.")
    arguments = parser.parse_args()
    model, processor = OmitModel.from_pretrained(arguments.model).eval(), OmitProcessor.from_pretrained(arguments.model)
    data, options = data_of_model(arguments.model, arguments.data, arguments.data_options)
    split = test_pictures(data, options, arguments.pictures)
    inputs = ImageTextInputs(split, processor)
    generator = torch.Generator().manual_seed(arguments.seed)
    captions = torch.randperm(len(inputs), generator=generator)[: arguments.queries].tolist()
    own = torch.from_numpy(inputs.caption_image_index[captions])
    images = encoded(model, range(inputs.num_images), inputs.images, model.get_image_features, "pictures")
    texts = encoded(model, captions, inputs.texts, model.get_text_features, "captions")
    scores = exact_scores(model, images, texts)

    place, (count, fragments, width) = environment(), images.embeds.shape
    print(f"{place['device']}, {torch.get_num_threads()} threads, commit {place['commit']}, seed {arguments.seed}")
    print(f"{arguments.model} on {data}: {len(captions)} captions, {count} pictures of {fragments} x {width}\n")
    queries = [Query(model, texts.select(slice(n, n + 1)), "text", "image") for n in range(len(captions))]
    best = scores.topk(arguments.k, dim=0).indices.T  # [captions, k]
    print(stages(arguments, images, texts, queries, best), flush=True)
    print(two_stages(arguments, images, queries, scores, best, own))


def test_pictures(data: str, options: dict, count: int) -> Dataset:
    """So many test pictures, 500 of a seed: all true pairs, of which a split knows, cost the square of its size."""
    parts = []
    for seed, start in enumerate(range(0, count, PER_SEED)):
        size = {"test_size": min(PER_SEED, count - start), "seed": seed, "only": ["test"]}
        parts.append(load_image_text(data, **{**options, **size})["test"])
    return concatenate_datasets(parts)


def encoded(model, numbers, inputs_of: Callable, features_of: Callable, name: str) -> OmitFeatures:
    """Features of some pictures or captions."""
    found, numbers = [], list(numbers)
    with torch.inference_mode():
        for start in tqdm(range(0, len(numbers), BATCH), desc=f"Encoding {name}", leave=False):
            batch = {key: value.to(model.device) for key, value in inputs_of(numbers[start : start + BATCH]).items()}
            found.append(features_of(**batch).select(slice(BATCH)))
    return joined(found)


@torch.inference_mode()
def exact_scores(model, images: OmitFeatures, texts: OmitFeatures) -> Tensor:
    """[pictures, captions]"""
    chunks = tqdm(range(0, len(texts.embeds), CHUNK), desc="Scoring everything", leave=False)
    return torch.cat([model.similarity(images, texts.select(slice(n, n + CHUNK))) for n in chunks], dim=1)


@torch.inference_mode()
def stages(arguments, images: OmitFeatures, texts: OmitFeatures, queries: list[Query], best: Tensor) -> str:
    """The table of first stages."""
    most = max(arguments.counts)
    found = {"cosine of the global features": (texts.pooled @ images.pooled.T).topk(most).indices}
    muvera = Muvera(images.embeds.shape[2], arguments.repetitions, arguments.seed)
    items, asked = (
        torch.cat(
            [
                muvera.encode(side.embeds[n : n + BATCH], side.mask[n : n + BATCH], is_query)
                for n in tqdm(range(0, len(side.embeds), BATCH), desc="MUVERA", leave=False)
            ]
        )
        for side, is_query in ((images, False), (texts, True))
    )
    found[f"MUVERA, {items.shape[1]} dimensions"] = (asked @ items.T).topk(most).indices
    found["late interaction, clipped at 0, exact"] = bounds(images, queries).topk(most, dim=0).indices.T
    lines = ["| first stage | " + " | ".join(f"C = {count}" for count in arguments.counts) + " |"]
    lines.append("|---" * (1 + len(arguments.counts)) + "|")
    for name, ids in found.items():
        ids = torch.as_tensor(ids)
        shares = [overlap(ids[:, :count], best) for count in arguments.counts]
        lines.append(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    return "\n".join([f"Share of OMIT's best {arguments.k} among C candidates\n", *lines, ""])


def bounds(images: OmitFeatures, queries: list[Query]) -> Tensor:
    """`late_interaction` of all pictures and queries, [pictures, captions], in large products. Padding is zero."""
    found = []
    for start in tqdm(range(0, len(queries), BATCH), desc="Late interaction", leave=False):
        words, weights = zip(*(query.words() for query in queries[start : start + BATCH]), strict=True)
        owners = torch.arange(len(words)).repeat_interleave(torch.tensor([len(each) for each in words]))
        words, weights, blocks = torch.cat(words).T, torch.cat(weights), []
        for embeds in images.embeds.split(BATCH):
            earned = (embeds @ words).amax(1).clamp_min(0) * weights
            blocks.append(torch.zeros(len(embeds), int(owners[-1]) + 1).index_add_(1, owners, earned))
        found.append(torch.cat(blocks))
    return torch.cat(found, dim=1)


def overlap(found: Tensor, best: Tensor) -> float:
    """Share of the best that are among what was found, [N, C] and [N, k]."""
    return (best[:, :, None] == found[:, None, :]).any(-1).float().mean().item()


@torch.inference_mode()
def two_stages(arguments, images, queries: list[Query], scores: Tensor, best: Tensor, own: Tensor) -> str:
    """The table of a library with an index, beside scoring everything."""
    k, lines = arguments.k, [f"| candidates | R@1 | R@{arguments.k} | of the exact best {arguments.k} | ms a query |"]
    lines += ["|---|---|---|---|---|", row("all, float32", best, own, best, "")]
    with tempfile.TemporaryDirectory() as folder:
        store = LanceStore(folder)
        store.write_settings(Settings("pictures", arguments.model, "", images.embeds.shape[2], "items"))
        for start in range(0, len(images.embeds), 1000):
            rows = as_stored(images.select(slice(start, start + 1000)))
            store.add([{"key": str(start + n), "id": str(start + n), **stored} for n, stored in enumerate(rows)])
        store.make_index()
        numbers = {
            row: int(key["key"])
            for row, key in zip(store.matching("true"), store.metadata(columns=["key"]), strict=True)
        }
        for count in arguments.counts:
            found, seconds = [], []
            for query in tqdm(queries, desc=f"{count} candidates", leave=False):
                started = time.perf_counter()
                ids = rank_candidates(query, store, k, None, count).ids
                seconds.append(time.perf_counter() - started)
                found.append([numbers[each] for each in ids])
            milliseconds = f"{1000 * statistics.median(seconds):.0f}"
            lines.append(row(str(count), torch.tensor(found), own, best, milliseconds))
    return "\n".join(["Two stages of a library with an index, float16\n", *lines, ""])


def row(name: str, found: Tensor, own: Tensor, best: Tensor, milliseconds: str) -> str:
    hits = found == own[:, None]
    recalls = f"{100 * hits[:, :1].any(1).float().mean():.2f} | {100 * hits.any(1).float().mean():.2f}"
    return f"| {name} | {recalls} | {overlap(found, best):.2%} | {milliseconds} |"


if __name__ == "__main__":
    run_script(main)
