"""What an operator is told of a node that is left alone: an Event on it, the read-only JSON, the log, the metric."""

from __future__ import annotations

import logging

import pytest

from tessera.model.names import names
from webhook.extender.refusals import FIRST, FORGET, MOST_TOLD

NAMES = names()
AWAY = f"Allocate failed due to no healthy devices present; cannot allocate unhealthy devices {NAMES.memory_units}"
ITSELF = "Allocate failed due to rpc error: code = FailedPrecondition desc = tessera: needs 32 units, best GPU has 20"
UNTIL = "22:30:02 UTC"
"""By the tests' clock it is half past ten in the evening, and the first refusal closes a node for two seconds."""


class World:
    """Pods that are bound to one node, and what its kubelet makes of them."""

    def __init__(self, rig):
        self.rig = rig

    async def bind(self, name, *, space="default", owner="rs"):
        made = self.rig.put_pod(name, units=1)
        self.rig.server.remove("pods", name, "default")
        made["metadata"]["namespace"] = space
        made["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": owner, "controller": True}] * bool(owner)
        self.rig.server.put("pods", made)
        await self.rig.caught_up()
        assert await self.rig.bind(made, "n1") == ""

    async def answer(self, name, *, space="default", **status):
        there = self.rig.server.get("pods", name, space)
        there["status"] |= status
        self.rig.server.put("pods", there)
        await self.rig.caught_up()

    async def refuse(self, name, text=AWAY, *, space="default"):
        failed = {"phase": "Failed", "reason": "UnexpectedAdmissionError"}
        await self.answer(name, space=space, message=f"Pod was rejected: {text}, which is unexpected", **failed)

    async def refusing(self):
        """What the read-only JSON says of the node."""
        here = type(self.rig.listener.address)("127.0.0.1", 0)
        async with (
            self.rig.extender.dashboard(here) as dashboard,
            self.rig.session.get(f"http://{dashboard.address}/api/v1/nodes") as answer,
        ):
            (node,) = await answer.json()
        return node["refusing"]

    @property
    def events(self):
        return [message for reason, node, message in self.rig.events.all if (reason, node) == ("KubeletRefuses", "n1")]


@pytest.fixture
async def world(rig):
    rig.put_node("n1", 64)
    await rig.caught_up()
    return World(rig)


async def test_nothing_is_told_of_a_node_that_serves(world):
    await world.bind("p")
    await world.answer("p", phase="Running")
    assert (await world.refusing(), world.events) == ([], [])


async def test_a_refusal_is_told_everywhere(world, caplog):
    caplog.set_level(logging.WARNING)
    await world.bind("p")
    await world.refuse("p")
    said = (
        "its kubelet refused 1 pod (UnexpectedAdmissionError); pods of namespace default are kept from it "
        f"until {UNTIL}, then one pod tries"
    )
    (event,) = world.events
    assert event.startswith(f"{said}; last default/p: Pod was rejected: Allocate failed due to no healthy devices")
    (found,) = await world.refusing()
    assert found == {
        "namespace": "default",
        "controller": "",
        "refused": 1,
        "until": "2023-11-14T22:30:02Z",
        "text": said,
    }
    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert line.startswith(f"node n1: {said}; last default/p: ")
    assert world.rig.registry.get_sample_value("tessera_extender_pods_refused_total", {"cause": "node"}) == 1


async def test_those_that_were_on_their_way_are_counted(world):
    for name in "abc":
        await world.bind(name)
    for name in "abc":
        await world.refuse(name)
    (found,) = await world.refusing()
    assert found["refused"] == 3
    assert (
        f"refused 3 pods (UnexpectedAdmissionError); pods of namespace default are kept from it until {UNTIL}"
        in (world.events[-1])
    )


async def test_a_pods_own_fault_keeps_its_controller_only(world):
    await world.bind("p", space="team")
    await world.refuse("p", ITSELF, space="team")
    (found,) = await world.refusing()
    assert (found["namespace"], found["controller"]) == ("team", "rs")
    assert "; pods of the same controller in namespace team are kept from it until " in found["text"]


async def test_a_bare_pods_own_fault_is_counted_and_keeps_nobody(world):
    await world.bind("p", owner="")
    await world.refuse("p", ITSELF)
    assert (await world.refusing(), world.events) == ([], [])
    assert world.rig.registry.get_sample_value("tessera_extender_pods_refused_total", {"cause": "pod"}) == 1


async def test_what_comes_after_the_time_is_over(world, clock):
    await world.bind("a")
    await world.refuse("a")
    await clock.advance(FIRST)
    (found,) = await world.refusing()
    assert found["text"].endswith("pods of namespace default go there one at a time until one is admitted")
    await world.bind("b")
    (found,) = await world.refusing()
    assert found["text"].endswith("pods of namespace default wait for one that is being tried there")
    await world.refuse("b")
    (found,) = await world.refusing()
    assert found["refused"] == 2
    assert found["text"].endswith("until 22:30:06 UTC, then one pod tries")


async def test_it_is_over_when_a_pod_is_admitted_or_long_after(world, clock):
    await world.bind("a")
    await world.refuse("a")
    await clock.advance(FIRST)
    await world.bind("b")
    await world.answer("b", phase="Running")
    assert await world.refusing() == []
    await world.bind("c")
    await world.refuse("c")
    await clock.advance(FIRST + FORGET + 1)
    world.rig.cluster.tick()
    assert await world.refusing() == []


async def test_of_very_many_some_are_told_those_first_that_last_longest(world, clock):
    for number in range(MOST_TOLD + 2):
        await world.bind(f"p{number}", owner=f"rs{number}", space=f"team-{number}")
    for number in range(MOST_TOLD + 2):
        await world.refuse(f"p{number}", ITSELF, space=f"team-{number}")
        await clock.advance(0.1)
    found = await world.refusing()
    assert [each["namespace"] for each in found] == [f"team-{number}" for number in range(MOST_TOLD + 1, 1, -1)]


async def test_what_a_kubelet_writes_is_cut_and_plain_in_the_event(world):
    await world.bind("p")
    await world.refuse("p", f"{AWAY} \x1b[2J\u202e" + "x" * 5000)
    (event,) = world.events
    assert event.isprintable()
    assert len(event) < 1000
