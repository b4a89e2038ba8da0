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
from each of them in reading order, and `matched` their sum; the rest is the dustbin's. What cannot be answered gives
{"error": …, "status": …}, the latter an HTTP status.

It needs torch, transformers, Pillow and the files of this folder alone.
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
import threading
import time
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

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
        aspect_ratio: of a picture's longer side to its shorter one, to which some processors scale.
        model_pixels: of a picture as the model gets it, where the processor does not scale it down.
        aligned_pairs: pictures times captions of a request with alignment.
        aligned_numbers: of a request with alignment, cells times words, summed over the pairs.
        redirects: of a URL.
        download_seconds: from the first connection of a download to its end.
    """

    images: int = 16
    captions: int = 256
    characters: int = 1000
    image_bytes: int = 10 * 2**20
    pixels: int = 40_000_000
    aspect_ratio: float = 20.0
    model_pixels: int = 1_500_000
    aligned_pairs: int = 32
    aligned_numbers: int = 1_000_000
    redirects: int = 3
    download_seconds: float = 10.0


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

    Raises:
        ValueError: if the model takes precomputed regions, which no request can bring.
    """

    def __init__(self, path: str = ".", limits: Limits | None = None):
        self.limits = Limits() if limits is None else limits
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        if self.processor.image_processor is None:
            raise ValueError(f"The model in {path} takes precomputed regions; expected one that takes pictures.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).eval().to(device)
        # One request at a time computes: fast tokenizers cannot be shared, and the memory is that of one.
        self.lock = threading.Lock()

    def __call__(self, data: dict) -> list | dict:
        """
        Args:
            data: the decoded JSON of a request.

        Returns:
            The answer, or what is wrong with the request; see the head of this file.
        """
        try:
            request = read_request(data, self.limits)
            sources = [fetched(source, place, self.limits) for place, source in request.images.items()]
            with self.lock, torch.inference_mode():
                answers = self._answers(request, sources)
            return answers if request.several else answers[0]
        except RequestError as error:
            return {"error": str(error), "status": error.status}
        except Exception:
            logger.exception("A request failed.")
            return {"error": "The request failed within the endpoint, whose log says why.", "status": 500}

    def _answers(self, request: "Request", sources: list) -> list[list[dict]]:
        words = self.processor(text=request.sentences).to(self.model.device)
        text = self.model.get_text_features(**words)
        answers, words_in_all = [], int(text.mask.sum())
        for place, source in zip(request.images, sources, strict=True):
            pixels = self._pixels(decoded(source, place, self.limits), place)
            image = self.model.get_image_features(pixels)
            scores = self.model.similarity(image, text)[0]
            if request.kind == "label":
                scores = (scores * self.model.logit_scale.exp().clamp(max=100)).softmax(-1)
            answer = [
                {request.kind: name, "score": score} for name, score in zip(request.names, scores.tolist(), strict=True)
            ]
            if request.alignment:
                numbers = words_in_all * image.embeds.shape[1] * len(sources)
                _check_count("alignment", numbers, self.limits.aligned_numbers, "cells times words")
                grid = self.model.vision_encoder.grid(pixels.shape[-2:], image.last_hidden_state)
                alignments = self._alignments(image, text, words["input_ids"], request.sentences)
                for entry, aligned in zip(answer, alignments, strict=True):
                    entry["alignment"] = {"grid": list(grid), "words": aligned}
            answers.append(sorted(answer, key=lambda entry: -entry["score"]))
        return answers

    def _pixels(self, picture: Image.Image, place: str) -> torch.Tensor:
        try:
            pixels = self.processor(images=picture)["pixel_values"]
        except ValueError as error:  # of a mode in which nobody knows what is white
            raise RequestError(f"{place} cannot be used: {error}") from error
        height, width = pixels.shape[-2:]
        if height * width > self.limits.model_pixels:
            raise RequestError(
                f"{place} would come to the model with {width} x {height} pixels, since its processor does not scale "
                f"pictures down to one size; expected at most {self.limits.model_pixels}.",
                413,
            )
        return pixels.to(self.model.device)

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


def decoded(source, place: str, limits: Limits) -> Image.Image:
    """The picture in a file's bytes; its size is checked before it is decoded.

    Raises:
        RequestError: if it is no picture, or too large or too long.
    """
    if isinstance(source, Image.Image):
        _check_size(source, place, limits)
        return source
    try:
        picture = Image.open(io.BytesIO(source), formats=FORMATS)
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            raise RequestError(f"{place} has too many pixels; expected at most {limits.pixels}.", 413) from error
        raise RequestError(f"{place} is no picture that can be read; expected one of {', '.join(FORMATS)}.") from error
    _check_size(picture, place, limits)
    try:
        picture.load()
        picture.getexif()  # read here, where all that is wrong with a file is caught
    except Exception as error:
        raise RequestError(f"{place} is a {picture.format} file that is damaged; expected a whole one.") from error
    return picture


def _check_size(picture: Image.Image, place: str, limits: Limits) -> None:
    width, height = picture.size
    if width * height > limits.pixels:
        raise RequestError(f"{place} has {width} x {height} pixels; expected at most {limits.pixels}.", 413)
    if max(picture.size) > limits.aspect_ratio * min(picture.size):
        raise RequestError(
            f"{place} has {width} x {height} pixels; expected at most {limits.aspect_ratio:g} times as many on its "
            "longer side as on its shorter one."
        )


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
