"""Give hostile files and requests to all that reads them, and see that nothing is silently wrong.

    python examples/reliability/hostile_campaign.py
    python examples/reliability/hostile_campaign.py --kinds recipe picture --cases 300 --seed 7

A case draws a kind of file, makes one that is right, changes it (cut, flipped bits, other encodings, values of another
type at any place of JSON and YAML, names that lead elsewhere, pictures that say they are huge …) and gives it to the
package's own entry point, in a process of its own with limits of time and memory. It is

- read: what came is what is there, as far as another reader can tell;
- refused: with an error of the documented kinds (`ValueError`, `DataError`, `OSError`) in printable lines that name the
  file or the value;
- a fault: any other exception, a wrong value, what is right and refused, a hang, too much memory, the process's end.

Counts are printed by kind; the command fails if there was a fault. A case is found again by its number:
`--first 1234 --cases 1` also prints its error. Needs os.fork.
"""

import gc
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import transformers
from hostile_inputs import arrays, data, settings, texts
from hostile_inputs.case import Case, Outcome, judge
from hostile_inputs.model import RunFiles
from hostile_inputs.pictures import Pictures
from hostile_inputs.requests import Requests
from hostile_inputs.tables import parquet
from tqdm.auto import tqdm

from omit_hf.command_line import CommandParser, run_script
from omit_hf.training import usable_cores

STATUS = ("read", "refused", "fault")
MIB = 2**20


@dataclass
class Arguments:
    cases: int = field(default=6000, metadata={"help": "How many."})
    first: int = field(default=0, metadata={"help": "Number of the first case."})
    seed: int = field(default=0, metadata={"help": "Of all cases."})
    kinds: list[str] | None = field(default=None, metadata={"help": "Of files; all by default."})
    seconds: float = field(default=10.0, metadata={"help": "Time of a processor that a case may take."})
    memory: int = field(default=1024, metadata={"help": "MiB that a case may take."})
    jobs: int = field(default=0, metadata={"help": "Cases side by side; 0 for one a core."})


def kinds_of(scratch: Path, wanted: list[str] | None) -> dict[str, tuple[int, Callable]]:
    """How often each kind of case is drawn, and what makes one of it."""
    kinds = {
        "karpathy": (4, data.karpathy),
        "coco": (4, data.coco),
        "image_folder": (4, data.image_folder),
        "webdataset": (2, arrays.webdataset),
        "parquet": (2, parquet),
        "regions": (4, arrays.regions),
        "cutouts": (2, data.cutouts),
        "exclude": (1, texts.exclude),
        "word_vectors": (3, texts.word_vectors),
        "entities": (3, texts.entities),
        "cxc": (2, texts.cxc),
        "recipe": (6, settings.recipe),
        "comparison": (4, settings.comparison),
        "option": (2, settings.option),
    }
    later = {
        "config": (4, "configuration"),
        "weights": (3, "weights_file"),
        "processor": (4, "processor_files"),
        "metrics": (4, "measured"),
        "progress": (2, "progress"),
        "log": (1, "log"),
        "rows": (1, "rows"),
        "lock": (1, "holder"),
        "similarity": (2, "similarity"),
        "card": (2, "card"),
        "states": (1, "states"),
    }
    names = [*kinds, *later, "picture", "url", "request"]
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ValueError(f"kinds has {unknown[0]!r}; expected some of {', '.join(names)}.")
    wanted = wanted or names
    pictures = Pictures() if {"picture", "url", "request"} & set(wanted) else None
    if {*later, "request"} & set(wanted):
        run = RunFiles(scratch)
        kinds |= {name: (weight, getattr(run, method)) for name, (weight, method) in later.items()}
    if "request" in wanted:
        kinds["request"] = (8, Requests(run.folder, pictures).case)
    if pictures is not None:
        kinds |= {"picture": (14, pictures.picture), "url": (1, pictures.url)}
    return {name: kinds[name] for name in wanted}


@dataclass
class Running:
    """A case in a process."""

    number: int
    folder: Path
    deadline: float


class Campaign:
    """Cases, each in a process that is forked from this one, which has imported everything.

    Args:
        scratch: a folder.
        kinds: from `kinds_of`.
        arguments: of the command.
    """

    def __init__(self, scratch: Path, kinds: dict[str, tuple[int, Callable]], arguments: Arguments):
        self.scratch, self.arguments = scratch, arguments
        self.kinds = [(name, make) for name, (weight, make) in kinds.items() for _ in range(weight)]
        self.running: dict[int, Running] = {}
        with open("/proc/self/statm", encoding="ascii") as file:
            size, resident, *_ = map(int, file.read().split())
        self.size, self.resident = (pages * resource.getpagesize() for pages in (size, resident))

    def case(self, number: int, folder: Path) -> Case:
        rng = random.Random(f"{self.arguments.seed} {number}")
        return rng.choice(self.kinds)[1](rng, folder)

    def start(self, number: int) -> None:
        folder = self.scratch / str(number)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self._limit()
                folder.mkdir()
                self._quiet(folder)
                case = self.case(number, folder)
                (folder / "case").write_text(json.dumps([case.kind, case.what]))
                outcome = judge(case, folder)
                (folder / "outcome").write_text(json.dumps(asdict(outcome)))
                status = 0
            except BaseException:
                (folder / "broken").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        # Time of the wall, of which a machine with others on it may give little.
        self.running[child] = Running(number, folder, time.monotonic() + 10 * self.arguments.seconds)

    def _limit(self) -> None:
        # Address space, of which threads set aside more than they use; what is used is looked at afterwards.
        most = self.size + 4 * self.arguments.memory * MIB + 2048 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = int(4 * self.arguments.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    def _quiet(self, folder: Path) -> None:
        sink = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(sink, stream)
        import datasets

        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        tempfile.tempdir = str(folder)

    def ended(self) -> list[tuple[int, Case, Outcome]]:
        """The cases that have come to an end, perhaps that of a limit."""
        found = []
        for child, case in list(self.running.items()):
            done, status, used = os.wait4(child, os.WNOHANG)
            late = time.monotonic() > case.deadline
            if not done and late:
                os.kill(child, signal.SIGKILL)
                done, status, used = os.wait4(child, 0)
            if done:
                del self.running[child]
                found.append((case.number, *self._outcome(case.folder, os.waitstatus_to_exitcode(status), used, late)))
                shutil.rmtree(case.folder, ignore_errors=True)
        return found

    def _outcome(self, folder: Path, status: int, used, late: bool) -> tuple[Case, Outcome]:
        if status == 1 or not (folder / "case").exists():
            why = (folder / "broken").read_text() if (folder / "broken").exists() else f"status {status}"
            raise RuntimeError(f"The campaign itself failed, in making a case: {why}")
        case = Case(*json.loads((folder / "case").read_text()), read=None)
        seconds, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 - self.resident
        if late or status in (-signal.SIGXCPU, -signal.SIGKILL):
            return case, Outcome("fault", f"no end after {seconds:.0f} s")
        if status != 0:
            return case, Outcome("fault", f"the process died of signal {signal.Signals(-status).name}")
        outcome = Outcome(**json.loads((folder / "outcome").read_text()))
        if outcome.status != "fault" and seconds > self.arguments.seconds:
            return case, Outcome("fault", f"it took {seconds:.0f} s")
        if outcome.status != "fault" and memory > self.arguments.memory * MIB:
            return case, Outcome("fault", f"it took {memory / MIB:.0f} MiB")
        return case, outcome


def run(campaign: Campaign, jobs: int) -> tuple[Counter, list]:
    """All cases: counts by kind and status, and the faults."""
    arguments = campaign.arguments
    waiting = iter(range(arguments.first, arguments.first + arguments.cases))
    counts, faults = Counter(), []
    with tqdm(total=arguments.cases, desc="Cases", disable=arguments.cases == 1) as bar:
        while True:
            while len(campaign.running) < jobs and (number := next(waiting, None)) is not None:
                campaign.start(number)
            if not campaign.running:
                return counts, sorted(faults, key=lambda each: each[0])
            for number, case, outcome in campaign.ended():
                counts[case.kind, outcome.status] += 1
                bar.update()
                if outcome.status == "fault":
                    faults.append((number, case, outcome))
                    bar.set_postfix(faults=len(faults))
                if arguments.cases == 1:
                    print(f"case {number}: {case.kind}: {case.what}: {outcome.status}\n{outcome.why}")
            time.sleep(0.001)


def main() -> int:
    arguments = CommandParser(Arguments, description=__doc__).parse_args_into_dataclasses()[0]
    if not hasattr(os, "fork"):
        raise ValueError("The campaign needs os.fork, which this system lacks.")
    os.environ |= {"ACCELERATE_USE_CPU": "true", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)  # a fork does not take threads along
    tqdm.monitor_interval = 0
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch).resolve()
        kinds = kinds_of(scratch, arguments.kinds)
        gc.collect()
        gc.freeze()
        counts, faults = run(Campaign(scratch, kinds, arguments), arguments.jobs or usable_cores())
    print("| file | read | refused | faults |\n|---|---|---|---|")
    for kind in sorted({kind for kind, _ in counts}):
        print(f"| {kind} | {' | '.join(str(counts[kind, status]) for status in STATUS)} |")
    for number, case, outcome in faults:
        print(f"case {number}: {case.kind}: {case.what}: {outcome.why}")
    print(f"\n{counts.total()} cases, {len(faults)} faults, {time.perf_counter() - started:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    run_script(main)
