"""A slice of the other view has just ended: the Binding waits until the kubelet can have heard of it, and nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from tessera.testing.apiserver import on
from webhook.extender.handback import MOMENT

BIND = on("create", "pods", subresource="binding")


async def left(rig, **asked):
    """One GPU, whose only pod has just ended."""
    rig.put_node("n1", 64, first=1)
    await rig.caught_up()
    old = rig.put_pod("old", **asked)
    assert await rig.schedule(old) == "n1"
    await rig.caught_up()
    ended = rig.server.get("pods", "old", "default")
    ended["status"]["phase"] = "Succeeded"
    rig.server.put("pods", ended)
    await rig.caught_up()


def bindings(rig):
    return [each for each in rig.server.requests if BIND(each.seen)]


VIEWS = [({"percent": 100}, {"units": 16}), ({"whole": True}, {"units": 16}), ({"units": 16}, {"percent": 100})]


@pytest.mark.parametrize(("before", "after"), VIEWS)
async def test_a_pod_of_the_other_view_is_bound_a_moment_later(rig, clock, before, after):
    await left(rig, **before)
    made = rig.put_pod("new", **after)
    binding = asyncio.create_task(rig.schedule(made))
    await clock.turn()
    await rig.until(lambda: rig.cluster.ledger.booked(made["metadata"]["uid"]))
    await clock.turn()
    assert len(bindings(rig)) == 1, "the slice is reserved, and nothing is written yet"

    await clock.advance(MOMENT, step=MOMENT)
    assert await rig.soon(binding) == "n1"


@pytest.mark.parametrize("view", [{"percent": 100}, {"units": 64}])
async def test_a_pod_of_the_same_view_is_bound_at_once(rig, view):
    """Its device IDs were free before the pod that had them was said to have ended: the kubelet sees to that itself."""
    await left(rig, **view)
    assert await rig.schedule(rig.put_pod("new", **view)) == "n1"


async def test_later_nobody_waits(rig, clock):
    await left(rig, whole=True)
    await clock.advance(MOMENT, step=MOMENT)
    assert await rig.schedule(rig.put_pod("new", units=16)) == "n1"
    rig.cluster.tick()
    assert len(rig.cluster.handback) == 0


async def test_a_client_that_goes_meanwhile_leaves_nothing(rig, clock):
    await left(rig, whole=True)
    made = rig.put_pod("new", units=16)
    uid = made["metadata"]["uid"]
    binding = asyncio.create_task(rig.schedule(made))
    await rig.until(lambda: rig.cluster.ledger.booked(uid))
    binding.cancel()
    await asyncio.gather(binding, return_exceptions=True)
    await clock.turn()
    await clock.advance(MOMENT, step=MOMENT)
    await rig.until(lambda: rig.cluster.ledger.booked(uid) is None)
    assert len(bindings(rig)) == 1
