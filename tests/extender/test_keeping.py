"""Room on a node that a pod was promised is kept against lower priorities, at filter and at bind, and no longer than that."""

from __future__ import annotations

from email.utils import formatdate

import msgspec
import pytest

from tessera.kube.clock import rfc3339
from tessera.kube.servertime import ServerClock
from tessera.model.names import names
from tessera.model.pod import Pod
from tessera.placement.ledger import Ledger
from webhook.extender.keeping import OVERDUE, Keeper

NAMES = names()
HIGH = {"priority": 100}


@pytest.fixture
async def promised(rig):
    """Two nodes of one GPU with 64 units; ``important`` (priority 100) wants 48 of them and was promised n1."""
    rig.put_node("n1", 64)
    rig.put_node("n2", 64)
    nominate(rig, "important", "n1")
    await rig.caught_up()
    return rig


def nominate(rig, name, node, *, units=48, priority=100, **more):
    made = rig.server.get("pods", name, "default") or rig.put_pod(
        name, units=units, spec={"priority": priority}, **more
    )
    made["status"]["nominatedNodeName"] = node
    return rig.server.put("pods", made)


async def takes(rig, pod, *nodes):
    """Where the pod would go, and the reasons."""
    answer = await rig.filter(pod, *nodes)
    return answer["NodeNames"], answer["FailedNodes"]


async def test_a_lower_priority_gets_only_what_is_left_beside(promised, pod):
    assert await takes(promised, pod("small", units=16), "n1") == (["n1"], {})
    assert await takes(promised, pod("larger", units=17), "n1") == (
        [],
        {"n1": "its room is kept for a pod of priority 100"},
    )
    assert await takes(promised, pod("larger", units=17)) == (["n2"], {})


async def test_equal_and_higher_priorities_are_not_held_back(promised, pod):
    for priority in (100, 101):
        assert await takes(promised, pod("other", units=64, spec={"priority": priority}), "n1") == (["n1"], {})


async def test_who_was_promised_gets_it(promised):
    important = promised.server.get("pods", "important", "default")
    assert await takes(promised, important, "n1") == (["n1"], {})
    assert await promised.bind(important, "n1") == ""


async def test_bind_keeps_it_too(promised):
    larger = promised.put_pod("larger", units=17)
    error = await promised.bind(larger, "n1")
    assert "room is kept for a pod of priority 100" in error
    assert await promised.bind(promised.put_pod("small", units=16), "n1") == ""


@pytest.mark.usefixtures("promised")
async def test_a_restart_reads_it_from_the_pods(new_rig, pod):
    again = await new_rig()
    assert (await takes(again, pod("larger", units=17), "n1"))[0] == []


async def test_what_is_free_for_others_is_free_again_once_it_is_bound(promised, pod):
    important = promised.server.get("pods", "important", "default")
    assert await promised.bind(important, "n2") == ""
    assert await takes(promised, pod("larger", units=64), "n1") == (["n1"], {})


@pytest.mark.parametrize("how", ["gone", "ended", "being deleted", "promised another", "promised nothing"])
async def test_a_promise_ends(promised, pod, how):
    made = promised.server.get("pods", "important", "default")
    if how == "gone":
        promised.server.remove("pods", "important", "default")
    elif how == "promised another":
        nominate(promised, "important", "n2")
    else:
        if how == "ended":
            made["status"]["phase"] = "Failed"
        elif how == "being deleted":
            made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        else:
            del made["status"]["nominatedNodeName"]
        promised.server.put("pods", made)
    await promised.caught_up()
    assert (await takes(promised, pod("larger", units=17), "n1"))[0] == ["n1"]
    if how == "promised another":
        assert (await takes(promised, pod("larger", units=17), "n2"))[0] == []


async def test_a_promise_lasts_a_minute(promised, clock, pod):
    await clock.advance(59)
    promised.cluster.tick()
    assert (await takes(promised, pod("larger", units=17), "n1"))[0] == []
    await clock.advance(2)
    promised.cluster.tick()
    assert (await takes(promised, pod("larger", units=17), "n1"))[0] == ["n1"]
    touched = promised.server.get("pods", "important", "default")
    touched["metadata"]["labels"] = {"seen": "again"}
    promised.server.put("pods", touched)
    await promised.caught_up()
    assert (await takes(promised, pod("larger", units=17), "n1"))[0] == ["n1"], (
        "the same promise begins no second minute"
    )


async def test_what_is_ending_does_not_count_twice(promised, pod):
    """48 held by who is ending and 48 kept for who comes next: the 16 beside them are free now and later."""
    victim = promised.put_pod("victim", units=48, node="n1", phase="Running")
    victim["metadata"]["deletionTimestamp"] = "2999-01-01T00:00:00Z"
    promised.server.put("pods", victim)
    await promised.caught_up()
    assert (await takes(promised, pod("small", units=16), "n1"))[0] == ["n1"]
    assert (await takes(promised, pod("small", units=17), "n1"))[0] == []
    ended = promised.server.get("pods", "victim", "default")
    ended["status"]["phase"] = "Succeeded"
    promised.server.put("pods", ended)
    await promised.caught_up()
    assert (await takes(promised, pod("small", units=17), "n1"))[0] == []
    assert await takes(promised, promised.server.get("pods", "important", "default"), "n1") == (["n1"], {})


async def test_what_is_ending_for_ever_is_not_believed_to_end(promised, pod):
    victim = promised.put_pod("victim", units=48, node="n1", phase="Running")
    victim["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z"
    promised.server.put("pods", victim)
    await promised.caught_up()
    assert (await takes(promised, pod("small", units=16), "n1"))[0] == ["n1"]


@pytest.mark.parametrize("wrong", [86_400.0, -86_400.0, 315_360_000.0, -315_360_000.0])
def test_who_is_ending_is_told_by_the_clock_of_the_api_server_that_set_the_deadline(clock, monkeypatch, wrong):
    true = clock.wall()
    monkeypatch.setattr(clock, "wall", lambda: true + wrong)
    time = ServerClock(clock)
    time.heard(formatdate(true, usegmt=True))
    keeper = Keeper(Ledger(), names=NAMES, clock=time)
    metadata = {"name": "p", "namespace": "n", "uid": "u", "deletionTimestamp": rfc3339(true + 30)}
    keeper.pod_seen(msgspec.convert({"metadata": metadata, "spec": {"nodeName": "n1"}}, Pod))
    assert keeper.going("n1") == {"u"}
    clock.now += 30 + OVERDUE - 5
    assert keeper.going("n1") == {"u"}
    clock.now += 10
    assert keeper.going("n1") == set()


async def test_what_has_no_room_anyway_keeps_nothing(rig, pod):
    rig.put_node("n1", 64)
    rig.put_pod("holder", units=32, node="n1", phase="Running", spec={"priority": 200})
    nominate(rig, "important", "n1")
    await rig.caught_up()
    assert (await takes(rig, pod("small", units=32), "n1"))[0] == ["n1"]


async def test_several_promises_on_one_node_are_all_kept(rig, pod):
    rig.put_node("n1", 64, 64)
    nominate(rig, "one", "n1", units=60)
    nominate(rig, "two", "n1", units=60, priority=50)
    await rig.caught_up()
    assert (await takes(rig, pod("small", units=5), "n1"))[0] == []
    assert (await takes(rig, pod("middle", units=60, spec={"priority": 50}), "n1"))[0] == ["n1"]
    assert (await takes(rig, pod("middle", units=60, spec={"priority": 51}), "n1"))[0] == ["n1"]
    assert (await takes(rig, pod("middle", units=60, gpus=2, spec={"priority": 51}), "n1"))[0] == []


async def test_instances_are_kept_as_slices_are(rig, pod):
    rig.put_node("n1", 64, mig=("1g.10gb", "1g.10gb"))
    made = rig.put_pod("important", mig="1g.10gb", spec=HIGH)
    made["status"]["nominatedNodeName"] = "n1"
    rig.server.put("pods", made)
    await rig.caught_up()
    assert (await takes(rig, pod("one", mig="1g.10gb"), "n1"))[0] == ["n1"]
    assert (await takes(rig, pod("both", mig="1g.10gb", gpus=2), "n1"))[0] == []


async def test_a_pod_that_asks_nothing_or_nonsense_is_promised_nothing(rig, pod):
    rig.put_node("n1", 64)
    for name, more in (("plain", {}), ("odd", {"units": 1, "annotations": {NAMES.guarantee: "iron"}})):
        made = rig.put_pod(name, spec=HIGH, **more)
        made["status"]["nominatedNodeName"] = "n1"
        rig.server.put("pods", made)
    await rig.caught_up()
    assert (await takes(rig, pod("all", units=64), "n1"))[0] == ["n1"]


async def test_where_kube_scheduler_chooses_it_is_kept_too(promised, pod):
    from tessera.model.config import Config, Placement

    promised.config = Config(placement=Placement(answer="all"))
    names_, reasons = await takes(promised, pod("larger", units=17))
    assert (names_, set(reasons)) == (["n2"], {"n1"})
