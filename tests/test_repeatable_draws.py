"""What a test draws is the same in every run, whatever ran before it; see `conftest.py`."""

import importlib.util
import random
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def draws() -> list[int]:
    found = []

    @settings(derandomize=True, max_examples=200, database=None)
    @given(st.integers(-(10**9), 10**9))
    def collect(number):
        found.append(number)

    collect()
    return found


def test_hypothesis_draws_the_same_from_modules_that_another_test_imported(tmp_path):
    first = draws()
    path = tmp_path / "constants.py"
    path.write_text("NUMBERS = (271828183, 314159265, 141421356, 173205081)")
    spec = importlib.util.spec_from_file_location("constants_of_another_test", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        assert draws() == first
    assert len(set(first)) > 100


def test_the_default_profile_draws_the_same_and_that_of_campaigns_more():
    default, campaign = settings.get_profile("repeatable"), settings.get_profile("campaign")
    assert default.derandomize
    assert not campaign.derandomize
    assert campaign.max_examples >= 10 * default.max_examples


@pytest.mark.parametrize("number", range(2))
def test_a_test_begins_with_the_same_seed(number):
    torch.testing.assert_close(torch.rand(1).item(), torch.rand(1, generator=torch.Generator().manual_seed(0)).item())
    assert random.random() == random.Random(0).random()
