"""What docs/guides/library.md shows and the documentation's tests cannot run: another store, and the table of costs."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from omit_hf.library import MemoryStore, Query, rank_candidates
from omit_hf.modeling import OmitFeatures

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "library.md").read_text(encoding="utf-8")


class FakeQdrant:
    """The two calls of a Qdrant client that the guide makes, over points in memory: MAX_SIM of dot products."""

    def __init__(self, points: list[SimpleNamespace]):
        self.points = points

    def query_points(self, collection_name, *, query, using, query_filter, limit, with_payload):
        assert (collection_name, using, with_payload) == ("pictures", "fragments", False)
        found = []
        for point in self.points:
            if query_filter is None or query_filter(point):
                products = torch.tensor(query) @ torch.tensor(point.vector["fragments"]).T
                found.append(SimpleNamespace(id=point.id, score=float(products.amax(1).sum())))
        return SimpleNamespace(points=sorted(found, key=lambda point: -point.score)[:limit])

    def retrieve(self, collection_name, ids, *, with_payload, with_vectors):
        assert (collection_name, with_payload, with_vectors) == ("pictures", ["norms"], True)
        return [point for point in self.points if point.id in ids]


@pytest.fixture
def features():
    """Of twelve pictures with four to six fragments."""
    embeds = torch.nn.functional.normalize(torch.randn(12, 6, 16), dim=-1)
    mask = torch.arange(6) < torch.arange(12)[:, None] % 3 + 4
    pooled = torch.nn.functional.normalize(torch.randn(12, 16), dim=-1)
    return OmitFeatures(embeds=embeds * mask[..., None], mask=mask, pooled=pooled, norms=torch.rand(12, 6) * mask)


def points_of(features) -> list[SimpleNamespace]:
    found = []
    for number, mask in enumerate(features.mask):
        fragments = [[0.0] * 16, *features.embeds[number, mask].tolist()]
        vector = {"fragments": fragments, "pooled": features.pooled[number].tolist()}
        found.append(
            SimpleNamespace(id=number, vector=vector, payload={"norms": features.norms[number, mask].tolist()})
        )
    return found


@pytest.mark.parametrize("marginals", ["uniform", "norm"])
def test_the_store_of_the_guide_finds_what_memory_finds(features, model, marginals):
    model.config.marginals = marginals
    [code] = [block for block in re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL) if "QdrantStore" in block]
    names = {}
    exec(code, names)
    store = names["QdrantStore"](FakeQdrant(points_of(features)), "pictures")
    with torch.inference_mode():
        text = model.get_text_features(input_ids=torch.tensor([[2, 3, 4, 5]]), attention_mask=torch.ones(1, 4).long())
    query, oracle = Query(model, text, "text", "image"), MemoryStore(features)
    words, weights = query.words()
    found, wanted = store.candidates(words, weights, None, 5), oracle.candidates(words, weights, None, 5)
    assert found.ids == wanted.ids
    assert torch.allclose(found.bounds, wanted.bounds, atol=1e-6)
    assert min(wanted.bounds) > 0
    for name in ("embeds", "mask", "pooled", "norms"):
        assert torch.equal(getattr(store.fragments(list(range(12))), name), getattr(features, name))
    ranking = rank_candidates(query, store, 3, None, 12)
    assert ranking.ids == rank_candidates(query, oracle, 3, None, 12).ids
    even = store.candidates(words, weights, lambda point: point.id % 2 == 0, 12).ids
    assert sorted(even) == [0, 2, 4, 6, 8, 10]


def test_the_table_of_the_guide_is_what_the_command_prints(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["library_costs.py"])
    runpy.run_path(str(ROOT / "examples" / "library_costs.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 6
    assert printed in GUIDE


def test_a_machine_is_measured(monkeypatch, capsys):
    """What depends on no clock is what it is for any library: the bytes on the disk."""
    monkeypatch.setattr("sys.argv", ["library_costs.py", "--measure", "600", "--fragments", "12", "--width", "64"])
    runpy.run_path(str(ROOT / "examples" / "library_costs.py"), run_name="__main__")
    found = dict(re.findall(r"^(\w+)=([\d.e+-]+),$", capsys.readouterr().out, flags=re.MULTILINE))
    assert len(found) == 10
    assert 100 < float(found["row_bytes"]) < 400
    assert 10 < float(found["code_bytes"]) < 40
    assert float(found["process_bytes"]) > 1e8
