"""Holds the lock of FOLDER as PROCESS of a training, until it is killed; with `fork` beside a child that lives on."""

import os
import sys
import time

from omit_hf.ownership import FolderLock

lock = FolderLock(sys.argv[1], "training", int(sys.argv[2]))
lock.acquire()
if sys.argv[3] == "fork" and os.fork() == 0:
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
