"""Run the tests many times, each time in another order of files and with another seed of Python's hashes.

    python examples/reliability/test_campaign.py --times 20
    python examples/reliability/test_campaign.py --times 1 --first 7 tests/test_words.py tests/test_loop.py

Run N has the seed `--first` + N: of the order and of PYTHONHASHSEED, so that a run that fails is found again. A line a
run says its seed, how many tests passed, the names of those that failed, and seconds. The command fails if a run does.
"""

import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from omit_hf.command_line import CommandParser, run_script

ROOT = Path(__file__).parents[2]


@dataclass
class Arguments:
    times: int = field(default=20, metadata={"help": "Runs."})
    first: int = field(default=0, metadata={"help": "Seed of the first."})


def main() -> int:
    parser = CommandParser(Arguments, description=__doc__)
    parser.add_argument("files", nargs="*", help="Files and folders of tests; all of the repository if there are none.")
    arguments = parser.parse_args()
    if arguments.times < 1:
        raise ValueError(f"times is {arguments.times}; expected at least 1")
    if not 0 <= arguments.first <= 2**32 - arguments.times:  # what PYTHONHASHSEED takes
        raise ValueError(f"first is {arguments.first}; expected from 0 to {2**32 - arguments.times}")
    files = files_of(arguments.files or [ROOT / "tests", ROOT / "src" / "omit_hf"])
    failed = 0
    for seed in range(arguments.first, arguments.first + arguments.times):
        start = time.monotonic()
        result = run_tests(files, seed)
        passed = re.search(r"(\d+) passed", result.stdout)
        names = re.findall(r"^(?:FAILED|ERROR) (\S+)", result.stdout, flags=re.MULTILINE)
        told = f"{passed[1] if passed else 0} passed, {len(names)} failed, {time.monotonic() - start:.0f} s"
        print(f"seed {seed}: {told}{': ' if names else ''}{' '.join(names)}", flush=True)
        if result.returncode != 0 and not names:  # pytest itself could not begin, or ended
            print(f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}", file=sys.stderr)
        failed += result.returncode != 0
    print(f"{arguments.times - failed} of {arguments.times} runs passed")
    return 1 if failed else 0


def files_of(places) -> list[str]:
    """The files of tests, and those of the package, whose examples are tests."""
    found = []
    for place in map(Path, places):
        if not place.exists():
            raise FileNotFoundError(f"no file or folder at {str(place)!r}")
        tests = place.rglob("*.py" if place.resolve().is_relative_to(ROOT / "src") else "test_*.py")
        found += sorted(tests) if place.is_dir() else [place]
    return [str(file.resolve()) for file in found]


def run_tests(files: list[str], seed: int) -> subprocess.CompletedProcess:
    shuffled = random.Random(seed).sample(files, len(files))
    command = [sys.executable, "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider", "-q", "-rfE", "--verbosity=0"]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    return subprocess.run([*command, *shuffled], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
