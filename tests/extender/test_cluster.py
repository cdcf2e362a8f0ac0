"""When is a slice held, and when is it free: told by objects, by time, and by what the node says."""

from __future__ import annotations

import asyncio
import json

import pytest

from tessera.model.guarantee import Guarantees
from tessera.model.names import names
from tessera.model.plan import Plan, PlannedSlice, encode, encode_drift

NAMES = names()
ONE, TWO = f"{1:012x}", f"{2:012x}"


@pytest.fixture
async def one_node(rig, inventory):
    """A node n1 with the GPUs 1 and 2 of 64 units each; call it to say something new of it."""

    def say(*, lingering=(), drift=None, state="serving", sizes=(64, 64), ready=True):
        notes = {} if drift is None else {NAMES.drift: drift if isinstance(drift, str) else encode_drift(drift)}
        rig.put_node(
            "n1",
            inventory=inventory(*sizes, first=1, lingering=lingering, state=state),
            allocatable={NAMES.memory_units: "128"},
            annotations=notes,
            ready=ready,
        )

    say()
    await rig.caught_up()
    return say


def held(rig, node="n1"):
    return {int(state.gpu.id, 16): state.held.all_units for state in rig.cluster.ledger.states(node)}


def plan(gpu=ONE, units=16, *, node="n1", compute=0, container="main"):
    piece = PlannedSlice(gpu=gpu, units=units, compute=compute)
    return {NAMES.plan: encode(Plan(v=1, node=node, guarantee=Guarantees(), containers={container: (piece,)}))}


async def bound(rig, name="p", units=16, **more):
    rig.put_pod(name, units=units, **{"node": "n1", "phase": "Running", "annotations": plan(units=units), **more})
    await rig.caught_up()


@pytest.mark.usefixtures("one_node")
async def test_a_bound_pod_holds_what_its_plan_says(rig):
    await bound(rig)
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_a_terminal_phase_frees(rig, phase):
    await bound(rig)
    await bound(rig, phase=phase)
    assert held(rig) == {1: 0, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_normal_deletion_passes_through_a_terminal_phase(rig):
    await bound(rig)
    await bound(rig, phase="Succeeded")
    rig.server.remove("pods", "p", "default")
    await rig.caught_up()
    assert held(rig) == {1: 0, 2: 0}


@pytest.mark.usefixtures("one_node")
@pytest.mark.parametrize("seen", [True, False])
async def test_a_pod_that_vanished_holds_its_slice_for_a_minute(rig, clock, seen):
    await bound(rig)
    await vanish(rig, seen=seen)
    await clock.advance(59)
    rig.cluster.tick()
    assert held(rig) == {1: 16, 2: 0}
    await clock.advance(2)
    rig.cluster.tick()
    assert held(rig) == {1: 0, 2: 0}


async def vanish(rig, *, seen=True):
    """Force a pod's deletion, in sight of the watch or while it is cut off and history is forgotten."""
    if not seen:
        rig.server.freeze_watches("pods")
    rig.server.remove("pods", "p", "default")
    if not seen:
        rig.server.compact()
        rig.server.drop_watches("pods")
    await rig.caught_up()


async def test_a_vanished_pod_that_lingers_holds_its_slice_until_it_does_not(rig, clock, one_node):
    await bound(rig)
    await vanish(rig)
    one_node(lingering=("uid-p",))
    await rig.caught_up()
    await clock.advance(500)
    rig.cluster.tick()
    assert held(rig) == {1: 16, 2: 0}
    one_node()
    await rig.caught_up()
    rig.cluster.tick()
    assert held(rig) == {1: 0, 2: 0}


async def test_a_vanished_pods_slice_is_free_when_its_node_is_gone(rig, one_node):
    await bound(rig)
    await vanish(rig)
    rig.server.remove("nodes", "n1")
    await rig.caught_up()
    one_node()
    await rig.caught_up()
    assert held(rig) == {1: 0, 2: 0}


async def test_a_pod_that_is_there_holds_its_slice_although_its_node_was_gone(rig, one_node):
    await bound(rig)
    rig.server.remove("nodes", "n1")
    await rig.caught_up()
    assert rig.cluster.ledger.states("n1") == []
    one_node()
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_a_pod_made_anew_under_the_name_is_another_pod(rig, clock):
    await bound(rig)
    rig.server.remove("pods", "p", "default")
    await bound(rig, uid="other", annotations=plan(TWO))
    assert held(rig) == {1: 16, 2: 16}
    await clock.advance(61)
    rig.cluster.tick()
    assert held(rig) == {1: 0, 2: 16}


@pytest.mark.usefixtures("one_node")
@pytest.mark.parametrize(
    "annotations",
    [
        pytest.param({}, id="no plan"),
        pytest.param(plan(node="n2"), id="another node's"),
        pytest.param(plan(units=4), id="less than its tickets"),
        pytest.param(plan("0123456789ab"), id="a GPU that was never there"),
        pytest.param({NAMES.plan: "[]"}, id="nonsense"),
    ],
)
async def test_a_bound_pod_without_a_plan_of_its_own_could_be_anywhere(rig, annotations):
    await bound(rig, annotations=annotations)
    assert held(rig) == {1: 16, 2: 16}


async def test_drift_tells_where_it_is(rig, one_node):
    await bound(rig, annotations={})
    one_node(drift={"uid-p": {"main": (PlannedSlice(gpu=TWO, units=16, compute=0),)}})
    await rig.caught_up()
    assert held(rig) == {1: 0, 2: 16}
    await bound(rig, annotations=plan(ONE))
    assert held(rig) == {1: 0, 2: 16}, "drift wins over a plan"


async def test_drift_of_a_pod_that_ended_holds_nothing(rig, one_node):
    await bound(rig, annotations={})
    drift = {"uid-p": {"main": (PlannedSlice(gpu=TWO, units=16, compute=0),)}}
    one_node(drift=drift)
    await bound(rig, annotations={}, phase="Failed")
    await rig.caught_up()
    assert held(rig) == {1: 0, 2: 0}
    one_node(drift=drift | {"uid-q": {"main": (PlannedSlice(gpu=ONE, units=3, compute=0),)}})
    rig.server.remove("pods", "p", "default")
    await rig.caught_up()
    assert held(rig) == {1: 3, 2: 0}


async def test_drift_that_can_not_be_read_closes_the_node(rig, pod, one_node):
    one_node(drift='{"uid": 3}')
    await rig.caught_up()
    answer = await rig.filter(pod("q", units=1), "n1")
    assert answer["FailedNodes"] == {"n1": "node's GPU inventory can't be read"}
    one_node()
    await rig.caught_up()
    assert (await rig.filter(pod("q", units=1), "n1"))["NodeNames"] == ["n1"]


async def test_a_node_that_can_not_be_read_still_holds_its_pods(rig, one_node):
    await bound(rig)
    rig.put_node("n1", inventory="broken", allocatable={NAMES.memory_units: "1"})
    await rig.caught_up()
    one_node()
    await rig.caught_up()
    assert held(rig) == {1: 16, 2: 0}


@pytest.mark.usefixtures("one_node")
async def test_an_extender_that_starts_anew_knows_the_same(rig, new_rig):
    await bound(rig)
    await bound(rig, "q", units=3, annotations={})
    again = await new_rig()
    assert held(again) == held(rig) == {1: 19, 2: 3}
    assert again.cluster.problem is None


async def test_nothing_is_decided_before_the_caches_are_full(rig, pod):
    rig.pods.synced.clear()
    for path, body in (
        ("/filter", {"Pod": pod("p", units=1), "NodeNames": ["n1"]}),
        ("/prioritize", {"Pod": pod("p", units=1), "NodeNames": ["n1"]}),
        ("/bind", {"PodName": "p", "PodNamespace": "default", "PodUID": "u", "Node": "n1"}),
        ("/preempt", {"Pod": pod("p", units=1)}),
    ):
        async with rig.session.post(rig.url + path, data=json.dumps(body)) as answer:
            assert answer.status == 503
            assert "the first list of pods is not in yet" in await answer.text()


@pytest.mark.usefixtures("one_node")
async def test_gpus_that_are_full_of_what_was_not_planned_take_nothing(rig, pod):
    await bound(rig, "whole", units=None, whole=True, annotations={})
    answer = await rig.filter(pod("q", units=1), "n1")
    assert answer["FailedNodes"] == {"n1": "needs 1 unit (256 MiB), best GPU has 0"}


@pytest.mark.usefixtures("one_node")
async def test_the_snapshot_shows_who_holds_what(rig, server):
    await bound(rig)
    server.remove("pods", "p", "default")
    await bound(rig, "q", units=8)
    async with rig.extender.dashboard(type(rig.listener.address)("127.0.0.1", 0)) as dashboard:
        async with rig.session.get(f"http://{dashboard.address}/api/v1/nodes") as answer:
            (node,) = await answer.json()
        async with rig.session.post(f"http://{dashboard.address}/api/v1/nodes") as answer:
            assert answer.status == 405
    assert (node["name"], node["closed"]) == ("n1", "")
    assert node["gpus"][0]["heldUnits"] == 24
    assert [(each["uid"], each["pod"], each["units"]) for each in node["gpus"][0]["holders"]] == [
        ("uid-p", "", 16),
        ("uid-q", "default/q", 8),
    ]


@pytest.mark.usefixtures("one_node")
async def test_the_ledger_is_shown_to_prometheus(rig):
    from webhook.extender.metrics import LedgerCollector

    await bound(rig, compute=30, annotations=plan(compute=30))
    rig.registry.register(LedgerCollector(rig.cluster.ledger, {"pods": lambda: rig.pods.staleness}))
    value = rig.registry.get_sample_value
    assert value("tessera_node_gpu_memory_units_held", {"node": "n1"}) == 16
    assert value("tessera_node_open", {"node": "n1"}) == 1
    assert value("tessera_gpus_idle") == 1
    assert value("tessera_gpu_compute_percent_held") == 30
    assert value("tessera_extender_cache_staleness_seconds", {"cache": "pods"}) < 10


@pytest.mark.usefixtures("one_node")
async def test_a_pod_that_failed_before_its_containers_ran_frees_at_once(rig):
    await bound(rig, units=64, annotations=plan(units=64), phase="Pending")
    failed = rig.server.get("pods", "p", "default")
    failed["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError"}
    rig.server.put("pods", failed)
    await rig.caught_up()
    assert held(rig) == {1: 0, 2: 0}
    assert await rig.schedule(rig.put_pod("next", units=64)) == "n1"


async def test_foreign_use_is_not_offered(rig, pod, inventory):
    rig.put_node("n1", inventory=inventory(64, held=40), allocatable={NAMES.memory_units: "64"})
    await rig.caught_up()
    assert (await rig.filter(pod("q", units=25), "n1"))["FailedNodes"] == {
        "n1": "needs 25 units (6.25 GiB), best GPU has 24 (6 GiB)"
    }
    assert (await rig.filter(pod("q", units=24), "n1"))["NodeNames"] == ["n1"]
    assert (await rig.filter(pod("q", whole=True), "n1"))["NodeNames"] == []
    rig.put_node("n1", inventory=inventory(64), allocatable={NAMES.memory_units: "64"})
    await rig.caught_up()
    assert (await rig.filter(pod("q", whole=True), "n1"))["NodeNames"] == ["n1"]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"state": "draining"}, "node's agent is draining"), ({"ready": False}, "node is not ready")],
)
async def test_a_node_that_is_leaving_is_not_offered_and_keeps_its_pods(rig, pod, one_node, facts, reason):
    await bound(rig)
    one_node(**facts)
    await rig.caught_up()
    assert (await rig.filter(pod("q", units=1), "n1"))["FailedNodes"] == {"n1": reason}
    assert held(rig) == {1: 16, 2: 0}
    assert reason in await rig.bind(rig.put_pod("q", units=1), "n1")


@pytest.mark.usefixtures("one_node")
async def test_a_gated_pod_is_bound_by_nobody_and_holds_nothing(rig):
    """As Kueue holds pods back."""
    gate = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
    gated = rig.put_pod("gated", units=64, spec=gate)
    await rig.caught_up()
    assert "schedulingGates" in await rig.bind(gated, "n1")
    assert held(rig) == {1: 0, 2: 0}
    del gated["spec"]["schedulingGates"]
    rig.server.put("pods", gated)
    await rig.caught_up()
    assert await rig.schedule(rig.server.get("pods", "gated", "default")) == "n1"


async def test_nothing_is_decided_before_what_was_read_is_in_order(rig, pod):
    """Setting a full cache aside takes the loop a third of a second: nobody should have asked by then."""
    rig.put_node("n1", 64)
    await rig.caught_up()
    seen = []
    running = asyncio.create_task(rig.cluster.run(synced=lambda: seen.append(rig.cluster.problem)))
    await rig.until(lambda: seen)
    assert seen == ["what the first lists hold is being put in order"]
    assert rig.cluster.problem is None
    assert (await rig.filter(pod("p", units=8), "n1"))["NodeNames"] == ["n1"]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
