"""Kill what changes a library of pictures at random moments, and see that nothing is lost, twice or in the way.

    python examples/reliability/library_campaign.py --kills 100
    python examples/reliability/library_campaign.py --scenarios sync reencode --kills 20 --seed 7

An update of a small library is killed: `add`, `sync` (of pictures that are new, changed, moved, gone and broken),
`reencode` with another model, `index` (compact builds the first one) or `compact` (of small files, rows outside the
index and a former model's table). It commits every few pictures, and the index is built where a larger one would get
it. After the kill

- the library opens and is searched: every picture once, with the score that it must have;
- what was there before, and what the update had written and reported, is there;
- the same update, run again, ends with what one leaves that was never stopped.

Prints the counts, and exits with status 1 if there is a find. Needs os.fork.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import ViTImageProcessor

from omit_hf import OmitConfig, OmitModel, OmitProcessor
from omit_hf.command_line import CommandParser, run_script
from omit_hf.data import build_word_tokenizer, load_scenes
from omit_hf.library import PictureLibrary, library, updating
from omit_hf.library.files import digest_of
from omit_hf.training import usable_cores

VISION = {"model_type": "convnext", "patch_size": 8, "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
TEXT = {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16}
SCENARIOS = ("add", "sync", "reencode", "index", "compact")
SENTENCE = "a red star left of a ring"
BEFORE, LATER = 40, 80  # pictures that are there, and those that an update brings
LIMIT = 120  # seconds, after which a process hangs
OPTIONS = {"batch_size": 4, "progress": False}
MOST = 10_000  # more than any library here has
ROUNDING = 5e-3  # of scores, from features in float16

updating.COMMIT_ROWS, library.MERGE_ROWS = 12, 30


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="which updates to kill")
    parser.add_argument("--kills", type=int, default=100, help="how many, by turns of the scenarios")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="updates side by side")
    arguments = parser.parse_args()
    if not hasattr(os, "fork"):
        raise ValueError("The campaign needs os.fork, which this system lacks.")
    torch.set_num_threads(1)  # a fork does not take threads along
    started = time.perf_counter()
    names = list(dict.fromkeys(arguments.scenarios))
    cases = [names[number % len(names)] for number in range(arguments.kills)]
    with tempfile.TemporaryDirectory() as scratch:
        jobs = max(1, min(arguments.jobs, len(cases)))
        print(f"{len(cases)} kills, a dot for each that has no find:")
        found = side_by_side(Path(scratch).resolve(), cases, arguments.seed, jobs)
    counts, wrong = Counter(cases), Counter(scenario for scenario, problems in found if problems)
    print("| update | kills | finds |\n|---|---|---|")
    for scenario, count in counts.items():
        print(f"| {scenario} | {count} | {wrong[scenario]} |")
    print(f"\n{len(cases)} updates killed, {wrong.total()} finds, {time.perf_counter() - started:.0f} s")
    return int(wrong.total() > 0)


def side_by_side(scratch: Path, cases: list[str], seed: int, jobs: int) -> list[tuple[str, list[str]]]:
    """The finds of all cases, from several processes."""
    children = []
    for job in range(jobs):
        (scratch / f"job{job}").mkdir()
        child = os.fork()
        if child == 0:
            try:
                campaign, rng = Campaign(scratch / f"job{job}"), random.Random(f"{seed} {job}")
                finds = []
                for scenario in cases[job::jobs]:
                    finds.append((scenario, campaign.find(scenario, rng)))
                    told = f"\n{scenario}:\n  " + "\n  ".join(finds[-1][1]) + "\n" if finds[-1][1] else "."
                    print(told, end="", flush=True)
                (scratch / f"job{job}.json").write_text(json.dumps(finds), encoding="utf-8")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    print()
    if failed:
        sys.exit("error: A process of the campaign itself failed; see above.")
    return [find for job in range(jobs) for find in json.loads((scratch / f"job{job}.json").read_text("utf-8"))]


class Campaign:
    """Updates of one library, each in a process that is forked from this one, which has imported everything.

    Args:
        scratch: the folder; its `work` has the library and the pictures, whose paths the library keeps.
    """

    def __init__(self, scratch: Path):
        self.scratch, self.work = scratch, scratch / "work"
        scenes = load_scenes(train_size=BEFORE + LATER, validation_size=1, test_size=1)["train"]
        words = build_word_tokenizer([caption for captions in scenes["captions"] for caption in captions] + [SENTENCE])
        self.processor = OmitProcessor(ViTImageProcessor(do_resize=False), words)
        self.models = []
        for seed in range(2):
            torch.manual_seed(seed)
            text = {**TEXT, "vocab_size": len(words)}
            model = OmitModel(OmitConfig(vision_config=VISION, text_config=text, projection_dim=16, backend="cpu"))
            model.save_pretrained(scratch / f"model{seed}")
            self.processor.save_pretrained(scratch / f"model{seed}")
            self.models.append(OmitModel.from_pretrained(scratch / f"model{seed}"))  # which knows its name
        self.pictures = scratch / "drawn"
        self.pictures.mkdir()
        for number, picture in enumerate(scenes["image"]):
            picture.save(self.pictures / name_of(number))
        self.scores = self.score_all()
        self.before: dict[str, dict] = {}  # what each scenario finds
        self.after: dict[str, dict] = {}  # and what an update leaves that is not stopped
        self.seconds: dict[str, float] = {}

    @torch.inference_mode()
    def score_all(self) -> list[dict[str, float]]:
        """The similarity of every picture and the sentence, by the picture's digest, of both models."""
        files, found = sorted(self.pictures.iterdir()), []
        for model in self.models:
            text = model.get_text_features(**self.processor(text=SENTENCE))
            scores = {}
            for file in files:
                image = model.get_image_features(**self.processor(images=str(file)))
                scores[digest_of(file.read_bytes())] = model.similarity(image, text).item()
            found.append(scores)
        return found

    # --- what happens in processes of their own -----------------------------------------------------------------------

    def arrange(self, scenario: str) -> None:
        """Make the library and the pictures that an update finds."""
        folder = self.work / "pictures"
        folder.mkdir(parents=True)
        library.MEMORY = 0 if scenario == "sync" else 2**30
        made = self.open(0)
        for number in range(BEFORE):
            shutil.copy(self.pictures / name_of(number), folder)
        made.add(folder, **OPTIONS)
        if scenario == "compact":  # with a former model's table, and rows outside the index in small files
            made.reencode(self.models[1], self.processor, **OPTIONS)
            library.MEMORY = 0
            made.compact()
            library.MEMORY = 2**30
            shutil.copytree(self.pictures, folder, dirs_exist_ok=True)
            made._tend = lambda *_, **__: None
            made.add(folder, **OPTIONS)
            made.remove("path LIKE '%/00_.png'")
        elif scenario in ("add", "sync"):
            shutil.copytree(self.pictures, folder, dirs_exist_ok=True)
        if scenario == "sync":
            (folder / "moved").mkdir()
            for number in range(10):
                (folder / name_of(number)).rename(folder / "moved" / name_of(number))
                (folder / name_of(number + 10)).unlink()
                (folder / name_of(number + 100)).replace(folder / name_of(number + 20))
            (folder / "broken.png").write_bytes(b"no picture")

    def open(self, model: int | None) -> PictureLibrary:
        given = (None, None) if model is None else (self.models[model], self.processor)
        return PictureLibrary(self.work / "photos.lance", *given)

    def update(self, scenario: str) -> None:
        """The update that a scenario kills; `told` gets what it has written."""
        library.MEMORY = 0
        write, told = updating.Update._write, self.scratch / "told.jsonl"

        def write_and_tell(self, new, replaced, changes, *others):
            write(self, new, replaced, changes, *others)
            ids = [row["id"] for row in (*new, *replaced)] + [x["id"] for x in changes.values() if "id" in x]
            with told.open("a", encoding="utf-8") as file:
                file.write(json.dumps(ids) + "\n")

        updating.Update._write = write_and_tell
        made = self.open(0 if scenario in ("add", "sync") else None)
        if scenario == "add":
            made.add(self.work / "pictures", **OPTIONS)
        elif scenario == "sync":
            made.sync(self.work / "pictures", **OPTIONS)
        elif scenario == "reencode":
            made.reencode(self.models[1], self.processor, **OPTIONS)
        else:
            made.compact()

    def state(self) -> dict:
        """What the library holds and finds, and what is wrong with it in itself."""
        library.MEMORY = 0
        made, problems = self.open(None), []
        rows, hits = made.store.metadata(), made.search(SENTENCE, k=MOST, exact=True)
        for name in ("key", "id"):
            twice = [value for value, count in Counter(row[name] for row in rows).items() if count > 1]
            problems += [f"rows have the same {name}, {value}" for value in twice]
        found = {row["id"]: (row["path"], row["digest"], row["bytes"]) for row in rows}
        if sorted(hit.id for hit in hits) != sorted(found) or len(made) != len(rows):
            problems.append(f"{len(hits)} hits, {len(rows)} rows, {len(made)} items")
        wanted = self.scores[int(made.settings.model[-1])]
        for hit in hits:
            if abs(hit.score - wanted[hit.metadata["digest"]]) > ROUNDING:
                problems.append(f"{hit.path} has the score {hit.score}, not {wanted[hit.metadata['digest']]}")
        index = made.store.index
        if index and {hit.id for hit in made.search(SENTENCE, k=MOST)} != found.keys():
            problems.append("two stages do not find all rows")
        return {
            "rows": found,
            "model": made.settings.model,
            "unreadable": made.unreadable,
            "indexed": index is not None and made.store.num_unindexed == 0,
            "tables": sorted(made.store.table_names()),
            "problems": problems,
        }

    # --- cases --------------------------------------------------------------------------------------------------------

    def prepare(self, scenario: str) -> None:
        """See what the scenario's update finds, how long it takes and what it leaves."""
        shutil.rmtree(self.work, ignore_errors=True)
        done(lambda: self.arrange(scenario))
        self.before[scenario] = done(self.state)
        shutil.copytree(self.work, self.scratch / scenario)
        started = time.perf_counter()
        done(lambda: self.update(scenario))
        self.seconds[scenario] = time.perf_counter() - started
        self.after[scenario] = done(self.state)
        wrong = self.before[scenario]["problems"] + self.after[scenario]["problems"]
        if wrong:
            raise ValueError(f"{scenario} that is not stopped: {wrong}")

    def find(self, scenario: str, rng: random.Random) -> list[str]:
        """What is wrong after an update that was killed, at a moment that is drawn again where it came too late."""
        if scenario not in self.after:
            self.prepare(scenario)
        status = 0
        while status == 0:
            shutil.rmtree(self.work)
            shutil.copytree(self.scratch / scenario, self.work)
            (self.scratch / "told.jsonl").write_text("")
            status, said = in_child(lambda: self.update(scenario), rng.uniform(0, self.seconds[scenario]))
        if status != -signal.SIGKILL:
            return [f"it was not killed, but ended with status {status}: {said[-2000:]}"]
        told = [json.loads(line) for line in (self.scratch / "told.jsonl").read_text("utf-8").splitlines()]
        try:
            found = done(self.state)
            problems = found["problems"] + self.lost(scenario, found["rows"], set().union(*told))
            done(lambda: self.update(scenario))
            final = done(self.state)
        except ChildError as error:
            return [str(error)]
        wanted = self.after[scenario]
        different = [name for name in wanted if final[name] != wanted[name]]
        return problems + [f"then {name} is {final[name]!s:.800}, not {wanted[name]!s:.800}" for name in different]

    def lost(self, scenario: str, rows: dict, told: set[str]) -> list[str]:
        """What a kill lost, or brought."""
        before, after = self.before[scenario]["rows"], self.after[scenario]["rows"]
        problems = []
        if scenario != "reencode":  # whose rows appear when it is done
            problems += [f"{name} was written, and is lost" for name in told if rows.get(name) != after.get(name)]
        for name, row in rows.items():
            if row not in (before.get(name), after.get(name)):
                problems.append(f"{name} is {row}, which neither was nor is to come")
        problems += [f"{name} was there, and is lost" for name in (before.keys() & after.keys()) - rows.keys()]
        kept = {row[1] for row in before.values()} & {row[1] for row in after.values()}
        lost = kept - {row[1] for row in rows.values()}
        return problems + [f"the picture {content} was there, and is lost" for content in lost]


class ChildError(Exception):
    """A process that was not to be stopped, and failed."""


def done(action: Callable[[], object]):
    """What an action returns that is done in a process of its own, as JSON has it."""
    status, said = in_child(action)
    if status != 0:
        raise ChildError(f"status {status}: {said[-3000:]}")
    return json.loads(said.splitlines()[-1])


def in_child(action: Callable[[], object], kill_after: float | None = None) -> tuple[int, str]:
    """Do something in a process of its own, which may be killed so many seconds after it begins: its exit status, or
    the signal that ended it as a negative number; and what it printed, with its result as JSON at the end."""
    sys.stdout.flush()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os.close(reading)
                signal.alarm(LIMIT)
                os.write(writing, b".")
                print("\n" + json.dumps(action()))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
        log.seek(0)
        return os.waitstatus_to_exitcode(ended), log.read()


def name_of(number: int) -> str:
    return f"{number:03}.png"


if __name__ == "__main__":
    run_script(main)
