"""Recipes and comparisons: YAML that may come with a model of the Hub, and options in JSON."""

import random
import re
from argparse import ArgumentTypeError
from dataclasses import asdict
from pathlib import Path

import yaml

from hostile_inputs.case import ANY, REFUSED, Case, WrongValue
from hostile_inputs.mutations import dump, harmless_text, mutate_bytes, mutate_encoding, mutate_json, mutate_value
from omit_hf.command_line import json_object
from omit_hf.comparison import read_comparison
from omit_hf.parsing import parse_yaml
from omit_hf.training import Recipe, read_recipe_file
from omit_hf.training.recipe_files import recipe_text

RECIPE = {
    "data": "scenes",
    "data_options": {"train_size": 8, "test_size": 6},
    "vision_config": {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]},
    "image_processor": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "text_config": {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16},
    "projection_dim": 16,
    "num_epochs": 2,
    "learning_rate": 0.01,
    "decay_epochs": [1],
    "matching": "omit",
    "output_dir": "outputs/a",
    "tensorboard": False,
}
COMPARISON = {
    "recipe": "recipe.yaml",
    "overrides": {"num_epochs": 1},
    "seeds": [0, 1],
    "settings": {"matching": {"mean": {"margin": 0.2}}},
    "search": {"candidates": {"learning_rate": [0.01, 0.001]}, "overrides": {"batch_size": 16}, "per": ["matching"]},
    "grids": {"heads": {"matching": ["omit", "mean"]}, "lambda": {"regularization": [0.02, 0.1], "seeds": [0]}},
}
# Lines of YAML that are no mapping of names and values, or one that costs much.
LINES = {
    "an alias": "a: &a [1]\nb: *a",
    "many aliases": "a: &a [x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcde", "bcdef", strict=True)),
    "a merge": "<<: {seed: 1}",
    "a tag": "seed: !!python/object/apply:os.getpid []",
    "a type's tag": "seed: !!str 1",
    "a second document": "---\nseed: 1",
    "an end": "...\nseed: 1",
    "a tab": "\tseed: 1",
    "a question": "? [seed]\n: 1",
    "a binary number": "seed: 0b_",
    "sixties": "seed: 1:30:00",
    "many sixties": "seed: 1" + ":59" * 300_000,
    "many digits": "seed: " + "9" * 500_000,
    "an octal number": "seed: 010",
    "no float": "learning_rate: .nan",
    "infinity": "learning_rate: -.inf",
    "a date": "revision: 2001-01-01",
    "a set": "? seed\n? margin",
    "an equals sign": "data: =",
    "a directive": "%YAML 9.9\n---\nseed: 1",
    "an unclosed list": "decay_epochs: [1, 2",
    "an unclosed text": "data: 'scenes",
    "a block": "data: |\n  scenes\n  \n",
    "an escape": 'data: "\\ud800\\0\\x1b"',
    "dense lists": "decay_epochs: [" + "[1]," * 240_000 + "]",
    "dense lines": "\n".join(f"a{n}: 1" for n in range(80_000)),
    "dense names": "data_options: {" + "".join(f"a{n}: 1," for n in range(80_000)) + "}",
    "dense texts": "data: '" + "''" * 400_000 + "'",
    "dense escapes": 'data: "' + "\\x41" * 230_000 + '"',
    "dense comments": "#\n" * 400_000,
    "dense blanks": " " * 900_000,
    "dense blocks": "data: |\n" + " a\n" * 300_000,
    "dense folds": "data: a\n" + " a\n" * 300_000,
    "dense questions": "? " * 40 + "a",
    "deep": "data_options: " + "[" * 10_000,
    "deep lines": "\n".join(" " * n + "a:" for n in range(300)),
    "deep dashes": "- " * 5000,
    "too large": "#" * 2**21,
}
NUMBERS = [n / 10_000 for n in range(1, 40)]
# Grids of a comparison that make more runs than anybody trains.
GRIDS = {
    "a grid of fields": f"grids: {{a: {{margin: {NUMBERS}, regularization: {NUMBERS}, learning_rate: {NUMBERS}}}}}",
    "a grid of seeds": f"grids: {{a: {{matching: [omit], seeds: {list(range(15_000))}}}}}",
    "a grid of values": f"grids: {{a: {{margin: {[n / 1e6 for n in range(15_000)]}}}}}",
    "a grid of a value": f"grids: {{a: {{margin: {[0.5] * 15_000}}}}}",
    "a search of all": f"search: {{product: true, candidates: {{margin: {NUMBERS}, learning_rate: {NUMBERS}, "
    f"weight_decay: {NUMBERS}}}}}\ngrids: {{a: {{matching: [omit]}}}}",
}


def _yaml(rng: random.Random, document: dict) -> tuple[str, bytes, bool]:
    """A change of a file of YAML, and whether it means the same as before."""
    way = rng.randrange(10)
    plain = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=rng.choice([None, False]))
    if way == 0:
        what, content = harmless_text(rng, plain.encode())
        return what, content, True
    if way == 1:
        name = rng.choice(list(document))
        return "a name twice", (plain + f"{name}: {dump(document[name])}\n").encode(), False
    if way < 6:
        what, value = mutate_value(rng, document)
        return what, dump(value).encode(errors="surrogatepass"), False
    if way < 8:
        what = rng.choice(list(LINES))
        first = rng.random() < 0.3
        return what, (f"{LINES[what]}\n{plain}" if first else f"{plain}{LINES[what]}\n").encode(), False
    what, content = (mutate_bytes if way == 8 else mutate_encoding)(rng, plain.encode())
    return what, content, False


def has_twice(content: bytes) -> bool:
    """Whether a mapping of the first document says a name twice."""
    try:
        waiting = [yaml.compose(content.decode("utf-8-sig"), Loader=yaml.CSafeLoader)]
    except Exception:  # no YAML, which is refused anyway
        return False
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            names = [(name.tag, name.value) for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
            if len(set(names)) < len(names):
                return True
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return False


def recipe(rng: random.Random, folder: Path) -> Case:
    what, content, same = _yaml(rng, RECIPE)
    file = folder / "recipe.yaml"
    file.write_bytes(content)

    def read():
        found = Recipe(**read_recipe_file(file))
        again = Recipe(**parse_yaml(recipe_text(asdict(found)), "again"))
        if repr(again) != repr(found):
            raise WrongValue(f"it is written as another: {found!r}")
        return {name: getattr(found, name) for name in RECIPE} if same else None

    expected = RECIPE if same else REFUSED if has_twice(content[:20_000]) else ANY
    return Case("recipe", what, read, expected, ("recipe.yaml", *Recipe.__dataclass_fields__))


def comparison(rng: random.Random, folder: Path) -> Case:
    what, content, same = _yaml(rng, COMPARISON)
    if rng.random() < 0.05:
        what, same = rng.choice(list(GRIDS)), False
        content = f"recipe: recipe.yaml\n{GRIDS[what]}\n".encode()
    (folder / "recipe.yaml").write_text(recipe_text(RECIPE), encoding="utf-8")
    file = folder / "comparison.yaml"
    file.write_bytes(content)

    def read():
        found = read_comparison(file, folder / "runs")
        names = [run.name for grid in found.grids for run in found.runs(grid)]
        if not all(re.fullmatch(r"[\w.+\-]+", name) for name in names):
            raise WrongValue(names)
        return names if same else None

    runs = ["omit_seed0", "omit_seed1", "mean_seed0", "mean_seed1", "omit_seed0", "omit_regularization-0.1_seed0"]
    expected = runs if same else REFUSED if has_twice(content[:20_000]) else ANY
    return Case("comparison", what, read, expected, ("comparison.yaml", "recipe.yaml", "No recipe at"))


def option(rng: random.Random, folder: Path) -> Case:
    """An option of a command line in JSON."""
    document = {"image_folder": "a", "columns": {"image": ["a", "b"], "captions": "c"}, "streaming": False}
    what, content = mutate_json(rng, document)
    text = content.decode(errors="surrogateescape")

    def read():
        try:
            found = json_object(text)
        except ArgumentTypeError as error:  # which argparse prints
            raise ValueError(str(error)) from None
        if not isinstance(found, dict):
            raise WrongValue(found)
        return None

    return Case("option in JSON", what, read, ANY)
