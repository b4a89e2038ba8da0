import base64
import contextlib
import copy
import io
import json
import logging
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from broken_pictures import FILES, png_with, tiff_with, with_metadata
from broken_pictures import PICTURE as STANDS
from hypothesis import given
from hypothesis import strategies as st
from miniatures import text_options, text_tokenizer
from PIL import Image
from tiny import CODE, PROGRAMS, REGIONS, TEXT, lay_evenly, tiny_config
from transformers import ViTImageProcessor, pipeline

from omit_hf import OmitConfig, OmitModel, OmitProcessor
from omit_hf.hub import handler as handler_module
from omit_hf.hub import write_handler
from omit_hf.hub.handler import EndpointHandler, Limits, is_public
from omit_hf.modeling.backbones_omit import text_settings
from omit_hf.modeling.matching_omit import MATCHING

PROGRAM = PROGRAMS / "serve_without_the_package.py"
LIMITS = Limits(
    images=3,
    captions=4,
    characters=60,
    image_bytes=40_000,
    pixels=60_000,
    all_pixels=90_000,
    model_pixels=20_000,
    compared=1_000_000,
    aligned_pairs=4,
    aligned_numbers=6 * 6 * 24,
    redirects=2,
    download_seconds=5.0,
)
CAPTIONS = ["a red circle", "a small blue star", "a ring"]


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def file_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


RED = Image.new("RGB", (96, 96), "red")
PNG, JPEG = file_of(RED), file_of(RED, "JPEG")
PNG_TEXT = encoded(PNG)


@pytest.fixture(scope="module")
def checkpoint(processor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    OmitModel(tiny_config(text_config={**TEXT, "vocab_size": len(processor.tokenizer)})).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def handler(checkpoint) -> EndpointHandler:
    return EndpointHandler(str(checkpoint), LIMITS)


def labels(image, *names, **parameters) -> dict:
    return {"inputs": image, "parameters": {"candidate_labels": list(names) or CAPTIONS, **parameters}}


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [{}, {"hypothesis_template": "there is {} here"}])
def test_labels_are_answered_as_by_the_pipeline(handler, checkpoint, scenes, template):
    picture = scenes["test"][0]["image"]
    answer = handler(labels(encoded(file_of(picture)), **template))
    expected = pipeline("zero-shot-image-classification", model=str(checkpoint))(
        picture, candidate_labels=CAPTIONS, **template
    )
    assert [each["label"] for each in answer] == [each["label"] for each in expected]
    assert [each["score"] for each in answer] == pytest.approx([each["score"] for each in expected], rel=1e-4)
    json.dumps(answer)


def test_a_template_is_no_program(handler):
    assert len(handler(labels(encoded(PNG), hypothesis_template="{0.__class__} {} {:>99}"))) == 3


def test_captions_of_several_pictures_are_scored_by_similarity(handler, scenes):
    pictures = [row["image"] for row in scenes["test"]][:3]
    sources = [encoded(file_of(pictures[0])), f"data:image/png;base64,{encoded(file_of(pictures[1]))}", pictures[2]]
    answers = handler({"inputs": sources, "parameters": {"captions": CAPTIONS}})
    with torch.inference_mode():
        similarity = handler.model(**handler.processor(images=pictures, text=CAPTIONS)).similarity
    for answer, row in zip(answers, similarity.tolist(), strict=True):
        expected = sorted(zip(CAPTIONS, row, strict=True), key=lambda each: -each[1])
        assert [each["caption"] for each in answer] == [caption for caption, _ in expected]
        assert [each["score"] for each in answer] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert set(answer[0]) == {"caption", "score"}


def test_alignment(handler, scenes):
    picture = scenes["test"][0]["image"]
    parameters = {"captions": CAPTIONS, "alignment": True}
    answer = handler({"inputs": encoded(file_of(picture)), "parameters": parameters})
    for entry in answer:
        with torch.inference_mode():
            inputs = handler.processor(images=picture, text=entry["caption"])
            plan = handler.model(**inputs, output_transport=True).transport_plan[0, 0].tolist()
        assert entry["alignment"]["grid"] == [6, 6]
        assert "boxes" not in entry["alignment"]  # since the checkpoint keeps none
        words = entry["alignment"]["words"]
        assert [each["word"] for each in words] == entry["caption"].split()
        for place, word in enumerate(words, start=1):
            total = sum(row[place] for row in plan)
            assert word["mass"] == pytest.approx([row[place] / total for row in plan[1:]], abs=1e-5)
            assert word["matched"] == pytest.approx(sum(word["mass"]), abs=1e-4)
            assert 0 < word["matched"] < 1


def test_boxes_that_the_checkpoint_keeps(checkpoint):
    handler = EndpointHandler(str(checkpoint))
    lay_evenly(handler.model, 96, 96)
    parameters = {"captions": CAPTIONS[:1], "alignment": True}
    picture = encoded(file_of(Image.new("RGB", (96, 96), "teal")))
    [answer] = handler({"inputs": picture, "parameters": parameters})
    boxes = answer["alignment"]["boxes"]
    assert len(boxes) == 36
    assert boxes[0] == pytest.approx([0, 0, 1 / 6, 1 / 6], abs=1e-6)
    assert boxes[7] == pytest.approx([1 / 6, 1 / 6, 1 / 3, 1 / 3], abs=1e-6)
    json.dumps(answer)


@pytest.mark.parametrize("matching", ["omit", "ot", "maxsim"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_words_are_whole_as_in_the_pipeline(kind, matching, tmp_path, scenes):
    tokenizer = text_tokenizer(kind)
    text = {"model_type": kind, **text_options(kind, tokenizer)}
    torch.manual_seed(0)
    model = OmitModel(tiny_config(text_config=text, matching=matching, **text_settings(tokenizer)))
    model.save_pretrained(tmp_path)
    OmitProcessor(ViTImageProcessor(do_resize=False), tokenizer).save_pretrained(tmp_path)
    picture, sentences = scenes["test"][0]["image"], ["a small café, don't!", "red  cafe\u0301"]
    parameters = {"captions": sentences, "alignment": True}
    answer = EndpointHandler(str(tmp_path))({"inputs": encoded(file_of(picture)), "parameters": parameters})
    match = pipeline("image-text-matching", model=str(tmp_path))
    expected = match(picture, text=sentences, return_alignment=True)
    for entry in expected:
        [words] = [each["alignment"]["words"] for each in answer if each["caption"] == entry["text"]]
        assert len(words) == len(entry["alignment"]["words"])
        for word, other in zip(words, entry["alignment"]["words"], strict=True):
            assert word["word"] == other["word"]
            assert word["mass"] == pytest.approx(other["mass"], abs=1e-5)
            assert word["matched"] == pytest.approx(other["matched"], abs=1e-5)
    assert [word["word"] for word in expected[0]["alignment"]["words"]] == ["a", "small", "café", ",", "don't", "!"]
    assert [word["word"] for word in expected[1]["alignment"]["words"]] == ["red", "cafe\u0301"]


def test_the_grid_of_a_strip(handler):
    for size, grid in (((96, 16), [1, 6]), ((16, 200), [12, 1]), ((60, 17), [1, 3])):
        request = {"captions": ["a star"], "alignment": True}
        [answer] = handler({"inputs": encoded(file_of(Image.new("RGB", size))), "parameters": request})
        assert answer["alignment"]["grid"] == grid
        assert len(answer["alignment"]["words"][0]["mass"]) == grid[0] * grid[1]


def test_an_alignment_is_no_larger_than_allowed(handler):
    """Which cells and words are many, only the model's encoders tell."""
    captions = ["a red circle " * 3, "a small blue star"]
    answers = [
        handler({"inputs": [encoded(PNG)] * pictures, "parameters": {"captions": captions * times, "alignment": True}})
        for pictures, times in ((1, 1), (2, 1), (1, 2))
    ]
    assert isinstance(answers[0], list)
    for answer in answers[1:]:
        assert answer["status"] == 413
        assert "alignment is of 936 cells times words; expected at most 864" in answer["error"]  # 36 · 13 · 2


@pytest.mark.parametrize("matching", MATCHING)
def test_alignment_of_every_head(handler, checkpoint, matching):
    handler = copy.copy(handler)
    handler.model = OmitModel.from_pretrained(checkpoint, matching=matching, ignore_mismatched_sizes=True).eval()
    assert len(handler(labels(encoded(PNG)))) == 3
    answer = handler(labels(encoded(PNG), alignment=True))
    if matching in ("mean", "gpo", "pem"):
        assert answer["status"] == 400
        assert f"This model's head, {matching!r}, does not align words with cells" in answer["error"]
        return
    for entry in answer:
        assert len(entry["alignment"]["words"]) == len(entry["label"].split()) + 5  # of the template
        for word in entry["alignment"]["words"]:
            assert len(word["mass"]) == 36
            assert sum(word["mass"]) == pytest.approx(word["matched"], abs=1e-4)
            assert 0.01 < word["matched"] < 0.999 if matching == "omit" else word["matched"] == pytest.approx(1)


@pytest.fixture
def region_handler(processor, tmp_path):
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    OmitModel(tiny_config(vision_config=REGIONS, text_config=text)).save_pretrained(tmp_path)
    OmitProcessor(None, processor.tokenizer).save_pretrained(tmp_path)
    return EndpointHandler(str(tmp_path), Limits(regions=20))


def npy(array) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def test_regions_of_any_number(region_handler):
    """Scores are those of each image by itself, whatever the others of the request."""
    arrays = [np.random.default_rng(n).standard_normal((n, 10)).astype(np.float32) for n in (3, 7, 1)]
    parameters = {"captions": CAPTIONS, "alignment": True}
    answers = region_handler({"inputs": [npy(each) for each in arrays], "parameters": parameters})
    inputs = region_handler.processor(regions=arrays, text=CAPTIONS)
    with torch.no_grad():
        expected = region_handler.model(**inputs).similarity
    for array, answer, scores in zip(arrays, answers, expected, strict=True):
        assert {entry["caption"]: entry["score"] for entry in answer} == pytest.approx(
            dict(zip(CAPTIONS, scores.tolist(), strict=True)), abs=1e-6
        )
        assert answer[0]["alignment"]["regions"] == len(array)
        assert {len(word["mass"]) for word in answer[0]["alignment"]["words"]} == {len(array)}


@pytest.mark.parametrize(
    ("regions", "status", "message"),
    [
        (npy(np.zeros((3, 9), np.float32)), 400, r"inputs has the shape \[3, 9\]; expected \[K, 10\] with K from 1"),
        (npy(np.zeros((0, 10), np.float32)), 400, r"inputs has the shape \[0, 10\]"),
        (npy(np.zeros((2, 3, 10), np.float32)), 400, r"inputs has the shape \[2, 3, 10\]"),
        (npy(np.zeros((21, 10), np.float32)), 413, "inputs is of 21 regions; expected at most 20"),
        (npy(np.full((2, 10), np.nan, np.float32)), 400, "NaN or infinity"),
        (npy(np.full((2, 10), None)), 400, "inputs holds object; expected numbers"),
        (base64.b64encode(base64.b64decode(npy(np.zeros((2, 10))))[:-1]).decode(), 400, "not as long as its head says"),
        (base64.b64encode(b"no array").decode(), 400, "inputs is no .npy file"),
        (3, 400, "inputs is a number"),
    ],
)
def test_regions_that_cannot_be_used(region_handler, regions, status, message):
    answer = region_handler({"inputs": regions, "parameters": {"captions": CAPTIONS}})
    assert answer["status"] == status
    assert re.search(message, answer["error"])


# --- what is wrong with a request -------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
TIFF = file_of(RED.resize((24, 24)), "TIFF")
FLOATS = file_of(Image.new("F", (96, 96)), "TIFF")


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (None, 400, "The request is null; expected an object with inputs and parameters"),
        ([1], 400, "The request is a list; expected an object"),
        ({}, 400, "has no inputs; expected a picture, as a URL or in base64"),
        (labels(None), 400, "has no inputs"),
        (labels(7), 400, "inputs is a number; expected a string"),
        (labels([]), 400, "inputs is an empty list"),
        (labels([encoded(PNG), {}]), 400, r"inputs[1] is an object that is empty; expected a string"),
        (labels([encoded(PNG)] * 4), 413, "inputs is of 4 pictures; expected at most 3"),
        ({"inputs": encoded(PNG)}, 400, "parameters needs candidate_labels or captions"),
        ({"inputs": encoded(PNG), "parameters": []}, 400, "parameters is a list that is empty; expected an object"),
        (labels(encoded(PNG), captions=["a"]), 400, "parameters needs candidate_labels or captions, one of them"),
        (labels(encoded(PNG), top_k=3), 400, "parameters has 'top_k'; expected some of candidate_labels,"),
        ({"inputs": "", "parameters": {"captions": "a"}}, 400, "captions is a string; expected a list of at least"),
        ({"inputs": "", "parameters": {"captions": []}}, 400, "captions is a list that is empty; expected a list"),
        (labels(encoded(PNG), "a", 3), 400, "candidate_labels[1] is a number; expected a string that is not empty"),
        (labels(encoded(PNG), "a", " "), 400, "candidate_labels[1] is a string; expected a string that is not empty"),
        (labels(encoded(PNG), *"abcde"), 413, "candidate_labels is of 5 strings; expected at most 4"),
        (labels(encoded(PNG), "a" * 61), 413, "candidate_labels[0] is of 61 characters; expected at most 60"),
        (labels(encoded(PNG), hypothesis_template="of"), 400, "hypothesis_template is 'of'; expected one {} in it"),
        (labels(encoded(PNG), hypothesis_template="{} {}"), 400, "is '{} {}'; expected one {} in it"),
        (labels(encoded(PNG), "a \ud83d b"), 400, "candidate_labels[0] holds half of a surrogate pair; expected text"),
        (labels(encoded(PNG), hypothesis_template=["{}"]), 400, "hypothesis_template is a list; expected a string"),
        (labels(encoded(PNG), alignment="yes"), 400, "alignment is a string; expected true or false"),
        (labels([encoded(PNG)] * 2, *"abc", alignment=True), 413, "alignment is of 6 pairs of a picture and"),
        (
            {"inputs": "", "parameters": {"captions": ["a"], "hypothesis_template": "{}"}},
            400,
            "hypothesis_template goes with candidate_labels",
        ),
        (labels("/etc/passwd"), 400, "inputs is '/etc/passwd'; expected an http or https URL, or a picture in base64"),
        (labels("file:///etc/passwd"), 400, "inputs is 'file:///etc/passwd'; expected an http or https URL"),
        (labels("ftp://example.com/a.png"), 400, "expected an http or https URL"),
        (labels("data:image/png,%89PNG"), 400, "expected an http or https URL, or a picture in base64"),
        (labels("http://"), 400, "expected an http or https URL with a host"),
        (labels("http://user:word@example.com/"), 400, "expected an http or https URL with a host"),
        (labels("http://example.com:99999/"), 400, "expected an http or https URL with a host"),
        (labels("http://[::1/"), 400, "expected an http or https URL with a host"),
        (labels(f"http://a..b{'c' * 70}/"), 400, "expected an http or https URL with a host"),
        (labels(f"http://example.com/{'a' * 5000}"), 413, "inputs is a URL of 5019 characters"),
        (labels(""), 400, "inputs is no picture that can be read; expected one of PNG, JPEG"),
        (labels(encoded(b"not a picture")), 400, "inputs is no picture that can be read"),
        (labels(encoded(EPS)), 400, "inputs is no picture that can be read"),
        (labels([encoded(PNG), encoded(PNG[:-30])]), 400, "inputs[1] is a PNG file that is damaged"),
        (labels(encoded(FLOATS)), 400, "inputs cannot be used: images[0]: it is of PIL's mode F"),
        (labels(encoded(bytes(40_001))), 413, "inputs has more than 40000 bytes"),
        (labels("A" * 60_001), 413, "inputs is too large; expected at most 40000 bytes"),
        (labels(encoded(png_header(60_000, 60_000))), 413, "inputs has too many pixels; expected at most 60000"),
        (labels(encoded(png_header(300, 201))), 413, "inputs has 300 x 201 pixels; expected at most 60000"),
        (labels(encoded(png_header(1, 30_000))), 400, "inputs has 1 x 30000 pixels; expected at most 20 times as many"),
        (labels(RED.resize((1, 21))), 400, "inputs has 1 x 21 pixels; expected at most 20 times as many"),
        (labels(RED.resize((200, 104))), 413, "inputs would come to the model with 200 x 104 pixels"),
        (labels(encoded(png_header(200, 104))), 413, "inputs would come to the model with 200 x 104 pixels"),
        (labels([encoded(PNG)] * 3, *["a " * 30] * 4), 413, "inputs[0] is of 1290240 pixels times tokens of all"),
        *(
            (
                labels([encoded(PNG), RED.resize(size)]),
                400,
                f"inputs[1] cannot be used: pixel_values has pictures of {said}",
            )
            for size, said in (
                ((1, 1), "1 x 1 pixels; the vision backbone, 'convnext', takes at least 16 x 16. Enlarge them"),
                ((7, 7), "7 x 7 pixels"),
                ((96, 7), "96 x 7 pixels"),
                ((15, 20), "15 x 20 pixels"),
            )
        ),
        (labels([Image.open(io.BytesIO(PNG[:-30]))]), 400, "inputs[0] is a PNG file that is damaged"),
        (labels([encoded(TIFF[:-30])]), 400, "inputs[0] cannot be used: images[0]: "),
    ],
)
def test_requests_that_cannot_be_answered(handler, data, status, message):
    answer = handler(data)
    assert set(answer) == {"error", "status"}
    assert message in answer["error"]
    assert answer["status"] == status
    assert len(answer["error"]) < 400
    json.dumps(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(encoded(PNG)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.fixed_dictionaries(
    {"inputs": st.just(encoded(PNG)) | JSON},
    optional={
        "parameters": st.fixed_dictionaries(
            {},
            optional={
                "candidate_labels": st.lists(st.text(max_size=9), max_size=3) | JSON,
                "captions": st.lists(st.text(max_size=9), max_size=3) | JSON,
                "hypothesis_template": st.just("{}") | JSON,
                "alignment": st.booleans() | JSON,
            },
        )
        | JSON
    },
)


@given(data=JSON | NEARLY)
def test_no_request_breaks_the_endpoint(handler, data):
    answer = handler(data)
    json.dumps(answer, allow_nan=False)
    assert isinstance(answer, list) or answer["status"] in (400, 413)


def test_a_failure_within_tells_nothing_of_the_inside(handler, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(handler.model, "get_text_features", fail)
    with caplog.at_level(logging.ERROR):
        answer = handler(labels(encoded(PNG)))
    assert answer == {"error": "The request failed within the endpoint, whose log says why.", "status": 500}
    assert "RuntimeError: secret" in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_broken_metadata(handler, name):
    answer = handler({"inputs": encoded(FILES[name]), "parameters": {"captions": CAPTIONS}})
    assert isinstance(answer, list), answer
    if "lossy" not in name:
        expected = handler({"inputs": STANDS, "parameters": {"captions": CAPTIONS}})
        assert [each["score"] for each in answer] == pytest.approx([each["score"] for each in expected], abs=1e-6)


# --- how long others wait ---------------------------------------------------------------------------------------------


@pytest.fixture
def large(checkpoint) -> EndpointHandler:
    """Without the small limits of the other tests."""
    return EndpointHandler(str(checkpoint))


def test_heads_are_refused_while_others_compute(handler, large, monkeypatch):
    """And nothing is decoded: by the picture, by all of them, and for a processor that does not resize."""
    monkeypatch.setattr(handler_module, "decoded", lambda *_: pytest.fail("a picture was decoded"))
    few_bytes = encoded(file_of(Image.new("P", (6400, 6200))))  # 5 kB
    assert len(few_bytes) < 8000
    with large.lock, handler.lock:
        answer = large(labels(few_bytes))
        assert answer["status"] == 413
        assert "inputs would come to the model with 6400 x 6200 pixels" in answer["error"]
        large.processor.image_processor.do_resize = True  # of this test's own processor
        answer = large(labels([few_bytes] * 3))
        assert answer == {"error": "inputs is of 119040000 pixels together; expected at most 100000000.", "status": 413}
        assert "damaged" not in handler(labels(encoded(b"not a picture")))["error"]


def test_a_jpeg_of_many_scans(large):
    """6 kB more and 8 s more, of 40 megapixels."""
    file = io.BytesIO()
    RED.save(file, "JPEG", progressive=True)
    content = file.getvalue()
    assert len(large(labels(encoded(content)))) == 3
    scan = content[content.rfind(b"\xff\xda") : content.rfind(b"\xff\xd9")]
    answer = large(labels(encoded(content[:-2] + 100 * scan + content[-2:])))
    assert answer == {
        "error": "inputs is of 110 scans, each over the whole picture; expected at most 40.",
        "status": 413,
    }


def directory(tags: int, size: int, place: int = 8) -> bytes:
    """Tags whose values are the same bytes: PIL reads `tags` times `size` bytes of it."""
    entries = b"".join(struct.pack(">HHLL", 1000 + tag, 7, size, 8) for tag in range(tags))
    return b"MM\0*\0\0\0\x08" + bytes(place - 8) + struct.pack(">H", tags) + entries + bytes(4 + size)


TAGS = directory(400, 60_000)
PLACE = 2**16  # of a directory within a whole picture, which points at it
ENTRIES = b"".join(struct.pack("<HHLL", 1000 + tag, 7, 60_000, 8) for tag in range(400))
NESTED = tiff_with(34665, 4, PLACE).ljust(PLACE, b"\0") + struct.pack("<H", 400) + ENTRIES + bytes(4)
SEGMENT = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0"


@pytest.mark.parametrize(
    "content",
    [
        with_metadata("WEBP", b"Exif\0\0" + TAGS + bytes(10_000)),
        png_with((b"eXIf", TAGS + bytes(10_000))),
        png_with((b"tEXt", b"Raw profile type exif\0\nexif\n 9\n" + TAGS.hex().encode())),
        b"\xff\xd8" + b"".join(SEGMENT + TAGS[at : at + 60_000].ljust(60_000, b"\0") for at in (0, 60_000)) + JPEG[2:],
        TAGS,
        NESTED,
    ],
    ids=["webp", "png", "profile", "jpeg", "tiff", "nested"],
)
def test_metadata_that_say_they_are_larger_than_their_file(large, content):
    """400 tags of 60 kB in a file of 75 kB; and there may be 65 535 of 10 MB."""
    tracemalloc.start()
    answer = large({"inputs": encoded(content), "parameters": {"captions": CAPTIONS}})
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000
    assert isinstance(answer, list) or answer["status"] == 400


def test_captions_of_many_tokens(handler, checkpoint):
    handler = EndpointHandler(str(checkpoint), Limits(tokens=100))
    answer = handler({"inputs": RED, "parameters": {"captions": ["a ring " * 13, *CAPTIONS]}})
    assert answer == {"error": "captions is of 104 tokens, padded to the longest; expected at most 100.", "status": 413}


def test_a_large_picture_with_many_long_captions(large):
    """15 s and more, and all of them in vain for whoever waits."""
    captions = ["a small red star and a large blue ring " * 16] * 256
    picture = Image.new("RGB", (1200, 1200))
    encode = large.model.get_image_features
    large.model.get_image_features = lambda *_, **__: pytest.fail("it was encoded")
    answer = large({"inputs": picture, "parameters": {"captions": [each[:500] for each in captions]}})
    assert answer["status"] == 413
    assert "pixels times tokens of all captions; expected at most 3000000000" in answer["error"]
    large.model.get_image_features = encode
    assert len(large({"inputs": picture, "parameters": {"captions": CAPTIONS}})) == 3


def test_captions_are_encoded_some_at_a_time(large):
    captions = [f"{'a small ' * (number % 5)}ring" for number in range(100)]
    encode, counts = large.model.get_text_features, []
    large.model.get_text_features = lambda **inputs: counts.append(len(inputs["input_ids"])) or encode(**inputs)
    answer = large({"inputs": RED, "parameters": {"captions": captions}})
    assert counts == [32, 32, 32, 4]
    large.model.get_text_features = encode
    with torch.inference_mode():
        [similarity] = large.model(**large.processor(images=RED, text=captions)).similarity.tolist()
    found = sorted((each["caption"], each["score"]) for each in answer)
    expected = sorted(zip(captions, similarity, strict=True))
    assert [caption for caption, _ in found] == [caption for caption, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("slow", ["fetched", "decoded", "get_text_features", "get_image_features"])
def test_a_request_that_takes_too_long_stops(checkpoint, monkeypatch, slow):
    """The clock is one that only the slow step moves."""
    handler, now = EndpointHandler(str(checkpoint), Limits(request_seconds=0.4)), [0.0]
    of = handler_module if hasattr(handler_module, slow) else handler.model
    step, steps = getattr(of, slow), []

    def slowly(*arguments, **options):
        steps.append(slow)
        now[0] += 0.15
        return step(*arguments, **options)

    monkeypatch.setattr(of, slow, slowly)
    monkeypatch.setattr(handler_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    answer = handler({"inputs": [PNG_TEXT] * 16, "parameters": {"captions": ["a ring"] * 256}})
    assert answer["status"] == 503
    assert "not answered within 0.4 seconds; ask for fewer or smaller pictures, or for fewer or" in answer["error"]
    assert len(steps) == 3
    assert not handler.lock.locked()
    monkeypatch.setattr(of, slow, step)
    assert len(handler(labels(PNG_TEXT))) == 3


def test_a_request_waits_for_others_for_so_long(checkpoint):
    handler = EndpointHandler(str(checkpoint), Limits(request_seconds=0.2))
    started = time.monotonic()
    with handler.lock:
        answer = handler(labels(PNG_TEXT))
    assert time.monotonic() - started < 3
    assert answer == {
        "error": "The endpoint was busy with others for 0.2 seconds; try again.",
        "status": 503,
    }
    handler.limits = Limits()
    assert len(handler(labels(PNG_TEXT))) == 3


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        *((each, False) for each in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1")),
        *((each, False) for each in ("169.254.169.254", "100.64.0.1", "198.18.0.1", "224.0.0.1", "255.255.255.255")),
        *((each, False) for each in ("192.0.0.8", "240.0.0.1", "::", "::1", "fe80::1%eth0", "fc00::1", "fec0::1")),
        *((each, False) for each in ("ff02::1", "2001:db8::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::7f00:1")),
        *((each, False) for each in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::")),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1:8080", "2130706433", "0x7f.1", "0"]
)
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_private_addresses_are_refused(handler, monkeypatch, host, scheme):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was made"))
    answer = handler(labels(f"{scheme}://{host}/picture.png"))
    assert answer["status"] == 403
    assert "is not on the public internet" in answer["error"]


def names(monkeypatch, **addresses) -> list[str]:
    """Make names resolve; gives the list of those that were asked for."""
    asked = []

    def resolve(host, port, *_, **__):
        asked.append(host)
        found = [host] if host[0].isdigit() else addresses.get(host.split(".")[0])
        if found is None:
            raise socket.gaierror("not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(handler_module.socket, "getaddrinfo", resolve)
    return asked


def test_one_private_address_of_several_is_enough_to_refuse(handler, monkeypatch):
    names(monkeypatch, pictures=["8.8.8.8", "10.0.0.1"])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a connection was made"))
    assert handler(labels("http://pictures.example/"))["status"] == 403
    answer = handler(labels("http://unknown.example/"))
    assert answer == {"error": "inputs: the host 'unknown.example' is not found.", "status": 502}


class Pictures(BaseHTTPRequestHandler):
    """A server of pictures, and of what else a URL may give."""

    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        route, _, rest = self.path.lstrip("/").partition("?")
        with contextlib.suppress(OSError):  # whoever asked has gone
            getattr(self, f"give_{route}")(rest)

    def give_picture(self, _, content=PNG):
        self._begin(200, {"Content-Length": str(len(content))})
        self.wfile.write(content)

    def give_text(self, _):
        self.give_picture(_, b"<html>")

    def give_missing(self, _):
        self._begin(404, {})

    def give_redirect(self, target):
        self._begin(302, {"Location": target})

    def give_announced(self, _):
        self._begin(200, {"Content-Length": "40001"})

    def give_cut(self, _):
        self._begin(200, {"Content-Length": "1000"})
        self.wfile.write(PNG[:50])

    def give_endless(self, _):
        self._begin(200, {})
        while True:
            self.wfile.write(bytes(1000))

    def give_drops(self, _):
        self._begin(200, {})
        self._drip()

    def give_slow_headers(self, _):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        self._drip()

    def give_nonsense(self, _):
        self.wfile.write(b"hello\r\n\r\n")

    def _drip(self):
        try:
            for _ in range(200):
                self.wfile.write(b"a")
                time.sleep(0.02)
        except OSError:
            self.server.left.set()

    def _begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(kind, **attributes):
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    for name, value in attributes.items():
        setattr(server, name, value)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def pictures(monkeypatch):
    """The server, whose address is taken for a public one."""
    monkeypatch.setattr(handler_module, "is_public", lambda address: address == "127.0.0.1")
    with serving(Pictures, hosts=[], left=threading.Event()) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        yield server


def test_a_picture_of_a_url(handler, pictures):
    expected = handler(labels(encoded(PNG)))
    for path in ("picture", "redirect?/picture", "redirect?/redirect?/picture", "picture?a=ä b"):
        assert handler(labels(f"{pictures.url}/{path}")) == expected


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("text", 400, "no picture that can be read"),
        ("missing", 502, "inputs: the URL answered with status 404; expected 200"),
        ("cut", 502, "inputs could not be fetched: IncompleteRead"),
        ("nonsense", 502, "inputs could not be fetched: BadStatusLine"),
        ("announced", 413, "inputs has more than 40000 bytes"),
        ("endless", 413, "inputs has more than 40000 bytes"),
        ("redirect?/redirect?/redirect?/picture", 502, "inputs is redirected more than 2 times"),
        ("redirect?file:///etc/passwd", 400, "'file:///etc/passwd'; expected an http or https URL with a host"),
        ("redirect?http://127.0.0.2/", 403, "the host '127.0.0.2' is not on the public internet"),
        ("redirect?http://[::1/", 502, "inputs could not be fetched: ValueError"),
    ],
)
def test_what_a_url_may_give(handler, pictures, path, status, message):
    answer = handler(labels(f"{pictures.url}/{path}"))
    assert message in answer["error"]
    assert answer["status"] == status


@pytest.mark.parametrize("path", ["drops", "slow_headers"])
def test_a_download_that_takes_too_long(checkpoint, pictures, path):
    handler = EndpointHandler(str(checkpoint), Limits(download_seconds=0.2))
    answer = handler(labels(f"{pictures.url}/{path}"))
    assert answer == {"error": "inputs could not be fetched within 0.2 seconds.", "status": 504}
    assert pictures.left.wait(20)  # before all was sent


def test_nobody_answers(handler, monkeypatch):
    monkeypatch.setattr(handler_module, "is_public", lambda address: True)
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        answer = handler(labels(f"http://127.0.0.1:{taken.getsockname()[1]}/"))
    assert answer == {"error": "inputs could not be fetched: ConnectionRefusedError.", "status": 502}


def test_the_connection_is_made_to_the_address_that_was_checked(handler, pictures, monkeypatch):
    """A name that leads elsewhere when it is asked for again does not matter: it is asked for once."""
    asked = names(monkeypatch, pictures=["127.0.0.1"])
    answer = handler(labels(f"http://pictures.example:{pictures.server_port}/picture"))
    assert len(answer) == 3
    assert asked == ["pictures.example", "127.0.0.1"]
    assert pictures.hosts == [f"pictures.example:{pictures.server_port}"]


def test_encrypted_connections_check_the_name(handler, pictures, monkeypatch, tmp_path):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures"
    names_option = ["-addext", "subjectAltName=DNS:pictures.example", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names_option], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    pictures.socket = context.wrap_socket(pictures.socket, server_side=True)
    names(monkeypatch, pictures=["127.0.0.1"], other=["127.0.0.1"])
    url = f"https://pictures.example:{pictures.server_port}/picture"
    refused = {"error": "inputs could not be fetched: SSLCertVerificationError.", "status": 502}
    assert handler(labels(url)) == refused
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    assert len(handler(labels(url))) == 3
    assert handler(labels(url.replace("pictures", "other"))) == refused


# --- over HTTP --------------------------------------------------------------------------------------------------------


class Endpoint(BaseHTTPRequestHandler):
    """What a server does with a handler: JSON in, JSON out."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            answer = self.server.handler(json.loads(body))
        except ValueError:
            answer = {"error": "The body is no JSON.", "status": 400}
        content = json.dumps(answer).encode()
        self.send_response(answer["status"] if isinstance(answer, dict) else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def post(url: str, data) -> tuple[int, object]:
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(url, body, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_concurrent_requests_over_http(handler, pictures, scenes):
    """Each is answered as it would be alone, whatever others send."""
    files = [encoded(file_of(row["image"])) for row in scenes["test"]]
    requests = [
        *(labels(file, *CAPTIONS[: 1 + number % 3]) for number, file in enumerate(files)),
        {"inputs": files[:3], "parameters": {"captions": ["a star", "a large green square and a ring"]}},
        {"inputs": files[0], "parameters": {"captions": ["a red ring"], "alignment": True}},
        labels(f"{pictures.url}/picture"),
        labels(f"{pictures.url}/missing"),
        labels("http://10.0.0.1/"),
        labels(encoded(png_header(60_000, 60_000))),
        labels(encoded(b"not a picture")),
        {"inputs": files[0], "parameters": {"captions": 3}},
        [],
    ]
    expected = [handler(each) for each in requests]
    with serving(Endpoint, handler=handler) as endpoint, ThreadPoolExecutor(8) as threads:
        url = f"http://127.0.0.1:{endpoint.server_port}"
        found = list(threads.map(lambda request: post(url, request), requests * 3))
        assert post(url, b"{") == (400, {"error": "The body is no JSON.", "status": 400})
    for (status, answer), wanted in zip(found, expected * 3, strict=True):
        assert answer == json.loads(json.dumps(wanted))
        assert status == (wanted["status"] if isinstance(wanted, dict) else 200)


def test_one_request_at_a_time_computes(handler, monkeypatch):
    """Tokenizers cannot be shared by threads, and the memory of several requests may be too much."""
    encode, running, most = handler.model.get_text_features, [], []

    def counted(**inputs):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        return encode(**inputs)

    monkeypatch.setattr(handler.model, "get_text_features", counted)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(handler, [labels(encoded(PNG))] * 4))
    assert all(answer == answers[0] for answer in answers)
    assert most == [1] * 4


# --- in a checkpoint --------------------------------------------------------------------------------------------------


def test_the_handler_is_written_into_a_checkpoint(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected the folder of a checkpoint"):
        write_handler(tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no processor_config.json"):
        write_handler(tmp_path)
    assert not (tmp_path / "handler.py").exists()
    (tmp_path / "processor_config.json").write_bytes((checkpoint / "processor_config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"lacks the model's code: configuration_omit.py, modeling_omit.py, "):
        write_handler(tmp_path)
    bare = tmp_path / "saved_by_an_older_version"
    bare.mkdir()
    for name in ("config.json", "processor_config.json"):
        configuration = json.loads((checkpoint / name).read_text())
        del configuration["auto_map"]
        (bare / name).write_text(json.dumps(configuration))
    with pytest.raises(FileNotFoundError, match="lacks the model's code; load model and processor and save"):
        write_handler(bare)
    shutil.rmtree(bare)
    assert not (tmp_path / "handler.py").exists()
    for name in CODE:
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "words_omit.py").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match="lacks the model's code: words_omit.py; load model and processor and"):
        write_handler(tmp_path)  # of an older version
    (tmp_path / "kept").rename(tmp_path / "words_omit.py")
    file = write_handler(tmp_path)
    assert file.read_bytes() == Path(handler_module.__file__).read_bytes()
    needed = (tmp_path / "requirements.txt").read_text().splitlines()
    assert [line.rstrip("0123456789.<>=,") for line in needed] == ["torch", "transformers", "pillow"]
    (tmp_path / "requirements.txt").write_text("mine")
    file.write_text("old")
    write_handler(tmp_path)
    assert file.read_bytes() == Path(handler_module.__file__).read_bytes()
    assert (tmp_path / "requirements.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 4 + len(CODE)


def test_it_serves_where_the_package_is_not_installed(handler, checkpoint, tmp_path, monkeypatch):
    """By the code that lies in the checkpoint's folder."""
    for kind, auto in ((OmitConfig, "AutoConfig"), (OmitModel, "AutoModel"), (OmitProcessor, "AutoProcessor")):
        monkeypatch.setattr(kind, "_auto_class", auto)
    folder = tmp_path / "checkpoint"
    handler.model.save_pretrained(folder)
    handler.processor.save_pretrained(folder)
    write_handler(folder)
    request = {"inputs": encoded(PNG), "parameters": {"captions": CAPTIONS, "alignment": True}}
    done = subprocess.run(
        [sys.executable, PROGRAM, str(folder)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = handler(request)
    assert [each["caption"] for each in answer] == [each["caption"] for each in expected]
    assert [each["score"] for each in answer] == pytest.approx([each["score"] for each in expected], abs=1e-6)
    assert answer[0]["alignment"]["grid"] == expected[0]["alignment"]["grid"]
    words, others = (each[0]["alignment"]["words"] for each in (answer, expected))
    assert [each["word"] for each in words] == [each["word"] for each in others]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", r"config.json holds \[\]; expected a configuration"),
        (b'{"auto_map": ["a.B"]}', "config.json holds .*; expected a configuration, perhaps with an auto_map"),
        (
            b'{"auto_map": {"AutoModel": "../secret.B"}}',
            "has '../secret.B' in its auto_map; expected a file and a class",
        ),
        (b'{"auto_map": {"AutoModel": "/etc/passwd"}}', "has '/etc/passwd' in its auto_map"),
        (b'{"auto_map": {"AutoModel": 3}}', "has 3 in its auto_map"),
        (b'{"auto_map": {"AutoModel": "%s.B"}}' % (b"x" * 5000), "has 'xxx.*… in its auto_map"),
        (b'{"auto_map": {"a": "b.C", "a": "d.E"}}', "config.json is no JSON: the name a stands twice"),
        (b"[" * 100_000, "config.json is no JSON: values nested too deep"),
        (b"{", "config.json is no JSON"),
        (b"\xff", "config.json is no UTF-8 text"),
    ],
)
def test_a_configuration_that_names_no_code(checkpoint, tmp_path, content, message):
    (tmp_path / "processor_config.json").write_bytes((checkpoint / "processor_config.json").read_bytes())
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        write_handler(tmp_path)
    assert len(str(caught.value)) < 500
