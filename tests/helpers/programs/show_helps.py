"""Prints the help of every script that is given: each in a process of its own, forked from this one.

They share the time that the libraries take to be imported, but not what is ours: each script imports it itself. A line
of stdout is the JSON of one script's status, stdout and stderr.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import accelerate  # noqa: F401
import datasets  # noqa: F401
import torch  # noqa: F401
import transformers

assert transformers.PreTrainedModel  # transformers imports its modules when they are asked for
assert transformers.Trainer


def status_of(script: str) -> int:
    """The status with which Python would exit, once what is printed has arrived."""
    try:
        runpy.run_path(script, run_name="__main__")
        status = None
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else int(status is not None)


def show(script: str) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = os.fork()
        if process == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.argv = [script, "--help"]
            sys.path[0] = os.path.dirname(script)  # as of `python script`
            os._exit(status_of(script))  # tidying up all that was imported would take longer than the rest
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        shown = []
        for file in (out, error):
            file.seek(0)
            shown.append(file.read().decode())
    return {"script": script, "status": status, "stdout": shown[0], "stderr": shown[1]}


scripts = sys.argv[1:]
for script in scripts:
    print(json.dumps(show(script)), flush=True)
