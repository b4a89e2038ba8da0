"""What a library finds, against scoring everything, for every head that aligns."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import TEXT, tiny_config

from omit_hf import OmitModel
from omit_hf.evaluation import same_side_similarity
from omit_hf.library import MemoryStore, PictureLibrary, Query, late_interaction, rank_candidates, rank_everything
from omit_hf.library import library as library_module
from omit_hf.library.checking import check_candidates
from omit_hf.library.columns import as_features, as_stored
from omit_hf.library.lance import LanceStore, Settings
from omit_hf.modeling import OmitFeatures
from omit_hf.modeling.matching_omit import MATCHING, topk_similarity

MARGINALS = ("uniform", "norm", "self_global", "cross_global")
HEADS = [{"matching": name} for name in ("maxsim", "chan", "scan_t2i", "scan_i2t")]
HEADS += [{"matching": "ot", "marginals": each} for each in MARGINALS]
HEADS += [
    {"matching": "omit", "dustbin": dustbin, "marginals": each}
    for dustbin in ("global", "learned", "scalar")
    for each in MARGINALS
]
HEADS += [
    {"matching": "omit", "marginals": "uniform", **term}
    for term in ({"global_weight": 0.2}, {"score": "augmented"}, {"score": "augmented", "global_weight": 0.2})
]
TERMS = {"score", "global_weight"}  # that are not the paper's
WIDTH = 16


@pytest.fixture(scope="module")
def models():
    """A model of every head, by its options."""
    torch.manual_seed(0)
    return {str(options): OmitModel(tiny_config(text_config=TEXT, **options)).eval() for options in HEADS}


def features(count: int, fragments: int, seed: int, spread: float = 1.0, empty: bool = False) -> OmitFeatures:
    """Random items, of 1 fragment or more, around a common direction; `empty`: some of none."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    vectors = centre + spread * torch.randn(count, fragments + 1, WIDTH, generator=generator)
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    sizes = torch.randint(0 if empty else 1, fragments + 1, (count,), generator=generator)
    mask = torch.arange(fragments) < sizes[:, None]
    norms = (0.5 + torch.rand(count, fragments, generator=generator)) * mask
    return OmitFeatures(embeds=vectors[:, 1:] * mask[..., None], mask=mask, pooled=vectors[:, 0], norms=norms)


def things(count: int, fragments: int, seed: int, width: int = 128) -> OmitFeatures:
    """Random items of fragments that are each one of 300 things, as each saw it."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(300, width, generator=torch.Generator().manual_seed(7)) / width**0.5
    chosen = kinds[torch.randint(300, (count, fragments), generator=generator)]
    noise = torch.randn(count, fragments, width, generator=generator) / width**0.5
    embeds = torch.nn.functional.normalize(chosen + noise, dim=-1)
    pooled = torch.nn.functional.normalize(embeds.mean(1), dim=-1)
    mask = torch.ones(count, fragments, dtype=torch.bool)
    return OmitFeatures(embeds=embeds, mask=mask, pooled=pooled, norms=mask.float())


def rounded(found: OmitFeatures) -> OmitFeatures:
    embeds, pooled = found.embeds.half().float(), found.pooled.half().float()
    return OmitFeatures(embeds=embeds, mask=found.mask, pooled=pooled, norms=found.norms)


def store_of(items: OmitFeatures, folder) -> LanceStore:
    """A store of items with an index."""
    folder.mkdir()
    store = LanceStore(str(folder))
    store.write_settings(Settings("pictures", "m", "d" * 32, items.embeds.shape[2], "items"))
    rows = [{"key": f"{n:04}", "id": f"{n:04}", "year": n % 7, **row} for n, row in enumerate(as_stored(items))]
    store.add(rows)
    store.make_index()
    return store


@pytest.mark.parametrize("options", HEADS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("side", ["text", "image"])
def test_two_stages_with_all_candidates_are_the_models_top_k(options, side, models):
    model = models[str(options)]
    items, queries = features(60, 9, 0, empty=True), features(3, 6, 1)
    as_sides = (items, queries) if side == "text" else (queries, items)
    wanted = topk_similarity(model.matching, *as_sides, k=10, dim=0 if side == "text" else 1)
    store = MemoryStore(items)
    blocks = [(list(range(start, start + 20)), items.select(slice(start, start + 20))) for start in (0, 20, 40)]
    for number in range(3):
        query = Query(model, queries.select(slice(number, number + 1)), side, "image" if side == "text" else "text")
        for ranking in (
            rank_candidates(query, store, 10, None, 60),
            rank_everything(query, blocks, 10),
        ):
            assert ranking.proven
            assert torch.allclose(ranking.scores, wanted.values[number], atol=1e-6)
            scores = query.scores(store.fragments(ranking.ids))
            assert torch.allclose(scores, ranking.scores, atol=1e-6)


@pytest.mark.parametrize("options", HEADS, ids=lambda options: "-".join(map(str, options.values())))
def test_late_interaction_bounds_where_it_says_so(options, models):
    """And where it does not, a proof is never claimed."""
    model = models[str(options)]
    items, text = features(80, 9, 2, spread=0.5, empty=True), features(1, 6, 3)
    query = Query(model, text, "text", "image")
    paper = not options.keys() & TERMS
    assert query.has_bound == (
        options["matching"] in ("omit", "ot") and options["marginals"] != "cross_global" and paper
    )
    words, weights = query.words()
    assert len(words) == len(weights) == int(text.mask.sum())
    if query.has_bound:
        assert (query.scores(items) <= late_interaction(words, weights, items) + 1e-6).all()
    else:
        assert not rank_candidates(query, MemoryStore(items), 5, None, 20).proven
    back = Query(model, text, "image", "text")
    assert not back.has_bound
    assert not rank_candidates(back, MemoryStore(items), 5, None, 20).proven


@given(
    st.sampled_from([each for each in HEADS if each["matching"] in ("omit", "ot") and not each.keys() & TERMS]),
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.floats(0, 3),
    st.sampled_from([0, 0.01, 0.1, 0.5]),
)
def test_a_proof_is_never_wrong(models, options, seed, count, candidates, k, spread, noise):
    """Of items that have the words themselves, more or less, so that scores are close to their bounds."""
    model = models[str(options)]
    items, text = features(count, 5, seed, spread, empty=True), features(1, 5, seed + 1, spread)
    if noise:
        near = text.embeds + noise * torch.rand(count, 1, 1) * torch.randn(count, 5, WIDTH)
        items.embeds[:] = torch.nn.functional.normalize(near, dim=-1) * text.mask[..., None]
        items.mask[:] = text.mask
        items.pooled[:] = -text.pooled  # which takes nothing
    query = Query(model, text, "text", "image")
    ranking = rank_candidates(query, MemoryStore(items), k, None, candidates)
    if ranking.proven:
        scores = query.scores(items)
        outside = torch.ones(count, dtype=torch.bool)
        outside[ranking.ids] = False
        assert len(ranking.ids) == min(k, candidates, count)
        assert not outside.any() or scores[outside].max() <= ranking.scores[-1] + 1e-6


def test_proofs_are_found(models):
    """Items that have the words themselves, among others that have nothing of them."""
    model = models[str({"matching": "omit", "dustbin": "global", "marginals": "uniform"})]
    items, text = features(200, 9, 4, spread=50), features(1, 4, 5, spread=50)
    count = int(text.mask.sum())
    for number in range(3):
        items.embeds[number, :count], items.mask[number, :count] = text.embeds[0, :count], True
    ranking = rank_candidates(Query(model, text, "text", "image"), MemoryStore(items), 3, None, 50)
    assert ranking.proven
    assert sorted(ranking.ids) == [0, 1, 2]


def test_what_a_library_keeps_is_rounded_to_float16():
    found = features(50, 9, 6, empty=True)
    stored = as_stored(found)
    table = pa.table({name: [row[name] for row in stored] for name in ("rows", "norms")})
    read = as_features(table, WIDTH)
    width = read.embeds.shape[1]
    assert torch.equal(read.mask, found.mask[:, :width])
    assert not found.mask[:, width:].any()
    assert torch.equal(read.norms, found.norms[:, :width])
    assert torch.equal(read.embeds, found.embeds[:, :width].half().float())
    assert (read.embeds - found.embeds[:, :width]).abs().max() <= 2**-11 * found.embeds.abs().max()
    assert (read.pooled - found.pooled).abs().max() <= 2**-11 * found.pooled.abs().max()


@pytest.mark.parametrize("options", HEADS, ids=lambda options: "-".join(map(str, options.values())))
def test_rounding_moves_scores_little(options, models):
    model = models[str(options)]
    items, text = features(200, 9, 7), features(1, 6, 8)
    query = Query(model, text, "text", "image")
    assert (query.scores(items) - query.scores(rounded(items))).abs().max() < 5e-3


def test_the_index_finds_what_late_interaction_finds(models, tmp_path):
    items = things(2000, 9, 9)
    store, memory = store_of(items, tmp_path / "x"), MemoryStore(rounded(items))
    assert store.index is not None
    overlaps = []
    for number in range(15):
        words, weights = Query(models[str(HEADS[4])], things(1, 6, 100 + number), "text", "image").words()
        found = store.candidates(words, weights, None, 100)
        assert found.rest is None
        assert len(found.ids) == len(found.bounds) == 100
        numbers = {int(row["id"]) for row in store.metadata(found.ids, ["id"])}
        overlaps.append(len(numbers & set(memory.candidates(words, weights, None, 10).ids)) / 10)
    assert np.mean(overlaps) > 0.97


@pytest.mark.parametrize("marginals", ["norm", "self_global"])
def test_words_weigh_in_the_first_stage(marginals, models, tmp_path):
    """Of a heavy word and light ones: the candidates are those of the weighted late interaction."""
    items = things(2000, 9, 10)
    store, memory = store_of(items, tmp_path / "x"), MemoryStore(rounded(items))
    model = models[str({"matching": "omit", "dustbin": "global", "marginals": marginals})]
    weighted, plain = [], []
    for number in range(15):
        text = things(1, 6, 200 + number)
        text.norms[0, 0] = 6
        text.pooled[0] = text.embeds[0, 0]
        words, weights = Query(model, text, "text", "image").words()
        assert weights[0] > 1.5 * weights[1:].max()
        wanted = set(memory.candidates(words, weights, None, 10).ids)
        for used, overlaps in ((weights, weighted), (torch.ones_like(weights), plain)):
            ids = store.candidates(words, used, None, 100).ids
            overlaps.append(len({int(row["id"]) for row in store.metadata(ids, ["id"])} & wanted) / 10)
    assert np.mean(weighted) > 0.95
    assert np.mean(weighted) > np.mean(plain)


def test_rows_outside_the_index_are_found(tmp_path):
    """Those that were added, changed or deleted since it was made."""
    items, new = features(600, 9, 11), features(50, 9, 12)
    store = store_of(items, tmp_path / "x")
    store.add([{"key": f"n{n}", "id": f"n{n}", "year": 1, **row} for n, row in enumerate(as_stored(new))])
    store.change({"0003": {"path": "/moved"}})
    store.delete(["0004"])
    assert store.num_unindexed == 51

    def first(item: OmitFeatures, where=None):
        words = item.embeds[0, item.mask[0]].half().float()
        found = store.candidates(words, torch.full((len(words),), 1 / len(words)), where, 5)
        return store.metadata(found.ids, ["id", "path"])

    assert first(new.select(slice(7, 8)))[0]["id"] == "n7"
    assert first(new.select(slice(7, 8)), "year = 1")[0]["id"] == "n7"
    assert first(items.select(slice(3, 4)))[0] == {"id": "0003", "path": "/moved"}
    assert "0004" not in [row["id"] for row in first(items.select(slice(4, 5)))]
    store.tidy()
    assert store.num_unindexed == 0
    assert first(new.select(slice(7, 8)))[0]["id"] == "n7"
    assert first(items.select(slice(3, 4)))[0] == {"id": "0003", "path": "/moved"}


def test_items_without_fragments(tmp_path):
    items = features(300, 3, 13, empty=True)
    store = store_of(items, tmp_path / "x")
    words = torch.eye(WIDTH)[:2]
    found = store.candidates(words, torch.full((2,), 0.5), None, 400)
    assert torch.equal(store.fragments(list(found.ids)).mask.any(1), torch.ones(len(found.ids), dtype=torch.bool))
    assert sum(len(ids) for ids, _ in store.scan()) == 300
    assert store.fragments([]).embeds.shape == (0, 0, WIDTH)


@pytest.mark.parametrize("where", ["year = 3", "year >= 2 AND year <> 5", "year = 99"])
def test_a_filter_comes_before_the_candidates(where, models, tmp_path):
    items, text = features(700, 9, 14), features(1, 6, 15)
    store = store_of(items, tmp_path / "x")
    query = Query(models[str(HEADS[-4])], text, "text", "image")
    years = {"year = 3": (3,), "year = 99": ()}.get(where, (2, 3, 4, 6))
    scores = query.scores(rounded(items))
    wanted = sorted((n for n in range(700) if n % 7 in years), key=lambda n: -scores[n])[:10]
    for ranking in (rank_candidates(query, store, 10, where, 700), rank_everything(query, store.scan(where), 10)):
        assert [int(row["id"]) for row in store.metadata(ranking.ids, ["id"])] == wanted
        assert torch.allclose(ranking.scores, scores[wanted], atol=1e-6)
    memory = MemoryStore(rounded(items), [n % 7 for n in range(700)])
    assert rank_candidates(query, memory, 10, years.__contains__, 700).ids == wanted
    with pytest.raises(ValueError, match="the store has no rows"):
        MemoryStore(items).candidates(*query.words(), years.__contains__, 3)


def test_exact_on_an_indexed_library_is_what_memory_finds(library, monkeypatch, scenes):
    sentences = [captions[0] for captions in scenes["validation"]["captions"]]
    wanted = [library.search(sentence, k=24) for sentence in sentences]
    filtered = library.search(sentences[0], k=24, where="path LIKE '%/more/%'")
    monkeypatch.setattr(library_module, "MEMORY", 0)
    assert not library.search(sentences[0], k=5).proven or library.store.index is None
    library.compact()
    assert library.store.index is not None
    for sentence, hits in zip(sentences, wanted, strict=True):
        exact = library.search(sentence, k=24, exact=True)
        assert exact.proven
        assert [hit.path for hit in exact] == [hit.path for hit in hits]
        assert [hit.score for hit in exact] == pytest.approx([hit.score for hit in hits], abs=1e-6)
    two_stages = library.search(sentences[0], k=24, where="path LIKE '%/more/%'")
    assert [hit.path for hit in two_stages] == [hit.path for hit in filtered]
    assert len(filtered) == 12


def test_pictures_like_one_are_scored_in_both_roles(library, scenes):
    wanted = same_side_similarity(library.model, library.processor, scenes["train"], "image", progress=False)
    for number in (0, 5):
        hits = library.search_image(scenes["train"][number]["image"], k=24)
        found = {int(hit.path[-6:-4]): hit.score for hit in hits}
        assert [found[each] for each in range(24)] == pytest.approx(wanted[number].tolist(), abs=2e-3)
        assert hits[0].path.endswith(f"{int(wanted[number].argmax()):02}.png")
    with pytest.raises(ValueError, match="has no words"):
        _ = hits[0].words


def test_a_library_of_captions_ranks_as_the_model(scenes_model, processor, scenes, tmp_path, monkeypatch):
    captions = list(dict.fromkeys(caption for row in scenes["train"]["captions"] for caption in row))
    library = PictureLibrary(tmp_path / "captions.lance", scenes_model, processor, of="captions")
    library.add(scenes["train"], progress=False)
    with torch.inference_mode():
        text = scenes_model.get_text_features(**processor(text=captions))
        image = scenes_model.get_image_features(**processor(images=scenes["train"][3]["image"]))
        wanted = dict(zip(captions, scenes_model.similarity(image, text)[0].tolist(), strict=True))
    for memory in (library_module.MEMORY, 0):
        monkeypatch.setattr(library_module, "MEMORY", memory)
        library.compact()
        hits = library.search_image(scenes["train"][3]["image"], k=len(captions), candidates=len(captions))
        assert {hit.captions[0]: hit.score for hit in hits} == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(ValueError, match="The item is a caption"):
        _ = hits[0].words
    assert library.check(queries=3, k=3).kind == "pieces of its own items"


@pytest.mark.parametrize("options", HEADS, ids=lambda options: "-".join(map(str, options.values())))
def test_every_head_has_its_library(options, processor, scenes, pictures, tmp_path, monkeypatch):
    """From pictures to the reason, with and without an index."""
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    model = OmitModel(tiny_config(text_config=text, **options)).eval()
    library = PictureLibrary(tmp_path / "x", model, processor)
    monkeypatch.setattr(library_module, "MEMORY", 0)
    library.add(pictures, progress=False)
    assert (library.store.index is None) == (options.get("marginals") == "cross_global")
    sentence = scenes["train"][3]["captions"][0]
    exact, two_stages = library.search(sentence, k=24, exact=True), library.search(sentence, k=24)
    assert [hit.score for hit in two_stages] == pytest.approx([hit.score for hit in exact], abs=1e-6)
    hit = exact[0]
    assert hit.alignment.similarity == pytest.approx(hit.score, abs=1e-5)
    assert all(-1e-6 <= word.matched <= 1 + 1e-6 for word in hit.words)
    assert set(MATCHING) - {each["matching"] for each in HEADS} == {"mean", "gpo", "pem"}


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_chooses_what_the_share_takes(library, monkeypatch, scenes):
    with pytest.raises(ValueError, match="has no index: its 24 items are all scored"):
        library.check()
    monkeypatch.setattr(library_module, "MEMORY", 0)
    library.compact()
    for bad in ({"queries": 0}, {"queries": -1}, {"queries": True}, {"k": 0}, {"k": 1.5}, {"queries": []}):
        with pytest.raises(ValueError, match="expected"):
            library.check(**bad)
    for share in (0, -1, 1.01, float("nan")):
        with pytest.raises(ValueError, match="share"):
            library.check(queries=2, share=share)
    assert library.settings.candidates == 400
    found = library.check(queries=["a red star", "a ring"], k=5, share=1)
    assert (found.kind, found.queries) == ("sentences", 2)
    assert library.settings.candidates == found.candidates == 50
    assert PictureLibrary(library.path, library.model, library.processor).settings.candidates == 50
    assert library.check(queries=5).kind == "pieces of its own items"
    assert "| all | 100.0% |" in str(found)
    captions = scenes["test"].select_columns(["image", "captions", "image_id"])
    library.add(captions, progress=False)
    assert library.check(queries=5).kind == "captions of the library"


def test_check_counts_what_is_missed(models):
    """A store that finds the worst candidates first needs them all."""
    items = features(120, 6, 16)

    class Backwards(MemoryStore):
        def candidates(self, words, weights, where, count):
            found = super().candidates(words, weights, where, len(self.features.embeds))
            return found._replace(ids=found.ids[::-1][:count])

        def scan(self):
            yield list(range(120)), self.features

    queries = [Query(models[str(HEADS[0])], features(1, 5, 300 + n), "text", "image") for n in range(5)]
    found = check_candidates(queries, "sentences", Backwards(items), 10, 0.99)
    assert found.candidates == 200
    assert found.overlap[50] < 0.5
    assert found.overlap[200] == 1
