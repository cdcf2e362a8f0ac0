"""Who is ended for whom is told by the API server's objects: whatever can reach the port can post a body."""

from __future__ import annotations

import pytest


@pytest.fixture
async def full(rig):
    """n1 is full of a pod of priority 0."""
    rig.put_node("n1", 64)
    await rig.caught_up()
    assert await rig.bind(rig.put_pod("low", units=64), "n1") == ""
    await rig.caught_up()
    return rig


async def ended_for(rig, told):
    assert (await rig.filter(told))["NodeNames"] == []
    await rig.soon(rig.preemptor.sweep())
    await rig.caught_up()
    return [p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp")]


@pytest.mark.parametrize(
    ("units", "spec"),
    [
        pytest.param(64, {"priority": -1}, id="priority"),
        pytest.param(64, {"priority": 100, "preemptionPolicy": "Never"}, id="policy"),
        pytest.param(32, {"priority": 100}, id="what it asks"),
    ],
)
async def test_nobody_is_ended_for_a_pod_that_is_not_as_the_filter_was_told(full, pod, units, spec):
    full.put_pod("high", units=units, spec=spec)
    await full.caught_up()
    assert await ended_for(full, pod("high", units=64, spec={"priority": 100})) == []


async def test_nor_for_one_that_is_not_there(full, pod):
    assert await ended_for(full, pod("high", units=64, spec={"priority": 100})) == []


async def test_who_is_as_it_says_is_helped_whatever_came_before(full, pod):
    high = full.put_pod("high", units=64, spec={"priority": 100})
    await full.caught_up()
    forged = pod("high", units=64, spec={"priority": 2_000_000_000})
    assert await ended_for(full, forged) == []
    assert await ended_for(full, high) == ["low"]
