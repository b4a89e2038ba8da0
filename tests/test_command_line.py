import argparse

import pytest

from omit_hf import OmitConfig
from omit_hf.command_line import errors_in_one_line, json_object


@pytest.mark.parametrize("error", [ValueError("k is 0"), FileNotFoundError("k is 0"), ImportError("k is 0")])
def test_what_the_user_can_mend_is_one_line(error):
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error
    assert end.value.code == "error: k is 0"


def test_an_invalid_configuration_says_what_is_wrong_and_not_where_it_was_found():
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        OmitConfig(regularization=-1)
    assert end.value.code.startswith("error: regularization is -1; expected a number greater than 0")


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(FloatingPointError), errors_in_one_line():
        raise FloatingPointError
    with pytest.raises(SystemExit), errors_in_one_line(FloatingPointError):
        raise FloatingPointError


def test_an_option_in_json():
    assert json_object('{"size": 3}') == {"size": 3}
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\{size' is no JSON"):
        json_object("{size")
    with pytest.raises(argparse.ArgumentTypeError, match=r"'\[3\]' is list; expected names and values in \{\}"):
        json_object("[3]")
