"""The costs of a library, against a small one that is real."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from omit_hf.library import PictureLibrary, calculator
from omit_hf.library import library as library_module
from omit_hf.library.calculator import MEASURED, Size
from omit_hf.library.columns import as_stored
from omit_hf.modeling import OmitFeatures

FRAGMENTS, WIDTH, PICTURES = 36, 256, 1500


@pytest.fixture
def library(published, tmp_path, monkeypatch):
    """1 500 pictures of 36 x 256 and their index."""
    found = PictureLibrary(tmp_path / "photos.lance", str(published))
    found._make(found._given)
    store = found.store
    store.database.drop_table(store.settings.table)
    store.write_settings(replace(store.settings, width=WIDTH))
    embeds = torch.nn.functional.normalize(torch.randn(PICTURES, FRAGMENTS, WIDTH), dim=-1)
    mask, norms = torch.ones(PICTURES, FRAGMENTS, dtype=torch.bool), torch.rand(PICTURES, FRAGMENTS)
    rows = as_stored(OmitFeatures(embeds=embeds, mask=mask, pooled=embeds[:, 0], norms=norms))
    for number, row in enumerate(rows):
        path = str(tmp_path / "pictures" / f"{number}.png")
        row |= {"key": f"{number:032x}", "id": path, "path": path, "digest": f"{number:064x}", "bytes": number}
    store.add(rows)
    store.make_index()
    monkeypatch.setattr(calculator, "MEMORY", 0)  # so that it has an index there too
    return store


def bytes_of(folder) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def test_the_disk_is_as_calculated(library):
    size = Size(PICTURES, FRAGMENTS, WIDTH)
    assert bytes_of(f"{library.table.uri}/data") == pytest.approx(calculator.table_bytes(size), rel=0.1)
    assert bytes_of(f"{library.table.uri}/_indices") == pytest.approx(calculator.index_bytes(size), rel=0.1)


def test_memory_decides_what_is_searched():
    """A library is as large as `PictureLibrary` says when it needs an index."""
    most = library_module.MEMORY // (4 * (FRAGMENTS + 1) * WIDTH)
    small, large = Size(most), Size(most + 1)
    assert not small.has_index
    assert large.has_index
    assert calculator.index_bytes(small) == calculator.index_seconds(small) == 0
    assert calculator.search_memory(large) < calculator.search_memory(small)


def test_costs_by_hand():
    """Of 2^20 pictures: 256 parts of 4 096, of which some are searched."""
    size = Size(2**20, fragments=10, width=64, candidates=100, words=5)
    measured = replace(MEASURED, row_bytes=100, code_bytes=12, query_ms=3, search_ns=1, gather_ns=4, score_ns=2)
    assert size.has_index
    assert calculator.table_bytes(size, measured) == 2**20 * (21 * 64 * 2 + 10 * 4 + 100)
    assert calculator.index_bytes(size, measured) == 2**20 * 10 * 20 + 256 * 64 * 4
    pair = 10 * 5 * 64
    expected = 3 + 1e-6 * (calculator.PROBES * 4096 * pair + 100 * (2 * pair + 4 * 11 * 64))
    assert calculator.query_milliseconds(size, measured) == pytest.approx(expected)
    assert calculator.encode_seconds(size, 1024) == 1024
