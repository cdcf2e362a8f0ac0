"""What runs on the GPUs, container by container: who uses more than its slice, who uses a GPU without one.

Fed with the source's looks, one a second; no loop, no thread and no NVML of its own. NVML says which process uses how much,
/proc says which container it is in, the ledger says what that container may use. From that:

- usage per (pod, container, GPU), as metrics;
- `Excess`: a container above its slice, once per episode, with hysteresis;
- `held`: units of a GPU that processes outside any slice use, so that nobody is placed on memory that isn't there;
- `seen`: UIDs of pods whose processes are still here, and of those `lingering`: pods that are gone as objects.

What is unusual has to last before it is said: a container's first process can be a moment ahead of what we know of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deviceplugin.nvml.facts import GpuFacts, GpuProcess, GpuSample
from deviceplugin.nvml.source import Tick
from deviceplugin.processes import ContainerRef, Place
from tessera.model.quantity import gib

_log = logging.getLogger(__name__)

CONFIRM: Final = 2
"""Looks in a row that must see an excess: NVML's numbers of one moment are not all from the same moment."""
CLEARED_BELOW: Final = 0.98
"""Part of the slice below which an excess is over."""
SETTLE: Final = 5.0
"""Seconds for which a process must be foreign, or a pod without an object, before it counts."""
MOST_SERIES: Final = 2048
"""Containers that are shown in metrics; no node runs so many, and labels must stay bounded."""


class HeldSlice(msgspec.Struct, frozen=True, kw_only=True):
    """What a container may use of one GPU.

    Attributes:
        gpu: id. memory: bytes.
        bounded: somebody has to look: neither MIG nor exclusive use bounds it.
    """

    gpu: str
    memory: int
    bounded: bool = True


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One container that holds slices; `namespace` and `pod` are for people."""

    namespace: str
    pod: str
    slices: tuple[HeldSlice, ...]


class Owner(NamedTuple):
    """A container by its pod's UID and its name; "" names the pod as a whole."""

    uid: str
    container: str


class Slices(Protocol):
    """What the ledger and the pods say."""

    def tenants(self) -> Mapping[tuple[str, str], Tenant]:
        """All slices of the node, by (pod UID, container name)."""
        ...

    def container(self, uid: str, container_id: str) -> str | None:
        """The name of a container by its ID without the runtime's prefix; None while nobody has said it."""
        ...

    def has_object(self, uid: str) -> bool:
        """Whether the pod is there as an object, as far as can be known."""
        ...


class Excess(msgspec.Struct, frozen=True, kw_only=True):
    """A container uses more of a GPU than its slice; bytes. `container` is "" where only the pod can be told."""

    pod_uid: str
    container: str
    gpu: str
    used: int
    allowed: int
    namespace: str = ""
    pod: str = ""

    def __str__(self) -> str:
        """Say it as an event does."""
        who = f'container "{self.container}"' if self.container else "the pod"
        return f"{who} uses {gib(self.used)} of GPU {self.gpu}, its slice is {gib(self.allowed)}"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one container uses of one GPU; bytes, and of how many processes. `allowed` is its slice, `bounded` as there."""

    owner: Owner
    gpu: str
    namespace: str
    pod: str
    used: int
    allowed: int
    processes: int
    bounded: bool = True


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one look has shown.

    Attributes:
        usage: per container and GPU; of a GPU that could not be looked at, what was last known of processes that live.
        held: units in foreign use by GPU id; only where there are any.
        excesses: new ones. over: those that have ended.
        seen: UIDs of pods that have processes on a GPU. lingering: those of them without an object.
        blind: GPUs whose driver can't say what a process uses: nobody is watched there, whatever the probe has promised.
    """

    usage: tuple[Usage, ...] = ()
    held: dict[str, int] = {}
    excesses: tuple[Excess, ...] = ()
    over: tuple[Excess, ...] = ()
    seen: frozenset[str] = frozenset()
    lingering: frozenset[str] = frozenset()
    blind: frozenset[str] = frozenset()


_NOTHING: Final = GpuSample(processes=(), used=0, recovery=None)


class _Foreign(NamedTuple):
    """A process outside any slice."""

    gpu: str
    pid: int


class _GpuLook(msgspec.Struct, kw_only=True):
    """What one GPU's look comes to."""

    usage: list[Usage]
    foreign: dict[_Foreign, int]
    pods: set[str]
    blind: bool


class Monitor:
    """Turns looks into reports."""

    def __init__(
        self,
        slices: Slices,
        locate: Callable[[int], Place],
        *,
        unit: int,
        registry: CollectorRegistry | None = None,
        settled: bool = False,
        own: Callable[[], AbstractSet[int]] = frozenset,
    ) -> None:
        """Begin with nothing seen.

        Args:
            slices: who may use what.
            locate: where a process is, such as `ProcessMap.locate`.
            unit: bytes of one memory unit.
            registry: where to count; None counts nowhere.
            settled: the ledger is complete at the first look, so what is foreign then has been so for long.
            own: processes that serve the tenants themselves, such as MPS servers; the headroom is for them.
        """
        self._slices = slices
        self._locate = locate
        self._unit = unit
        self._samples: dict[str, GpuSample] = {}
        self._looks: dict[str, _GpuLook] = {}
        self._own = own
        self._patience = 0.0 if settled else SETTLE
        self._foreign_from: dict[_Foreign, float] = {}
        self._alone_since: dict[str, float] = {}
        self._blind_since: dict[str, float] = {}
        self._above: dict[tuple[Owner, str], int] = {}
        self._open: dict[tuple[Owner, str], Excess] = {}
        self._subscribers: list[Callable[[Report], None]] = []
        self._excesses = 0
        self.report = Report()
        if registry is not None:
            registry.register(_Metrics(self))

    def subscribe(self, callback: Callable[[Report], None]) -> None:
        """Call back with every report; it must be quick."""
        self._subscribers.append(callback)

    @property
    def seen(self) -> frozenset[str]:
        """UIDs of pods that had processes on a GPU at the last look."""
        return self.report.seen

    @property
    def excesses(self) -> Mapping[tuple[Owner, str], Excess]:
        """Those that go on, by container and GPU."""
        return self._open

    @property
    def excess_total(self) -> int:
        """Episodes since the start."""
        return self._excesses

    def feed(self, tick: Tick) -> Report:
        """Take one look at the node."""
        tenants = self._by_pod()
        looks: dict[str, _GpuLook] = {}
        for gpu, facts in tick.known.items():
            sample = tick.look.samples.get(gpu)
            # Of a GPU that couldn't be looked at the last numbers stand, as far as their processes still live: no more is
            # known, and a pod that has ended must not be kept by a GPU that is gone.
            self._samples[gpu] = sample if isinstance(sample, GpuSample) else self._samples.get(gpu, _NOTHING)
            looks[gpu] = self._look(facts, self._samples[gpu], tenants)
        self._looks = looks
        usage = tuple(each for look in self._looks.values() for each in look.usage)
        new, over = self._judge(usage, tick)
        seen = frozenset(uid for look in self._looks.values() for uid in look.pods)
        self.report = Report(
            usage=usage,
            held=self._held(tick),
            excesses=new,
            over=over,
            seen=seen,
            lingering=self._lingering(seen, tick.now),
            blind=self._blind(tick.now),
        )
        for callback in self._subscribers:
            callback(self.report)
        return self.report

    # One GPU.

    def _by_pod(self) -> dict[str, dict[str, Tenant]]:
        found: dict[str, dict[str, Tenant]] = {}
        for (uid, container), tenant in self._slices.tenants().items():
            found.setdefault(uid, {})[container] = tenant
        return found

    def _look(self, gpu: GpuFacts, sample: GpuSample, tenants: Mapping[str, Mapping[str, Tenant]]) -> _GpuLook:
        look = _GpuLook(usage=[], foreign={}, pods=set(), blind=sample.processes is None)
        sums: dict[Owner, tuple[int, int]] = {}
        own = self._own()
        for process in (each for each in sample.processes or () if each.pid not in own):
            place = self._locate(process.pid)
            if place == "gone":
                # NVML lists a process for a while after its end.
                continue
            if process.memory is None:
                look.blind = True
            if isinstance(place, ContainerRef):
                look.pods.add(place.pod)
            owner = self._owner(gpu.id, place, tenants) if isinstance(place, ContainerRef) else None
            if owner is None:
                _add(look.foreign, gpu, process)
                continue
            used, count = sums.get(owner, (0, 0))
            sums[owner] = (used + (process.memory or 0), count + 1)
        for owner, (used, count) in sums.items():
            look.usage.append(_usage(owner, gpu.id, tenants[owner.uid], used=used, count=count))
        return look

    def _owner(self, gpu: str, place: ContainerRef, tenants: Mapping[str, Mapping[str, Tenant]]) -> Owner | None:
        """Who answers for a process on a GPU: a container with a slice there, its pod, or nobody."""
        holders = [
            container
            for container, tenant in tenants.get(place.pod, {}).items()
            if any(piece.gpu == gpu for piece in tenant.slices)
        ]
        if not holders:
            return None
        name = self._slices.container(place.pod, place.container) if place.container else None
        if name is None:
            # Its status is not out yet, or the node is cut off from the API server. One holder can only be this one.
            return Owner(place.pod, holders[0] if len(holders) == 1 else "")
        return Owner(place.pod, name) if name in holders else None

    # Judging.

    def _judge(self, usage: Iterable[Usage], tick: Tick) -> tuple[tuple[Excess, ...], tuple[Excess, ...]]:
        new: list[Excess] = []
        over: list[Excess] = []
        current = {(each.owner, each.gpu): each for each in usage}
        for key, each in current.items():
            fresh = isinstance(tick.look.samples.get(each.gpu), GpuSample)
            if not fresh or not each.bounded:
                continue
            self._above[key] = self._above.get(key, 0) + 1 if each.used > each.allowed else 0
            excess = Excess(
                pod_uid=each.owner.uid,
                container=each.owner.container,
                gpu=each.gpu,
                used=each.used,
                allowed=each.allowed,
                namespace=each.namespace,
                pod=each.pod,
            )
            if key in self._open:
                if each.used <= each.allowed * CLEARED_BELOW:
                    del self._open[key]
                    over.append(excess)
            elif self._above[key] >= CONFIRM:
                self._open[key] = excess
                self._excesses += 1
                _log.warning("pod %s/%s: %s", each.namespace, each.pod, excess)
                new.append(excess)
        over += [self._open.pop(key) for key in list(self._open) if key not in current]
        self._above = {key: count for key, count in self._above.items() if key in current}
        return tuple(new), tuple(over)

    def _held(self, tick: Tick) -> dict[str, int]:
        current = {key: memory for look in self._looks.values() for key, memory in look.foreign.items()}
        self._foreign_from = {key: self._foreign_from.get(key, tick.now + self._patience) for key in current}
        self._patience = SETTLE
        amounts: dict[str, int] = {}
        for key, memory in current.items():
            if tick.now >= self._foreign_from[key]:
                amounts[key.gpu] = amounts.get(key.gpu, 0) + memory
        return {gpu: -(-amount // self._unit) for gpu, amount in amounts.items() if amount}

    def _blind(self, now: float) -> frozenset[str]:
        blind = [gpu for gpu, look in self._looks.items() if look.blind]
        self._blind_since = {gpu: self._blind_since.get(gpu, now) for gpu in blind}
        return frozenset(gpu for gpu, since in self._blind_since.items() if now - since >= SETTLE)

    def _lingering(self, seen: frozenset[str], now: float) -> frozenset[str]:
        alone = [uid for uid in seen if not self._slices.has_object(uid)]
        self._alone_since = {uid: self._alone_since.get(uid, now) for uid in alone}
        return frozenset(uid for uid, since in self._alone_since.items() if now - since >= SETTLE)


def _add(foreign: dict[_Foreign, int], gpu: GpuFacts, process: GpuProcess) -> None:
    """Count a process outside any slice; on a GPU cut by MIG it takes nothing from anybody's units."""
    if not gpu.mig_mode:
        key = _Foreign(gpu.id, process.pid)
        foreign[key] = foreign.get(key, 0) + (process.memory or 0)


def _usage(owner: Owner, gpu: str, containers: Mapping[str, Tenant], *, used: int, count: int) -> Usage:
    """What an owner uses of a GPU against what it may: a pod as a whole may use what its containers hold together."""
    mine = [containers[owner.container]] if owner.container else list(containers.values())
    pieces = [piece for tenant in mine for piece in tenant.slices if piece.gpu == gpu]
    return Usage(
        owner=owner,
        gpu=gpu,
        namespace=mine[0].namespace,
        pod=mine[0].pod,
        used=used,
        allowed=sum(piece.memory for piece in pieces),
        processes=count,
        bounded=all(piece.bounded for piece in pieces),
    )


class _Metrics(Collector):
    """The last report as metrics: series come and go with their containers, so dead ones never stand still."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterable[GaugeMetricFamily]:
        report = self._monitor.report
        labels = ["namespace", "pod", "container", "gpu"]
        used = GaugeMetricFamily(
            "tessera_container_gpu_memory_used_bytes", "Device memory that a container's processes use.", labels=labels
        )
        allowed = GaugeMetricFamily(
            "tessera_container_gpu_memory_slice_bytes", "Device memory of a container's slice.", labels=labels
        )
        excess = GaugeMetricFamily(
            "tessera_container_gpu_memory_excess", "1 while a container uses more than its slice.", labels=labels
        )
        series: dict[tuple[str, str, str, str], list[int]] = {}
        for each in report.usage[:MOST_SERIES]:
            # A pod that lingers may have the name of one that lives; a series must stand only once.
            sums = series.setdefault((each.namespace, each.pod, each.owner.container, each.gpu), [0, 0, 0])
            sums[0] += each.used
            sums[1] += each.allowed
            sums[2] |= (each.owner, each.gpu) in self._monitor.excesses
        for values, (in_use, size, above) in series.items():
            used.add_metric(values, in_use)
            allowed.add_metric(values, size)
            excess.add_metric(values, above)
        held = GaugeMetricFamily(
            "tessera_gpu_foreign_units", "Memory units in use by processes outside any slice.", labels=["gpu"]
        )
        for gpu, units in report.held.items():
            held.add_metric([gpu], units)
        return [used, allowed, excess, held]
