"""Cutting a watch stream into events, whatever arrives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.kube.errors import DecodeError
from tessera.kube.stream import Lines, parse_event, parse_versioned

LINE = st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line and line.strip())


@given(lines=st.lists(LINE, max_size=10), cuts=st.lists(st.integers(0, 400), max_size=20))
def test_lines_do_not_depend_on_how_they_arrive(lines, cuts):
    stream = b"".join(line + b"\n" for line in lines)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    chunks = [stream[a:b] for a, b in itertools.pairwise(places)]
    cutter = Lines()
    assert [line for chunk in chunks for line in cutter.feed(chunk)] == lines


def test_empty_lines_are_skipped_and_a_last_line_waits_for_its_end():
    cutter = Lines()
    assert list(cutter.feed(b"\n \na\n\nb")) == [b"a"]
    assert list(cutter.feed(b"")) == []
    assert list(cutter.feed(b"c\n")) == [b"bc"]


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 6], [b"a\n" + b"x" * 11]])
def test_a_line_that_does_not_end_is_given_up(chunks):
    cutter = Lines(longest=10)
    *first, last = chunks
    for chunk in first:
        assert list(cutter.feed(chunk)) == []
    with pytest.raises(DecodeError, match="more than 10 bytes"):
        list(cutter.feed(last))


@given(st.binary(max_size=60))
def test_a_line_is_an_event_or_an_error_of_ours(line):
    try:
        event = parse_event(line)
        parse_versioned(event.object)
    except DecodeError:
        pass


def test_an_object_without_a_version_can_not_be_followed():
    with pytest.raises(DecodeError, match="resourceVersion"):
        parse_versioned(b'{"metadata":{"name":"a"}}')
    found = parse_versioned(b'{"metadata":{"name":"a","namespace":"b","resourceVersion":"7"}}')
    assert (found.version, found.key) == ("7", ("b", "a"))
