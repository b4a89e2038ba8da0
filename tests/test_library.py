import numpy as np
import pytest
import torch

from omit_hf.library import MemoryStore, PictureLibrary, Query, rank_candidates, rank_everything
from omit_hf.library import library as library_module
from omit_hf.modeling import OmitFeatures


def features_of(library, scenes) -> OmitFeatures:
    """Those of the pictures, as a library rounds them."""
    inputs = library.processor(images=list(scenes["train"]["image"]))
    with torch.inference_mode():
        found = library.model.get_image_features(**inputs)
    rounded = (found.embeds.half().float(), found.pooled.half().float())
    return OmitFeatures(embeds=rounded[0], mask=found.mask, pooled=rounded[1], norms=found.norms)


def test_scores_are_those_of_the_model(library, scenes):
    sentence = scenes["train"][3]["captions"][0]
    with torch.inference_mode():
        text = library.model.get_text_features(**library.processor(text=sentence))
        wanted = library.model.similarity(features_of(library, scenes), text)[:, 0]
    hits = library.search(sentence, k=24)
    assert hits.proven
    found = {int(hit.path[-6:-4]): hit.score for hit in hits}
    assert np.allclose([found[number] for number in range(24)], wanted.numpy(), atol=1e-6)
    assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)
    assert len(library.search(sentence, k=5)) == 5
    assert len(library.search(sentence, k=100)) == 24


def test_an_update_takes_what_is_new_changed_moved_and_gone(library, pictures, scenes):
    before = {hit.metadata["key"]: hit.path for hit in library.search("a red star", k=24)}
    (pictures / "00.png").rename(pictures / "more" / "renamed.png")
    (pictures / "02.png").unlink()
    scenes["validation"][0]["image"].save(pictures / "04.png")
    scenes["validation"][1]["image"].save(pictures / "new.png")
    (pictures / "broken.png").write_bytes(b"no picture")
    report = library.sync(pictures, progress=False)
    counts = (report.added, report.replaced, report.moved, report.removed, report.unchanged)
    assert counts == (1, 1, 1, 1, 21)
    assert list(report.unreadable) == [str(pictures / "broken.png")] == list(library.unreadable)
    after = {hit.metadata["key"]: hit.path for hit in library.search("a red star", k=100)}
    assert len(after) == 24
    moved = next(key for key, path in before.items() if path.endswith("00.png"))
    assert after[moved] == str(pictures / "more" / "renamed.png")
    again = library.sync(pictures, progress=False)
    assert (again.added, again.replaced, again.moved, again.removed, again.unchanged) == (0, 0, 0, 0, 24)


def test_a_filter_is_one_condition(library):
    assert {hit.path[-6:] for hit in library.search("a red star", where="path LIKE '%/more/0_.png'")} == {
        f"{number:02}.png"[-6:] for number in (1, 3, 5, 7, 9)
    }
    for bad in ("", "width >", "nothing = 3", "width > 1; DROP x", "width = 1) or (1=1", "width = 64 rest", "1", 3):
        with pytest.raises(ValueError, match="which is no filter"):
            library.search("a red star", where=bad)


def test_the_bound_proves_what_was_left_out(library):
    """Three of 24 items have the words themselves among their fragments, the others anything."""
    torch.manual_seed(0)
    text = library._encode_text("a red star left of a ring")
    embeds = torch.nn.functional.normalize(torch.randn(24, 12, 16), dim=-1)
    embeds[:3, : text.embeds.shape[1]] = text.embeds
    pooled = torch.nn.functional.normalize(torch.randn(24, 16), dim=-1)
    features = OmitFeatures(embeds=embeds, mask=torch.rand(24, 12) > 0.05, pooled=pooled, norms=torch.ones(24, 12))
    store, query = MemoryStore(features), Query(library.model, text, "text", "image")
    found = store.candidates(*query.words(), None, 24)
    assert (found.bounds + 1e-6 >= query.scores(features)[found.ids]).all()
    wanted = rank_everything(query, [(list(range(24)), features)], 3).ids
    proven = [rank_candidates(query, store, 3, None, count) for count in range(1, 25)]
    assert all(ranking.ids == wanted for ranking in proven if ranking.proven)
    assert sum(ranking.proven for ranking in proven) > 5
    assert not any(ranking.proven for ranking in proven[:2])


def test_an_index_finds_candidates(library, scenes, monkeypatch):
    sentence = scenes["train"][3]["captions"][0]
    wanted = library.search(sentence, k=5)
    monkeypatch.setattr(library_module, "MEMORY", 0)
    library.compact()
    assert library.store.index is not None
    hits = library.search(sentence, k=5, candidates=24)
    assert [hit.path for hit in hits] == [hit.path for hit in wanted]
    assert not hits.proven
    exact = library.search(sentence, k=5, exact=True)
    assert [hit.score for hit in exact] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
    assert exact.proven
    found = library.check(queries=4, k=5)
    assert found.overlap[50] == 1
    assert found.candidates == 50
    assert library.settings.candidates == 50


def test_a_hit_tells_why(library, scenes):
    hit = library.search(scenes["train"][3]["captions"][0], k=1)[0]
    assert " ".join(word.text for word in hit.words) == scenes["train"][3]["captions"][0].replace(",", "")
    for word in hit.words:
        assert 0 <= word.matched <= 1
        assert word.box[2] <= hit.metadata["width"]
    assert hit.draw().axes


def test_captions_are_found_by_a_picture(scenes_model, processor, scenes, tmp_path):
    captions = [caption for captions in scenes["train"]["captions"] for caption in captions]
    library = PictureLibrary(tmp_path / "captions.lance", scenes_model, processor, of="captions")
    library.add(captions, progress=False)
    assert len(library) == len(set(captions))
    picture = scenes["train"][3]["image"]
    hits = library.search_image(picture, k=5)
    image = scenes_model.get_image_features(**processor(images=picture))
    text = scenes_model.get_text_features(**processor(text=[hit.captions[0] for hit in hits]))
    assert [hit.score for hit in hits] == pytest.approx(scenes_model.similarity(image, text)[0].tolist(), abs=1e-3)
    assert hits[0].score == max(hit.score for hit in hits)


def test_another_model_is_refused(library, processor, tmp_path):
    torch.nn.init.normal_(library.model.text_encoder.backbone.embeddings.weight)
    with pytest.raises(ValueError, match="reencode"):
        PictureLibrary(library.path, library.model, processor)
