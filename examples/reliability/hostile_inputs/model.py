"""Files of a finished run: its checkpoint, what it measured, and what it needs to go on."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.numpy import save

from hostile_inputs.case import ANY, REFUSED, Case, WrongValue
from hostile_inputs.mutations import (
    dump,
    harmless_json,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_text,
    mutate_value,
)
from omit_hf import OmitModel, OmitProcessor
from omit_hf.cards import eval_results, with_results
from omit_hf.cards.metadata import check_card
from omit_hf.comparison import comparison_of
from omit_hf.comparison.running import Runner, check_folders
from omit_hf.comparison.searching import _rsum
from omit_hf.comparison.table import markdown, summary
from omit_hf.data import cache_states, load_image_text
from omit_hf.evaluation import load_similarity, save_similarity
from omit_hf.evaluation.pairs import SplitPairs
from omit_hf.hub import write_handler
from omit_hf.hub.publishing import prepare
from omit_hf.ownership import FolderLock
from omit_hf.training import Recipe, loop, read_recipe_file
from omit_hf.training.checkpoints import TrainingLog, load_last_checkpoint

RECIPE = {
    "data_options": {"train_size": 4, "validation_size": 2, "test_size": 3},
    "vision_config": {
        "model_type": "convnext",
        "patch_size": 8,
        "num_stages": 2,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
    },
    "image_processor": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "text_config": {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16},
    "projection_dim": 16,
    "backend": "cpu",
    "num_epochs": 1,
    "batch_size": 10,
    "checkpoint_steps": 1,
    "tensorboard": False,
    "cpu_threads": 1,
}
PICTURE, CAPTION = np.full((40, 48, 3), 120, np.uint8), "a small red star"


class RunFiles:
    """Cases of a run that is trained once.

    Args:
        scratch: the folder for it.
    """

    def __init__(self, scratch: Path):
        self.folder, self.shards = scratch / "run", scratch / "shards"
        self.metrics = loop.train(Recipe(output_dir=str(self.folder), **RECIPE))
        AcceleratorState._reset_state(True)
        self.recipe = Recipe(**read_recipe_file(self.folder / "recipe.yaml"))
        self.model, self.processor = OmitModel.from_pretrained(self.folder), OmitProcessor.from_pretrained(self.folder)
        shutil.copytree(self.folder, self.shards)
        (self.shards / "model.safetensors").unlink()
        self.model.save_pretrained(self.shards, max_shard_size="20KB")
        self.weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        self.features = self._features(self.processor)
        self.data, self.cached = load_image_text("scenes", **RECIPE["data_options"], only=["test"]), scratch / "states"
        rows = cache_states(self.model, self.processor, self.data, self.cached, image=True, text=True)["test"]
        rows = rows.with_format("numpy")
        self.image_states = [row["image_states"].tolist() for row in rows]
        self.state_shapes = [np.shape(row[name]) for row in rows for name in ("image_states", "text_states")]
        with torch.inference_mode():
            self.scores = self.model(**self.processor(images=[PICTURE], text=[CAPTION])).similarity

    def _features(self, processor) -> dict:
        return {name: each.tolist() for name, each in processor(images=[PICTURE], text=[CAPTION]).items()}

    def changed(self, folder: Path, name: str, content: bytes, base: Path | None = None) -> Path:
        """A copy of the run in which one file is another; the other files are links of it."""
        copy = folder / "run"
        shutil.copytree(base or self.folder, copy, copy_function=os.link)
        (copy / name).unlink()
        (copy / name).write_bytes(content)
        return copy

    def json_of(self, name: str, base: Path | None = None):
        return json.loads(((base or self.folder) / name).read_text(encoding="utf-8"))

    def configuration(self, rng: random.Random, folder: Path) -> Case:
        document, same = self.json_of("config.json"), rng.random() < 0.1
        what, content = (harmless_json if same else mutate_json)(rng, document)
        copy = self.changed(folder, "config.json", content)
        writes = rng.random() < 0.2

        def read():
            if writes:
                write_handler(copy)
                return None
            model = OmitModel.from_pretrained(copy)
            if same:
                with torch.inference_mode():
                    return model(**self.processor(images=[PICTURE], text=[CAPTION])).similarity.tolist()
            return None

        mark = content.startswith(b"\xef\xbb\xbf")  # transformers reads none
        expected = self.scores.tolist() if same and not writes and not mark else ANY
        return Case("config.json", what, read, expected, (str(copy), "config", "expected", "Field", "field"))

    def weights_file(self, rng: random.Random, folder: Path) -> Case:
        content, same, sharded = (self.folder / "model.safetensors").read_bytes(), False, rng.random() < 0.2
        if sharded:
            name = "model.safetensors.index.json"
            what, content = mutate_json(rng, self.json_of(name, self.shards))
            copy = self.changed(folder, name, content, self.shards)
        else:
            size = int.from_bytes(content[:8], "little")
            way = rng.randrange(10)
            if way < 5:
                what, head = mutate_json(rng, json.loads(content[8 : 8 + size]))
                said = len(head) if rng.random() < 0.9 else rng.choice([0, 1, 2**32, 2**63, 2**64 - 1])
                content = said.to_bytes(8, "little") + head + content[8 + size :]
            elif way < 9:
                what, content = mutate_bytes(rng, content)
            else:
                what, same = "as it is", True
            copy = self.changed(folder, "model.safetensors", content)

        def read():
            found = OmitModel.from_pretrained(copy).state_dict()
            if {name: each.shape for name, each in found.items()} != {n: e.shape for n, e in self.weights.items()}:
                raise WrongValue("other shapes")
            return all(torch.equal(found[name], each) for name, each in self.weights.items()) if same else None

        names = (str(copy), "model.safetensors", "parameters of the model")
        return Case("weights", what, read, True if same else ANY, names, foreign=sharded)

    def processor_files(self, rng: random.Random, folder: Path) -> Case:
        name, same = (
            rng.choice(["tokenizer.json", "tokenizer_config.json", "processor_config.json"]),
            rng.random() < 0.1,
        )
        what, content = (harmless_json if same else mutate_json)(rng, self.json_of(name))
        copy = self.changed(folder, name, content)

        def read():
            return (
                self._features(OmitProcessor.from_pretrained(copy))
                if same
                else OmitProcessor.from_pretrained(copy) and None
            )

        mark = content.startswith(b"\xef\xbb\xbf")
        return Case(name, what, read, self.features if same and not mark else ANY, (str(copy), name))

    def measured(self, rng: random.Random, folder: Path) -> Case:
        """metrics.json, as it is read by a comparison, to resume and to publish."""
        same = rng.random() < 0.1
        what, content = (harmless_json if same else mutate_json)(rng, self.json_of("metrics.json"))
        reader = rng.choice(["comparison", "comparison", "resume", "publish"])
        comparison = comparison_of(self.recipe, ["omit"], [0], folder)
        copy = self.changed(folder, "metrics.json", content)
        copy.rename(folder / "omit_seed0")
        copy, [grid] = folder / "omit_seed0", comparison.grids

        def read():
            if reader == "comparison":
                runs = comparison.runs(grid)
                check_folders(runs)
                Runner(folder).record(runs)
                found = summary(comparison, grid)
                table = markdown(json.loads(json.dumps(found, allow_nan=False)))
                if f"{self.metrics['test']['rsum']:.1f}" not in table and same:
                    raise WrongValue(table)
                return _rsum(runs[0]) if same else None
            if reader == "resume":
                recipe = Recipe(**{**vars(self.recipe), "output_dir": str(copy), "resume": True})
                with FolderLock(copy, "training") as lock:
                    found = loop.enter(recipe, copy, lock)[1]
                return found["validation"]["rsum"] if same else None
            prepare(copy, "user/model")
            return self.metrics["validation"]["rsum"] if same else None

        expected = self.metrics["validation"]["rsum"] if same else ANY
        return Case("metrics.json", f"{reader}, {what}", read, expected, ("metrics.json", str(copy)))

    def progress(self, rng: random.Random, folder: Path) -> Case:
        [last] = sorted((self.folder / "checkpoints").glob("step-*"))[-1:]
        name, same = f"checkpoints/{last.name}/progress.json", rng.random() < 0.1
        document = self.json_of(name)
        what, content = (harmless_json if same else mutate_json)(rng, document)
        copy = self.changed(folder, name, content)

        def read():
            accelerator = Accelerator(cpu=True)
            found = load_last_checkpoint(accelerator, copy, document["vocabulary"], 2)
            return vars(found) if same else None

        return Case("progress.json", what, read, document if same else ANY, ("progress.json", last.name))

    def log(self, rng: random.Random, folder: Path) -> Case:
        lines = [{"step": step, "loss": 1.5} for step in range(1, 6)]
        what, content = mutate_lines(rng, lines)
        (folder / "train_log.jsonl").write_bytes(content)

        def read():
            TrainingLog(folder, 4)
            left = [json.loads(line) for line in (folder / "train_log.jsonl").read_text("utf-8").splitlines()]
            steps = [each["step"] for each in left]
            if steps != sorted(set(steps)) or not all(step <= 4 for step in steps):
                raise WrongValue(steps)
            return None

        return Case("train_log.jsonl", what, read, ANY, ("train_log.jsonl",))

    def rows(self, rng: random.Random, folder: Path) -> Case:
        rows = [{"run": f"omit_seed{n}", "status": "finished", "seed": n, "test_rsum": 1.5} for n in range(3)]
        what, content = mutate_lines(rng, rows)
        comparison = comparison_of(self.recipe, ["omit"], [0], folder)
        (folder / "runs.jsonl").write_bytes(content)

        def read():
            runner = Runner(folder)
            runner.record(comparison.runs(comparison.grids[0]))
            left = [json.loads(line) for line in (folder / "runs.jsonl").read_text("utf-8").splitlines()]
            if [each["run"] for each in left].count("omit_seed0") != 1:
                raise WrongValue(left)
            return None

        return Case("runs.jsonl", what, read, ANY, ("runs.jsonl",))

    def holder(self, rng: random.Random, folder: Path) -> Case:
        """Who holds a lock, as whoever wants it reads."""
        what, content = mutate_json(rng, {"purpose": "training", "process": 1, "host": "a", "since": "today"})

        def read():
            with FolderLock(folder, "training"):
                (folder / ".lock.json").write_bytes(content)
                FolderLock(folder, "training").acquire()

        return Case("lock", what, read, REFUSED, (str(folder),))

    def similarity(self, rng: random.Random, folder: Path) -> Case:
        pairs = SplitPairs(["a", "b"], [["one", "two"], ["three"]], np.eye(2, 3, dtype=bool), "test", "here")
        scores = np.arange(6, dtype=np.float32).reshape(2, 3)
        file = folder / "one.safetensors"
        save_similarity(file, scores, pairs)
        content, way = file.read_bytes(), rng.randrange(10)
        if way < 6:
            size = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + size])["__metadata__"]
            name = rng.choice(list(metadata))
            if name in ("image_ids", "captions"):
                what, said = mutate_value(rng, json.loads(metadata[name]))
                metadata[name] = dump(said)
            else:
                what, metadata = mutate_value(rng, metadata)
            try:
                tensors = {"similarity": scores, "relevant": pairs.relevant}
                if way == 5:
                    tensors["relevant"] = scores.astype(rng.choice(["float32", "int64", "uint8"]))
                    what = "relevant is of numbers"
                content = save(tensors, metadata)
            except Exception:  # which safetensors cannot hold
                what = "as it is"
        elif way < 9:
            what, content = mutate_bytes(rng, content)
        else:
            what = "as it is"
        file.write_bytes(content)

        def read():
            found, of = load_similarity(file)
            if found.shape != (len(of.image_ids), sum(len(each) for each in of.captions)):
                raise WrongValue(found.shape)
            if not all(isinstance(each, str) for each in [*of.image_ids, *(c for each in of.captions for c in each)]):
                raise WrongValue(of)
            if of.relevant is not None and of.relevant.dtype != bool:
                raise WrongValue(of.relevant.dtype)
            return found.tolist() if what == "as it is" else None

        return Case("similarity", what, read, scores.tolist() if what == "as it is" else ANY, ("one.safetensors",))

    def states(self, rng: random.Random, folder: Path) -> Case:
        """States of the backbones, as an earlier run left them."""
        copy = folder / "states"
        shutil.copytree(self.cached, copy)
        file = rng.choice(sorted(copy.iterdir()))
        what, content = ("as it is", None) if rng.random() < 0.1 else mutate_bytes(rng, file.read_bytes())
        if content is not None:
            file.write_bytes(content)

        def read():
            rows = cache_states(self.model, self.processor, self.data, copy, image=True, text=True)["test"]
            rows = rows.with_format("numpy")
            shapes = [np.shape(row[name]) for row in rows for name in ("image_states", "text_states")]
            if shapes != self.state_shapes:
                raise WrongValue(shapes)
            return [row["image_states"].tolist() for row in rows] if what == "as it is" else None

        return Case("cached states", what, read, self.image_states if what == "as it is" else ANY, (file.name,))

    def card(self, rng: random.Random, folder: Path) -> Case:
        text = (self.folder / "README.md").read_bytes()
        what, content = mutate_text(rng, text[: text.index(b"\n## ")])
        if rng.random() < 0.3:
            aliases = "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
            what, content = "aliases", b"---\na: &a [x]\n" + aliases.encode() + text[4:]
        results, changes = eval_results({"i2t_r1": 1.0}, "scenes", "Scenes"), rng.random() < 0.5

        def read():
            card = content.decode(errors="replace")
            if not changes:
                check_card(card, {"README.md"})
            elif "R@1, image to text" not in with_results(card, "model", results):
                raise WrongValue("the results are not in it")

        return Case("README.md", what, read, ANY, ("card",))
