"""Adding pictures from a Ray cluster of two machines, of which one dies half-way."""

import os
import runpy
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read as it starts

import ray
from ray.cluster_utils import Cluster

from omit_hf.library import PictureLibrary, distributed
from omit_hf.library import library as library_module
from omit_hf.library.distributed import Encoder
from omit_hf.library.files import digest_of, find_pictures

SCRIPT = str(Path(__file__).parents[1] / "examples" / "index_distributed.py")
PICTURES, FILES = 600, 12  # and how many of them are a part
DEATH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


@pytest.fixture
def cluster():
    """A head that computes nothing, and two machines; each has room for what the other does."""
    options = {"object_store_memory": 100 * 2**20}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": DEATH, **options})
    found.machines = [found.add_node(wait=False, num_cpus=1, **options) for _ in range(2)]
    found.wait_for_nodes()
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        pixels = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 32)).save(folder / f"{number:03}.png")
    return folder


def rows_of(library) -> dict[str, tuple[str, np.ndarray]]:
    """Digest and features of each item, by its path within the folder."""
    rows = library.store.table.to_arrow().select(["path", "digest", "rows", "fragments"]).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    for row in rows:
        whole = np.frombuffer(row["rows"], np.float16).reshape(-1, 16)
        assert np.array_equal(whole[1:], np.array(row["fragments"], np.float16))
        row["features"] = whole
    return {Path(row["path"]).name: (row["digest"], row["features"]) for row in rows}


def test_a_cluster_makes_the_library_although_a_machine_dies(cluster, pictures, published, tmp_path, monkeypatch):
    alone = PictureLibrary(tmp_path / "alone.lance", str(published))
    alone.add(pictures, progress=False)
    (pictures / "broken.png").write_bytes(b"no picture")
    path = tmp_path / "photos.lance"
    arguments = [SCRIPT, str(pictures), "--library", str(path), "--model", str(published), "--encoders", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--address", cluster.address])
    monkeypatch.setattr(distributed, "FILES", FILES)
    monkeypatch.setattr(distributed, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(library_module, "MEMORY", 0)  # so that it has an index
    parts, written, committed = PICTURES // FILES, [], []

    def kill():
        """End a machine when a fifth of the parts are written."""
        while len(written) < parts // 5:
            written[:] = path.glob("items_*.lance/data/*.lance")
            time.sleep(0.02)
        committed.append(len(PictureLibrary(path)))
        cluster.remove_node(cluster.machines[0], allow_graceful=False)
        written[:] = path.glob("items_*.lance/data/*.lance")

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    runpy.run_path(SCRIPT, run_name="__main__")
    killer.join(timeout=60)
    assert not killer.is_alive()
    assert len(written) < parts
    assert committed[0] < PICTURES

    library = PictureLibrary(path, str(published))
    assert library.settings == alone.settings
    assert library.store.table.schema == alone.store.table.schema
    found, wanted = rows_of(library), rows_of(alone)
    assert found.keys() == wanted.keys()
    for name, (digest, features) in wanted.items():
        assert found[name][0] == digest
        assert np.abs(found[name][1].astype(float) - features).max() < 2e-3  # rounding in another batch
    assert list(library.unreadable) == [str(pictures / "broken.png")]
    assert library.store.num_unindexed == 0
    assert library.store.index is not None

    monkeypatch.setattr(distributed, "_encode", None)  # nothing is to be encoded again
    report = distributed.add_distributed(library, pictures, progress=False)
    counts = (report.added, report.replaced, report.moved, report.removed, report.unchanged)
    assert counts == (0, 0, 0, 0, PICTURES)


def test_an_encoder_leaves_what_moved_to_the_caller(scenes_model, processor, pictures, tmp_path, monkeypatch):
    """Called as Ray calls it, without Ray."""
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    library = PictureLibrary(tmp_path / "photos.lance", scenes_model, processor)
    library.add(pictures / "000.png", progress=False)
    files = [vars(file) for file in find_pictures([pictures / f"00{number}.png" for number in range(3)])]
    gone = {digest_of((pictures / "001.png").read_bytes())}
    with library._updating(2, False) as update:
        encoder = Encoder((scenes_model, processor), distributed._table(update), gone, 2)
    (pictures / "002.png").write_bytes(b"no picture")
    [part] = encoder(pa.Table.from_pylist(files)).to_pylist()
    assert part["ids"] == [str(pictures / "000.png")]
    assert part["files"] == 3
    assert len(part["fragments"]) == 1
    with pytest.raises(FileNotFoundError, match="expected one that all share"):
        encoder(pa.Table.from_pylist([files[0] | {"folder": str(tmp_path / "elsewhere")}]))
