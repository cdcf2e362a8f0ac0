"""YAML is read as kubectl reads it, and whatever it is, reading it ends soon, with a line for what is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli.yamlreader import MOST_DOCUMENTS, Document, YamlError, documents, resolve


def _read(text):
    return [found.value if isinstance(found, Document) else found for found in documents(text)]


def _one(text):
    (found,) = documents(text)
    return found


# Scalars: what goyaml.v2 (resolve.go) makes of them, which is what kubectl sends.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[(word, True) for word in ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")],
        *[(word, False) for word in ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")],
        *[(word, None) for word in ("", "~", "null", "Null", "NULL")],
        *[(word, word) for word in ("yEs", "nULL", "tRUE", "oN", "none", "None", "nil", "a", "=", "+", "-", ".", "..")],
        *[("0", 0), ("-0", 0), ("+3", 3), ("12", 12), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("017", 15), ("0b101", 5)],
        *[("-0x10", -16), ("18446744073709551615", 2**64 - 1), ("-9223372036854775808", -(2**63))],
        *[("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("1E-2", 0.01), ("08", 8.0), ("18446744073709551616", 2.0**64)],
        *[(word, word) for word in ("12:30", "190:20:30", "2026-01-01", "2026-01-01T00:00:00Z", "1.2.3", "8Gi", "500m", "0.5Gi")],
        *[(word, word) for word in ("0x", "0xZZ", "0b12", "1e", "e3", "--1", "0b" + "1" * 70)],
        ("1__", 1),
        *[("9" * 400, "9" * 400), ("²", "²"), ("\uff11", "\uff11")],
    ],
)  # fmt: skip
def test_a_plain_scalar_is_what_kubectl_takes_it_for(text, value):
    found = resolve(text)
    assert (found, type(found)) == (value, type(value))


def test_quotes_and_tags_decide_before_the_looks():
    found = _one(
        "{a: '8', b: \"yes\", c: !!str 8, d: !!int '8', e: !!float 3, f: !!bool 'no', g: !own x, h: !!null ''}"
    )
    assert found.value == {"a": "8", "b": "yes", "c": "8", "d": 8, "e": 3, "f": False, "g": "x", "h": None}


def test_keys_become_texts():
    assert _one("1: a\ntrue: b\n1.5: c\nyes please: d\n'2': e").value == {
        "1": "a", "true": "b", "1.5": "c", "yes please": "d", "2": "e"}  # fmt: skip


# Documents.


def test_documents_have_numbers_and_lines_and_empty_ones_are_none():
    text = "# a comment\n---\n---\na: 1\n---\n# nothing\n---\n\nb: 2\n...\n"
    assert [(each.number, each.line, each.value) for each in documents(text)] == [(2, 4, {"a": 1}), (4, 9, {"b": 2})]
    assert _read("") == _read("\n\n") == _read("# x") == []


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(newline):
    assert _read(newline.join(["a:", "- 1", "- b: |", "    x", "    y", ""])) == [{"a": [1, {"b": "x\ny\n"}]}]


def test_json_is_read_as_json_with_its_pairs_for_one_character_and_tabs():
    assert _read('{\n\t"a": "\\ud83d\\ude00",\n\t"b": [1.0, null, true]\n}\n') == [{"a": "😀", "b": [1.0, None, True]}]
    assert [each.line for each in documents('{"a": 1}\n{"b": 2}\n\n {"c": 3}')] == [1, 2, 4]


def test_what_looks_like_json_may_be_yaml():
    assert _read("{a: 1, b: [x, z]}\n---\nc: 2") == [{"a": 1, "b": ["x", "z"]}, {"c": 2}]
    assert _read('{"a": 1}\n---\n{"b": 2}') == [{"a": 1}, {"b": 2}]


def test_anchors_are_copied_not_shared():
    (found,) = _read("a: &x {k: [1]}\nb: *x\nc: &y text\nd: *y\n*y : e")
    assert found == {"a": {"k": [1]}, "b": {"k": [1]}, "c": "text", "d": "text", "text": "e"}
    found["a"]["k"].append(2)
    assert found["b"] == {"k": [1]}


def test_merges():
    text = "base: &b {p: 1, q: 2}\nmore: &m {q: 3, r: 4}\none: {<<: *b, q: 9}\ntwo:\n  <<: [*b, *m]\n  s: 0\nthree: {'<<': 1}"
    (found,) = _read(text)
    assert found["one"] == {"p": 1, "q": 9}
    assert found["two"] == {"p": 1, "q": 2, "r": 4, "s": 0}
    assert found["three"] == {"<<": 1}


# Mistakes: each says its line, and only mistakes of syntax hide what follows.


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' stands twice"),
        ("x:\n  z: 1\n  'z': 2", 3, "'z' stands twice"),
        ("y: 1\ntrue: 2", 2, "'true' stands twice"),
        ('{"a": 1,\n "a": 2}', 2, "'a' stands twice"),
        ("1: a\n'1': b", 2, "'1' stands twice"),
        ("a: *b", 1, "*'b' is not defined"),
        ("a: &a [1, *a]", 1, "*'a' is not defined"),
        ("a: .inf", 1, "'.inf' is no number"),
        ("a: !!int x", 1, "'x' is no int"),
        ("\n? [1]\n: 2", 2, "no plain value"),
        ("image: {{ .Values.image }}", 1, "rendered"),
        ("~: 1", 1, "a key is empty"),
        ("a: {<<: 1}", 1, "<< takes a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_document_leaves_the_next_one(text, line, words):
    first, second = documents(f"{text}\n---\nnext: 1\n")
    assert isinstance(first, YamlError)
    assert (first.document, first.line, first.ends) == (1, line, False)
    assert words in str(first)
    assert (second.number, second.value) == (2, {"next": 1})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1,\nb: 2", 3), ("a: 'x", 1), ("a: b: c", 1), ("a:\n\tb: 1", 2), ("a\nb: 1", 2), ("- a\nb: 1", 2),
        ("a: 1\n b: 2", 2), ("%YAML 9.9.9\n---\na: 1", 1), ('{"a": "\\ud83d"}', 1),
        ("a: @x", 1), ("a: !<x", 1), ("}", 1),
    ],
)  # fmt: skip
def test_a_mistake_of_syntax_says_its_line_and_ends_the_text(text, line):
    *before, last = documents("first: 1\n---\n" + text + "\n---\nnext: 1")
    assert isinstance(last, YamlError)
    assert last.ends
    assert abs(last.line - 2 - line) <= 1, "libyaml points at the place where it noticed"
    assert [each.value for each in before if isinstance(each, Document)][:1] == [{"first": 1}]


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ufffe"])
def test_a_character_that_yaml_does_not_take_says_its_line(character):
    found = _one(f"first: 1\n---\nok: é🦀\nno: {character}\n")
    assert (found.line, found.ends) == (4, True)
    assert f"#x{ord(character):02x}" in str(found)


@pytest.mark.parametrize("rest", ["[1", "[" * 5000, "{? " * 5000, "b: c: d"])
def test_what_is_found_first_is_what_is_said(rest):
    found = _one(f"a: 1\na: 2\nb: {rest}")
    assert (str(found), found.line, found.ends) == ("the key 'a' stands twice", 2, True)


# Hostile input ends soon.


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "- " * 100_000,
        "[" * 102 + "]" * 102,
        '{"a":' * 101 + "1" + "}" * 101,
        "a0: &a0 [1,1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1},*a{n - 1},*a{n - 1}]\n" for n in range(1, 30)),
        "a0: &a0 " + "[" * 90 + "]" * 90 + "\na1: " + "[" * 20 + "*a0" + "]" * 20,
        "a0: &a0 {k0: 1}\n" + "".join(f"a{n}: &a{n} {{<<: *a{n - 1}, b: *a{n - 1}}}\n" for n in range(1, 40)),
        "[" + "1," * 600_000 + "]",
        "---\n" * (MOST_DOCUMENTS + 1),
        "{}" * (MOST_DOCUMENTS + 1),
        "&a " * 50_000,
        "!" * 50_000,
        "{? " * 50_000,
        '"' + "\\x" * 50_000,
    ],
    ids=lambda text: f"{text[:20]!r}…{len(text)}",
)
def test_hostile_texts_end_in_an_error(text):
    last = list(documents(text))[-1]
    assert isinstance(last, YamlError) or last.value == ""


@given(st.text(alphabet="ab:-[]{}'\"&*!|>#%@`~<,? \n\t\r\x00\x1b0123.eNy\\", max_size=60))
def test_any_text_gives_documents_or_errors(text):
    for found in documents(text):
        assert isinstance(found, Document | YamlError)
        if isinstance(found, Document):
            json.dumps(found.value, allow_nan=False).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), below, max_size=3),
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4), st.booleans())
def test_json_means_what_it_means_to_json(value, ascii_only):
    assert _read(json.dumps(value, ensure_ascii=ascii_only)) == [value]
