"""Bind: reserved before it is written, written once, and never in doubt for longer than need be."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import pytest

from tessera.model.config import Config, Profile, Unit
from tessera.model.names import names
from tessera.model.profile import REGION
from tessera.testing.apiserver import Cut, Hold, StatusError, on

NAMES = names()
BIND = on("create", "pods", subresource="binding")


@pytest.fixture
async def one_node(rig):
    rig.put_node("n1", 64, 64, first=1)
    await rig.caught_up()


def held(rig, node="n1"):
    return {int(state.gpu.id, 16): state.held.all_units for state in rig.cluster.ledger.states(node)}


def bindings(rig):
    """Bindings that reached the API server."""
    return [each for each in rig.server.requests if BIND(each.seen)]


@pytest.mark.usefixtures("one_node")
async def test_the_plan_appears_with_the_node(rig):
    made = rig.put_pod("p", units=16, compute=30)
    assert await rig.schedule(made) == "n1"
    there = rig.server.get("pods", "p", "default")
    assert there["spec"]["nodeName"] == "n1"
    assert rig.plan("p") == {
        "v": 1,
        "node": "n1",
        "guarantee": {"memory": "watched", "compute": "none"},
        "containers": {"main": [{"gpu": f"{1:012x}", "units": 16, "compute": 30}]},
    }
    assert held(rig) == {1: 16, 2: 0}
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_every_container_is_in_the_plan(rig):
    made = rig.put_pod(
        "p", containers={"init": {"percent": 50}, "a": {"percent": 25}, "b": {"units": 4}}, init=("init",)
    )
    assert await rig.schedule(made) == "n1"
    plan = rig.plan("p")["containers"]
    assert {name: slices[0]["units"] for name, slices in plan.items()} == {"init": 32, "a": 16, "b": 4}
    assert len({slices[0]["gpu"] for slices in plan.values()}) == 1
    assert held(rig) == {1: 36, 2: 0}, "max(init, sum of the others), by ticket"


@pytest.mark.usefixtures("one_node")
async def test_whole_gpus_and_instances_are_planned_as_such(rig):
    rig.put_node("n2", 64, mig=("1g.10gb",), first=7, allocatable={NAMES.mig("1g.10gb"): "1"})
    await rig.caught_up()
    assert await rig.schedule(rig.put_pod("w", whole=True, gpus=2)) == "n1"
    assert rig.plan("w")["containers"]["main"] == [
        {"gpu": f"{n:012x}", "units": 64, "compute": 100, "whole": True} for n in (1, 2)
    ]
    assert await rig.schedule(rig.put_pod("m", mig="1g.10gb")) == "n2"
    assert rig.plan("m")["containers"]["main"] == [{"gpu": f"{7:012x}", "mig": "1g.10gb", "instance": "g0"}]


@pytest.mark.usefixtures("one_node")
async def test_a_pod_that_asks_nothing_is_bound_too(rig):
    made = rig.put_pod("p")
    assert await rig.bind(made, "n1") == ""
    there = rig.server.get("pods", "p", "default")
    assert there["spec"]["nodeName"] == "n1"
    assert NAMES.plan not in there["metadata"]["annotations"]
    assert held(rig) == {1: 0, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_binding_again_to_the_same_node_succeeds_and_to_another_does_not(rig):
    made = rig.put_pod("p", units=16)
    await rig.schedule(made)
    assert await rig.bind(made, "n1") == ""
    await rig.caught_up()
    assert await rig.bind(made, "n1") == ""
    assert "is on node n1, not n2" in await rig.bind(made, "n2")
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_slot_that_was_taken_meanwhile_is_made_up_for(rig):
    pods = [rig.put_pod(f"p{n}", units=40) for n in range(3)]
    for made in pods:
        assert (await rig.filter(made))["NodeNames"] == ["n1"]
    errors = [await rig.bind(made, "n1") for made in pods]
    assert errors == ["", "", "node n1: needs 40 units (10 GiB), best GPU has 24 (6 GiB)"]
    assert held(rig) == {1: 40, 2: 40}


@pytest.mark.usefixtures("one_node")
async def test_concurrent_binds_never_take_one_slot_twice(rig):
    pods = [rig.put_pod(f"p{n}", units=10) for n in range(30)]
    errors = await asyncio.gather(*(rig.bind(made, "n1") for made in pods))
    assert sum(error == "" for error in errors) == 12
    assert held(rig) == {1: 60, 2: 60}
    gpus = [
        rig.plan(made["metadata"]["name"])["containers"]["main"][0]["gpu"]
        for made, e in zip(pods, errors, strict=True)
        if not e
    ]
    assert sorted(gpus) == [f"{1:012x}"] * 6 + [f"{2:012x}"] * 6


@pytest.mark.usefixtures("one_node")
async def test_the_same_bind_at_once_is_one_bind(rig):
    made = rig.put_pod("p", units=16)
    assert await asyncio.gather(*(rig.bind(made, "n1") for _ in range(8))) == [""] * 8
    assert len(bindings(rig)) == 1
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_another_node_at_once_is_refused(rig):
    rig.put_node("n2", 64)
    await rig.caught_up()
    made = rig.put_pod("p", units=16)
    hold = Hold()
    rig.server.faults.add(BIND, hold)
    first = asyncio.create_task(rig.bind(made, "n1"))
    await rig.soon(hold.arrived.wait())
    assert "is just being bound to node n1" in await rig.bind(made, "n2")
    hold.release()
    assert await first == ""


@pytest.mark.usefixtures("one_node")
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"PodUID": "another"}, "has the UID uid-p, not another"),
        ({"PodName": "nobody"}, "not found"),
        ({"Node": "nowhere"}, "node nowhere: node is not known to the extender yet"),
    ],
)
async def test_what_can_not_be_is_refused_and_reserves_nothing(rig, change, error):
    rig.put_pod("p", units=16)
    await rig.caught_up()
    body = {"PodName": "p", "PodNamespace": "default", "PodUID": "uid-p", "Node": "n1"} | change
    assert error in (await rig.post("/bind", body))["Error"]
    assert held(rig) == {1: 0, 2: 0}
    assert bindings(rig) == []


@pytest.mark.usefixtures("one_node")
async def test_without_a_uid_the_pod_of_that_name_is_meant(rig):
    rig.put_pod("p", units=16)
    body = {"PodName": "p", "PodNamespace": "default", "PodUID": "", "Node": "n1"}
    assert (await rig.post("/bind", body))["Error"] == ""
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_node_that_closed_meanwhile_is_refused(rig, inventory):
    made = rig.put_pod("p", units=16)
    await rig.filter(made)
    rig.put_node("n1", inventory=inventory(64, state="draining"), allocatable={NAMES.memory_units: "64"})
    await rig.caught_up()
    assert await rig.bind(made, "n1") == "node n1: node's agent is draining"


@pytest.mark.usefixtures("one_node")
async def test_a_pod_that_ended_or_is_going_is_refused(rig):
    ended = rig.put_pod("e", units=16, phase="Failed")
    going = rig.put_pod("g", units=16)
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    going = rig.server.put("pods", going)
    await rig.caught_up()
    for made in (ended, going):
        assert "has ended or is being deleted" in await rig.bind(made, "n1")
    assert held(rig) == {1: 0, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_refusal_of_the_api_server_frees_the_reservation(rig):
    made = rig.put_pod("p", units=16)
    rig.server.faults.add(BIND, StatusError(403, "Forbidden", "not you"))
    assert "not you" in await rig.bind(made, "n1")
    assert held(rig) == {1: 0, 2: 0}
    assert await rig.bind(made, "n1") == ""


@pytest.mark.usefixtures("one_node")
async def test_a_pod_bound_by_somebody_else_meanwhile(rig):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    rig.server.freeze_watches("pods")
    for_us = rig.server.get("pods", "p", "default")
    for_us["spec"]["nodeName"] = "n9"
    rig.server.put("pods", for_us)
    assert "n9" in await rig.bind(made, "n1")
    assert held(rig) == {1: 0, 2: 0}
    assert rig.cluster.ledger.booked("uid-p")[0] == "n9"


@pytest.mark.usefixtures("one_node")
async def test_an_answer_that_was_lost_is_looked_for(rig):
    made = rig.put_pod("p", units=16)
    rig.server.faults.add(BIND, Cut.AFTER)
    assert await rig.bind(made, "n1") == ""
    assert len(bindings(rig)) == 1
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_binding_that_was_lost_on_the_way_is_written_once_more(rig):
    made = rig.put_pod("p", units=16)
    rig.server.faults.add(BIND, Cut.BEFORE)
    assert await rig.bind(made, "n1") == ""
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_what_can_not_be_found_out_stays_reserved_until_it_can(rig, clock):
    made = rig.put_pod("p", units=40)
    await rig.caught_up()
    lost = rig.server.faults.add(BIND, Cut.BEFORE, times=None)
    blind = rig.server.faults.add(on("get", "pods", subresource=""), StatusError(403, "Forbidden", "blind"), times=None)
    assert "whether the pod is bound is not known yet" in await rig.bind(made, "n1")
    assert held(rig) == {1: 40, 2: 0}
    other = rig.put_pod("q", units=40)
    rig.server.faults.remove(blind)
    rig.server.faults.remove(lost)
    assert await rig.schedule(other) == "n1"
    assert held(rig) == {1: 40, 2: 40}
    await pass_until(clock, lambda: held(rig) == {1: 0, 2: 40})
    assert clock.now - 1000 >= 60


async def pass_until(clock, condition):
    """Let the clock run, two seconds at a time, with room for what it wakes to reach the server."""

    async def turn():
        while not condition():
            await clock.advance(2)
            await asyncio.sleep(0.01)

    async with asyncio.timeout(10):
        await turn()


@pytest.mark.usefixtures("one_node")
async def test_trying_again_in_doubt_writes_the_same_plan(rig, clock):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    lost = rig.server.faults.add(BIND, Cut.BEFORE, times=None)
    assert "not known yet" in await rig.bind(made, "n1")
    rig.put_node("n2", 64)
    await rig.caught_up()
    assert "an earlier Binding to node n1 may still take effect" in await rig.bind(made, "n2")
    rig.server.faults.remove(lost)
    assert await rig.bind(made, "n1") == ""
    assert held(rig) == {1: 16, 2: 0}
    await clock.advance(100, step=2)
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_second_write_keeps_the_reservation_however_long_ago_the_first_was(rig, clock):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    rig.server.faults.add(BIND, Cut.BEFORE, times=2)
    assert "not known yet" in await rig.bind(made, "n1")
    hold = Hold()
    rig.server.faults.add(BIND, hold)
    again = asyncio.create_task(rig.bind(made, "n1"))
    await rig.soon(hold.arrived.wait())
    for _ in range(100):
        await clock.advance(2)
        await asyncio.sleep(0.001)
    assert held(rig) == {1: 16, 2: 0}
    hold.release()
    assert await again == ""
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_client_that_goes_away_before_the_write_binds_nothing(rig):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    hold = Hold()
    # Profiles are off; the pod carries an old label, so that a PATCH comes before the Binding.
    made["metadata"]["labels"] = {NAMES.unit: "old"}
    rig.server.put("pods", made)
    await rig.caught_up()
    rig.server.faults.add(on("patch", "pods"), hold)
    going = asyncio.create_task(rig.bind(made, "n1"))
    await rig.soon(hold.arrived.wait())
    assert held(rig) == {1: 16, 2: 0}
    going.cancel()
    await rig.until(lambda: not rig.listener.connections)
    hold.release()
    await rig.until(lambda: held(rig) == {1: 0, 2: 0})
    assert bindings(rig) == []
    assert rig.registry.get_sample_value("tessera_extender_binds_total", {"result": "abandoned"}) == 1


@pytest.mark.usefixtures("one_node")
async def test_a_client_that_goes_away_after_the_write_began_changes_nothing(rig):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    hold = Hold()
    rig.server.faults.add(BIND, hold)
    going = asyncio.create_task(rig.bind(made, "n1"))
    await rig.soon(hold.arrived.wait())
    going.cancel()
    hold.release()
    await rig.until(lambda: rig.server.get("pods", "p", "default")["spec"].get("nodeName") == "n1")
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_bound_pod_that_was_gone_before_the_watch_showed_it(rig, clock):
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    rig.server.freeze_watches("pods")
    assert await rig.bind(made, "n1") == ""
    rig.server.remove("pods", "p", "default")
    rig.server.compact()
    rig.server.drop_watches("pods")
    await rig.caught_up()
    rig.cluster.tick()
    assert held(rig) == {1: 16, 2: 0}
    await clock.advance(61)
    rig.cluster.tick()
    assert held(rig) == {1: 0, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_pod_that_the_cache_has_not_seen_yet(rig, clock):
    rig.server.freeze_watches("pods")
    made = rig.put_pod("p", units=16)
    assert await rig.bind(made, "n1") == ""
    assert held(rig) == {1: 16, 2: 0}
    rig.server.remove("pods", "p", "default")
    rig.server.compact()
    rig.server.drop_watches("pods")
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}
    await clock.advance(61)
    rig.cluster.tick()
    rig.cluster.tick()
    assert held(rig) == {1: 0, 2: 0}


PROFILE = Profile(
    name="hybrid",
    units=(Unit(name="idc", node_selector={"site": "idc"}), Unit(name="cloud", regions=("cn-hangzhou",))),
)


async def test_the_pod_is_labelled_with_its_unit_before_it_is_bound(new_rig):
    rig = await new_rig(config=Config(profiles=(PROFILE,)))
    rig.put_node("idc1", 64, labels={"site": "idc"})
    rig.put_node("hz1", 64, labels={REGION: "cn-hangzhou"})
    rig.put_node("bj1", 64, labels={REGION: "cn-beijing"})
    await rig.caught_up()
    expected = {
        "idc1": {NAMES.unit: "idc"},
        "hz1": {NAMES.unit: "cloud", NAMES.region: "cn-hangzhou"},
        "bj1": {},
    }
    for node, labels in expected.items():
        made = rig.put_pod(f"p-{node}", units=16, labels={"app": "x"})
        assert await rig.bind(made, node) == ""
        assert rig.server.get("pods", f"p-{node}", "default")["metadata"]["labels"] == {"app": "x", **labels}
    writes = [each.seen.verb for each in rig.server.requests if each.seen.verb in ("patch", "create")]
    assert writes == ["patch", "create", "patch", "create", "create"]


async def test_labels_of_an_earlier_try_are_taken_away(new_rig):
    rig = await new_rig(config=Config(profiles=(PROFILE,)))
    rig.put_node("idc1", 64, labels={"site": "idc"})
    await rig.caught_up()
    made = rig.put_pod("p", units=16, labels={NAMES.unit: "cloud", NAMES.region: "cn-hangzhou"})
    assert await rig.bind(made, "idc1") == ""
    assert rig.server.get("pods", "p", "default")["metadata"]["labels"] == {NAMES.unit: "idc"}


async def test_a_pod_made_anew_is_not_labelled_for_the_old_one(new_rig):
    rig = await new_rig(config=Config(profiles=(PROFILE,)))
    rig.put_node("idc1", 64, first=1, labels={"site": "idc"})
    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    rig.server.freeze_watches("pods")
    rig.server.remove("pods", "p", "default")
    rig.put_pod("p", units=16, uid="anew")
    assert "Precondition failed" in await rig.bind(made, "idc1")
    assert rig.server.get("pods", "p", "default")["metadata"].get("labels", {}) == {}
    assert held(rig, "idc1") == {1: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_profile_that_is_not_there_keeps_no_pod_from_its_node(rig):
    made = rig.put_pod("p", units=16, annotations={NAMES.placement_profile: "gone"})
    assert await rig.bind(made, "n1") == ""


@pytest.mark.usefixtures("one_node")
async def test_a_fault_of_ours_is_an_http_error_and_the_slice_stays_held(rig, monkeypatch):
    async def broken(*_, **__):
        raise ZeroDivisionError

    made = rig.put_pod("p", units=16)
    await rig.caught_up()
    monkeypatch.setattr(rig.client, "bind", broken)
    body = {"PodName": "p", "PodNamespace": "default", "PodUID": made["metadata"]["uid"], "Node": "n1"}
    async with rig.session.post(f"{rig.url}/bind", data=json.dumps(body)) as answer:
        assert answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
        assert "Zero" not in await answer.text()
    assert held(rig) == {1: 16, 2: 0}
