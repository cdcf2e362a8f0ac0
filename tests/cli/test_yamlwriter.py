"""What is written is read again as it was, by us and by PyYAML's own loader; keys keep their order."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli.yamlreader import documents
from tessera.cli.yamlwriter import diff, dump

WORDS = st.sampled_from(
    ["y", "N", "yes", "on", "null", "~", "", "1e3", "1_000", "0x1f", "0o17", "017", "08", ".5", "5.", "-", "=", "<<", "12:30",
     "2026-01-01", "8Gi", " x", "x ", "#", "a: b", "- a", "a\nb\n", "a\n\n", "\n", "a \nb", "\tx", "{{ a }}", "é", "🦀", "\x1b[31m",
     "'", '"', "\\", "&a", "*a", "!x", "%", "@", "`", "|", ">", "?", "true", "1.0", "+1", "9" * 30, "0b11", "-0"]
)  # fmt: skip
TEXTS = WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
)


@given(st.dictionaries(TEXTS, JSON, min_size=1, max_size=4))
def test_what_is_written_is_read_again_as_it_was(value):
    text = dump(value)
    (found,) = documents(text)
    assert found.value == value
    assert list(found.value) == list(value)
    assert yaml.safe_load(text) == value


def test_it_looks_as_kubectl_writes_it():
    value = {"kind": "Pod", "b": 1, "a": {"args": ["x", {"z": None}], "script": "one\ntwo\n"}, "same": [], "on": "yes"}
    assert dump(value) == (
        "kind: Pod\nb: 1\na:\n  args:\n  - x\n  - z: null\n  script: |\n    one\n    two\nsame: []\n'on': 'yes'\n"
    )


def test_what_is_there_twice_is_written_twice():
    shared = {"x": [1]}
    assert dump({"a": shared, "b": shared}) == "a:\n  x:\n  - 1\nb:\n  x:\n  - 1\n"


@pytest.mark.parametrize("colour", [False, True])
def test_a_diff(colour):
    found = list(diff("a: 1\nb: 2\n", "a: 1\nb: 3\n", title="Pod p", colour=colour))
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in found] == [
        "--- Pod p", "+++ Pod p (admitted)", "@@ -1,2 +1,2 @@", " a: 1", "-b: 2", "+b: 3"]  # fmt: skip
    assert any("\x1b" in line for line in found) == colour
    assert list(diff("a: 1\n", "a: 1\n", title="Pod p", colour=colour)) == []
