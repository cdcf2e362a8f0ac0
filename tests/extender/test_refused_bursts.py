"""A node agent is killed in a burst: few pods are refused, the rest wait or go elsewhere, and all run once it is back."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from tessera.model.config import Config, Placement
from tessera.model.names import names

NAMES = names()
AWAY = (
    "Pod was rejected: Allocate failed due to no healthy devices present; cannot allocate unhealthy devices "
    f"{NAMES.memory_units}, which is unexpected"
)
REFUSES = "node's kubelet refused pods (its agent's log says why), "
STEP = 0.25


class Burst:
    """Deployments, a kube-scheduler that retries only who is woken, and kubelets that answer a step after the Binding."""

    def __init__(self, rig, clock):
        self.rig, self.clock = rig, clock
        self.dead = set()
        self.queue, self.unschedulable = deque(), []
        self.bound, self.refused, self.running = [], [], []
        self.made, self.counters = 0, {}

    def make(self, space="default", *, owner="rs"):
        self.made += 1
        pod = self.rig.put_pod(f"p{self.made}", units=1)
        self.rig.server.remove("pods", pod["metadata"]["name"], "default")
        pod["metadata"]["namespace"] = space
        pod["metadata"]["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}
        ]
        self.rig.server.put("pods", pod)
        self.queue.append((space, pod["metadata"]["name"]))

    async def step(self, *, most=10):
        """A quarter of a second: so many pods are scheduled, kubelets answer for those of the step before."""
        answered, self.bound = self.bound, []
        self.woken()
        await self.rig.caught_up()
        for _ in range(min(most, len(self.queue))):
            space, name = self.queue.popleft()
            pod = self.rig.server.get("pods", name, space)
            chosen = (await self.rig.filter(pod))["NodeNames"]
            if not chosen or await self.rig.bind(pod, chosen[0]):
                self.unschedulable.append((space, name))
            else:
                self.bound.append((space, name))
        for space, name in answered:
            self.answer(space, name)
        await self.rig.caught_up()
        await self.clock.advance(STEP, step=STEP)
        self.rig.cluster.tick()
        await self.clock.turn()
        for _ in range(3):
            await asyncio.sleep(0.002)
        await self.rig.caught_up()

    def answer(self, space, name):
        pod = self.rig.server.get("pods", name, space)
        if pod["spec"]["nodeName"] in self.dead:
            pod["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": AWAY}
            self.refused.append(name)
            self.make(space)
        else:
            pod["status"] = {"phase": "Pending", "containerStatuses": [{"name": "main"}]}
            self.running.append((name, pod["spec"]["nodeName"]))
        self.rig.server.put("pods", pod)

    def woken(self):
        """kube-scheduler sees an annotation change and tries again who was unschedulable."""
        now = {
            node["metadata"]["name"]: node["metadata"]["annotations"].get(NAMES.wake)
            for node in self.rig.server.objects("nodes")
        }
        if now != self.counters:
            self.counters = now
            self.queue.extend(self.unschedulable)
            self.unschedulable.clear()

    async def go(self, seconds):
        for _ in range(int(seconds / STEP)):
            await self.step()


@pytest.fixture
async def burst(rig, clock):
    rig.put_node("n1", 64, 64)
    await rig.caught_up()
    task = asyncio.create_task(rig.waker.run())
    yield Burst(rig, clock)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_storm_is_bounded_and_all_run_when_the_agent_is_back(burst, rig):
    for _ in range(40):
        burst.make()
    burst.dead = {"n1"}
    await burst.go(12)
    at_first = 20  # bound before the first of them was answered for
    assert at_first <= len(burst.refused) <= at_first + 3
    assert burst.running == []
    burst.dead = set()
    await burst.go(15)
    assert len(burst.running) == 40
    assert len(burst.refused) <= at_first + 3
    value = rig.registry.get_sample_value
    assert value("tessera_extender_pods_refused_total", {"cause": "node"}) == len(burst.refused)
    assert value("tessera_extender_nodes_refusing") == 0
    assert value("tessera_extender_node_rejections_total", {"reason": "refusing"}) > 0


async def test_with_another_node_nobody_waits(burst, rig):
    rig.put_node("n2", 64, 64)
    await rig.caught_up()
    burst.dead = {"n1"}
    for _ in range(40):
        burst.make()
    await burst.go(6)
    assert {node for _, node in burst.running} == {"n2"}
    assert len(burst.running) == 40
    assert len(burst.refused) <= 22


async def test_many_namespaces_are_bounded_too(burst):
    for number in range(40):
        burst.make(f"space-{number % 20}")
    burst.dead = {"n1"}
    await burst.go(12)
    once = len(burst.refused)
    assert once <= 20 + 2 * 20, "those at first, and each namespace at most twice"
    burst.dead = set()
    await burst.go(20)
    assert len(burst.running) == 40


async def refuse(rig, pod):
    """Bind a pod to n1, whose kubelet refuses it."""
    assert await rig.bind(pod, "n1") == ""
    made = rig.server.get("pods", pod["metadata"]["name"], "default")
    made["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": AWAY}
    rig.server.put("pods", made)
    await rig.caught_up()


@pytest.fixture
async def refusing(rig):
    """n1 has just refused a pod; n2 is smaller."""
    rig.put_node("n1", 64, first=1)
    rig.put_node("n2", 8)
    await rig.caught_up()
    await refuse(rig, rig.put_pod("first", units=32))
    return rig


async def test_the_filter_says_why(refusing, pod, clock, caplog):
    answer = await refusing.filter(pod("p", units=32))
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"] == {"n1": REFUSES + "is tried again within 2 s"}
    assert (await refusing.filter(pod("small", units=4)))["NodeNames"] == ["n2"], "though n1 packs better"
    assert [each.levelname for each in caplog.get_records("setup") if "kubelet refused 1 pod " in each.message] == [
        "WARNING"
    ]
    clock.now += 2
    assert (await refusing.filter(pod("p", units=32)))["NodeNames"] == ["n1"]


@pytest.mark.usefixtures("refusing")
async def test_an_extender_that_starts_anew_starts_open(new_rig, pod):
    again = await new_rig()
    assert (await again.filter(pod("p", units=32)))["NodeNames"] == ["n1"]


async def test_a_bind_that_was_decided_before_is_refused(refusing, clock):
    late = refusing.put_pod("late", units=32)
    await refusing.caught_up()
    assert REFUSES in await refusing.bind(late, "n1")
    assert refusing.cluster.ledger.booked("uid-late") is None
    clock.now += 2
    assert await refusing.bind(late, "n1") == ""
    assert "one pod is tried" in await refusing.bind(refusing.put_pod("next", units=8), "n1")
    assert await refusing.bind(late, "n1") == "", "repeated"


async def test_a_bind_that_failed_makes_room_for_the_next_to_be_tried(refusing, clock):
    clock.now += 2
    gated = refusing.put_pod("gated", units=8, spec={"schedulingGates": [{"name": "x"}]})
    await refusing.caught_up()
    assert "schedulingGates" in await refusing.bind(gated, "n1")
    assert await refusing.bind(refusing.put_pod("next", units=8), "n1") == ""


async def test_a_nominated_pod_waits_too_and_goes_elsewhere_if_it_can(refusing, pod):
    high = pod("high", units=8, spec={"priority": 100})
    high["status"]["nominatedNodeName"] = "n1"
    assert (await refusing.filter(high, "n1"))["FailedNodes"] == {"n1": REFUSES + "is tried again within 2 s"}
    assert (await refusing.filter(high))["NodeNames"] == ["n2"]


async def test_where_kube_scheduler_chooses_it_is_not_offered(new_rig, pod, clock):
    rig = await new_rig(config=Config(placement=Placement(answer="all")))
    for name in ("n1", "n2"):
        rig.put_node(name, 64)
    await rig.caught_up()
    await refuse(rig, rig.put_pod("first", units=32))
    answer = await rig.filter(pod("p", units=32))
    assert (answer["NodeNames"], answer["FailedNodes"]) == (["n2"], {"n1": REFUSES + "is tried again within 2 s"})
    clock.now += 2
    assert (await rig.filter(pod("p", units=32)))["NodeNames"] == ["n1", "n2"]


async def test_pods_without_a_gpu_are_not_kept_away(refusing, pod):
    assert (await refusing.filter(pod("plain")))["NodeNames"] == ["n1", "n2"]


async def test_an_agent_that_came_back_by_the_kubelets_own_words_is_believed(refusing, pod, inventory):
    text = inventory(64, first=1)
    for amount in ("0", "64"):
        refusing.put_node("n1", inventory=text, allocatable=dict.fromkeys(NAMES.tickets, amount))
        await refusing.caught_up()
    assert (await refusing.filter(pod("p", units=32)))["NodeNames"] == ["n1"]


async def test_a_node_made_anew_is_another(refusing, pod):
    refusing.server.remove("nodes", "n1")
    await refusing.caught_up()
    refusing.put_node("n1", 64)
    await refusing.caught_up()
    assert (await refusing.filter(pod("p", units=32)))["NodeNames"] == ["n1"]


async def test_forged_plans_close_nothing(rig, pod):
    rig.put_node("n1", 64)
    await rig.caught_up()
    plan = {NAMES.plan: '{"v":1,"node":"n1","guarantee":{},"containers":{"main":[]}}'}
    for number in range(20):
        rig.put_pod(f"forged-{number}", units=1, node="n1", annotations=plan)
        await rig.caught_up()
        made = rig.server.get("pods", f"forged-{number}", "default")
        made["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": AWAY}
        rig.server.put("pods", made)
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=32)))["NodeNames"] == ["n1"]


@pytest.fixture
async def low_elsewhere(rig):
    """n1 is empty and has just refused a pod; n2 is full of a pod that anybody important could end."""
    rig.put_node("n1", 64, first=1)
    rig.put_node("n2", 64)
    await rig.caught_up()
    low = rig.put_pod("low", units=64)
    assert await rig.bind(low, "n2") == ""
    await refuse(rig, rig.put_pod("first", units=32))
    return rig


def ending(rig):
    return [p["metadata"]["name"] for p in rig.server.objects("pods") if p["metadata"].get("deletionTimestamp")]


async def look_for_victims(rig):
    await rig.soon(rig.preemptor.sweep())
    await rig.caught_up()


async def waits(rig, name, *, space="default", units=64):
    pod = rig.put_pod(name, units=units, spec={"priority": 100})
    if space != "default":
        rig.server.remove("pods", name, "default")
        pod["metadata"]["namespace"] = space
        rig.server.put("pods", pod)
    await rig.caught_up()
    assert (await rig.filter(pod))["NodeNames"] == []


async def test_nobody_is_ended_for_a_node_that_refuses(refusing):
    await runs_on(refusing, "n1", "a", space="other")
    await waits(refusing, "high")
    await look_for_victims(refusing)
    assert ending(refusing) == []


async def runs_on(rig, node, name, *, space):
    pod = rig.put_pod(name, units=40)
    rig.server.remove("pods", name, "default")
    pod["metadata"]["namespace"] = space
    rig.server.put("pods", pod)
    await rig.caught_up()
    assert await rig.bind(pod, node) == ""
    await rig.caught_up()


async def test_nobody_is_ended_for_who_need_only_wait_seconds(low_elsewhere, clock):
    await waits(low_elsewhere, "high")
    await look_for_victims(low_elsewhere)
    assert ending(low_elsewhere) == []
    for number in range(3):
        clock.now += 10
        await refuse(low_elsewhere, low_elsewhere.put_pod(f"again-{number}", units=32))
    await look_for_victims(low_elsewhere)
    assert ending(low_elsewhere) == ["low"], "it has refused for too long to be waited for"


async def test_others_of_its_kind_are_helped_all_the_same(refusing):
    await runs_on(refusing, "n1", "low", space="other")
    await waits(refusing, "high", units=40)
    await look_for_victims(refusing)
    await waits(refusing, "high-2", space="third", units=40)
    await look_for_victims(refusing)
    assert ending(refusing) == ["low"]


async def test_a_node_that_says_itself_that_it_is_away_is_not_waited_for(low_elsewhere, inventory):
    text = inventory(64, first=1)
    low_elsewhere.put_node("n1", inventory=text, allocatable=dict.fromkeys(NAMES.tickets, "0"))
    await low_elsewhere.caught_up()
    await waits(low_elsewhere, "high")
    await look_for_victims(low_elsewhere)
    assert ending(low_elsewhere) == ["low"]


async def test_kube_schedulers_own_victims_are_struck_where_the_node_refuses(refusing):
    await runs_on(refusing, "n1", "low", space="other")
    high = refusing.put_pod("high", units=64, spec={"priority": 100})
    await refusing.caught_up()
    proposed = {"n1": {"Pods": [{"UID": "uid-low"}], "NumPDBViolations": 0}}
    answer = await refusing.post("/preempt", {"Pod": high, "NodeNameToMetaVictims": proposed})
    assert answer == {"NodeNameToMetaVictims": {}}
