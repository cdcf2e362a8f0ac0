"""Standard output as the looking commands write it."""

import argparse
import io

import pytest

from tessera.cli.terminal import console


class Gone(io.StringIO):
    """What `head` leaves behind: whoever read has gone."""

    def write(self, _):
        raise BrokenPipeError


def test_a_reader_that_goes_away_ends_a_table_as_it_ends_everything_else():
    out = console(argparse.Namespace(no_color=True))
    out.file = Gone()
    with pytest.raises(BrokenPipeError):
        out.print("a table")
