"""Who uses how much: excess, foreign use, pods that are gone, and numbers that are none."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from deviceplugin.monitor import SETTLE, HeldSlice, Monitor, Owner, Tenant
from deviceplugin.nvml.errors import NvmlCallError
from deviceplugin.nvml.facts import GpuProcess, GpuSample
from deviceplugin.processes import ContainerRef, Place

GIB = 1 << 30
MIB = 1 << 20
UNIT = 256 * MIB
POD = "0f9f3ec6-5fbd-4f0a-9c0a-3b2f4f0a1b2c"


class World:
    """A ledger and a /proc that a test writes."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], Tenant] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.objects: set[str] = {POD}
        self.places: dict[int, Place] = {}

    def tenants(self) -> Mapping[tuple[str, str], Tenant]:
        return self.held

    def container(self, uid: str, container_id: str) -> str | None:
        return self.names.get((uid, container_id))

    def has_object(self, uid: str) -> bool:
        return uid in self.objects

    def locate(self, pid: int) -> Place:
        return self.places.get(pid, "gone")

    def give(self, container: str, gpu: str, memory: int, *, pod: str = POD, bounded: bool = True) -> None:
        before = self.held.get((pod, container))
        slices = (*(before.slices if before else ()), HeldSlice(gpu=gpu, memory=memory, bounded=bounded))
        self.held[pod, container] = Tenant(namespace="team", pod="train", slices=slices)

    def run(self, pid: int, container: str = "c1", *, pod: str = POD) -> None:
        self.places[pid] = ContainerRef(pod, container)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def monitor(world) -> Monitor:
    return Monitor(world, world.locate, unit=UNIT)


def using(**pids: int | None) -> GpuSample:
    """A sample with these processes: p7=bytes."""
    processes = tuple(GpuProcess(pid=int(name[1:]), memory=memory) for name, memory in pids.items())
    return GpuSample(processes=processes, used=sum(memory or 0 for memory in pids.values()), recovery=None)


def test_usage_is_summed_by_container(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, 8 * GIB)
    world.run(7)
    world.run(8)
    report = monitor.feed(tick_of(0, gpu, gpu0=using(p7=GIB, p8=2 * GIB, p9=GIB)))
    (usage,) = report.usage
    assert usage.owner == Owner(POD, "main")
    assert (usage.used, usage.allowed, usage.processes) == (3 * GIB, 8 * GIB, 2)
    assert report.seen == {POD}
    assert report.held == {}, "a process that has ended counts nowhere"


def test_an_excess_is_told_once_and_again_after_it_was_over(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, 4 * GIB)
    world.run(7)
    amounts = [5, 5, 5, 3.99, 5, 3, 5, 5]
    told, ended = [], []
    for now, amount in enumerate(amounts):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p7=int(amount * GIB))))
        told.append(len(report.excesses))
        ended.append(len(report.over))
    assert told == [0, 1, 0, 0, 0, 0, 0, 1]
    assert ended == [0, 0, 0, 0, 0, 1, 0, 0]
    assert monitor.excess_total == 2
    (excess,) = monitor.excesses.values()
    assert (excess.pod_uid, excess.container, excess.gpu) == (POD, "main", gpu.id)
    assert (excess.used, excess.allowed) == (5 * GIB, 4 * GIB)
    assert str(excess) == f'container "main" uses 5 GiB of GPU {gpu.id}, its slice is 4 GiB'


def test_exactly_the_slice_is_no_excess(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, 4 * GIB)
    world.run(7)
    for now in range(3):
        assert monitor.feed(tick_of(now, gpu, gpu0=using(p7=4 * GIB))).excesses == ()


def test_a_container_that_ends_above_its_slice_ends_its_excess(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, GIB)
    world.run(7)
    for now in range(2):
        monitor.feed(tick_of(now, gpu, gpu0=using(p7=2 * GIB)))
    assert len(monitor.excesses) == 1
    del world.places[7]
    assert len(monitor.feed(tick_of(2, gpu, gpu0=using(p7=2 * GIB))).over) == 1
    assert monitor.excesses == {}


def test_whole_gpus_and_mig_instances_are_not_judged(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, GIB, bounded=False)
    world.run(7)
    for now in range(3):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p7=2 * GIB)))
    assert report.excesses == ()
    assert report.usage[0].used == 2 * GIB


def test_containers_of_one_pod_are_told_apart_by_their_ids(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("a", gpu.id, 2 * GIB)
    world.give("b", gpu.id, 4 * GIB)
    world.names = {(POD, "ca"): "a", (POD, "cb"): "b"}
    world.run(7, "ca")
    world.run(8, "cb")
    for now in range(2):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p7=3 * GIB, p8=3 * GIB)))
    assert [excess.container for excess in report.excesses] == ["a"]


def test_a_container_nobody_has_named_yet_is_judged_with_its_pod(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("a", gpu.id, 2 * GIB)
    world.give("b", gpu.id, 4 * GIB)
    world.run(7)
    assert monitor.feed(tick_of(0, gpu, gpu0=using(p7=5 * GIB))).excesses == ()
    assert monitor.report.usage[0].owner == Owner(POD, "")
    assert monitor.report.usage[0].allowed == 6 * GIB
    for now in (1, 2):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p7=7 * GIB)))
    assert str(report.excesses[0]).startswith("the pod uses 7 GiB")


def test_foreign_use_is_held_once_it_lasts(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.places[5] = "host"
    world.run(6, pod="11111111-5fbd-4f0a-9c0a-3b2f4f0a1b2c")
    sample = using(p5=UNIT + 1, p6=UNIT)
    assert monitor.feed(tick_of(0, gpu, gpu0=sample)).held == {}
    assert monitor.feed(tick_of(SETTLE - 1, gpu, gpu0=sample)).held == {}
    assert monitor.feed(tick_of(SETTLE, gpu, gpu0=sample)).held == {gpu.id: 3}
    assert monitor.feed(tick_of(SETTLE + 1, gpu, gpu0=using(p5=UNIT))).held == {gpu.id: 1}
    assert monitor.feed(tick_of(SETTLE + 2, gpu)).held == {}


def test_what_is_foreign_at_the_first_look_of_a_settled_ledger_counts_at_once(world, facts_of, tick_of) -> None:
    monitor = Monitor(world, world.locate, unit=UNIT, settled=True)
    gpu = facts_of(0)
    world.places |= {5: "host", 6: "host"}
    assert monitor.feed(tick_of(1, gpu, gpu0=using(p5=UNIT))).held == {gpu.id: 1}
    # What comes later has to last, as ever.
    assert monitor.feed(tick_of(2, gpu, gpu0=using(p5=UNIT, p6=UNIT))).held == {gpu.id: 1}


def test_what_is_the_nodes_own_takes_nothing_from_anybody(world, facts_of, tick_of) -> None:
    own: set[int] = set()
    monitor = Monitor(world, world.locate, unit=UNIT, settled=True, own=lambda: own)
    gpu = facts_of(0)
    world.places[5] = "host"
    assert monitor.feed(tick_of(1, gpu, gpu0=using(p5=UNIT))).held == {gpu.id: 1}
    own.add(5)
    assert monitor.feed(tick_of(2, gpu, gpu0=using(p5=UNIT))).held == {}


def test_a_container_that_was_just_started_is_never_called_foreign(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.run(7)
    assert monitor.feed(tick_of(0, gpu, gpu0=using(p7=GIB))).held == {}
    world.give("main", gpu.id, 4 * GIB)
    assert monitor.feed(tick_of(SETTLE + 1, gpu, gpu0=using(p7=GIB))).held == {}


def test_a_pod_on_another_gpu_than_its_slice_is_foreign_there(world, monitor, facts_of, tick_of) -> None:
    one, two = facts_of(0), facts_of(1)
    world.give("main", one.id, 4 * GIB)
    world.run(7)
    for now in (0, SETTLE):
        report = monitor.feed(tick_of(now, one, two, gpu0=using(p7=GIB), gpu1=using(p7=GIB)))
    assert report.held == {two.id: 4}


def test_a_container_without_a_slice_in_a_pod_with_one_is_foreign(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, 4 * GIB)
    world.names = {(POD, "cs"): "side"}
    world.run(7, "cs")
    for now in (0, SETTLE):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p7=GIB)))
    assert report.held == {gpu.id: 4}
    assert report.usage == ()


def test_processes_on_a_gpu_cut_by_mig_take_no_units(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0, mig_mode=True)
    world.places[5] = "host"
    for now in (0, SETTLE):
        report = monitor.feed(tick_of(now, gpu, gpu0=using(p5=GIB)))
    assert report.held == {}


def test_pods_without_an_object_linger_once_it_lasts(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, 4 * GIB)
    world.run(7)
    world.objects.clear()
    assert monitor.feed(tick_of(0, gpu, gpu0=using(p7=GIB))).lingering == frozenset()
    assert monitor.feed(tick_of(SETTLE, gpu, gpu0=using(p7=GIB))).lingering == {POD}
    assert monitor.seen == {POD}
    world.objects.add(POD)
    assert monitor.feed(tick_of(SETTLE + 1, gpu, gpu0=using(p7=GIB))).lingering == frozenset()
    del world.places[7]
    assert monitor.feed(tick_of(SETTLE + 2, gpu, gpu0=using(p7=GIB))).seen == frozenset()


def test_a_failing_gpu_keeps_its_last_numbers_and_spoils_nothing_else(world, monitor, facts_of, tick_of) -> None:
    one, two = facts_of(0), facts_of(1)
    world.give("main", one.id, 4 * GIB)
    world.give("main", two.id, 4 * GIB)
    world.run(7)
    world.places[5] = "host"
    for now in (0, SETTLE):
        monitor.feed(tick_of(now, one, two, gpu0=using(p7=GIB, p5=GIB), gpu1=using(p7=GIB)))
    error = NvmlCallError("nvmlDeviceGetMemoryInfo", 999, "Unknown Error", gpu=one.uuid)
    report = monitor.feed(tick_of(SETTLE + 1, one, two, gpu0=error, gpu1=using(p7=2 * GIB)))
    assert {usage.gpu: usage.used for usage in report.usage} == {one.id: GIB, two.id: 2 * GIB}
    assert report.held == {one.id: 4}
    del world.places[7]
    report = monitor.feed(tick_of(SETTLE + 2, one, two, failure="the driver hangs"))
    assert report.usage == ()
    assert report.seen == frozenset(), "a pod that has ended is not kept by a GPU that is gone"


def test_an_excess_needs_fresh_numbers(world, monitor, facts_of, tick_of) -> None:
    gpu = facts_of(0)
    world.give("main", gpu.id, GIB)
    world.run(7)
    monitor.feed(tick_of(0, gpu, gpu0=using(p7=2 * GIB)))
    for now in range(1, 5):
        assert monitor.feed(tick_of(now, gpu, failure="the driver hangs")).excesses == ()


def test_memory_that_cannot_be_told_is_blindness_not_zero_and_not_an_underflow(
    world, monitor, facts_of, tick_of
) -> None:
    one, two = facts_of(0), facts_of(1)
    world.give("main", one.id, 4 * GIB)
    world.run(7)
    world.run(8)
    silent = GpuSample(processes=None, used=GIB, recovery=None)
    for now in (0, SETTLE):
        report = monitor.feed(tick_of(now, one, two, gpu0=using(p7=None, p8=GIB), gpu1=silent))
        assert report.blind == ({one.id, two.id} if now else set()), "one look without numbers is no blindness"
    assert report.blind == {one.id, two.id}
    assert report.usage[0].used == GIB
    assert report.held == {}


def test_metrics_follow_the_containers_and_stay_bounded(world, facts_of, tick_of) -> None:
    registry = CollectorRegistry()
    monitor = Monitor(world, world.locate, unit=UNIT, registry=registry)
    gpu = facts_of(0)
    labels = {"namespace": "team", "pod": "train", "container": "main", "gpu": gpu.id}
    old = "22222222-5fbd-4f0a-9c0a-3b2f4f0a1b2c"
    world.give("main", gpu.id, GIB)
    world.give("main", gpu.id, GIB, pod=old)
    world.run(7)
    world.run(8, "c2", pod=old)
    world.places[5] = "host"
    for now in (0, SETTLE):
        monitor.feed(tick_of(now, gpu, gpu0=using(p7=2 * GIB, p8=GIB, p5=GIB)))
    assert registry.get_sample_value("tessera_container_gpu_memory_used_bytes", labels) == 3 * GIB
    assert registry.get_sample_value("tessera_container_gpu_memory_slice_bytes", labels) == 2 * GIB
    assert registry.get_sample_value("tessera_container_gpu_memory_excess", labels) == 1
    assert registry.get_sample_value("tessera_gpu_foreign_units", {"gpu": gpu.id}) == 4
    lines = [line for line in generate_latest(registry).decode().splitlines() if "memory_used_bytes{" in line]
    assert len(lines) == 1, "two pods of one name are one series"
    world.places.clear()
    monitor.feed(tick_of(99, gpu))
    assert registry.get_sample_value("tessera_container_gpu_memory_used_bytes", labels) is None


def test_listeners_hear_every_report(monitor, facts_of, tick_of) -> None:
    heard: list = []
    monitor.subscribe(heard.append)
    monitor.feed(tick_of(0, facts_of(0)))
    assert heard == [monitor.report]
