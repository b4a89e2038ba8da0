"""Ends as every script does, in WAY."""

import errno
import os
import sys
import threading
import types
from pathlib import Path

# Without what takes seconds to import and has no part in it.
package, transformers = types.ModuleType("omit_hf"), types.ModuleType("transformers")
package.__path__ = [str(Path(__file__).parents[3] / "src" / "omit_hf")]
transformers.HfArgumentParser = object
sys.modules |= {"omit_hf": package, "transformers": transformers}

from omit_hf.command_line import run_script  # noqa: E402


def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "logs/events")


def main():
    way = sys.argv[1]
    if way == "print":
        print("image → text: λ = 0.02, « ▁ \udcff »")
    elif way == "much":
        for number in range(100_000):
            print(number)
    elif way == "status":
        print("done")
        return 3
    elif way == "pipe":
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")  # of a connection
    elif way == "error":
        print("first")
        raise ValueError("λ is −1")
    elif way == "thread":
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
    return None


run_script(main)
