"""What the pages in the browser show in their tests, and how the tests serve and ask them."""

import json
import shutil
import urllib.request
import uuid

import torch
from browser import HOSTILE
from tiny import REGIONS, TEXT, tiny_config, tiny_recipe

from omit_hf import OmitModel
from omit_hf.demo.address import Address
from omit_hf.library import PictureLibrary
from omit_hf.training import Recipe, write_recipe_file

ODD = f"{HOSTILE}.png"


def save_models(folder, processor):
    """Folders of models: one of Scenes with its recipe, others without."""
    text = {**TEXT, "vocab_size": len(processor.tokenizer)}
    kinds = {"omit": {}, **{name: {"matching": name} for name in ("ot", "maxsim", "mean")}}
    for name, options in {**kinds, "regions": {"vision_config": REGIONS}}.items():
        torch.manual_seed(0)
        OmitModel(tiny_config(text_config=text, **options)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    write_recipe_file(Recipe(**tiny_recipe(output_dir=str(folder))), folder / "omit" / "recipe.yaml")
    return folder


def save_library(folder, scenes, processor):
    """Models, and a library of 31 pictures, of which one has an odd name."""
    save_models(folder, processor)
    (folder / "pictures").mkdir()
    for number, row in enumerate([*scenes["train"], *scenes["validation"]]):
        row["image"].save(folder / "pictures" / f"{number:02}.png")
    scenes["test"][0]["image"].save(folder / "pictures" / ODD)
    PictureLibrary(folder / "photos.lance", folder / "omit").add(folder / "pictures", progress=False)
    return folder


def copied(folder, target):
    """A copy of the library and its pictures, which a test may spoil."""
    shutil.copytree(folder / "pictures", target / "pictures")
    library = PictureLibrary(target / "photos.lance", folder / "omit")
    library.add(target / "pictures", progress=False)
    return target


def oracle(demo, picture, sentence) -> dict:
    """Of the model's own plan, by loops."""
    inputs = demo.processor(images=picture, text=sentence)
    with torch.no_grad():
        out = demo.model(**inputs, output_transport=True)
    plan = out.transport_plan[0, 0].double().numpy()
    rows, columns = plan.shape
    words = [[plan[row, column] for row in range(rows)] for column in range(1, columns)]
    cells = [[plan[row, column] for column in range(columns)] for row in range(1, rows)]
    return {
        "similarity": out.similarity.item(),
        "shares": [[value / sum(word) for value in word[1:]] for word in words],
        "matched": [1 - word[0] / sum(word) for word in words],
        "words": sum(word[0] for word in words) / sum(map(sum, words)),
        "picture": sum(cell[0] for cell in cells) / sum(map(sum, cells)),
        "cells": [cell[0] / sum(cell) for cell in cells],
    }


def serve(module, demo, **options):
    """A page of `omit_hf.demo`, on any free port; to be closed."""
    return module.launch(demo, Address(), prevent_thread_lock=True, quiet=True, **options)


def queue_request(blocks, data: list, function: int = 0, session: str | None = None) -> urllib.request.Request:
    """What a browser asks to have a function called."""
    body = {"data": data, "fn_index": function, "session_hash": session or uuid.uuid4().hex}
    headers = {"Content-Type": "application/json"}
    return urllib.request.Request(f"{blocks.local_url}gradio_api/queue/join", json.dumps(body).encode(), headers)
