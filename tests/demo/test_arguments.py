"""What the demo may be asked for is bounded: it plays on one machine."""

import argparse

import pytest

from tessera.demo.main import add_arguments


@pytest.mark.parametrize("flag", ["--crowd", "--rounds", "--each"])
@pytest.mark.parametrize("value", ["-3", "1001", "1000000000", "9" * 5000, "x", "", "1.5", "٣"])
def test_numbers_that_no_machine_can_play_are_refused(flag, value, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([f"{flag}={value}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "is not a number from 0 to 1000" in said
    assert len(said) < 600


def test_none_of_them_is_a_number_too():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert parser.parse_args(["--crowd=0", "--rounds=1000"]).crowd == 0
