"""The common tests of the installed transformers, which only its source distribution holds.

They are fetched once, into a folder that git ignores, and imported from there as a package whose other modules, which
the distribution lacks, are the few names below. No file of theirs is ours to keep.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from filelock import FileLock

CACHE = Path(__file__).parents[2] / ".cache"
PACKAGE = "transformers_common_tests"
FILES = ("test_configuration_common.py", "test_modeling_common.py", "test_processing_common.py")
DOWNLOAD = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
RETRIES = "3"
UNREACHABLE = "Retrying ("  # how pip begins its complaint of a connection


def common_tests(name: str, cache: Path = CACHE) -> ModuleType:
    """One of transformers' modules of common tests, such as `test_modeling_common`.

    Skips what calls it if there is no registry to fetch it from; in CI, where CI is set, that is an error.
    """
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(fetched(cache))]
        sys.modules[PACKAGE] = package
        for stub, names in _stubs().items():
            module = ModuleType(stub)
            module.__dict__.update(names)
            sys.modules[stub] = module
    return importlib.import_module(f"{PACKAGE}.{name}")


def fetched(cache: Path) -> Path:
    """The folder with the files, made if it is not there; by one process at a time, and complete or not at all."""
    folder = cache / f"transformers-{transformers.__version__}"
    cache.mkdir(exist_ok=True)
    with FileLock(cache / "transformers.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                _unpack(_download(Path(scratch)), Path(scratch) / "tests")
                os.replace(Path(scratch) / "tests", folder)
    return folder


def _download(scratch: Path) -> Path:
    options = ["--retries", RETRIES, "--dest", str(scratch), f"transformers=={transformers.__version__}"]
    done = subprocess.run([sys.executable, *DOWNLOAD, *options], capture_output=True, text=True)
    if done.returncode:
        reason = f"transformers' own tests could not be fetched: {done.stderr.strip().splitlines()[-1]}"
        if UNREACHABLE in done.stderr and not os.environ.get("CI"):
            pytest.skip(f"{reason} (no registry was reached)", allow_module_level=True)
        raise RuntimeError(f"{reason}\n{done.stderr}")
    [archive] = scratch.glob("transformers-*.tar.gz")
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as members:
        for name in FILES:
            content = members.extractfile(f"{archive.name.removesuffix('.tar.gz')}/tests/{name}")
            (folder / name).write_bytes(content.read())
    (folder / "__init__.py").touch()  # which their module of configurations runs


def _stubs() -> dict[str, dict]:
    """What the files import from others of theirs."""
    common = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": torch.float16,
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "id2label": {0: "label"},
        "label2id": {"label": 0},
        "problem_type": "regression",
    }
    return {
        f"{PACKAGE}.utils": {"__path__": []},
        f"{PACKAGE}.utils.test_configuration_utils": {"config_common_kwargs": common},
        f"{PACKAGE}.exporters": {"__path__": []},
        f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{PACKAGE}.generation": {"__path__": []},
        f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},  # of the pictures of tests of chat models
    }
