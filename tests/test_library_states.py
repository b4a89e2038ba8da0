"""What a search sees while others write: in other processes, and in other threads of its own."""

import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tiny import PROGRAMS, TEXT, tiny_config

from omit_hf import OmitModel
from omit_hf.library import PictureLibrary
from omit_hf.library import library as library_module
from omit_hf.library.lance import LanceStore

SENTENCE = "a red star left of a ring"


def scores_of(library, **options) -> dict[str, float]:
    hits = library.search(SENTENCE, k=1000, **options)
    assert len({hit.metadata["key"] for hit in hits}) == len(hits)
    return {hit.id: hit.score for hit in hits}


@pytest.fixture
def other(processor):
    torch.manual_seed(1)
    return OmitModel(tiny_config(text_config={**TEXT, "vocab_size": len(processor.tokenizer)})).eval()


def test_a_search_sees_the_last_state(library, pictures, scenes_model, processor, scenes):
    """Also of a library that was opened before, and has everything in memory."""
    reader = PictureLibrary(library.path, scenes_model, processor)
    before = scores_of(reader)
    assert scores_of(reader) == before
    (pictures / "00.png").unlink()
    scenes["test"][0]["image"].save(pictures / "new.png")
    library.sync(pictures, progress=False)
    wanted = scores_of(PictureLibrary(library.path, scenes_model, processor))
    assert len(wanted) == 24
    assert scores_of(reader) == scores_of(reader, exact=True) == wanted
    assert len(reader) == 24
    library.remove("path LIKE '%/new.png'")
    assert str(pictures / "new.png") not in scores_of(reader)


def test_a_reader_from_before_another_model(library, published, pictures, other, processor):
    """One that was given its model says so, another takes the new one along."""
    given = PictureLibrary(library.path, library.model, processor)
    other.save_pretrained(f"{published}-other")
    processor.save_pretrained(f"{published}-other")
    library.reencode(published, progress=False)
    taking = PictureLibrary(library.path)
    before = scores_of(taking)
    hit = taking.search(SENTENCE, k=1)[0]
    assert scores_of(given) == before
    library.reencode(f"{published}-other", progress=False)
    wanted = scores_of(PictureLibrary(library.path))
    assert wanted != before
    assert scores_of(taking) == wanted
    assert hit.alignment.similarity == pytest.approx(hit.score, abs=1e-5)
    with pytest.raises(ValueError, match=r"-other'.* has other weights"):
        given.search(SENTENCE)
    library.compact()
    assert scores_of(taking) == wanted
    with pytest.raises(ValueError, match=r"-other'.* has other weights"):
        given.add(pictures, progress=False)


@pytest.mark.parametrize("moment", ["rank_everything", "hits"])
def test_a_state_that_is_deleted_in_the_middle_of_a_search(moment, library, other, processor, published, monkeypatch):
    """Encoding again and compacting take the table away that is being read; the search begins anew."""
    library.reencode(published, progress=False)
    reader, done = PictureLibrary(library.path), []
    monkeypatch.setattr(library_module, "MEMORY", 0)
    module = library_module if moment == "hits" else sys.modules["omit_hf.library.searching"]
    owner = module.Snapshot if moment == "hits" else module
    original = getattr(owner, moment)

    def interrupted(*arguments, **options):
        if not done:
            done.append(None)
            other.save_pretrained(f"{published}-other")
            processor.save_pretrained(f"{published}-other")
            library.reencode(f"{published}-other", progress=False)
            library.compact()
        return original(*arguments, **options)

    monkeypatch.setattr(owner, moment, interrupted)
    found = scores_of(reader, exact=True)
    assert done
    assert len(found) == 24
    assert found == scores_of(PictureLibrary(library.path), exact=True)


def test_a_state_stays_as_it_is(library, pictures, scenes):
    """A store that was opened before reads what was there, whatever is added, removed, merged and compacted."""
    before = LanceStore(library.path)
    rows = before.metadata()
    ids = before.matching("true")
    features = before.fragments(ids)
    for number, row in enumerate(scenes["test"]):
        row["image"].save(pictures / f"new{number}.png")
        library.add(pictures, progress=False)
    library.remove("path LIKE '%/more/%'")
    library.compact()
    assert before.is_old()
    assert before.metadata() == rows
    assert torch.equal(before.fragments(ids).embeds, features.embeds)
    assert sum(len(block) for block, _ in before.scan()) == 24


def test_threads_search_while_others_write(library, pictures, scenes, monkeypatch):
    """Every search finds what one of the states has, with the scores that belong to it."""
    monkeypatch.setattr("omit_hf.library.updating.COMMIT_ROWS", 2)
    for number, row in enumerate(scenes["test"]):
        row["image"].save(pictures / f"new{number}.png")
    whole = PictureLibrary(f"{library.path}-whole", library.model, library.processor)
    whole.add(pictures, progress=False)
    wanted, first = scores_of(whole), set(scores_of(library))
    stop, problems, counts = threading.Event(), [], set()

    def search() -> None:
        try:
            while not stop.is_set():
                hits = library.search(SENTENCE, k=1000)
                found = {hit.id: hit.score for hit in hits}
                assert len(found) == len(hits)
                assert first <= found.keys()
                assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-6)
                assert " ".join(word.text for word in hits[0].words) == SENTENCE
                counts.add(len(found))
        except BaseException as error:
            problems.append(error)

    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            threads.submit(search)
        library.add(pictures, batch_size=2, progress=False)
        library.compact()
        stop.set()
    assert problems == []
    assert scores_of(library) == pytest.approx(wanted, abs=1e-6)
    assert max(counts) > 24 or counts == {24}


def test_threads_search_at_once(library, scenes):
    """With sentences of other lengths, over which a tokenizer would be in two states."""
    sentences = [caption for captions in scenes["train"]["captions"] for caption in captions][:24]
    wanted = [[(hit.id, hit.score) for hit in library.search(sentence, k=3)] for sentence in sentences]
    fresh = PictureLibrary(library.path, library.model, library.processor)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda sentence: fresh.search(sentence, k=3), sentences * 4))
    assert [[(hit.id, hit.score) for hit in hits] for hits in found] == wanted * 4


def test_threads_add_captions(scenes_model, processor, tmp_path, scenes):
    """Whose tokens are made in threads, while others search."""
    captions = list({caption for captions in scenes["train"]["captions"] for caption in captions})
    library = PictureLibrary(tmp_path / "x", scenes_model, processor, of="captions")
    library.add(captions[:5], progress=False)
    with ThreadPoolExecutor(2) as threads:
        adding = threads.submit(library.add, captions, batch_size=2, progress=False)
        while not adding.done():
            assert len(library.search_image(scenes["train"][0]["image"], k=3)) == 3
    assert len(library) == len(captions)


def test_a_process_writes_and_others_search(library, published, pictures, scenes, other, processor, monkeypatch):
    """Another process adds, syncs, removes, compacts and encodes anew; a reader from before sees one state after the
    other, and nothing in between."""
    library.reencode(published, progress=False)
    folder = Path(f"{published}-other")
    other.save_pretrained(folder)
    processor.save_pretrained(folder)
    reader, own = PictureLibrary(library.path), {}
    late = pictures.parent / "late"
    late.mkdir()
    for number, row in enumerate(scenes["test"]):
        row["image"].save(late / f"{number}.png")
    for name, model in (("model", published), ("model-other", folder)):
        whole = PictureLibrary(f"{library.path}-{name}", model)
        whole.add([pictures, late], progress=False)
        own[str(model)] = scores_of(whole)
    command = [sys.executable, PROGRAMS / "change_a_library.py", library.path, late, published, folder]
    states = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as writer:
        while writer.poll() is None:
            hits = reader.search(SENTENCE, k=1000)
            found, model = {hit.id: hit.score for hit in hits}, reader.settings.model
            if model != reader.settings.model or not hits:
                continue
            states.append(len(found))
            assert len(found) == len(hits)
            close = [
                name
                for name, scores in own.items()
                if all(abs(score - scores[id]) < 1e-6 for id, score in found.items())
            ]
            assert len(close) == 1
            assert {str(pictures / "00.png"), str(pictures / "more" / "01.png")} <= found.keys()
        assert writer.returncode == 0, writer.stderr.read()[-2000:]
        told = json.loads(writer.stdout.read().splitlines()[-1])
    assert told == {"added": 8, "removed": 8, "encoded": 32}
    assert set(states) >= {24, 32}
    assert scores_of(reader) == pytest.approx(own[str(folder)], abs=1e-6)
    assert not re.search("lock", " ".join(name for name in os.listdir(library.path) if "json" in name))


def test_the_library_campaign():
    """A few of its kills."""
    script = Path(__file__).parents[1] / "examples" / "reliability" / "library_campaign.py"
    command = [sys.executable, script, "--kills", "3", "--scenarios", "sync", "--jobs", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr[-2000:]}"
    assert "\n3 updates killed, 0 finds, " in result.stdout
