"""Lists of node names: looked up all at once, in any order, and the answer hangs on no order."""

from __future__ import annotations

import json
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.placement.ledger import Ledger
from webhook.extender.namelists import NameLists
from webhook.extender.nametable import NameTable
from webhook.extender.wire import FilterArgs, SchedulingPod, WireError

NAMES = st.text('abc-.0é,"\\', min_size=1, max_size=20)


def go(names):
    """A list as Go writes it."""
    return msgspec.json.encode(names)


def resolve(lists, names, encode=go):
    return lists.resolve(FilterArgs(SchedulingPod(), encode(names)))


@pytest.fixture
def many():
    """More nodes than a short list has."""
    ledger = Ledger()
    for number in range(400):
        ledger.set_node(f"gpu-node-{number}.example", None)
    return ledger


@given(st.lists(NAMES, unique=True, max_size=60), st.data())
def test_a_table_finds_every_row_or_says_nothing(there, data):
    rows = {name: 3 * at for at, name in enumerate(there)}
    asked = data.draw(st.lists(st.one_of(NAMES, st.sampled_from(there)) if there else NAMES, max_size=100))
    found = NameTable(rows).rows(go(asked))
    if found is not None:
        assert found.tolist() == [rows[name] for name in asked]
    else:
        commas = any("," in name for name in asked)
        assert not asked or commas or not set(asked) <= rows.keys() or len(asked) > 2 * len(rows)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[",
        b"[]",
        b"null",
        b'["a","b"',
        b'"a","b"]',
        b'["a","b"]]',
        b'["a",","b"]',
        b'["a",,"b"]',
        b'["a","b",]',
        b'["a"\0,"b"]',
        b'[ "a","b"]',
        b'["a", "b"]',
        b'["a","b" ]',
        b'["a",["b","b"],"a"]',
        b'["a",1,"b"]',
        b'["a",{"b":"a"},"b"]',
        b'["\\u0061"]',
        b'["a\\"",",\\"b"]',
        b'["a\0"]',
        b'[""]',
        b'["a","c"]',
        b'["a",' + b'"b",' * 10 + b'"a"]',
        json.dumps(["a" * 300]).encode(),
    ],
)
def test_a_table_says_nothing_of_what_it_does_not_read(raw):
    assert NameTable({"a": 1, "b": 0}).rows(raw) is None


@pytest.mark.parametrize("prefix", ["", "a-long-name-that-all-nodes-have-"])
def test_names_as_long_as_each_other_and_names_that_are_not(prefix):
    rows = {f"{prefix}{number:0{width}}": 3 * number + width for width in (3, 4) for number in range(90)}
    table, alike = NameTable(rows), [name for name in rows if len(name) == len(prefix) + 3]
    for asked in (alike, [*rows], [*alike, alike[0], alike[0]], alike[:1]):
        assert table.rows(go(asked)).tolist() == [rows[name] for name in asked]
    assert table.rows(go([*alike, f"{prefix}099"])) is None


@pytest.mark.parametrize("length", [6, 7, 8, 15, 16, 23, 31])
def test_one_byte_that_is_another_is_never_overlooked(length):
    random = Random(length)
    there = [f"{number:02}{'-' * (length - 4)}{number % 7:02}" for number in range(40)]
    rows = {name: 5 * at for at, name in enumerate(there)}
    table = NameTable(rows)
    for count in (1, 2, 3, 7, 8, 39, 40):
        asked = random.sample(there, count)
        raw = go(asked)
        assert table.rows(raw).tolist() == [rows[name] for name in asked]
        for at in range(len(raw)):
            other = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            found = table.rows(other)
            assert found is None or go([there[row // 5] for row in found.tolist()]) == other


def test_a_table_of_nothing_knows_nothing():
    assert NameTable({}).rows(b'["a"]') is None


@pytest.mark.parametrize("encode", [go, lambda names: json.dumps(names).encode()], ids=["compact", "with blanks"])
@pytest.mark.parametrize("extra", [[], ["gone-1"], ["gpu-node-7.example"], ["gone-1", "gpu-node-7.example", "gone-1"]])
def test_every_name_has_its_row_once_in_any_order(many, encode, extra):
    lists, random = NameLists(many), Random(1)
    for _ in range(10):
        names = [*many, *extra]
        random.shuffle(names)
        found = resolve(lists, names, encode)
        assert found.names == list(dict.fromkeys(names))
        assert found.rows.tolist() == [many.row(name) for name in found.names]
        assert found.known.tolist() == sorted(many.row(name) for name in many)
        assert found.nodes.names == tuple(sorted({*names}))
        assert found.name(many.row("gpu-node-9.example")) == "gpu-node-9.example"


def test_the_same_nodes_in_any_order_are_kept_once(many):
    lists, random = NameLists(many), Random(4)
    names = [*many]
    first = resolve(lists, names).nodes
    fewer = resolve(lists, names[1:]).nodes
    for _ in range(6):
        random.shuffle(names)
        assert resolve(lists, names).nodes is first
    assert first.names != fewer.names
    many.drop_node(names[0])
    many.set_node("takes-its-row", None)
    assert "takes-its-row" in resolve(lists, [*many]).nodes
    assert resolve(lists, [*many]).nodes.names == tuple(sorted(many))


def test_some_of_the_nodes_are_those_and_no_others(many):
    some = [f"gpu-node-{number}.example" for number in range(300, 100, -1)]
    found = resolve(NameLists(many), some)
    assert found.names == some
    assert len(found.known) == 200


def test_nodes_that_come_and_go_are_looked_up_anew(many):
    lists = NameLists(many)
    names = [*many, "new"]
    assert -1 in resolve(lists, names).rows
    many.set_node("new", None)
    assert resolve(lists, names).rows.tolist() == [many.row(name) for name in names]
    many.drop_node("gpu-node-0.example")
    many.set_node("takes-its-row", None)
    found = resolve(lists, names)
    assert found.rows[names.index("gpu-node-0.example")] == -1
    assert many.row("takes-its-row") not in found.known


@pytest.mark.parametrize("bad", ["", "x" * 254])
def test_a_name_that_no_node_has_is_refused_in_a_long_list_too(many, bad):
    with pytest.raises(WireError, match="NodeNames"):
        resolve(NameLists(many), [*many, bad])


async def test_what_is_chosen_hangs_on_no_order_of_the_names(rig, pod):
    random = Random(2)
    for number in range(150):
        rig.put_node(f"gpu-node-with-a-long-name-{number}", *([64] if number % 3 else [32, 32]))
    await rig.caught_up()
    names = [node["metadata"]["name"] for node in rig.server.objects("nodes")]
    for each in range(6):
        made = rig.put_pod(f"p{each}", units=(8, 40, 20)[each % 3])
        answers = []
        for turn in range(6):
            asked = sorted(names) if not turn else [*names, *random.choices(names, k=turn - 1), *["gone"] * (turn % 3)]
            if turn:
                random.shuffle(asked)
            answers.append((await rig.filter(made, *asked))["NodeNames"])
        assert answers == [answers[0]] * 6
        assert await rig.bind(made, answers[0][0]) == ""
    refused = [
        (await rig.filter(pod("large", units=99), *random.sample(names, len(names))))["FailedAndUnresolvableNodes"]
        for _ in range(3)
    ]
    assert refused == [refused[0]] * 3
    assert len(refused[0]) == len(names)
