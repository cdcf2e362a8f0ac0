"""Others' words on a terminal: one line, no controls, no floods."""

import pytest

from tessera.report.plaintext import LONGEST_WORD, plain, short


@pytest.mark.parametrize(
    ("text", "expected"),
    [("abc", "abc"), ("abcd", "abcd"), ("abcde", "abc…"), ("", "")],
)
def test_what_is_too_long_ends_in_a_mark(text, expected):
    assert short(text, 4) == expected


def test_no_name_that_kubernetes_takes_is_cut():
    name = "n" * 253
    key = f"{name}/{'k' * 63}"
    assert plain(f"pod {name}: annotation {key}") == f"pod {name}: annotation {key}"


def test_a_word_that_is_longer_than_any_name_is_cut_and_the_rest_is_told():
    told = plain(f'container "{"x" * 5000}": too much')
    assert told.startswith('container "xxx')
    assert told.endswith("x… too much")
    assert len(told) < LONGEST_WORD + 40


@pytest.mark.parametrize("text", ["x" * 100_000, "x " * 50_000, "\x1b" * 100_000, "\u202e" * 3000])
def test_what_is_printed_is_bounded(text):
    told = plain(text)
    assert told.isprintable()
    assert "…" in told
    assert len(told) < 25_000


def test_controls_are_shown_and_lines_are_one():
    assert plain("a\r\n\x1b[2J\x9b\u202eb") == "a \\x1b[2J\\x9b\\u202eb"
