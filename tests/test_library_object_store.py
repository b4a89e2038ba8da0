"""A library in an object store: moto's S3 on the loopback."""

import threading

import boto3
import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from omit_hf.library import PictureLibrary
from omit_hf.library import library as library_module
from omit_hf.library.updating import Update

KEYS = {"aws_access_key_id": "id", "aws_secret_access_key": "secret"}


@pytest.fixture(scope="module")
def server():
    """Options of a store with an empty bucket."""
    found = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    yield {**KEYS, "aws_endpoint": endpoint, "aws_region": "us-east-1", "allow_http": "true"}
    found.stop()


@pytest.fixture
def options(server):
    client = boto3.client("s3", endpoint_url=server["aws_endpoint"], region_name="us-east-1", **KEYS)
    client.create_bucket(Bucket="bucket")
    yield server
    boto3.resource("s3", endpoint_url=server["aws_endpoint"], region_name="us-east-1", **KEYS).Bucket(
        "bucket"
    ).objects.delete()


@pytest.fixture
def pictures(scenes, tmp_path):
    """Two folders of twelve pictures."""
    for number, row in enumerate(scenes["train"]):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"{number:02}.png")
    return tmp_path / "pictures"


def test_a_library_in_an_object_store(options, pictures, published, scenes, tmp_path, monkeypatch):
    """All that one on a disk does, with the same results."""
    here, there = tmp_path / "photos.lance", "s3://bucket/photos.lance"
    sentence = scenes["train"][3]["captions"][0]
    on_disk = PictureLibrary(here, str(published))
    library = PictureLibrary(there, str(published), storage_options=options)
    for each in (on_disk, library):
        assert each.add(pictures, progress=False).added == 24
    wanted = on_disk.search(sentence, k=24)

    def same(hits) -> bool:
        return [hit.path for hit in hits] == [hit.path for hit in wanted] and np.allclose(
            [hit.score for hit in hits], [hit.score for hit in wanted], atol=1e-6
        )

    reader = PictureLibrary(there, storage_options=options)
    assert same(reader.search(sentence, k=24))
    assert reader.search(sentence, k=24).proven

    (pictures / "a" / "00.png").rename(pictures / "b" / "moved.png")
    (pictures / "a" / "02.png").unlink()
    (pictures / "a" / "broken.png").write_bytes(b"no picture")
    report = library.sync(pictures, progress=False)
    assert (report.added, report.moved, report.removed, report.unchanged) == (0, 1, 1, 22)
    assert list(library.unreadable) == [str(pictures / "a" / "broken.png")]
    assert len(reader.search(sentence, k=24)) == 23

    on_disk.sync(pictures, progress=False)
    wanted = on_disk.search(sentence, k=24)
    monkeypatch.setattr(library_module, "MEMORY", 0)
    library.compact()
    assert library.store.index is not None
    assert same(PictureLibrary(there, storage_options=options).search(sentence, k=24))
    monkeypatch.undo()

    torch.nn.init.normal_(on_disk.model.text_encoder.backbone.embeddings.weight)
    on_disk.model.save_pretrained(tmp_path / "other")
    on_disk.processor.save_pretrained(tmp_path / "other")
    for each in (PictureLibrary(here, str(published)), library):
        assert each.reencode(str(tmp_path / "other"), progress=False).added == 23
    wanted = PictureLibrary(here).search(sentence, k=23)
    assert same(PictureLibrary(there, storage_options=options).search(sentence, k=23))
    library.compact()
    assert same(library.search(sentence, k=23))


def add_at_once(options, published, folders) -> list[str]:
    """Paths of what is there after several writers added folders at the same time, to a library with one picture."""
    made = PictureLibrary("s3://bucket/photos.lance", str(published), storage_options=options)
    made.add(folders[0] / "00.png", progress=False)
    libraries = [PictureLibrary("s3://bucket/photos.lance", str(published), storage_options=options) for _ in folders]
    ready, failed = threading.Barrier(len(folders), timeout=60), []

    def add(library, folder):
        ready.wait()
        try:
            library.add(folder, batch_size=2, progress=False)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=add, args=each) for each in zip(libraries, folders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    library = PictureLibrary("s3://bucket/photos.lance", storage_options=options)
    return sorted(row["path"] for row in library.store.metadata())


def test_writers_of_several_folders_lose_nothing(options, pictures, published, monkeypatch):
    """Each row is a transaction here, so that those of the two collide."""
    monkeypatch.setattr("omit_hf.library.updating.COMMIT_ROWS", 1)
    found = add_at_once(options, published, [pictures / "a", pictures / "b"])
    assert found == sorted(map(str, pictures.glob("?/*.png")))


def test_writers_of_one_folder_add_it_twice(options, pictures, published, monkeypatch):
    """As the guide says: nothing locks an object store. Both look at what is there before either adds."""
    know, looked = Update._know, threading.Barrier(2, timeout=60)

    def know_together(update, columns):
        know(update, columns)
        if update.known:  # which are none while the library is made
            looked.wait()

    monkeypatch.setattr(Update, "_know", know_together)
    found = add_at_once(options, published, [pictures / "a", pictures / "a"])
    assert found == sorted([*map(str, pictures.glob("a/*.png")), *map(str, pictures.glob("a/*[1-9]*.png"))])


def test_what_another_writer_interrupts_is_tidied_later(options, pictures, published, monkeypatch):
    library = PictureLibrary("s3://bucket/photos.lance", str(published), storage_options=options)
    library.add(pictures / "a", progress=False)
    store = library.store

    def fail_with(text):
        def optimize():
            raise RuntimeError(text)

        monkeypatch.setattr(store.table, "optimize", optimize)

    fail_with("lance error: Retryable commit conflict for version 15: This Rewrite transaction was preempted")
    store.tidy()
    fail_with("lance error: something else")
    with pytest.raises(RuntimeError, match="something else"):
        store.tidy()
