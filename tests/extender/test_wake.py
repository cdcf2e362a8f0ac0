"""Wake: a node that grew is touched soon, seldom, and only while somebody waits."""

from __future__ import annotations

import asyncio

import pytest

from tessera.model.names import names
from tessera.testing.apiserver import StatusError, on

NAMES = names()
TOUCH = on("patch", "nodes")


@pytest.fixture
async def waking(rig):
    """A node with no room for the pod that waits; the waker runs."""
    rig.put_node("n1", 64, first=1)
    await rig.caught_up()
    await rig.bind(rig.put_pod("holder", units=50), "n1")
    await rig.caught_up()
    task = asyncio.create_task(rig.waker.run())
    yield rig
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def wakes(rig, name="n1"):
    return rig.server.get("nodes", name)["metadata"]["annotations"].get(NAMES.wake)


def touches(rig):
    return sum(TOUCH(each.seen) for each in rig.server.requests)


async def free(rig, name="holder"):
    ended = rig.server.get("pods", name, "default")
    ended["status"]["phase"] = "Succeeded"
    rig.server.put("pods", ended)
    await rig.caught_up()


async def settle(rig, clock, seconds=0.3):
    await clock.advance(seconds, step=0.05)
    for _ in range(20):
        await asyncio.sleep(0.001)
    await rig.caught_up()
    await clock.turn()


async def test_what_waits_is_woken_within_a_second(waking, clock, pod):
    assert (await waking.filter(pod("waits", units=32)))["NodeNames"] == []
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) == "1"
    assert waking.registry.get_sample_value("tessera_extender_wakes_total") == 1


async def test_nobody_is_woken_where_nobody_waits(waking, clock, pod):
    assert (await waking.filter(pod("never", units=99)))["NodeNames"] == []
    assert (await waking.filter(pod("fits", units=1)))["NodeNames"] == ["n1"]
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) is None


async def test_who_found_a_node_waits_no_longer(waking, clock):
    made = waking.put_pod("waits", units=32)
    waking.put_node("n2", 8)
    await waking.caught_up()
    assert (await waking.filter(made))["NodeNames"] == []
    waking.put_node("n3", 64)
    await waking.caught_up()
    await waking.schedule(made)
    await settle(waking, clock, 3)
    waking.server.forget_requests()
    await free(waking)
    await settle(waking, clock, 3)
    assert touches(waking) == 0


async def test_a_deleted_pod_waits_no_longer(waking, clock):
    made = waking.put_pod("waits", units=32)
    await waking.caught_up()
    await waking.filter(made)
    waking.server.remove("pods", "waits", "default")
    await waking.caught_up()
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) is None


async def test_many_changes_are_one_touch_a_second(waking, clock, pod):
    for n in range(6):
        await waking.bind(waking.put_pod(f"s{n}", units=2), "n1")
    await waking.caught_up()
    await waking.filter(pod("waits", units=4))
    for n in range(6):
        await free(waking, f"s{n}")
    await settle(waking, clock)
    assert wakes(waking) == "1"
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) == "1", "the second within a second waits for it to pass"
    await settle(waking, clock, 1)
    assert wakes(waking) == "2"
    await settle(waking, clock, 3)
    assert wakes(waking) == "2", "our own touch is no growth"


async def test_a_counter_goes_on_from_where_it_stands(waking, clock, pod):
    node = waking.server.get("nodes", "n1")
    node["metadata"]["annotations"][NAMES.wake] = "41"
    waking.server.put("nodes", node)
    await waking.caught_up()
    await waking.filter(pod("waits", units=32))
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) == "42"


async def test_a_touch_that_failed_is_tried_again(waking, clock, pod):
    waking.server.faults.add(TOUCH, StatusError(500, "InternalError", "no"))
    await waking.filter(pod("waits", units=32))
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) is None
    await settle(waking, clock, 2)
    assert wakes(waking) == "1"


async def test_who_asked_long_ago_waits_no_longer(waking, clock, pod):
    await waking.filter(pod("waits", units=32))
    await clock.advance(700, step=100)
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) is None


async def test_a_node_that_grew_too_little_for_anybody_is_left_alone(waking, clock, pod):
    await waking.bind(waking.put_pod("small", units=4), "n1")
    await waking.caught_up()
    await waking.filter(pod("waits", units=32))
    await free(waking, "small")
    await settle(waking, clock, 2)
    assert wakes(waking) is None
    await free(waking)
    await settle(waking, clock)
    assert wakes(waking) == "1"


async def test_a_node_that_the_scheduler_did_not_let_through_is_left_alone(waking, clock, pod):
    waking.put_node("n2", 64)
    await waking.caught_up()
    await waking.bind(waking.put_pod("other", units=60), "n2")
    await waking.caught_up()
    await waking.filter(pod("waits", units=32), "n1")
    await free(waking, "other")
    await settle(waking, clock, 2)
    assert wakes(waking, "n2") is None


async def test_room_that_is_no_longer_kept_wakes_who_was_kept_from_it(waking, clock, pod):
    nominated = waking.put_pod("important", units=64, spec={"priority": 100})
    nominated["status"]["nominatedNodeName"] = "n1"
    waking.server.put("pods", nominated)
    await free(waking)
    await waking.caught_up()
    await waking.filter(pod("waits", units=32))
    await settle(waking, clock, 2)
    assert wakes(waking) is None, "what is free there is not for it"
    await clock.advance(61)
    waking.cluster.tick()
    await settle(waking, clock)
    assert wakes(waking) == "1"


async def test_who_may_not_wake_tries_ever_more_seldom_and_says_so_once(waking, clock, pod, caplog):
    fault = waking.server.faults.add(TOUCH, StatusError(403, "Forbidden", "no"), times=None)
    waking.server.forget_requests()
    await waking.filter(pod("waits", units=32))
    await free(waking)
    for _ in range(62):
        await settle(waking, clock, 1)
    assert 4 <= touches(waking) <= 7, "after 1, 2, 4 ... 32 seconds"
    for _ in range(4):
        await clock.advance(60, step=1)
        await settle(waking, clock, 0.1)
    tried = touches(waking)
    assert 8 <= tried <= 12, "then once a minute"
    assert waking.registry.get_sample_value("tessera_extender_wake_failures_total") == tried
    assert len([each for each in caplog.records if "woken" in each.message]) == 1
    waking.server.faults.remove(fault)
    await clock.advance(61, step=1)
    await settle(waking, clock)
    assert wakes(waking) == "1"


async def test_a_node_that_can_not_be_touched_keeps_nobody_elsewhere_waiting(waking, clock, pod):
    waking.put_node("n2", 64)
    await waking.caught_up()
    await waking.bind(waking.put_pod("other", units=60), "n2")
    await waking.caught_up()
    waking.server.faults.add(on("patch", "nodes", name="n1"), StatusError(403, "Forbidden", "no"), times=None)
    await waking.filter(pod("waits", units=32))
    await free(waking)
    await settle(waking, clock, 3)
    await free(waking, "other")
    await settle(waking, clock)
    assert wakes(waking, "n2") == "1"
