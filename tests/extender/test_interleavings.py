"""Whatever happens in whichever order: no GPU is ever overfull, and in the end the ledger is what counting anew gives.

Filters, binds (that succeed, are refused, or whose answer is lost, arriving at once, late or never), ends, deletions,
nodes that come and go, agents that restart, a watch that lags and one that has to list anew, and time. Filter, binder and
cluster are the real ones; the API server is a dict, whose changes reach the cache when the machine says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from prometheus_client import CollectorRegistry

from tessera.kube.changes import Added, Deleted, Modified
from tessera.kube.errors import AnswerLostError, ConflictError, InvalidError, NotFoundError
from tessera.model import plan as plans
from tessera.model.config import Config
from tessera.model.inventory import Gpu, Inventory, encode
from tessera.model.names import names
from tessera.model.node import Node
from tessera.model.quantity import MIB
from webhook.extender.bind import Binder
from webhook.extender.cluster import VANISHED, Cluster
from webhook.extender.filter import Filter
from webhook.extender.metrics import Metrics
from webhook.extender.wire import BindArgs, FilterArgs, SchedulingPod

NAMES = names()
UNITS, GPUS = 64, 1
NODES = ("n1", "n2")
REFUSED = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": NAMES.memory_units}
LATE = 30.0  # seconds within which a write whose answer was lost may still arrive


class Clock:
    def __init__(self):
        self.now = 1000.0
        self.sleepers = []

    def monotonic(self):
        return self.now

    def wall(self):
        return 1_700_000_000.0 + self.now

    async def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        self.sleepers.append((self.now + seconds, future))
        await future

    def wake(self):
        due = [each for each in self.sleepers if each[0] <= self.now]
        self.sleepers = [each for each in self.sleepers if each[0] > self.now]
        for _, future in due:
            if not future.done():
                future.set_result(None)


class Cache:
    """What a watch cache shows: the truth of some time ago."""

    def __init__(self):
        self.objects = {}
        self.late = []
        self.callback = None
        self.synced = asyncio.Event()
        self.synced.set()
        self.staleness = 0.0

    def get(self, name, namespace=""):
        return self.objects.get((namespace, name))

    def by_uid(self, uid):
        return next((each for each in self.objects.values() if each.metadata.uid == uid), None)

    def __iter__(self):
        return iter(list(self.objects.values()))

    def changed(self, key, new):
        """The truth has changed; `new` is None where the object is gone."""
        self.late.append((key, new))

    def deliver(self):
        key, new = self.late.pop(0)
        self._take(key, new, seen_final=True)

    def relist(self, truth):
        """History was forgotten: only what is there now is seen."""
        self.late.clear()
        for key in [each for each in self.objects if each not in truth]:
            self._take(key, None, seen_final=False)
        for key, new in truth.items():
            self._take(key, new, seen_final=False)

    def _take(self, key, new, *, seen_final):
        old = self.objects.get(key)
        if new is None or (old is not None and old.metadata.uid != new.metadata.uid):
            if old is None:
                return
            del self.objects[key]
            self.callback(Deleted(old, old, seen_final))
            old = None
        if new is not None and new is not old:
            self.objects[key] = new
            self.callback(Added(new) if old is None else Modified(old, new))


@dataclass
class Write:
    key: tuple
    uid: str
    node: str
    annotations: dict
    answer: asyncio.Future
    since: float = 0.0


@dataclass
class Server:
    """The truth."""

    pods: dict = field(default_factory=dict)
    nodes: dict = field(default_factory=dict)
    ghosts: dict = field(default_factory=dict)
    writes: list = field(default_factory=list)
    lost: list = field(default_factory=list)

    def bind(self, write):
        pod = self.pods.get(write.key)
        if pod is None:
            raise NotFoundError("bind", status=404)
        if pod.metadata.uid != write.uid or pod.spec.node_name:
            raise ConflictError("bind", status=409)
        meta = msgspec.structs.replace(pod.metadata, annotations=write.annotations)
        spec = msgspec.structs.replace(pod.spec, node_name=write.node)
        return msgspec.structs.replace(pod, metadata=meta, spec=spec)


def make_pod(name, uid, units, compute, priority=0):
    limits = {NAMES.memory_units: str(units)} | ({NAMES.compute_percent: str(compute)} if compute else {})
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": "d", "uid": uid},
            "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}], "priority": priority},
            "status": {"phase": "Pending"},
        },
        SchedulingPod,
    )


def make_node(name, *, state="serving"):
    at = NODES.index(name) * 16
    cards = tuple(
        Gpu(id=f"{at + n:012x}", uuid=f"GPU-{at + n}", index=n, model="A", memory=UNITS * 256 * MIB, units=UNITS)
        for n in range(GPUS)
    )
    text = encode(Inventory(v=1, unit=256 * MIB, gpus=cards, state=state))
    return msgspec.convert(
        {
            "metadata": {"name": name, "uid": f"uid-{name}", "annotations": {NAMES.inventory: text}},
            "status": {
                "allocatable": {NAMES.memory_units: str(UNITS * GPUS)},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        },
        Node,
    )


class Interleavings(RuleBasedStateMachine):
    asked = Bundle("asked")

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock, self.server = Clock(), Server()
        self.made = 0
        config = Config()
        self.pods, self.nodes, self.cluster = self.new_cluster()
        metrics = Metrics(CollectorRegistry())
        self.filter_ = Filter(self.cluster, config=lambda: config, metrics=metrics)
        self.binder = Binder(self.cluster, self, config=lambda: config, clock=self.clock, metrics=metrics)
        self.tasks = []
        for name in NODES:
            self.set_node(name)
        self.settle_caches()

    def new_cluster(self):
        pods, nodes = Cache(), Cache()
        cluster = Cluster(pods, nodes, names=NAMES, clock=self.clock)
        pods.callback, nodes.callback = cluster.pod_changed, cluster.node_changed
        return pods, nodes, cluster

    def teardown(self):
        self.settle()
        self.loop.run_until_complete(self.binder.close())
        self.loop.close()

    # The door of the binder.

    async def get(self, _resource, name, *, namespace="", **_more):
        found = self.server.pods.get((namespace, name))
        if found is None:
            raise NotFoundError("get", status=404)
        return found

    async def patch(self, *_args, **_more):
        return b"{}"

    async def bind(self, name, *, namespace, node, uid, annotations=None, **_more):
        answer = asyncio.get_running_loop().create_future()
        self.server.writes.append(Write((namespace, name), uid, node, annotations or {}, answer))
        await answer

    # Helpers.

    def turn(self):
        self.clock.wake()

        async def quiet():
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(quiet())

    def set_pod(self, key, pod):
        if pod is None:
            self.server.pods.pop(key, None)
        else:
            self.server.pods[key] = pod
        self.pods.changed(key, pod)

    def set_node(self, name, state="serving"):
        self.server.nodes["", name] = make_node(name, state=state)
        self.nodes.changed(("", name), self.server.nodes["", name])

    def settle_caches(self):
        for cache in (self.pods, self.nodes):
            while cache.late:
                cache.deliver()

    # What happens.

    @rule(
        target=asked,
        units=st.sampled_from([24, 40, 64]),
        compute=st.sampled_from([0, 60]),
        priority=st.sampled_from([0, 9]),
    )
    def create(self, units, compute, priority=0):
        self.made += 1
        # Names come again, as those of a StatefulSet do.
        name = f"p{self.made % 5}"
        pod = make_pod(name, f"uid-{self.made}", units, compute, priority)
        if ("d", name) in self.server.pods:
            self.remove(("d", name))
        self.set_pod(("d", name), pod)
        return pod

    @rule(target=asked, units=st.sampled_from([40, 64]), how=st.sampled_from(["done", "done", "late", "never"]))
    def goes_all_the_way(self, units, how):
        """What takes several steps below, in one, so that nodes are full and writes are lost more often."""
        pod = self.create(units, 0)
        self.settle_caches()
        self.filter_and_bind(pod, NODES)
        for answer in (how, "never" if how != "done" else "done"):
            if self.server.writes:
                self.answer(len(self.server.writes) - 1, answer)
        self.settle_caches()
        return pod

    @rule(pod=asked, which=st.sampled_from([NODES, NODES[:1], NODES[1:]]))
    def filter_and_bind(self, pod, which):
        raw = msgspec.json.encode(list(which))
        answer = self.loop.run_until_complete(self.filter_.filter(FilterArgs(pod, raw)))
        if answer.NodeNames:
            self.start_bind(pod, answer.NodeNames[0])

    @rule(pod=asked, node=st.sampled_from(NODES))
    def start_bind(self, pod, node):
        args = BindArgs(pod.metadata.name, "d", pod.metadata.uid, node)
        self.tasks.append(self.loop.create_task(self.binder.bind(args, lambda: False)))
        self.turn()

    @rule(which=st.integers(0, 3), how=st.sampled_from(["done", "done", "refused", "lost", "late", "late", "never"]))
    def answer(self, which, how):
        if not self.server.writes:
            return
        write = self.server.writes.pop(which % len(self.server.writes))
        write.since = self.clock.now
        if how in ("done", "lost"):
            try:
                self.set_pod(write.key, self.server.bind(write))
            except (NotFoundError, ConflictError) as error:
                write.answer.set_exception(error)
                self.turn()
                return
        if how == "done":
            write.answer.set_result(None)
        elif how == "refused":
            write.answer.set_exception(InvalidError("bind", status=422))
        else:
            write.answer.set_exception(AnswerLostError("bind", maybe_done=True))
        if how == "late":
            self.server.lost.append(write)
        self.turn()

    @rule()
    def arrives_late(self):
        if not self.server.lost:
            return
        write = self.server.lost.pop(0)
        if self.clock.now - write.since <= LATE:
            try:
                self.set_pod(write.key, self.server.bind(write))
            except (NotFoundError, ConflictError):
                return

    @rule(pod=asked, told=st.sampled_from([*({"phase": each} for each in ("Running", "Succeeded", "Failed")), REFUSED]))
    def phase(self, pod, told):
        key = ("d", pod.metadata.name)
        there = self.server.pods.get(key)
        if there is not None and there.metadata.uid == pod.metadata.uid and there.spec.node_name and not there.ended:
            self.set_pod(key, msgspec.structs.replace(there, status=msgspec.structs.replace(there.status, **told)))

    @rule(pod=asked, node=st.sampled_from([*NODES, None]))
    def nominate(self, pod, node):
        """A pod is promised a node, another, or none any more."""
        key = ("d", pod.metadata.name)
        there = self.server.pods.get(key)
        if there is not None and there.metadata.uid == pod.metadata.uid and not there.spec.node_name:
            status = msgspec.structs.replace(there.status, nominated_node_name=node)
            self.set_pod(key, msgspec.structs.replace(there, status=status))

    @rule(pod=asked)
    def is_ending(self, pod):
        key = ("d", pod.metadata.name)
        there = self.server.pods.get(key)
        if there is not None and there.metadata.uid == pod.metadata.uid and there.spec.node_name:
            meta = msgspec.structs.replace(there.metadata, deletion_timestamp="2999-01-01T00:00:00Z")
            self.set_pod(key, msgspec.structs.replace(there, metadata=meta))

    @rule(pod=asked)
    def force_delete(self, pod):
        key = ("d", pod.metadata.name)
        there = self.server.pods.get(key)
        if there is not None and there.metadata.uid == pod.metadata.uid:
            self.remove(key)

    def remove(self, key):
        there = self.server.pods[key]
        if there.spec.node_name and not there.ended and ("", there.spec.node_name) in self.server.nodes:
            # Its containers may run on.
            self.server.ghosts[there.metadata.uid] = (there, self.clock.now)
        self.set_pod(key, None)

    @rule(pods=st.booleans(), count=st.integers(1, 4))
    def watch_brings(self, pods, count):
        cache = self.pods if pods else self.nodes
        for _ in range(min(count, len(cache.late))):
            cache.deliver()

    @rule()
    def list_anew(self):
        self.pods.relist(self.server.pods)
        self.nodes.relist(self.server.nodes)

    @rule(name=st.sampled_from(NODES))
    def node_goes(self, name):
        self.server.nodes.pop(("", name), None)
        self.server.ghosts = {u: each for u, each in self.server.ghosts.items() if each[0].spec.node_name != name}
        self.nodes.changed(("", name), None)

    @rule(name=st.sampled_from(NODES), state=st.sampled_from(["serving", "serving", "draining"]))
    def node_says(self, name, state):
        self.set_node(name, state)

    @rule(seconds=st.sampled_from([1, 5, 30, 70]))
    def time_passes(self, seconds):
        self.clock.now += seconds
        self.cluster.tick()
        self.turn()

    # What always holds.

    def held(self):
        """By GPU, memory and compute of the pods that run by the truth, as their plans say; a minute longer, if forced."""
        sums = {}
        ghosts = [pod for pod, since in self.server.ghosts.values() if self.clock.now - since < VANISHED]
        for pod in (*self.server.pods.values(), *ghosts):
            text = pod.metadata.annotation(NAMES.plan)
            if text is None or pod.ended or not pod.spec.node_name:
                continue
            for piece in plans.decode(text).containers["main"]:
                units, compute = sums.get(piece.gpu, (0, 0))
                sums[piece.gpu] = (units + (piece.units or 0), compute + (piece.compute or 0))
        return sums

    @invariant()
    def nothing_is_overfull(self):
        for gpu, (units, compute) in self.held().items():
            assert units <= UNITS, gpu
            assert compute <= 100, gpu

    def settle(self):
        """All answers come, all changes are seen, and enough time passes; then the ledger is what the objects say."""
        self.server.lost.clear()
        for _ in range(80):
            while self.server.writes:
                self.answer(0, "done")
            self.settle_caches()
            self.clock.now += 2
            self.cluster.tick()
            self.turn()
        assert all(task.done() for task in self.tasks)
        assert len(self.cluster.refusals) == 0, "every node is open again"
        pods, nodes, anew = self.new_cluster()
        nodes.relist(self.server.nodes)
        pods.relist(self.server.pods)
        assert self.told(self.cluster) == self.told(anew)
        ending = {p.metadata.uid for p in self.server.pods.values() if p.metadata.deletion_timestamp and not p.ended}
        assert {uid for name in NODES for uid in self.cluster.keeper.going(name)} == ending
        assert all(self.cluster.keeper.promised(f"uid-{number}") is None for number in range(self.made + 1)), "too old"

    def told(self, cluster):
        ledger = cluster.ledger
        return {
            name: (
                [(state.gpu.id, state.held) for state in ledger.states(name)],
                [(state.gpu.id, state.held) for state in ledger.states(name, soft=True)],
                sorted(ledger.holdings(name)),
                ledger.closed(name),
                self.numbers(ledger, name),
            )
            for name in ledger
        }

    def numbers(self, ledger, name):
        view, row = ledger.columns.held, ledger.row(name)
        return [view.units[row].tolist(), view.percent[row].tolist(), view.compute[row].tolist()]


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
