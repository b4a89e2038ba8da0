"""Inference endpoint for a checkpoint of OMIT; this file lies in the checkpoint's folder as `handler.py`.

An endpoint makes one `EndpointHandler(path)` and calls it with the JSON of each request, of the form that the widget of
zero-shot image classification sends:

    {"inputs": IMAGE, "parameters": {"candidate_labels": ["cat", "dog"], "hypothesis_template": "A photo of a {}."}}
    → [{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]       the scores of an image add up to 1

or with sentences, which are read as they are and scored by the model's similarity:

    {"inputs": IMAGE, "parameters": {"captions": ["a cat on a mat"], "alignment": true}}
    → [{"caption": "a cat on a mat", "score": 0.4, "alignment": {"grid": [7, 7], "words": [
           {"word": "cat", "matched": 0.8, "mass": [0.1, …]}, …]}}]

IMAGE is an http(s) URL or a picture in base64, bare or as a data URL; a list of them gives a list of answers. An answer
has the best first. `grid` are the rows and columns of the image's cells, `mass` the share of a word's mass that comes
from each of them in reading order, and `matched` their sum; the rest is the dustbin's. Where the checkpoint keeps it,
`boxes` tells where each cell looks, left, top, right and bottom as shares of what the processor shows to the model.
What cannot be answered gives {"error": …, "status": …}, the latter an HTTP status.

For a model that takes precomputed regions, IMAGE is a `.npy` file of them, [K, width] numbers with any K, as a URL or
in base64; of what `alignment` holds, `regions` is K, in the place of `grid`.

A request holds the model for a while, and others wait. `Limits` bounds how long: pictures are refused by the size that
the head of their file tells, before they are decoded; captions by their tokens, before they are encoded; and pictures
times captions before they are compared. Between these steps, each of them bounded, the clock is looked at.

It needs torch, transformers with its numpy, Pillow and the files of this folder alone.
"""

import base64
import binascii
import contextlib
import http.client
import io
import ipaddress
import logging
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

with contextlib.suppress(ImportError):  # serves checkpoints without code of their own, and is the faster where it is
    import omit_hf  # noqa: F401

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow knows others, of which some run other programs
PARAMETERS = ("candidate_labels", "hypothesis_template", "captions", "alignment")
TEMPLATE = "This is a photo of {}."  # of the pipeline
MAX_URL = 4096
BLOCK = 2**16  # bytes read at a time
MAX_EXIF = 2**16  # bytes, which a JPEG's segment cannot have more of
CAPTIONS_AT_ONCE = 32  # that are encoded between two looks at the clock

EXIF, START_OF_SCAN = b"Exif\0\0", b"\xff\xda"
DIRECTORIES = (34665, 34853, 40965)  # tags of a TIFF file whose values are places of others
TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # of each type

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Args:
        images: pictures of a request.
        captions: labels or captions of a request.
        characters: of a label, a caption or the template.
        image_bytes: of a picture, in its file format.
        pixels: of a picture, once decoded.
        all_pixels: of the pictures of a request together, once decoded.
        scans: of a JPEG, each of which goes over the whole picture; a progressive one has about 10.
        aspect_ratio: of a picture's longer side to its shorter one, to which some processors scale.
        model_pixels: of a picture as the model gets it, where the processor does not scale it down.
        tokens: of a request's captions, each padded to the longest.
        compared: pixels of a picture, as the model gets it, times the tokens of all captions.
        aligned_pairs: pictures times captions of a request with alignment.
        aligned_numbers: of a request with alignment, cells times words, summed over the pairs.
        regions: of an image, for a model that takes them.
        redirects: of a URL.
        download_seconds: from the first connection of a download to its end.
        request_seconds: from a request's arrival to its answer, with the wait for others. It is looked at between
            steps, so that an answer may come later by the longest of them.
    """

    images: int = 16
    captions: int = 256
    characters: int = 1000
    image_bytes: int = 10 * 2**20
    pixels: int = 40_000_000
    all_pixels: int = 100_000_000
    scans: int = 40
    aspect_ratio: float = 20.0
    model_pixels: int = 1_500_000
    tokens: int = 32_768
    compared: int = 3_000_000_000
    aligned_pairs: int = 32
    aligned_numbers: int = 1_000_000
    regions: int = 1000
    redirects: int = 3
    download_seconds: float = 10.0
    request_seconds: float = 30.0


class RequestError(Exception):
    """What is wrong with a request, and the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class EndpointHandler:
    """Answers requests, from any number of threads.

    Args:
        path: folder of the checkpoint.
        limits: what a request may ask for.
    """

    def __init__(self, path: str = ".", limits: Limits | None = None):
        self.limits = Limits() if limits is None else limits
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval().to(device)
        self.takes_regions = self.processor.image_processor is None
        limit = getattr(self.model.text_encoder, "most_tokens", None)  # which older checkpoints' code does not know
        if limit is not None:
            self.processor.tokenizer.model_max_length = min(self.processor.tokenizer.model_max_length, limit)
        # One request at a time computes: fast tokenizers cannot be shared, and the memory is that of one.
        self.lock = threading.Lock()

    def __call__(self, data: dict) -> list | dict:
        """
        Args:
            data: the decoded JSON of a request.

        Returns:
            The answer, or what is wrong with the request; see the head of this file.
        """
        clock = _Clock(self.limits)
        try:
            request = read_request(data, self.limits)
            sources = [self._fetched(source, place, clock) for place, source in request.images.items()]
            self._check_heads(request, sources)
            with clock.waiting_for(self.lock), torch.inference_mode():
                answers = self._answers(request, sources, clock)
            return answers if request.several else answers[0]
        except RequestError as error:
            return {"error": str(error), "status": error.status}
        except Exception:
            logger.exception("A request failed.")
            return {"error": "The request failed within the endpoint, whose log says why.", "status": 500}

    def _fetched(self, source, place: str, clock: "_Clock"):
        clock.check()
        return fetched(source, place, self.limits)

    def _check_heads(self, request: "Request", sources: list) -> None:
        """Refuse what the heads of the pictures' files tell to be too much; nothing is decoded, and nobody waits."""
        if self.takes_regions:
            for place, source in zip(request.images, sources, strict=True):
                regions_head(source, place, self.model.config.vision_config.feature_size, self.limits)
            return
        processor, all_pixels = self.processor.image_processor, 0
        scales = getattr(processor, "do_resize", True) or getattr(processor, "do_center_crop", False)
        for place, source in zip(request.images, sources, strict=True):
            width, height = opened(source, place, self.limits).size
            all_pixels += width * height
            if not scales:
                self._check_model_pixels(place, width, height)
        _check_count("inputs", all_pixels, self.limits.all_pixels, "pixels together")

    def _check_model_pixels(self, place: str, width: int, height: int) -> None:
        if height * width > self.limits.model_pixels:
            raise RequestError(
                f"{place} would come to the model with {width} x {height} pixels, since its processor does not scale "
                f"pictures down to one size; expected at most {self.limits.model_pixels}.",
                413,
            )

    def _answers(self, request: "Request", sources: list, clock: "_Clock") -> list[list[dict]]:
        words = self.processor(text=request.sentences).to(self.model.device)
        tokens = words["input_ids"].numel()
        _check_count(f"{request.kind}s", tokens, self.limits.tokens, "tokens, padded to the longest")
        text = self._text(words, clock)
        answers, words_in_all = [], int(text.mask.sum())
        for place, source in zip(request.images, sources, strict=True):
            clock.check()
            inputs = self._regions(source, place) if self.takes_regions else self._pixels(source, place)
            size = inputs["region_features" if self.takes_regions else "pixel_values"].shape[-2:]
            what = "numbers" if self.takes_regions else "pixels"
            compared = size[0] * size[1] * words_in_all
            _check_count(place, compared, self.limits.compared, f"{what} times tokens of all captions")
            clock.check()
            image = self._image(inputs, place)
            clock.check()
            scores = self.model.similarity(image, text)[0]
            if request.kind == "label":
                scores = (scores * self.model.logit_scale.exp().clamp(max=100)).softmax(-1)
            answer = [
                {request.kind: name, "score": score} for name, score in zip(request.names, scores.tolist(), strict=True)
            ]
            if request.alignment:
                numbers = words_in_all * image.embeds.shape[1] * len(sources)
                _check_count("alignment", numbers, self.limits.aligned_numbers, "cells times words")
                if self.takes_regions:
                    shape = {"regions": image.embeds.shape[1]}
                else:
                    shape = {"grid": list(self.model.vision_encoder.grid(size, image.last_hidden_state))}
                    shape |= self._boxes(*size)
                alignments = self._alignments(image, text, words["input_ids"], request.sentences)
                for entry, aligned in zip(answer, alignments, strict=True):
                    entry["alignment"] = {**shape, "words": aligned}
            answers.append(sorted(answer, key=lambda entry: -entry["score"]))
        return answers

    def _text(self, words: dict, clock: "_Clock"):
        """Features of the captions, of some at a time."""
        parts = []
        for first in range(0, len(words["input_ids"]), CAPTIONS_AT_ONCE):
            clock.check()
            some = {name: each[first : first + CAPTIONS_AT_ONCE] for name, each in words.items()}
            parts.append(self.model.get_text_features(**some))
        names = ("embeds", "mask", "pooled", "norms")
        return type(parts[0])(**{name: torch.cat([part[name] for part in parts]) for name in names})

    def _regions(self, source: bytes, place: str) -> dict:
        width = self.model.config.vision_config.feature_size
        try:
            inputs = self.processor(regions=[read_regions(source, place, width, self.limits)])
        except ValueError as error:  # NaN or infinity
            raise RequestError(f"{place} cannot be used: {error}") from error
        return {name: each.to(self.model.device) for name, each in inputs.items()}

    def _pixels(self, source, place: str) -> dict:
        picture = decoded(source, place, self.limits)
        try:
            pixels = self.processor(images=picture)["pixel_values"]
        except (ValueError, OSError) as error:  # of a mode in which nobody knows what is white
            raise RequestError(f"{place} cannot be used: {error}") from error
        height, width = pixels.shape[-2:]
        self._check_model_pixels(place, width, height)
        return {"pixel_values": pixels.to(self.model.device)}

    def _image(self, inputs: dict, place: str):
        try:
            return self.model.get_image_features(**inputs)
        except ValueError as error:  # smaller than the model takes
            raise RequestError(f"{place} cannot be used: {error}") from error

    def _boxes(self, height: int, width: int) -> dict:
        """Where the cells look; nothing of a size that the checkpoint does not keep, since measuring takes long."""
        kept = getattr(self.model.config, "fragment_boxes", None) or {}
        if f"{height} x {width}" not in kept:
            return {}
        sides = torch.tensor([width, height, width, height])
        shares = self.model.fragment_boxes(height, width) / sides
        return {"boxes": [[round(side, 6) for side in box] for box in shares.tolist()]}

    def _alignments(self, image, text, input_ids: torch.Tensor, sentences: list[str]) -> list[list[dict]]:
        """For each caption its words, and the share of each one's mass that comes from each cell."""
        head = self.model.matching
        if not head.aligns:
            raise RequestError(
                f"This model's head, {self.model.config.matching!r}, does not align words with cells; expected "
                "alignment to be false."
            )
        match = head.match(image, text)
        cells = match.alignment[0].transpose(1, 2)  # [B_t, L, K]
        totals = cells.sum(2) + (0 if match.column_dustbin is None else match.column_dustbin[0])
        answers = []
        for number, sentence in enumerate(sentences):
            valid = text.mask[number, : input_ids.shape[1]]
            answers.append([])
            for word in self.processor.words(sentence, input_ids[number].cpu(), valid.cpu()):
                total, mass = totals[number, word.tokens].sum(), cells[number, word.tokens].sum(0)
                mass = (mass / torch.where(total > 0, total, 1)).tolist()
                values = [round(value, 6) for value in mass]
                answers[-1].append({"word": word.text, "matched": round(sum(mass), 6), "mass": values})
        return answers


class _Clock:
    """The time that a request has."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.deadline = time.monotonic() + limits.request_seconds

    def check(self) -> None:
        if time.monotonic() >= self.deadline:
            raise RequestError(
                f"The request was not answered within {self.limits.request_seconds:g} seconds; ask for fewer or "
                "smaller pictures, or for fewer or shorter captions.",
                503,
            )

    @contextlib.contextmanager
    def waiting_for(self, lock: threading.Lock):
        """Hold a lock, if it is to be had in time."""
        if not lock.acquire(timeout=max(0, self.deadline - time.monotonic())):
            raise RequestError(
                f"The endpoint was busy with others for {self.limits.request_seconds:g} seconds; try again.", 503
            )
        try:
            yield
        finally:
            lock.release()


# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request whose form was checked.

    Args:
        images: the pictures by their place in the request: URLs, base64 or PIL.
        several: whether they came in a list.
        kind: `label` or `caption`.
        names: the labels or captions as they came.
        sentences: what the model is to read.
        alignment: whether the words' mass is asked for.
    """

    images: dict
    several: bool
    kind: str
    names: list[str]
    sentences: list[str]
    alignment: bool


def read_request(data, limits: Limits) -> Request:
    """Check the form of a request; fetches nothing.

    Raises:
        RequestError: if it has another form, or asks for too much.
    """
    if not isinstance(data, dict):
        raise RequestError(f"The request is {_kind(data)}; expected an object with inputs and parameters.")
    if data.get("inputs") is None:
        raise RequestError("The request has no inputs; expected a picture, as a URL or in base64, or a list of them.")
    inputs, parameters = data["inputs"], data.get("parameters")
    several = isinstance(inputs, list)
    images = {f"inputs[{n}]": each for n, each in enumerate(inputs)} if several else {"inputs": inputs}
    if not images:
        raise RequestError("inputs is an empty list; expected at least one picture.")
    _check_count("inputs", len(images), limits.images, "pictures")
    for place, image in images.items():
        if not isinstance(image, str | Image.Image):
            raise RequestError(f"{place} is {_kind(image)}; expected a string, a URL or a picture in base64.")

    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise RequestError(f"parameters is {_kind(parameters)}; expected an object.")
    unknown = sorted(map(str, parameters.keys() - set(PARAMETERS)))
    if unknown:
        raise RequestError(f"parameters has {unknown[0]!r:.80}; expected some of {', '.join(PARAMETERS)}.")
    given = {name: value for name, value in parameters.items() if value is not None}
    if ("candidate_labels" in given) == ("captions" in given):
        raise RequestError("parameters needs candidate_labels or captions, one of them.")
    name = "candidate_labels" if "candidate_labels" in given else "captions"
    names = given[name]
    if not isinstance(names, list) or not names:
        raise RequestError(f"{name} is {_kind(names)}; expected a list of at least one string.")
    _check_count(name, len(names), limits.captions, "strings")
    for number, each in enumerate(names):
        _check_string(f"{name}[{number}]", each, limits)
    sentences = names
    if name == "candidate_labels":
        template = given.get("hypothesis_template", TEMPLATE)
        _check_string("hypothesis_template", template, limits)
        if template.count("{}") != 1:
            raise RequestError(f"hypothesis_template is {template!r:.80}; expected one {{}} in it, where a label goes.")
        sentences = [template.replace("{}", label) for label in names]
    elif "hypothesis_template" in given:
        raise RequestError("hypothesis_template goes with candidate_labels; captions are taken as they are.")
    alignment = given.get("alignment", False)
    if not isinstance(alignment, bool):
        raise RequestError(f"alignment is {_kind(alignment)}; expected true or false.")
    if alignment:
        _check_count("alignment", len(images) * len(names), limits.aligned_pairs, "pairs of a picture and a sentence")
    kind = "label" if name == "candidate_labels" else "caption"
    return Request(images, several, kind, names, sentences, alignment)


def _check_count(what: str, count: int, most: int, things: str) -> None:
    if count > most:
        raise RequestError(f"{what} is of {count} {things}; expected at most {most}.", 413)


def _check_string(place: str, value, limits: Limits) -> None:
    if not isinstance(value, str) or not value.strip():
        raise RequestError(f"{place} is {_kind(value)}; expected a string that is not empty.")
    _check_count(place, len(value), limits.characters, "characters")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RequestError(f"{place} holds half of a surrogate pair; expected text.")


def _kind(value) -> str:
    """What JSON calls a value."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    kinds |= {list: "a list", dict: "an object"}
    empty = " that is empty" if isinstance(value, str | list | dict) and not value else ""
    return kinds.get(type(value), f"of type {type(value).__name__}") + empty


# --- pictures ---------------------------------------------------------------------------------------------------------


def fetched(source, place: str, limits: Limits):
    """The file of a picture as bytes, of a URL or base64; PIL as it is.

    Raises:
        RequestError: if it is neither, cannot be had, or is too large.
    """
    if isinstance(source, Image.Image):
        return source
    scheme, colon, rest = source[:MAX_URL].partition(":")
    if not colon:
        return _from_base64(source, place, limits)
    if scheme.lower() in ("http", "https"):
        if len(source) > MAX_URL:
            raise RequestError(f"{place} is a URL of {len(source)} characters; expected at most {MAX_URL}.", 413)
        return download(source, place, limits)
    if scheme.lower() == "data" and rest.partition(",")[0].lower().endswith(";base64"):
        return _from_base64(source.partition(",")[2], place, limits)
    raise RequestError(f"{place} is {source!r:.80}; expected an http or https URL, or a picture in base64.")


def _from_base64(text: str, place: str, limits: Limits) -> bytes:
    if len(text) > limits.image_bytes * 1.5:  # 4/3, and line breaks
        raise RequestError(f"{place} is too large; expected at most {limits.image_bytes} bytes.", 413)
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{place} is {text!r:.80}; expected an http or https URL, or a picture in base64."
        ) from error
    _check_bytes(place, len(content), limits)
    return content


def _check_bytes(place: str, size: int, limits: Limits) -> None:
    if size > limits.image_bytes:
        raise RequestError(f"{place} has more than {limits.image_bytes} bytes; expected at most that.", 413)


def opened(source, place: str, limits: Limits) -> Image.Image:
    """The picture in a file's bytes, of which no more than the head is read; PIL as it is.

    Raises:
        RequestError: if it is no picture, or one that is too large or too long, or takes too long to decode.
    """
    if isinstance(source, Image.Image):
        _check_size(source, place, limits)
        return source
    if source[:2] in (b"II", b"MM") and _tag_bytes(source) > len(source):
        raise RequestError(f"{place} is a TIFF file whose tags have more bytes than it; expected a whole one.")
    if source[:2] == b"\xff\xd8":  # PIL adds up the Exif of all segments, and reads it at once; one is enough
        head, mark, rest = source.partition(EXIF)
        source = head + mark + rest.replace(EXIF, bytes(len(EXIF)))
    try:
        picture = Image.open(io.BytesIO(source), formats=FORMATS)
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            raise RequestError(f"{place} has too many pixels; expected at most {limits.pixels}.", 413) from error
        raise RequestError(f"{place} is no picture that can be read; expected one of {', '.join(FORMATS)}.") from error
    _check_size(picture, place, limits)
    if picture.format in ("JPEG", "MPO"):
        _check_count(place, source.count(START_OF_SCAN), limits.scans, "scans, each over the whole picture")
    return picture


def decoded(source, place: str, limits: Limits) -> Image.Image:
    """The picture in a file's bytes; what is checked of its head is checked before it is decoded.

    Raises:
        RequestError: as `opened` does, and if it is damaged.
    """
    picture = opened(source, place, limits)
    try:
        if picture.format != "TIFF":  # whose metadata are decoded with it; the processor knows what to do if they fail
            picture.load()
    except Exception as error:
        raise RequestError(f"{place} is a {picture.format} file that is damaged; expected a whole one.") from error
    for name in ("exif", "Raw profile type exif"):  # of which PIL makes as much more as their tags say
        if len(picture.info.get(name, "")) > MAX_EXIF:
            del picture.info[name]
    return picture


def _tag_bytes(file: bytes) -> int:
    """Bytes of the values that the directories of a TIFF file say they have. PIL reads each by itself, so that values
    which lie one over the other may come to any number."""
    order, big = {b"II": "<", b"MM": ">"}[file[:2]], b"+" in file[2:4]
    start, number, entry, inline = (8, "Q", "HHQ", 8) if big else (4, "H", "HHL", 4)
    pointer = order + ("Q" if big else "L")
    head, step = struct.calcsize(order + number), struct.calcsize(order + entry) + inline
    total, seen, waiting = 0, set(), [start]  # places of places of directories
    while waiting and total <= len(file):
        with contextlib.suppress(struct.error):  # the file ends there; PIL says so
            (place,) = struct.unpack_from(pointer, file, waiting.pop())
            entries = 0 if place in seen else struct.unpack_from(order + number, file, place)[0]
            seen.add(place)
            for at in range(place + head, place + head + entries * step, step):
                tag, kind, count = struct.unpack_from(order + entry, file, at)
                total += count * TAG_BYTES.get(kind, 0)
                if tag in DIRECTORIES:
                    waiting.append(at + step - inline)
                    if count * TAG_BYTES.get(kind, 0) > inline:
                        waiting += struct.unpack_from(pointer, file, at + step - inline)
    return total


def _check_size(picture: Image.Image, place: str, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.pixels:
        raise RequestError(f"{place} has {width} x {height} pixels; expected at most {limits.pixels}.", 413)
    if max(picture.size) > limits.aspect_ratio * min(picture.size):
        raise RequestError(
            f"{place} has {width} x {height} pixels; expected at most {limits.aspect_ratio:g} times as many on its "
            "longer side as on its shorter one."
        )


# --- regions ----------------------------------------------------------------------------------------------------------


def regions_head(source, place: str, width: int, limits: Limits) -> tuple[int, np.dtype, int]:
    """How many regions a `.npy` file holds, their type and the place of their first number, by its head alone.

    Raises:
        RequestError: if it is no such file, not as long as its head says, or of too many regions or of others.
    """
    if not isinstance(source, bytes):
        raise RequestError(f"{place} is a picture, and the model takes precomputed regions; expected a .npy file.")
    file = io.BytesIO(source)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, in_columns, dtype = read(file)
    except Exception as error:  # numpy evaluates the header, which raises many kinds
        raise RequestError(
            f"{place} is no .npy file, and the model takes precomputed regions; expected np.save's bytes of them."
        ) from error
    if dtype.kind not in "fiu" or in_columns:
        raise RequestError(f"{place} holds {dtype}; expected numbers in row order: np.ascontiguousarray(regions).")
    if len(shape) != 2 or shape[0] < 1 or shape[1] != width:
        raise RequestError(f"{place} has the shape {list(shape)!r:.80}; expected [K, {width}] with K from 1.")
    _check_count(place, shape[0], limits.regions, "regions")
    if len(source) != file.tell() + shape[0] * width * dtype.itemsize:
        raise RequestError(f"{place} is not as long as its head says, {list(shape)} of {dtype}; expected a whole file.")
    return shape[0], dtype, file.tell()


def read_regions(source: bytes, place: str, width: int, limits: Limits) -> np.ndarray:
    """The regions of a `.npy` file, float32 [K, width]; `RequestError` as `regions_head`."""
    count, dtype, start = regions_head(source, place, width, limits)
    return np.frombuffer(source, dtype, offset=start).reshape(count, width).astype(np.float32)


# --- downloads --------------------------------------------------------------------------------------------------------


def download(url: str, place: str, limits: Limits) -> bytes:
    """What a URL of the public internet gives.

    Every address of its host must be public, and the connection is made to one that was checked, since the name may
    lead elsewhere a moment later. The same goes for each redirect. Proxies of the environment are not used.

    Raises:
        RequestError: if the URL is malformed or leads to an address that is not public; if it gives no answer in time,
            too large a one, or an error.
    """
    deadline = time.monotonic() + limits.download_seconds
    for _ in range(limits.redirects + 1):
        connection = _Connection(*_checked(url, place), deadline)
        try:
            response = connection.answer(url)
            if response.status in (301, 302, 303, 307, 308) and response.getheader("Location"):
                url = urljoin(url, response.getheader("Location"))
                continue
            if response.status != 200:
                raise RequestError(f"{place}: the URL answered with status {response.status}; expected 200.", 502)
            content = _read(response, place, limits)
            if time.monotonic() < deadline:
                return content
            raise TimeoutError  # what was read may be a part
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise RequestError(
                    f"{place} could not be fetched within {limits.download_seconds:g} seconds.", 504
                ) from error
            raise RequestError(f"{place} could not be fetched: {type(error).__name__}.", 502) from error
        finally:
            connection.end()
    raise RequestError(f"{place} is redirected more than {limits.redirects} times.", 502)


def _read(response: http.client.HTTPResponse, place: str, limits: Limits) -> bytes:
    _check_bytes(place, response.length or 0, limits)
    content = bytearray()
    while block := response.read(BLOCK):
        content += block
        _check_bytes(place, len(content), limits)
    if response.length:  # what is left of what was announced
        raise http.client.IncompleteRead(bytes(content), response.length)
    return bytes(content)


def _checked(url: str, place: str) -> tuple[str, int, list[str], bool]:
    """Host, port, addresses and whether to encrypt."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]
        if not host or parts.username is not None:
            raise ValueError("no host, or a user")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (KeyError, ValueError) as error:
        raise RequestError(f"{place} is {url!r:.200}; expected an http or https URL with a host.") from error
    except OSError as error:
        raise RequestError(f"{place}: the host {host!r:.200} is not found.", 502) from error
    addresses = [each[4][0] for each in found]
    if not addresses or not all(map(is_public, addresses)):
        raise RequestError(f"{place}: the host {host!r:.200} is not on the public internet.", 403)
    return host, port, addresses, parts.scheme == "https"


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet: not private, loopback, link-local, multicast or reserved, nor an
    IPv6 address that stands for an IPv4 one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        return ip in ipaddress.ip_network("2000::/3") and ip.is_global and not (ip.sixtofour or ip.teredo)
    return ip.is_global and not ip.is_multicast and ip not in ipaddress.ip_network("192.0.0.0/24")


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, which ends at a deadline whatever comes or does not come."""

    def __init__(self, host: str, port: int, addresses: list[str], encrypted: bool, deadline: float):
        super().__init__(host, port, timeout=max(0.001, deadline - time.monotonic()))
        self.default_port = 443 if encrypted else 80  # which the Host header leaves out
        self.addresses, self.encrypted, self.deadline = addresses, encrypted, deadline
        self.socket, self.alarm, self.response = None, None, None

    def connect(self) -> None:
        self.socket = self.sock = self._open()
        self.alarm = threading.Timer(max(0, self.deadline - time.monotonic()), self._break)
        self.alarm.daemon = True
        self.alarm.start()
        if self.encrypted:
            context = ssl.create_default_context()
            self.socket = self.sock = context.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def _open(self) -> socket.socket:
        for number, address in enumerate(self.addresses, start=1):
            try:
                return socket.create_connection((address, self.port), max(0.001, self.deadline - time.monotonic()))
            except OSError:
                if number == len(self.addresses):
                    raise

    def answer(self, url: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe="%/:=&?~+!$,;'@()*[]|#")
        self.request("GET", target, headers={"User-Agent": "omit-hf", "Accept": "image/*", "Connection": "close"})
        self.response = self.getresponse()
        return self.response

    def _break(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        if self.alarm is not None:
            self.alarm.cancel()
        if self.response is not None:
            self.response.close()
        self.close()
