"""Holds the lock of FOLDER as PROCESS of a training, until it is killed; with `fork` beside a child that lives on."""

import os
import sys
import time
import types
from pathlib import Path

package = types.ModuleType("omit_hf")  # without its models, which take seconds to import
package.__path__ = [str(Path(__file__).parents[3] / "src" / "omit_hf")]
sys.modules["omit_hf"] = package

from omit_hf.ownership import FolderLock  # noqa: E402

lock = FolderLock(sys.argv[1], "training", int(sys.argv[2]))
lock.acquire()
if sys.argv[3] == "fork":
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, b"!")  # it has begun, and so let go of what it must not hold
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
print("held", flush=True)
time.sleep(60)
