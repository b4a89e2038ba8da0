import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import PROGRAMS

from omit_hf.ownership import LOCK_FILE, FolderLock


@pytest.fixture
def holder():
    """Starts processes that hold a lock until they are killed."""
    processes = []

    def start(folder: Path, process: int = 0, fork: bool = False) -> subprocess.Popen:
        arguments = [str(folder), str(process), "fork" if fork else ""]
        processes.append(
            subprocess.Popen(
                [sys.executable, PROGRAMS / "hold_a_folder.py", *arguments],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()


def test_one_owner_at_a_time(tmp_path, holder):
    process = holder(tmp_path)
    with pytest.raises(BlockingIOError) as caught:
        FolderLock(tmp_path, "evaluation", advice="write elsewhere").acquire()
    message = str(caught.value)
    assert message.startswith(f"Another training is running in {tmp_path}: process {process.pid} on ")
    assert f" on {socket.gethostname()}, since 20" in message
    assert message.endswith("; wait for it, or write elsewhere.")


@pytest.mark.parametrize("fork", [False, True])
def test_who_dies_holds_nothing(tmp_path, holder, fork):
    """Even if its children live, such as the worker processes of a data loader."""
    process = holder(tmp_path, fork=fork)
    process.kill()
    process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with FolderLock(tmp_path, "training"):
        assert json.loads((tmp_path / f"{LOCK_FILE}.json").read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_outlived_the_others_of_its_training(tmp_path, holder):
    first, second = holder(tmp_path, 0), holder(tmp_path, 1)
    first.kill()
    first.wait()
    with pytest.raises(BlockingIOError, match=f"Another training is running in .*: process {second.pid} on "):
        FolderLock(tmp_path, "training").acquire()
    assert LOCK_FILE not in {file.name for file in tmp_path.iterdir()}  # nothing is held by halves
    second.kill()
    second.wait()
    with FolderLock(tmp_path, "training"), FolderLock(tmp_path, "training", 1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_can_be_taken_again(tmp_path):
    lock = FolderLock(tmp_path, "training")
    for _ in range(2):
        lock.acquire()
        lock.acquire()
        lock.release()
        lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_has_not_said_who_it_is(tmp_path, holder):
    holder(tmp_path)
    (tmp_path / f"{LOCK_FILE}.json").write_text('{"purpose": ')
    with pytest.raises(BlockingIOError, match=f"^Another comparison is running in {tmp_path}; wait for it, or choose"):
        FolderLock(tmp_path, "comparison").acquire()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*deeper"):
        FolderLock(tmp_path / "gone" / "deeper", "training").acquire()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"host": "a\nerror: all is lost\x1b[2J"}, r"on 'a\\nerror: all is lost\\x1b\[2J', since today"),
        ({"since": "x" * 100_000}, "since x{79}…; wait"),
        ({"process": {"a": [1]}}, r"process \{'a': \[1\]\} on here"),
        ({"purpose": "\u202ea"}, r"^Another '\\u202ea' is running"),
        ({"host": "{process.__class__}"}, "on {process.__class__}, since"),
    ],
)
def test_what_the_holder_says_is_shown_in_a_line(tmp_path, content, shown):
    holder = {"purpose": "training", "process": 1, "host": "here", "since": "today", **content}
    with FolderLock(tmp_path, "training"):
        (tmp_path / f"{LOCK_FILE}.json").write_text(json.dumps(holder))
        with pytest.raises(BlockingIOError, match=shown) as caught:
            FolderLock(tmp_path, "training").acquire()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "3", "{}", '{"process": 1, "process": 2}'])
def test_a_holder_that_says_nothing(tmp_path, content):
    with FolderLock(tmp_path, "training"):
        (tmp_path / f"{LOCK_FILE}.json").write_text(content)
        with pytest.raises(BlockingIOError, match=f"Another training is running in {tmp_path}; wait for it"):
            FolderLock(tmp_path, "training").acquire()
