"""Turns a checkpoint into an inference endpoint."""

import os
import re
import tempfile
from importlib import resources
from importlib.metadata import requires
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_imports

from omit_hf.parsing import read_json, shown

HANDLER_FILE, REQUIREMENTS_FILE = "handler.py", "requirements.txt"
NEEDED = ("torch", "transformers", "pillow")
CALLED = ("head_omit.py", "words_omit.py")  # code that the handler calls, and older checkpoints lack


def write_handler(folder: str | os.PathLike) -> Path:
    """Write `handler.py`, which serves a checkpoint as an inference endpoint, into the checkpoint's folder.

    Also writes a `requirements.txt`, unless the folder has one. An older `handler.py` is replaced. The head of the file
    describes the requests.

    Returns:
        The path of `handler.py`.

    Raises:
        FileNotFoundError: if the folder holds no checkpoint, or one without the code that an endpoint runs.
        ValueError: as `named_code`.
    """
    folder = Path(folder)
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; expected the folder of a checkpoint, saved with its processor."
            )
    named, missing = named_code(folder), missing_code(folder)
    if named and not missing:
        missing = [name for name in CALLED if not (folder / name).is_file()]
    if missing or not named:
        raise FileNotFoundError(
            f"{folder} lacks the model's code{': ' if missing else ''}{', '.join(missing)}; load model and processor "
            "and save them there again."
        )
    written = endpoint_files()
    if not (folder / REQUIREMENTS_FILE).exists():
        _write(folder / REQUIREMENTS_FILE, written[REQUIREMENTS_FILE])
    _write(folder / HANDLER_FILE, written[HANDLER_FILE])
    return folder / HANDLER_FILE


def endpoint_files() -> dict[str, str]:
    """Collect what `write_handler` writes: names of files → content."""
    lines = [line for line in requires("omit-hf") or () if re.match(r"[\w.-]+", line)[0] in NEEDED]
    handler = resources.files("omit_hf.hub").joinpath(HANDLER_FILE).read_text("utf-8")
    return {HANDLER_FILE: handler, REQUIREMENTS_FILE: "".join(f"{line}\n" for line in lines)}


def missing_code(folder: Path) -> list[str]:
    """List the code files that a checkpoint needs and its folder lacks."""
    return [name for name in needed_code(folder) if not (folder / name).is_file()]


def needed_code(folder: Path) -> list[str]:
    """List the code files that a checkpoint's configurations name, and those that these import."""
    found, waiting = set(), named_code(folder)
    while waiting:
        name = waiting.pop()
        if name not in found and (folder / name).is_file():
            waiting += [f"{each}.py" for each in get_relative_imports(folder / name)]
        found.add(name)
    return sorted(found)


def named_code(folder: Path) -> list[str]:
    """List the code files that a checkpoint's configurations name, without those in other repositories.

    Raises:
        OSError: if a configuration cannot be read.
        ValueError: if one is no JSON object, or names code in another way than `file.Class`.
    """
    found = set()
    for name in ("config.json", "processor_config.json"):
        file = folder / name
        configuration = read_json(file, max_depth=None) if file.is_file() else {}
        classes = configuration.get("auto_map", {}) if isinstance(configuration, dict) else None
        if not isinstance(classes, dict):
            raise ValueError(
                f"{file} holds {shown(configuration)}; expected a configuration, perhaps with an auto_map."
            )
        for each in classes.values():
            if each is None or (isinstance(each, str) and "--" in each):
                continue
            if not isinstance(each, str) or not re.fullmatch(r"\w{1,100}\.\w+", each):
                raise ValueError(
                    f"{file} has {shown(each)} in its auto_map; expected a file and a class, as file.Class."
                )
            found.add(f"{each.partition('.')[0]}.py")
    return sorted(found)


def _write(file: Path, content: str) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".") as scratch:
        (Path(scratch) / file.name).write_text(content, encoding="utf-8")
        os.replace(Path(scratch) / file.name, file)
