"""Stop a small training at every file-system event, and see that nothing is lost, stale or in the way.

    python examples/reliability/kill_campaign.py
    python examples/reliability/kill_campaign.py --scenarios fresh --faults kill torn --sample 12

An event is a file that is opened to be written, a rename, and a file or folder that is made or deleted, in the output
folder or in that of the cached states. At each of them a training is

- killed (kill), or killed with the file half written (torn);
- told that the disk is full, the quota is used up, or the folder is read-only (disk), by turns.

What is left is then given to a training without options, to one with --resume and to one with --overwrite_output_dir.
Each must refuse with a line that says why and change nothing, or end with the files and the metrics of a training that
was never stopped; of one that begins anew, what it begins with is looked at. Prints the counts, and exits with status 1
if there is a find. Needs os.fork.
"""

import errno
import gc
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from omit_hf import OmitModel, OmitProcessor
from omit_hf.command_line import CommandParser, run_script
from omit_hf.data import load_image_text
from omit_hf.ownership import LOCK_FILE
from omit_hf.training import Recipe, loop, read_recipe_file, usable_cores

VISION = {"model_type": "convnext", "patch_size": 8, "num_stages": 2, "hidden_sizes": [8, 12], "depths": [1, 1]}
RECIPE = {
    "data_options": {"train_size": 8, "validation_size": 4, "test_size": 6},
    "vision_config": VISION,
    "image_processor": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    "text_config": {"model_type": "omit_bigru", "embedding_size": 8, "hidden_size": 16, "dropout": 0.3},
    "projection_dim": 16,
    "backend": "cpu",  # Numba would compile anew in every fork
    "num_epochs": 2,
    "batch_size": 10,
    "learning_rate": 0.02,
    "checkpoint_steps": 3,
    "keep_checkpoints": 1,
    "log_steps": 1,
    "tensorboard": False,
    "cpu_threads": 1,
}
CACHED = {"cache_states": True, "freeze_vision": True, "freeze_text": True}
SCENARIOS = ("fresh", "resume", "overwrite", "cached")
FAULTS = ("kill", "torn", "disk")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
# What two runs of one recipe differ in.
MEASURED = ("training_seconds", "pairs_per_second", "waiting_for_data", "peak_memory", "test_seconds")
MEASURED += ("scoring_seconds", "recipe", "environment")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
RUN, STATES = "run", "states"


@dataclass
class Case:
    """A training that is stopped at event `number`, from 0."""

    scenario: str
    fault: str
    number: int


class Events:
    """Counts the file-system events of this process below a folder, and stops it at one of them.

    Python tells of its own through audit events. Of libraries that write by themselves, what they are asked to write is
    one event.

    Args:
        root: the folder.
        fault: what happens at event `number`; None to count alone.
        number: from 0.
        tornable: takes the numbers of the events that write a file.
    """

    def __init__(self, root: Path, fault: str | None = None, number: int = -1, tornable: list | None = None):
        self.root, self.fault, self.number, self.tornable = str(root), fault, number, tornable
        self.count = 0
        self.inside = False  # of an event that has happened, whose own ones do not count

    def watch(self) -> None:
        """Begin; it cannot be ended but with the process."""
        sys.addaudithook(self._audited)
        self._native(safetensors.torch, "serialize_file", lambda tensors, file, *_, **__: file)
        self._native(torch, "save", lambda content, file, *_, **__: file)
        saved = TokenizersBackend, "_save_pretrained"
        self._native(*saved, lambda _, save_directory, **__: Path(save_directory) / "tokenizer.json")

    def _audited(self, event: str, arguments: tuple) -> None:
        if self.inside:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes) and flags & WRITES:
                self._happens(path, writes=True)
        elif event in ("os.remove", "os.rmdir"):
            self._happens(arguments[0], folder=arguments[1])
        elif event == "os.mkdir":
            self._happens(arguments[0], folder=arguments[2])
        elif event == "os.rename":
            self._happens(arguments[1], folder=arguments[3])

    def _native(self, owner, name: str, file_of: Callable) -> None:
        original = getattr(owner, name)

        def write(*arguments, **options):
            file = file_of(*arguments, **options)
            stopped = self._happens(file, writes=True, native=True)
            self.inside = True
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            try:
                if stopped == "disk":  # by the system itself, so that the error is the library's own
                    resource.setrlimit(resource.RLIMIT_FSIZE, (8, limit[1]))
                result = original(*arguments, **options)
                if stopped == "torn":
                    os.truncate(file, os.path.getsize(file) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)
                self.inside = False

        setattr(owner, name, write)

    def _happens(self, path, folder: int = -1, writes: bool = False, native: bool = False) -> str | None:
        path = os.fsdecode(path)
        if folder >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        if not os.path.abspath(path).startswith(self.root + os.sep):
            return None
        number, self.count = self.count, self.count + 1
        if writes and self.tornable is not None:
            self.tornable.append(number)
        if number != self.number:
            return None
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if native:
            return self.fault
        if self.fault == "torn":
            if os.path.isdir(path):  # of a file without a name
                os.kill(os.getpid(), signal.SIGKILL)
            self.inside = True
            with open(path, "ab") as file:
                file.write(b'{"step": 1, "half')
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "disk":
            code = FULL[number % len(FULL)]
            raise OSError(code, os.strerror(code), path)
        return None


def in_child(action: Callable[[], object], log: Path) -> tuple[int, str]:
    """Do something in a process of its own: its exit status, or the signal that ended it as a negative number; and
    what it printed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            action()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = 1 if isinstance(end.code, str) else end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), log.read_text(encoding="utf-8", errors="replace")


class Campaign:
    """Trainings in a scratch folder, each in a process that is forked from this one, which has imported everything.

    Args:
        scratch: the folder.
        data: of all trainings.
    """

    def __init__(self, scratch: Path, data):
        self.scratch = scratch
        loop.load_image_text = lambda *_, **__: type(data)(data)  # drawn once
        OmitModel._auto_class = OmitProcessor._auto_class = None  # without their code: twenty files more, all alike
        # What a process does once: transformers' tables, and the first look of the garbage collector at all of it.
        model, processor = loop.build_model(Recipe(**RECIPE), data["train"])
        loop.save_model(model, processor, scratch / "warm")
        OmitModel.from_pretrained(scratch / "warm")
        gc.collect()
        gc.freeze()
        self.stopped = {}  # the folder as each scenario finds it
        self.expected = {}  # and as a training that is not stopped leaves it
        self.events, self.tornable = {}, {}
        work = scratch / "begun"
        work.mkdir()
        self.succeed(work, until_begun=True)
        self.begun = content(work / RUN)  # where every training that begins anew is the same

    def train(self, work: Path, events: Events | None = None, until_begun: bool = False, **options) -> tuple[int, str]:
        """Train in `work/run`, or go until the folder is there in which to train: exit status and output."""
        recipe = RECIPE | options
        if recipe.get("cache_states"):
            recipe["cache_folder"] = str(work / STATES)

        def action():
            if events is not None:
                events.watch()
            if until_begun:
                begin = loop.begin
                loop.begin = lambda *arguments: sys.exit(begin(*arguments))
            AcceleratorState._reset_state(True)
            run_script(lambda: loop.train(Recipe(output_dir=str(work / RUN), **recipe)) and None, FloatingPointError)

        return in_child(action, work.with_suffix(".log"))

    def options(self, scenario: str) -> dict:
        """Of the training that is stopped."""
        extra = {"resume": {"resume": True}, "overwrite": {"overwrite_output_dir": True}, "cached": CACHED}
        return extra.get(scenario, {})

    def prepare(self, scenario: str) -> None:
        """See what the scenario's training finds, which events it has and what it leaves."""
        found = self.scratch / f"{scenario}-found"
        found.mkdir()
        if scenario == "resume":
            self.succeed(found, max_steps=6)
        elif scenario == "overwrite":
            self.succeed(found, seed=1)
        whole = self.scratch / f"{scenario}-whole"
        shutil.copytree(found, whole)
        counted = self.scratch / f"{scenario}.json"
        events = Events(whole, tornable=[])
        self.succeed(whole, events_that_report(events, counted), **self.options(scenario))
        content = json.loads(counted.read_text())
        self.stopped[scenario], self.expected[scenario] = found, left(whole / RUN)
        self.events[scenario], self.tornable[scenario] = content["count"], content["tornable"]

    def succeed(self, work: Path, events: Events | None = None, **options) -> None:
        """Train, and end the campaign if that fails."""
        status, output = self.train(work, events, **options)
        if status != 0:
            sys.exit(f"error: A training that is not stopped fails:\n{output}")

    def cases(self, scenarios, faults) -> Iterator[Case]:
        for scenario in scenarios:
            for fault in faults:
                numbers = self.tornable[scenario] if fault == "torn" else range(self.events[scenario])
                yield from (Case(scenario, fault, number) for number in numbers)

    def find(self, case: Case, name: str) -> list[str]:
        """What is wrong after one training that was stopped."""
        work = self.scratch / name
        shutil.copytree(self.stopped[case.scenario], work)
        base = {key: value for key, value in self.options(case.scenario).items() if key in CACHED}
        events = Events(work, case.fault, case.number)
        status, output = self.train(work, events, **self.options(case.scenario))
        expected, problems = self.expected[case.scenario], []
        if case.fault == "disk":
            if status == 1:
                problems += says_why(output)
                if len(output.split("error: ")[-1].strip().splitlines()) > 1:
                    problems.append(f"it is more than a line that says so: {output[-2000:]}")
            elif status == 0:  # it was not needed
                problems += different(left(work / RUN, locks=False), expected)
            else:
                problems.append(f"status {status}: {output[-2000:]}")
            problems += half_written(work / RUN)
        elif status != -signal.SIGKILL:
            problems.append(f"it was not killed, but ended with status {status}: {output[-2000:]}")
        can = []
        for way in ({}, {"resume": True}, {"overwrite_output_dir": True}):
            again = work.with_name(f"{name}-again")
            shutil.copytree(work, again)
            before = content(again, locks=False)
            label = f"then {' '.join(way) or 'plain'}"
            status, output = self.train(again, until_begun="resume" not in way, **base, **way)
            if status == 0:
                can.append(label)
                now = left(again / RUN)
                if "resume" in way:
                    problems += [f"{label}: {each}" for each in different(now, expected)]
                elif not begins_alike(again / RUN, self.begun):
                    problems.append(f"{label}: it begins with {sorted(content(again / RUN))}, not {sorted(self.begun)}")
            else:
                problems += [f"{label}: {each}" for each in says_why(output)]
                if content(again, locks=False) != before:
                    problems.append(f"{label}: it refuses, and changes the folder all the same")
            shutil.rmtree(again)
        if "then overwrite_output_dir" not in can:
            problems.append(f"overwrite_output_dir refuses: {output[-500:]}")
        if "then resume" not in can and case.scenario == "resume":
            problems.append("resume refuses what it could resume before")
        if len(can) < 2 and case.scenario != "overwrite":
            problems.append(f"neither plain nor resume goes on: {output[-500:]}")
        shutil.rmtree(work)
        return problems


def events_that_report(events: Events, file: Path) -> Events:
    """Events whose count, and which of them write, are in a file when the process ends."""

    def watch():
        begin()
        exit_now = os._exit

        def leave(status):
            events.root = os.devnull  # so that the report is no event
            file.write_text(json.dumps({"count": events.count, "tornable": events.tornable}), encoding="utf-8")
            exit_now(status)

        os._exit = leave

    begin, events.watch = events.watch, watch
    return events


def left(folder: Path, locks: bool = True) -> dict:
    """What a training left, as far as it must not depend on whether it was stopped."""
    if not (folder / "metrics.json").is_file():
        return {"names": sorted(content(folder, locks))}
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "names": sorted(content(folder, locks)),
        "log": (folder / "train_log.jsonl").read_text(encoding="utf-8"),
        "weights": (folder / "model.safetensors").read_bytes(),
        "metrics": {name: value for name, value in metrics.items() if name not in MEASURED},
    }


def content(folder: Path, locks: bool = True) -> dict[str, bytes | None]:
    """All files of a folder and what they hold, and its folders; `locks`: with those of a lock that nobody holds."""
    files = sorted(file for file in folder.rglob("*") if locks or not file.name.startswith(LOCK_FILE))
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None for file in files}


def begins_alike(folder: Path, expected: dict) -> bool:
    """Whether a folder has what a training begins with: those files, and its own recipe."""
    recipe = read_recipe_file(folder / "recipe.yaml")
    return content(folder).keys() == expected.keys() and recipe["seed"] == 0 and not recipe["resume"]


def different(found: dict, expected: dict) -> list[str]:
    problems = []
    for name, value in expected.items():
        if found.get(name) != value:
            if name == "names":
                stale, lost = set(found[name]) - set(value), set(value) - set(found[name])
                problems.append(f"stale {sorted(stale)}, lost {sorted(lost)}")
            else:
                shown = "" if name == "weights" else f": {found.get(name)!s:.300}, not {value!s:.300}"
                problems.append(f"the {name} are not those of a training that was never stopped{shown}")
    return problems


def says_why(output: str) -> list[str]:
    """What is wrong with the output of a command that failed for want of room, or refused."""
    if "Traceback" in output or not any(line.startswith("error: ") for line in output.splitlines()):
        return [f"no line that says so: {output[-2000:]}"]
    return []


def half_written(folder: Path) -> list[str]:
    """Files under a final name that do not load."""
    problems = []
    for file in folder.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".safetensors":
                safetensors.torch.load_file(file)
            elif file.suffix in (".bin", ".pkl"):
                torch.load(file, weights_only=False)
        except Exception as error:
            problems.append(f"{file.relative_to(folder)} is half written: {error}")
    return problems


def side_by_side(campaign: Campaign, cases: list[Case], jobs: int) -> list[tuple[Case, list[str]]]:
    """All finds, from several processes."""
    children = []
    for job in range(jobs):
        child = os.fork()
        if child == 0:
            try:
                finds = []
                for place, case in enumerate(cases[job::jobs]):
                    finds.append(campaign.find(case, f"job{job}-{place}"))
                    print("\n" + described(case, finds[-1]) if finds[-1] else ".", end="", flush=True)
                (campaign.scratch / f"job{job}.json").write_text(json.dumps(finds), encoding="utf-8")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    print()
    if failed:
        sys.exit("error: A process of the campaign itself failed; see above.")
    found = []
    for job in range(jobs):
        finds = json.loads((campaign.scratch / f"job{job}.json").read_text(encoding="utf-8"))
        found += [(case, problems) for case, problems in zip(cases[job::jobs], finds, strict=True) if problems]
    return sorted(found, key=lambda each: (each[0].scenario, each[0].fault, each[0].number))


def described(case: Case, problems: list[str]) -> str:
    return "\n  ".join([f"{case.scenario}, {case.fault} at event {case.number}:", *problems]) + "\n"


def main() -> int:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="which trainings to stop")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="how to stop them")
    parser.add_argument("--sample", type=int, help="so many of all cases, drawn evenly; by default all of them")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trainings side by side")
    arguments = parser.parse_args()
    if not hasattr(os, "fork"):
        raise ValueError("The campaign needs os.fork, which this system lacks.")
    torch.set_num_threads(1)  # a fork does not take threads along
    os.environ["ACCELERATE_USE_CPU"] = "true"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch).resolve(), load_image_text("scenes", **RECIPE["data_options"]))
        for scenario in arguments.scenarios:
            campaign.prepare(scenario)
        cases = list(campaign.cases(arguments.scenarios, arguments.faults))
        if arguments.sample is not None and arguments.sample < len(cases):
            chosen = random.Random(arguments.seed).sample(range(len(cases)), arguments.sample)
            cases = [cases[number] for number in sorted(chosen)]
        print(f"{len(cases)} cases, a dot for each that has no find:")
        found = side_by_side(campaign, cases, max(1, min(arguments.jobs, len(cases))))
    counts = Counter((case.scenario, case.fault) for case in cases)
    wrong = Counter((case.scenario, case.fault) for case, _ in found)
    print("| training | stopped by | events | finds |\n|---|---|---|---|")
    for scenario, fault in counts:
        print(f"| {scenario} | {fault} | {counts[scenario, fault]} | {wrong[scenario, fault]} |")
    print(
        f"\n{len(cases)} trainings stopped, {3 * len(cases)} started after them, {len(found)} finds, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return 1 if found else 0


if __name__ == "__main__":
    run_script(main)
