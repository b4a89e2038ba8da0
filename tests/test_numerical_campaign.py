import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "examples" / "reliability" / "numerical_campaign.py"


@pytest.fixture
def campaign(monkeypatch, capsys):
    """Runs the program with some options; gives its exit status and what it printed."""

    def run(*options, **replaced):
        program = runpy.run_path(str(PROGRAM))
        monkeypatch.setattr(sys, "argv", [str(PROGRAM), *options])
        program["main"].__globals__.update(replaced)
        with pytest.raises(SystemExit) as exit:
            program["main"]()
        return exit.value.code, capsys.readouterr().out

    return run


def test_a_few_hundred_cases_hold(campaign):
    status, out = campaign("--cases", "250")
    assert status == 0, out
    assert "     250  cases, 0 faults" in out
    for backend in ("auto", "cpu", "numba", "reference"):
        assert re.search(rf"^ +\d+  {backend}, float32, very unequal masses$", out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("backends", "number"),
    [("auto cpu numba reference", 65692), ("auto cpu numba reference", 77959), ("cpu numba", 1018007)],
)
def test_what_hardly_depends_on_a_mass_has_hardly_a_gradient(campaign, backends, number):
    """Although many iterations add up what rounding leaves of it: rows of one number, in two groups that never mix."""
    status, out = campaign("--backends", *backends.split(), "--first", str(number), "--cases", "1")
    assert status == 0, out


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda scores: scores * torch.nan, "NaN or infinity"),
        (lambda scores: scores * 1.01, "score beyond its bound"),
        (lambda scores: scores.detach() + (scores - scores.detach()) * 1.01, "gradient of image rows beyond its bound"),
        (lambda _: [][0], "IndexError: list index out of range"),
    ],
)
def test_a_fault_is_counted_and_fails(campaign, change, fault):
    from omit_hf.modeling.transport_omit import transport_similarity

    def spoilt(image, text, options):
        scores = transport_similarity(image, text, options)
        return scores if options.backend == "reference" else change(scores)

    arguments = ("--cases", "6", "--backends", "cpu", "--seed", "1")
    status, out = campaign(*arguments, transport_similarity=spoilt)
    assert status == 1
    assert fault in out
    number = re.search(r"^case (\d+): cpu", out, flags=re.MULTILINE)[1]
    status, again = campaign(*arguments, "--cases", "1", "--first", number, transport_similarity=spoilt)
    assert again.splitlines()[0] in out
