"""A sample of examples/reliability/hostile_campaign.py, and whether it sees the faults that it looks for."""

import os
import random
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "reliability"


@pytest.fixture
def campaign(monkeypatch, capsys):
    """Runs the command with some options; gives its exit status and what it printed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import hostile_campaign

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["hostile_campaign.py", *options])
        return hostile_campaign.main(), capsys.readouterr().out

    return run


@pytest.fixture
def sources(campaign):
    """Its module of sources of data."""
    from hostile_inputs import data

    return data


@pytest.fixture
def texts(campaign):
    """Its module of text files."""
    from hostile_inputs import texts

    return texts


def test_a_sample(campaign):
    status, out = campaign("--cases", "60", "--jobs", "1", "--seed", "3")
    assert status == 0, out
    assert "\n60 cases, 0 faults, " in out
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| 0 \|$", out, flags=re.MULTILINE)
    assert sum(int(read) + int(refused) for _, read, refused in rows) == 60
    assert len(rows) > 10


def explode():
    return bytearray(2**40)


def grow():
    held = []
    while True:
        held.append(bytes(2**20))


def die():
    os.kill(os.getpid(), signal.SIGSEGV)


def wait():
    time.sleep(10)


def compute():
    while True:
        pass


def recurse():
    return recurse()


def refuse(message, kind=ValueError):
    def read():
        raise kind(message)

    return read


def swallow():
    try:
        explode()
    except MemoryError as error:
        raise ValueError("vectors.txt is no file of vectors") from error


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: 'division by zero'"),
        (recurse, "RecursionError"),
        (refuse("vectors.txt: a", KeyError), "KeyError"),
        (lambda: b"\xff".decode(), "UnicodeDecodeError"),
        (refuse("no number"), "message without vectors.txt"),
        (refuse("vectors.txt has\x1b[2J"), "unprintable message"),
        (refuse("vectors.txt has a\nEVIL LINE"), "unprintable message"),
        (refuse("vectors.txt has a\nvectors.txt is no file\nb"), "message of 3 lines"),
        (refuse("vectors.txt" + "\n  a" * 40), "message of 41 lines"),
        (refuse("vectors.txt " + "x" * 5000), "message of 5012 characters"),
        (lambda: "other", "wrong value: 'other'; expected 'right'"),
        (refuse("vectors.txt is none"), "refused, and is right"),
        (explode, "out of memory"),
        (swallow, "out of memory"),
        (grow, "out of memory|it took|died of signal"),
        (die, "the process died of signal SIGSEGV"),
        (wait, "no end after 0 s"),
        (compute, "no end after|it took"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_fault_is_counted_and_fails(campaign, texts, monkeypatch, read, fault):
    from hostile_inputs.case import ANY, Case

    expected = "right" if "right" in fault else ANY
    case = Case("word vectors", "spoilt", read, expected, ("vectors.txt",))
    monkeypatch.setattr(texts, "word_vectors", lambda *_: case)
    limits = ("--seconds", "0.3", "--memory", "64")
    status, out = campaign("--kinds", "word_vectors", "--cases", "1", "--first", "7", "--jobs", "1", *limits)
    assert status == 1
    assert "| word vectors | 0 | 0 | 1 |" in out
    assert re.search(rf"^case 7: word vectors: spoilt: .*({fault})", out, flags=re.MULTILINE), out


def test_what_must_be_refused_and_is_read(campaign, texts, monkeypatch):
    from hostile_inputs.case import REFUSED, Case

    monkeypatch.setattr(texts, "word_vectors", lambda *_: Case("word vectors", "spoilt", lambda: 3, REFUSED))
    status, out = campaign("--kinds", "word_vectors", "--cases", "2", "--jobs", "1")
    assert status == 1
    assert out.count("word vectors: spoilt: read, and must be refused: 3") == 2


def test_a_case_is_repeated_by_its_number(campaign):
    _, out = campaign("--kinds", "karpathy", "--cases", "1", "--first", "12")
    _, again = campaign("--kinds", "karpathy", "--cases", "1", "--first", "12")
    assert re.match(r"case 12: Karpathy's JSON: .*: (read|refused)\n", out)
    assert again.splitlines()[:2] == out.splitlines()[:2]


def test_a_mistake_of_the_campaign_is_no_fault(campaign, texts, monkeypatch):
    monkeypatch.setattr(texts, "word_vectors", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match="The campaign itself failed, in making a case: (.|\n)*ZeroDivisionError"):
        campaign("--kinds", "word_vectors", "--cases", "1")


@pytest.mark.parametrize("kind", ["karpathy", "coco", "image_folder"])
def test_right_values_are_known(sources, tmp_path, kind):
    """Of files that are whole, and of some that are not: the plain meaning decides, and not what we read."""
    expected = Counter()
    for number in range(120):
        (tmp_path / str(number)).mkdir()
        case = getattr(sources, kind)(random.Random(number), tmp_path / str(number))
        expected[type(case.expected).__name__] += 1
    assert expected["dict"] > 20
    assert expected["object"] > 40  # REFUSED
