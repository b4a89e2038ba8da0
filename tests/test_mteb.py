"""mteb evaluates OMIT with OMIT's own scores: real tasks of MIEB, on data of their columns in miniature."""

import json
import re
from itertools import groupby
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hub_server import HubServer, in_a_process
from tiny import PROGRAMS, REGIONS, TEXT, tiny_config
from torch.utils.data import DataLoader

from omit_hf import OmitModel
from omit_hf.evaluation import evaluate_split, same_side_similarity, split_similarity
from omit_hf.modeling.matching_omit import MATCHING
from omit_hf.mteb import EncodedItems, OmitForMteb

PAIR_COLUMNS = {
    "Winoground": (("image_0", "image_1"), ("caption_0", "caption_1")),
    "AROFlickrOrder": (("images",), ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")),
    "AROCocoOrder": (("images",), ("correct_caption", "hard_text_1", "hard_text_2", "hard_text_3", "hard_text_4")),
    "AROVisualAttribution": (("image",), ("true_caption", "false_caption")),
    "AROVisualRelation": (("image",), ("true_caption", "false_caption")),
    "SugarCrepe": (("images",), ("caption", "negative_caption")),
}
RETRIEVAL = {
    "Flickr30kI2TRetrieval": "i2t",
    "Flickr30kT2IRetrieval": "t2i",
    "MSCOCOI2TRetrieval": "i2t",
    "MSCOCOT2IRetrieval": "t2i",
}


def task_of(name):
    [task] = mteb.get_tasks([name])
    return task


@pytest.fixture(scope="module")
def split(scenes):
    """Images and captions, of which none comes twice, since ties rank differently in mteb."""
    seen, rows = set(), []
    for row in scenes["train"]:
        own = [caption for caption in row["captions"] if caption not in seen and not seen.add(caption)]
        if own:
            rows.append({"image": row["image"], "captions": own, "image_id": row["image_id"]})
    return Dataset.from_list(rows, features=scenes["train"].select_columns(["image", "captions", "image_id"]).features)


@pytest.fixture
def wrapped(scenes_model, processor):
    return OmitForMteb(scenes_model, processor=processor, name="test/omit")


def retrieval_data(split, category):
    """As mteb's loader leaves it."""
    images = Dataset.from_dict({"id": [f"i{n}" for n in range(len(split))], "image": split["image"]})
    images = images.cast_column("image", split.features["image"])
    owners = [n for n, captions in enumerate(split["captions"]) for _ in captions]
    texts = [caption for captions in split["captions"] for caption in captions]
    texts = Dataset.from_dict({"id": [f"t{n}" for n in range(len(texts))], "text": texts})
    relevant = {}
    for text, image in enumerate(owners):
        query, document = (f"t{text}", f"i{image}") if category == "t2i" else (f"i{image}", f"t{text}")
        relevant.setdefault(query, {})[document] = 1
    queries, corpus = (texts, images) if category == "t2i" else (images, texts)
    return {"queries": queries, "corpus": corpus, "relevant_docs": relevant, "top_ranked": None}


def retrieval_task(name, split):
    task = task_of(name)
    task.dataset = {"default": {"test": retrieval_data(split, task.metadata.category)}}
    task.data_loaded = True
    return task


def search(model, data, task, **options):
    common = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "num_proc": None}
    common["encode_kwargs"] = {"batch_size": 4}
    model.index(data["corpus"], **common)
    return model.search(data["queries"], **common, **options)


def evaluate(model, task):
    [result] = mteb.evaluate(model, task, cache=None, encode_kwargs={"batch_size": 5}).task_results
    return result.scores["test"][0]


@pytest.mark.parametrize("name", RETRIEVAL)
def test_retrieval_has_our_recalls(name, split, wrapped, scenes_model, processor):
    task, category = retrieval_task(name, split), RETRIEVAL[name]
    assert (task.metadata.category, set(task.metadata.modalities)) == (category, {"image", "text"})
    scores = evaluate(wrapped, task)
    ours, _ = evaluate_split(scenes_model, processor, split, progress=False)
    for k in (1, 5, 10):
        kind = "recall" if category == "t2i" else "hit_rate"
        assert 100 * scores[f"{kind}_at_{k}"] == pytest.approx(ours[f"{category}_r{k}"], abs=2e-3)
    assert 0 < ours[f"{category}_r5"] < 100  # a random model, so that other scores give other numbers


@pytest.mark.parametrize("category", ["i2t", "t2i"])
@pytest.mark.parametrize(("chunk", "top_k"), [(1, 3), (6, 5), (4096, 1000)])
def test_search_finds_the_best_of_the_whole_matrix(category, chunk, top_k, split, scenes_model, processor):
    name = "Flickr30kT2IRetrieval" if category == "t2i" else "Flickr30kI2TRetrieval"
    model = OmitForMteb(scenes_model, processor=processor, corpus_chunk_size=chunk)
    data = retrieval_data(split, category)
    matrix = split_similarity(scenes_model, processor, split, progress=False)
    matrix = matrix.T if category == "t2i" else matrix
    found = search(model, data, task_of(name), top_k=top_k)
    assert list(found) == list(data["queries"]["id"])
    for row, documents in zip(matrix, found.values(), strict=True):
        assert len(documents) == min(top_k, len(row))
        assert sorted(documents.values(), reverse=True) == pytest.approx(sorted(row, reverse=True)[:top_k], abs=1e-5)
        for document, score in documents.items():
            assert score == pytest.approx(row[int(document[1:])], abs=1e-5)


def test_reranking_keeps_to_its_candidates(split, wrapped, scenes_model, processor):
    data = retrieval_data(split, "t2i")
    candidates = {"t0": ["i3", "i1", "i7"], "t2": ["i0"]}
    found = search(wrapped, data, task_of("Flickr30kT2IRetrieval"), top_k=2, top_ranked=candidates)
    matrix = split_similarity(scenes_model, processor, split, progress=False)
    best = sorted(candidates["t0"], key=lambda name: -matrix[int(name[1:]), 0])[:2]
    assert (list(found["t0"]), list(found["t1"]), list(found["t2"])) == (best, [], ["i0"])


def test_pictures_that_search_pictures_are_scored_in_both_roles(split, wrapped, scenes_model, processor):
    data = retrieval_data(split, "t2i")
    task = task_of("NIGHTSI2IRetrieval")
    assert task.metadata.category == "i2i"
    found = search(wrapped, {**data, "queries": data["corpus"]}, task, top_k=1000)
    ours = same_side_similarity(scenes_model, processor, split, "image", progress=False)
    for row, documents in zip(ours, found.values(), strict=True):
        assert [documents[f"i{n}"] for n in range(len(row))] == pytest.approx(list(row), abs=1e-5)


@pytest.mark.parametrize("name", PAIR_COLUMNS)
def test_pairs_are_scored_by_the_model(name, scenes, wrapped, scenes_model, processor):
    """The task's own evaluator multiplies what `encode` gave; an oracle asks the model for each sample."""
    task, (images, texts) = task_of(name), PAIR_COLUMNS[name]
    assert (task.images_column_names, task.texts_column_names) == (images, texts)
    rows = scenes["train"]
    samples = []
    for n in range(8):
        sample = {column: rows[n + k]["image"] for k, column in enumerate(images)}
        captions = [rows[n + k]["captions"][0] for k in range(len(texts))]
        samples.append({**sample, **dict(zip(texts, captions, strict=True))})
    features = dict.fromkeys(images, rows.features["image"])
    data = Dataset.from_list(samples)
    for column in features:
        data = data.cast_column(column, rows.features["image"])
    task.dataset, task.data_loaded = DatasetDict({"test": data}), True
    scores = evaluate(wrapped, task)

    right_texts = right_images = right_both = 0
    for sample in samples:
        inputs = processor(images=[sample[each] for each in images], text=[sample[each] for each in texts])
        with torch.no_grad():
            matrix = scenes_model(**inputs).similarity.numpy()
        per_text = matrix.argmax(0).tolist() == list(range(len(texts)))
        per_image = matrix.argmax(1).tolist() == list(range(len(images)))
        right_images, right_texts = right_images + per_text, right_texts + per_image
        right_both += per_text and per_image
    expected = (right_texts / 8, right_images / 8, right_both / 8)
    assert (scores["text_acc"], scores["image_acc"], scores["accuracy"]) == pytest.approx(expected)


def test_the_pairs_scores_are_the_matrix(split, wrapped, scenes_model, processor):
    """As the evaluator computes them: normalised, viewed, taken apart and multiplied."""
    matrix = split_similarity(scenes_model, processor, split, progress=False)
    images, texts = encoded(wrapped, split)
    normalised = torch.nn.functional.normalize(texts, dim=-1)
    assert normalised.shape == (matrix.shape[1], 1)
    found = [image @ normalised[3:9].t() for image in images.view(len(split), 1, -1)]
    assert torch.cat(found).numpy() == pytest.approx(matrix[:, 3:9], abs=1e-5)
    assert wrapped.similarity(images, texts).numpy() == pytest.approx(matrix, abs=1e-5)
    assert wrapped.similarity(texts, images).numpy() == pytest.approx(matrix.T, abs=1e-5)
    first = texts[: len(images)]
    assert wrapped.similarity_pairwise(images, first).numpy() == pytest.approx(np.diagonal(matrix), abs=1e-5)


@pytest.mark.parametrize("matching", MATCHING)
def test_every_head_gives_its_own_scores(matching, split, processor):
    """Gathered from batches of other lengths, and padded anew."""
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    model = OmitModel(tiny_config(matching=matching, text_config=text)).eval()
    wrapped = OmitForMteb(model, processor=processor)
    images, texts = encoded(wrapped, split)
    matrix = split_similarity(model, processor, split, progress=False)
    assert wrapped.similarity(images[5:8], texts[-20:]).numpy() == pytest.approx(matrix[5:8, -20:], abs=1e-5)
    assert wrapped.mteb_model_meta.model_type == ["late-interaction" if model.matching.aligns else "dense"]


def test_products_are_computed_in_tiles(split, wrapped, scenes_model, processor, monkeypatch):
    matrix = split_similarity(scenes_model, processor, split, progress=False)
    sizes, gather = [], EncodedItems.gather
    monkeypatch.setattr("omit_hf.mteb.embeddings.TILE", 7)
    monkeypatch.setattr(
        EncodedItems, "gather", lambda self, numbers: sizes.append(len(numbers)) or gather(self, numbers)
    )
    assert wrapped.similarity(*encoded(wrapped, split)).numpy() == pytest.approx(matrix, abs=1e-5)
    assert max(sizes) == 7


def test_search_never_holds_more_than_a_chunk(split, scenes_model, processor, monkeypatch):
    """Documents are encoded when their chunk is scored, and not before."""
    model = OmitForMteb(scenes_model, processor=processor, corpus_chunk_size=8)
    events, encode, score = [], model._encoded, scenes_model.similarity
    monkeypatch.setattr(model, "_encoded", lambda *a: (events.append("encode") or each for each in encode(*a)))
    monkeypatch.setattr(scenes_model, "similarity", lambda *a: events.append("score") or score(*a))
    search(model, retrieval_data(split, "i2t"), task_of("Flickr30kI2TRetrieval"), top_k=3)
    runs = [len(list(group)) for event, group in groupby(events) if event == "encode"]
    assert runs[0] == 6 + 2  # 24 queries by 4, and the first chunk
    assert max(runs[1:]) == 2


def encoded(wrapped, split):
    task = task_of("Winoground")
    common = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default", "batch_size": 4}
    captions = [caption for captions in split["captions"] for caption in captions]
    one_by_one = DataLoader(list(split["image"]), collate_fn=lambda batch: {"image": batch})
    texts = DataLoader(captions, batch_size=7, collate_fn=lambda batch: {"text": batch})
    return wrapped.encode(one_by_one, **common), wrapped.encode(texts, **common)


@pytest.mark.parametrize(
    "ask",
    [
        lambda images: images.numpy(),
        lambda images: np.asarray(images),
        lambda images: images + 1,
        lambda images: images / 2,
        lambda images: images.cpu().mean(),
        lambda images: images @ torch.ones(1, 4),
        lambda images: images.tolist(),
        lambda images: torch.cdist(images, images),
    ],
)
def test_what_computes_with_vectors_is_refused(ask, split, wrapped):
    images, _ = encoded(wrapped, split)
    with pytest.raises(NotImplementedError, match="OMIT's score is no function of two vectors"):
        ask(images)


def test_zero_shot_classification_compares_with_the_labels(split, wrapped, scenes_model, processor):
    """mteb has a product of its own there, of what it normalises by hand."""
    from mteb.similarity_functions import similarity

    images, texts = encoded(wrapped, split)
    matrix = split_similarity(scenes_model, processor, split, progress=False)
    found = similarity(texts, images)
    assert found.numpy() == pytest.approx(torch.tensor(100 * matrix).softmax(-1).numpy(), abs=1e-3)


def test_the_metadata_tells_what_is_known(tmp_path, scenes_model, processor):
    scenes_model.save_pretrained(tmp_path / "mine")
    processor.save_pretrained(tmp_path / "mine")
    meta = OmitForMteb(tmp_path / "mine").mteb_model_meta
    weights = [*scenes_model.parameters(), *scenes_model.buffers()]
    assert (meta.name, meta.loader) == ("local/mine", None)
    assert meta.n_parameters == sum(each.numel() for each in scenes_model.parameters())
    assert meta.memory_usage_mb == pytest.approx(sum(each.numel() * each.element_size() for each in weights) / 2**20)
    assert (meta.embed_dim, meta.similarity_fn_name.value) == (16, "custom")
    assert (meta.license, meta.training_datasets, meta.open_weights) == (None, None, None)


def test_other_weights_are_another_revision(scenes_model, processor):
    """mteb keeps results by name and revision, and would give those of other weights."""
    first = OmitForMteb(scenes_model, processor=processor).mteb_model_meta.revision
    assert OmitForMteb(scenes_model, processor=processor).mteb_model_meta.revision == first
    with torch.no_grad():
        scenes_model.text_encoder.backbone.embeddings.weight[3] += 1
    assert OmitForMteb(scenes_model, processor=processor).mteb_model_meta.revision != first


def test_a_model_of_the_hub_is_filed_by_its_commit_and_loads_again(tmp_path, scenes_model, processor):
    """Also when its repository has gone on."""
    with HubServer({"hf_right": "user"}) as hub:
        repository, commits = hub.create("user/model"), []
        for change in (0, 1):
            with torch.no_grad():
                scenes_model.text_encoder.backbone.embeddings.weight[3, 0] = change
            for part in (scenes_model, processor):
                part.save_pretrained(tmp_path / "model")
            files = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
            commits.append(hub.commit(repository, files, f"weights {change}"))
        done = in_a_process(hub, tmp_path, PROGRAMS / "mteb_from_the_hub.py", commits[0])
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [each["name"] for each in found] == ["user/model"] * 3
    assert [each["revision"] for each in found] == [commits[0], commits[0], commits[1]]
    assert [each["weight"] for each in found] == [0, 0, 1]


def test_mteb_takes_it_for_what_it_is(wrapped):
    from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol

    assert isinstance(wrapped, SearchProtocol)
    assert isinstance(wrapped, EncoderProtocol)
    assert not isinstance(wrapped, CrossEncoderProtocol)


def test_what_is_wrong_is_said(scenes_model, processor, wrapped):
    with pytest.raises(ValueError, match=r"model is given without its processor; expected OmitForMteb\(model, proc"):
        OmitForMteb(scenes_model)
    with pytest.raises(ValueError, match="name is 'omit'; expected organisation/model, as in 'me/omit'"):
        OmitForMteb(scenes_model, processor=processor, name="omit")
    with pytest.raises(ValueError, match="corpus_chunk_size is 0; expected at least 1"):
        OmitForMteb(scenes_model, processor=processor, corpus_chunk_size=0)
    regions = OmitModel(tiny_config(vision_config=REGIONS, text_config={**TEXT, "vocab_size": 90}))
    with pytest.raises(ValueError, match="image encoder is 'omit_region'; expected one of pictures"):
        OmitForMteb(regions, processor=processor)
    common = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    with pytest.raises(ValueError, match="Items have image and text; expected image or text, and one alone"):
        wrapped.encode([{"image": [1], "text": ["a"]}], **common)
    with pytest.raises(ValueError, match="nothing to encode"):
        wrapped.encode([], **common)
    with pytest.raises(RuntimeError, match="search is called before index"):
        wrapped.search(None, **common, top_k=1, encode_kwargs={}, num_proc=None)


def test_a_score_that_is_no_number_is_refused(split, wrapped, scenes_model):
    with torch.no_grad():
        scenes_model.text_encoder.backbone.embeddings.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="A score is NaN"):
        search(wrapped, retrieval_data(split, "t2i"), task_of("Flickr30kT2IRetrieval"), top_k=3)


def test_sentence_transformers_evaluator_takes_our_scores(split, scenes_model, processor):
    """As docs/guides/evaluation.md has it: pictures find captions, scored by transport."""
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    [block] = [block for block in blocks if "InformationRetrievalEvaluator" in block]
    names = {"model": scenes_model, "processor": processor, "test": split}
    exec(block, names)  # as a reader would
    found = names["evaluator"](names["omit"])
    ours, _ = evaluate_split(scenes_model, processor, split, progress=False)
    assert 0 < ours["i2t_r5"] < 100
    for k in (1, 5, 10):
        assert 100 * found[f"omit_accuracy@{k}"] == pytest.approx(ours[f"i2t_r{k}"])
