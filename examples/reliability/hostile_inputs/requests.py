"""Requests to an inference endpoint."""

import base64
import json
import random
from pathlib import Path

from hostile_inputs.case import ANY, Case, WrongValue
from hostile_inputs.mutations import EVIL, dump, mutate_bytes, mutate_value
from hostile_inputs.pictures import Pictures
from omit_hf.hub.handler import EndpointHandler, Limits

LIMITS = Limits(images=4, captions=40, characters=500, image_bytes=2**20, pixels=4_000_000, all_pixels=6_000_000)
MAX_ERROR = 400  # characters
SOURCES = (
    "http://127.0.0.1:1/a.png",
    "http://localhost/a.png",
    "http://[::1]/",
    "http://0/",
    "http://2130706433/",
    "http://user:word@127.0.0.1/",
    "https://127.0.0.1:99999/",
    "HTTP://169.254.169.254/latest/meta-data",
    "file:///etc/hostname",
    "data:image/png;base64,",
    "data:text/html,<script>",
    "gopher://127.0.0.1/",
    "/etc/hostname",
)


class Requests:
    """Cases for one endpoint.

    Args:
        folder: of a checkpoint with its processor.
        pictures: to send.
    """

    def __init__(self, folder: Path, pictures: Pictures):
        self.handler, self.pictures = EndpointHandler(str(folder), LIMITS), pictures
        self.png = base64.b64encode(pictures.files["PNG RGB"][0]).decode()
        self.expected = [self.handler(self.request(alignment)) for alignment in (False, True)]
        json.dumps(self.expected, allow_nan=False)

    def request(self, alignment: bool = False) -> dict:
        parameters = {"captions": ["a red circle", "a star"], "alignment": alignment}
        return {"inputs": [self.png, self.png], "parameters": parameters}

    def case(self, rng: random.Random, folder: Path) -> Case:
        way, alignment = rng.randrange(10), rng.random() < 0.3
        request, same = self.request(alignment), way == 0
        if rng.random() < 0.4:
            request["parameters"] = {"candidate_labels": ["cat", "dog"], "hypothesis_template": "a {}."}
            same = False
        text = None
        if way == 0:
            what = "as it is"
        elif way < 6:
            what, request = mutate_value(rng, request)
        elif way == 6:
            request["inputs"] = what = rng.choice(SOURCES)
        elif way == 7:
            name = rng.choice(list(self.pictures.bombs))
            what, content = f"picture: {name}", self.pictures.bombs[name]
            request["inputs"] = base64.b64encode(content).decode()
        elif way == 8:
            name = rng.choice(list(self.pictures.files))
            what, content = mutate_bytes(rng, self.pictures.files[name][0])
            request["inputs"], what = base64.b64encode(content).decode(), f"picture: {name}, {what}"
        else:
            what, text = mutate_bytes(rng, json.dumps(request).encode())
        text = dump(request).encode(errors="surrogatepass") if text is None else text

        def read():
            try:
                data = json.loads(text)
            except (ValueError, RecursionError) as error:  # of whoever serves the endpoint
                raise ValueError("no JSON") from error
            answer = self.handler(data)
            said = json.dumps(answer, allow_nan=False)
            if isinstance(answer, dict):
                if answer.keys() != {"error", "status"} or answer["status"] == 500:
                    raise WrongValue(said)
                if len(answer["error"]) > MAX_ERROR or not answer["error"].isprintable() or EVIL in answer["error"]:
                    raise WrongValue(f"message: {said[:500]}")
                raise ValueError(answer["error"])
            return answer if same else None

        return Case("request", what, read, self.expected[alignment] if same else ANY)
