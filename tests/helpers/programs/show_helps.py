"""Prints the help of every script that is given: each in a process of its own, forked from this one.

They share the time that the libraries take to be imported, but not what is ours: each script imports it itself. A line
of stdout is the JSON of one script's status, stdout and stderr.
"""

import json
import os
import runpy
import sys
import tempfile

import accelerate  # noqa: F401
import datasets  # noqa: F401
import torch  # noqa: F401
import transformers

assert transformers.PreTrainedModel  # transformers imports its modules when they are asked for
assert transformers.Trainer


def show(script: str) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        process = os.fork()
        if process == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.argv = [script, "--help"]
            sys.path[0] = os.path.dirname(script)  # as of `python script`
            runpy.run_path(script, run_name="__main__")
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        shown = []
        for file in (out, error):
            file.seek(0)
            shown.append(file.read().decode())
    return {"script": script, "status": status, "stdout": shown[0], "stderr": shown[1]}


scripts = sys.argv[1:]
for script in scripts:
    print(json.dumps(show(script)), flush=True)
