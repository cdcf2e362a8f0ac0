"""The preemptor: the fewest pods of the lowest priority end, on one node, and what they leave is kept for who waits."""

from __future__ import annotations

import asyncio

import pytest

from tessera.model.config import Config, Preemption
from tessera.model.names import names
from tessera.testing.apiserver import Cut, StatusError, on

NAMES = names()
EVICT = on("create", "pods", subresource="eviction")
NOMINATE = on("patch", "pods", subresource="status")


@pytest.fixture
async def full(rig):
    """Nodes n1 and n2 with two GPUs of 64 units each; a test fills them."""
    for name in ("n1", "n2"):
        rig.put_node(name, 64, 64)
    await rig.caught_up()
    return rig


async def runs(rig, name, node, *, units=64, priority=0, **more):
    """A pod that runs on a node, placed by the extender."""
    made = rig.put_pod(name, units=units, spec={"priority": priority, "terminationGracePeriodSeconds": 30}, **more)
    assert await rig.bind(made, node) == ""
    made = rig.server.get("pods", name, "default")
    made["status"]["phase"] = "Running"
    rig.server.put("pods", made)
    await rig.caught_up()


async def fill(rig):
    for name, node in (("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")):
        await runs(rig, name, node)


async def one_full(rig):
    rig.put_node("n1", 64)
    await rig.caught_up()
    await runs(rig, "a", "n1")


async def waits(rig, name="high", *, units=64, priority=100, nodes=(), **more):
    """A pod that was rejected."""
    more["spec"] = {"priority": priority, **more.get("spec", {})}
    made = rig.put_pod(name, units=units, **more)
    await rig.caught_up()
    assert (await rig.filter(made, *nodes))["NodeNames"] == []
    return made


def going(rig):
    return sorted(p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp"))


def nominated(rig, name="high"):
    return rig.server.get("pods", name, "default")["status"].get("nominatedNodeName")


async def sweep(rig):
    await rig.soon(rig.preemptor.sweep())
    await rig.caught_up()


async def gone(rig, name):
    """The kubelet has ended a pod."""
    made = rig.server.get("pods", name, "default")
    made["status"]["phase"] = "Succeeded"
    rig.server.put("pods", made)
    rig.server.remove("pods", name, "default")
    await rig.caught_up()


async def test_two_half_full_gpus_are_not_one_whole_gpu(rig, pod):
    """Sums would do (kube-scheduler sees no lack); one GPU is freed, and no small pod steals it."""
    rig.put_node("n1", 64, 64)
    await rig.caught_up()
    for name in ("a", "b"):
        await runs(rig, name, "n1", units=40)
    high = await waits(rig, whole=True, units=None)
    await sweep(rig)
    (victim,) = going(rig)
    assert nominated(rig) == "n1"
    assert (await rig.filter(pod("thief", units=30), "n1"))["NodeNames"] == []
    await gone(rig, victim)
    assert (await rig.filter(pod("thief", units=30), "n1"))["FailedNodes"] == {
        "n1": "its room is kept for a pod of priority 100"
    }
    assert (await rig.filter(pod("small", units=24), "n1"))["NodeNames"] == ["n1"], "beside it there is room"
    await rig.clock.advance(1)
    assert await rig.schedule(high) == "n1"
    await rig.caught_up()
    assert rig.cluster.keeper.promised("uid-high") is None


async def test_the_lowest_priority_goes(full):
    for name, node, priority in (("a", "n1", 5), ("b", "n1", 3), ("c", "n2", 4), ("d", "n2", 4)):
        await runs(full, name, node, priority=priority)
    await waits(full)
    await sweep(full)
    assert going(full) == ["b"]
    assert nominated(full) == "n1"
    assert full.events.of("b") == ["Preempted"]
    assert full.events.of("high") == ["Preempting"]


async def test_the_fewest_go(full):
    for name in ("a", "b", "c", "d"):
        await runs(full, name, "n1", units=32)
    await runs(full, "e", "n2")
    await runs(full, "f", "n2", priority=7)
    await waits(full)
    await sweep(full)
    assert going(full) == ["e"]


async def test_no_more_go_than_needed(rig):
    rig.put_node("n1", 64, first=1)
    await rig.caught_up()
    for name, units in (("a", 10), ("b", 10), ("c", 20), ("d", 24)):
        await runs(rig, name, "n1", units=units)
    await waits(rig, units=20)
    await sweep(rig)
    assert going(rig) in (["c"], ["d"])


async def test_nobody_goes_in_vain(full):
    for number, name in enumerate("abcd"):
        await runs(full, name, f"n{number % 2 + 1}", units=33)
    await waits(full, units=32, gpus=5)
    await waits(full, "too-large", units=99)
    await sweep(full)
    assert (going(full), nominated(full)) == ([], None)


@pytest.mark.parametrize(
    ("why", "victim", "waiting"),
    [
        ("equal priority", {"priority": 100}, {}),
        ("higher priority", {"priority": 101}, {}),
        ("it never preempts", {}, {"spec": {"preemptionPolicy": "Never"}}),
        ("a mirror pod", {"annotations": {"kubernetes.io/config.mirror": "x"}}, {}),
        ("a critical pod", {"priority": 2_000_000_000}, {"priority": 2_000_001_000}),
    ],
)
async def test_who_is_never_a_victim(rig, why, victim, waiting):
    rig.put_node("n1", 64)
    await rig.caught_up()
    await runs(rig, "a", "n1", **victim)
    await waits(rig, **waiting)
    await sweep(rig)
    assert going(rig) == [], why


async def test_a_pod_of_a_daemonset_is_never_a_victim(rig):
    await one_full(rig)
    made = rig.server.get("pods", "a", "default")
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": True}
    ]
    rig.server.put("pods", made)
    await rig.caught_up()
    await waits(rig)
    await sweep(rig)
    assert going(rig) == []


async def test_only_nodes_that_the_scheduler_let_through(full):
    for name, node in (("a", "n1"), ("b", "n1"), ("c", "n2"), ("d", "n2")):
        await runs(full, name, node, priority=1 if node == "n2" else 0)
    await waits(full, nodes=("n2",))
    await sweep(full)
    assert len(going(full)) == 1
    assert nominated(full) == "n2"


async def test_who_is_going_already_counts_as_gone(full):
    await fill(full)
    await full.client.evict("d", namespace="default")
    await full.caught_up()
    await waits(full)
    await sweep(full)
    assert (going(full), nominated(full)) == (["d"], "n2")
    assert full.events.of("high") == []


async def test_two_that_wait_do_not_count_on_one_slice(full):
    await fill(full)
    await waits(full)
    await waits(full, "second")
    await sweep(full)
    await sweep(full)
    assert len(going(full)) == 2
    assert (nominated(full), nominated(full, "second")) == ("n1", "n1")


async def test_who_leads_not_ends_nobody(full, new_rig):
    await fill(full)
    other = await new_rig()
    other.leads = False
    high = await waits(full)
    assert (await other.filter(high))["NodeNames"] == []
    await sweep(other)
    assert going(full) == []
    await sweep(full)
    await other.caught_up()
    other.leads, full.leads = True, False
    await sweep(other)
    await sweep(full)
    assert len(going(full)) == 1, "the new leader reads from the objects what the old one did"


async def test_who_stops_leading_in_the_middle_stops(rig):
    rig.put_node("n1", 64)
    await rig.caught_up()
    for name in ("a", "b"):
        await runs(rig, name, "n1", units=32)
    await waits(rig)
    evict = rig.client.evict

    async def last(name, **more):
        await evict(name, **more)
        rig.leads = more.get("dry_run", False)

    rig.client.evict = last
    await sweep(rig)
    assert going(rig) == ["a"]
    assert rig.cluster.keeper.promised("uid-high") is None


async def test_a_restart_in_the_middle_goes_on(full, new_rig):
    await fill(full)
    full.server.faults.add(NOMINATE, StatusError(500, "InternalError", "no"))
    high = await waits(full)
    await sweep(full)
    (victim,) = going(full)
    again = await new_rig()
    assert (await again.filter(high))["NodeNames"] == []
    await sweep(again)
    assert going(full) == [victim]
    assert nominated(full) == "n1"


async def budget(rig, name, allowed):
    rig.server.put(
        "poddisruptionbudgets",
        {
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": name}}},
            "status": {"disruptionsAllowed": allowed},
        },
    )


async def test_a_budget_is_honoured_by_taking_another(full):
    await budget(full, "guarded", 0)
    await runs(full, "a", "n1", labels={"app": "guarded"})
    await runs(full, "b", "n1", priority=5)
    await runs(full, "c", "n2", priority=9)
    await runs(full, "d", "n2", priority=9)
    await waits(full)
    await sweep(full)
    assert going(full) == ["b"]
    assert full.events.of("high") == ["PreemptionRefused", "Preempting"]


async def test_where_budgets_leave_nobody_it_is_tried_again_later(rig, clock):
    rig.put_node("n1", 64)
    await rig.caught_up()
    await budget(rig, "guarded", 0)
    await runs(rig, "a", "n1", labels={"app": "guarded"})
    await waits(rig)
    await sweep(rig)
    tries = sum(EVICT(each.seen) for each in rig.server.requests)
    await sweep(rig)
    assert sum(EVICT(each.seen) for each in rig.server.requests) == tries, "not at once"
    assert (going(rig), rig.cluster.keeper.promised("uid-high")) == ([], None)
    await budget(rig, "guarded", 1)
    await clock.advance(61)
    await sweep(rig)
    assert going(rig) == ["a"]


async def test_of_several_nobody_goes_where_the_last_budget_says_no(rig):
    rig.put_node("n1", 64)
    await rig.caught_up()
    await budget(rig, "guarded", 0)
    await runs(rig, "a", "n1", units=32)
    await runs(rig, "b", "n1", units=32, labels={"app": "guarded"})
    await waits(rig)
    await sweep(rig)
    assert going(rig) == []


async def test_a_victim_that_went_by_itself_is_no_fault(rig):
    await one_full(rig)
    await waits(rig)
    rig.server.faults.add(EVICT, StatusError(404, "NotFound", "gone"))
    await sweep(rig)
    assert nominated(rig) == "n1"


@pytest.mark.parametrize(
    "fault", [StatusError(500, "InternalError", "no"), StatusError(403, "Forbidden", "no"), Cut.BEFORE]
)
async def test_where_the_server_fails_it_is_tried_again(rig, clock, fault):
    await one_full(rig)
    await waits(rig)
    rig.server.faults.add(EVICT, fault)
    await sweep(rig)
    assert (going(rig), rig.cluster.keeper.promised("uid-high")) == ([], None)
    await clock.advance(11)
    await sweep(rig)
    assert (going(rig), nominated(rig)) == (["a"], "n1")


async def test_an_eviction_whose_answer_was_lost_is_not_repeated(full, clock):
    await fill(full)
    await waits(full)
    full.server.faults.add(EVICT, Cut.AFTER)
    await sweep(full)
    await clock.advance(11)
    await sweep(full)
    assert len(going(full)) == 1
    assert nominated(full) == "n1"


async def test_a_nomination_that_was_cleared_is_written_again_but_not_for_ever(full, clock):
    await fill(full)
    high = await waits(full)
    await sweep(full)
    made = full.server.get("pods", "high", "default")
    del made["status"]["nominatedNodeName"]
    full.server.put("pods", made)
    await full.caught_up()
    assert (await full.filter(high))["NodeNames"] == []
    await sweep(full)
    assert nominated(full) is None, "not at once"
    await clock.advance(11)
    await sweep(full)
    assert nominated(full) == "n1"
    await clock.advance(60)
    full.cluster.tick()
    assert full.cluster.keeper.promised("uid-high") is None


async def test_a_long_grace_outlasts_the_promise_and_is_waited_for(full, clock):
    await fill(full)
    await waits(full)
    await sweep(full)
    first = going(full)
    await clock.advance(61)
    full.cluster.tick()
    await sweep(full)
    assert going(full) == first
    assert full.cluster.keeper.promised("uid-high").node == "n1"


async def test_the_pace_is_bounded(rig, clock):
    rig.config = Config(preemption=Preemption(per_minute=6, burst=2))
    rig.put_node("n1", 64, 64, 64, 64)
    await rig.caught_up()
    for name in "abcd":
        await runs(rig, name, "n1")
    for number in range(4):
        await waits(rig, f"high-{number}")
    await sweep(rig)
    assert len(going(rig)) == 2
    await clock.advance(10)
    await sweep(rig)
    assert len(going(rig)) == 3


async def test_it_can_be_switched_off(rig):
    rig.config = Config(preemption=Preemption(enabled=False))
    await one_full(rig)
    await waits(rig)
    await sweep(rig)
    assert going(rig) == []


async def test_who_does_not_wait_any_more_ends_nobody(full):
    await fill(full)
    await waits(full)
    full.server.remove("pods", "high", "default")
    await full.caught_up()
    await sweep(full)
    assert going(full) == []


async def test_the_most_important_comes_first(rig):
    await one_full(rig)
    await waits(rig, "middle", priority=50)
    await waits(rig, "high")
    await sweep(rig)
    assert (nominated(rig), nominated(rig, "middle")) == ("n1", None)


async def test_several_gpus_links_and_instances_are_freed_too(rig):
    rig.put_node("n1", 64, 64, 64)
    rig.put_node("n2", 64, mig=("1g.10gb", "1g.10gb"))
    await rig.caught_up()
    for name in "abc":
        await runs(rig, name, "n1", units=40)
    for name in ("m", "n"):
        await runs(rig, name, "n2", units=None, mig="1g.10gb")
    await waits(rig, "pair", units=None, whole=True, gpus=2)
    await waits(rig, "instance", units=None, mig="1g.10gb")
    await sweep(rig)
    assert sum(name in "abc" for name in going(rig)) == 2
    assert sum(name in "mn" for name in going(rig)) == 1


async def test_a_fault_of_ours_is_said_and_ends_nothing(rig, clock, caplog):
    await one_full(rig)
    await waits(rig)
    best, faults = rig.preemptor._candidates.best, [RuntimeError("ours")]

    async def faulty(pod):
        if faults:
            raise faults.pop()
        return await best(pod)

    rig.preemptor._candidates.best = faulty
    task = asyncio.create_task(rig.preemptor.run())
    await clock.turn()
    await clock.advance(2)
    await rig.until(lambda: going(rig) == ["a"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "it is tried again" in caplog.text
