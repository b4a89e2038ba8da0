"""Searches a copy of LIBRARY that may not be written to, made with MODEL, and tries to update it with PICTURES; prints
the hits, the errors and what changed in the copy as JSON."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from omit_hf.library import PictureLibrary

given, pictures, model = sys.argv[1:]


def content(folder: Path) -> dict:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


with tempfile.TemporaryDirectory() as scratch:
    scratch = Path(scratch)
    scratch.chmod(0o755)
    library, sources = shutil.copytree(given, scratch / "photos.lance"), shutil.copytree(pictures, scratch / "pictures")
    model = shutil.copytree(model, scratch / "model")
    for path in (sources, model, *sources.rglob("*"), *model.rglob("*")):
        path.chmod(0o755)
    for path in (library, *library.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before, user = content(library), os.geteuid()
    if user == 0:  # who may write everywhere
        os.seteuid(65534)
    opened = PictureLibrary(library, model)
    hits = [(hit.path, hit.score) for hit in opened.search("a red star")]
    hits_with_filter = opened.search("a red star", where="width > 0", exact=True)
    errors = {}
    for name, write in {
        "add": lambda: opened.add(sources, progress=False),
        "sync": lambda: opened.sync(sources, progress=False),
        "remove": lambda: opened.remove("true"),
        "compact": opened.compact,
        "reencode": lambda: opened.reencode(model, progress=False),
        "check": opened.check,
    }.items():
        try:
            write()
        except OSError as error:
            errors[name] = type(error).__name__
    os.seteuid(user)
    print(json.dumps({"hits": hits, "errors": errors, "unchanged": before == content(library)}))
    for path in (library, *library.rglob("*")):
        path.chmod(0o755)
