"""Reasons for many nodes at once: each is what is said of the node alone, whatever the names look like."""

from __future__ import annotations

from random import Random

import pytest

from tessera.model.config import Config, Placement
from tessera.model.names import names

NAMES = names()
HOSTILE = ('quo"te', "back\\slash", "new\nline", "nul\0", "é", "\u2028", "😀", '":"', "x" * 253, "{}", ",", "\\u0041")


def fill(rig, named):
    """Nodes that are full, small, bare, sick, cordoned or not there; some have room."""
    for number, name in enumerate(named):
        match number % 8:
            case 0:
                rig.put_node(name, 64, held=60 + number % 3)
            case 1:
                rig.put_node(name, 16)
            case 2:
                rig.put_node(name)
            case 3:
                rig.put_node(name, 64, health="sick")
            case 4:
                rig.put_node(name, 64, spec={"unschedulable": True})
            case 5:
                rig.put_node(name, 64, 64, held=60)
            case 6:
                rig.put_node(name, 64)


def reasons(answer):
    return answer["FailedNodes"] | answer["FailedAndUnresolvableNodes"]


@pytest.mark.parametrize("answer", ["one", "all"])
@pytest.mark.parametrize(
    "asked", [{"units": 40, "gpus": 3}, {"units": 40}, {"whole": True}, {"units": 70}, {"percent": 20}]
)
async def test_what_is_said_among_many_is_what_is_said_of_each_alone(new_rig, pod, answer, asked):
    rig = await new_rig(config=Config(placement=Placement(answer=answer)))
    listed = [*HOSTILE, *(f"n{number}" for number in range(60))]
    fill(rig, listed)
    await rig.caught_up()
    Random(3).shuffle(listed)
    alone = {name: await rig.filter(pod("alone", **asked), name) for name in listed}
    among = await rig.filter(pod("among", **asked), *listed, *listed[:9])
    fitting = [name for name in listed if not reasons(alone[name])]
    if answer == "all":
        assert among["NodeNames"] == fitting
    else:
        assert len(among["NodeNames"]) == min(1, len(fitting))
    if answer == "all" or not fitting:
        for which in ("FailedNodes", "FailedAndUnresolvableNodes"):
            assert among[which] == {name: text for each in alone.values() for name, text in each[which].items()}
        assert len(fitting) + len(reasons(among)) == len(listed)


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_pod_that_is_refused_everywhere_is_told_so_for_every_name(rig, pod, name):
    rig.put_node(name, 64)
    await rig.caught_up()
    answer = await rig.filter(pod("p", labels={NAMES.scale_for: "other"}, units=1), name, "gone\\", name)
    texts = answer["FailedAndUnresolvableNodes"]
    assert texts.keys() == {name, "gone\\"}
    assert len({*texts.values()}) == 1
    assert answer["FailedNodes"] == {}


async def test_nodes_that_come_and_go_are_told_by_their_own_names(rig, pod):
    """Rows are used again."""
    rig.put_node("first", 16)
    await rig.caught_up()
    assert reasons(await rig.filter(pod("p", units=32), "first")).keys() == {"first"}
    rig.server.remove("nodes", "first")
    await rig.caught_up()
    rig.put_node("second", 16)
    await rig.caught_up()
    assert reasons(await rig.filter(pod("p", units=32), "first", "second")) == {
        "first": "node is not known to the extender yet",
        "second": "needs 32 units (8 GiB), largest GPU has 16 (4 GiB)",
    }
