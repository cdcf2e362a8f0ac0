"""What we want to know of NVML, in terms of `Binding`: read a node, look at all its GPUs, collect events.

One GPU's error never spoils what is said about another: where a GPU is concerned, errors are part of the answer. Only what
ends the whole connection to the driver is raised.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec

from deviceplugin.nvml.binding import NO_INSTANCE, Binding, Handle
from deviceplugin.nvml.errors import NvmlCallError
from deviceplugin.nvml.facts import (
    MOST_GPUS,
    EventKind,
    GpuEvent,
    GpuFacts,
    GpuProcess,
    GpuSample,
    Look,
    MigFacts,
    NodeFacts,
    UnreadableGpu,
)
from deviceplugin.nvml.pci import PciBus
from tessera.model.errors import AnnotationError
from tessera.model.inventory import Link, gpu_id
from tessera.model.quantity import MIB

_log = logging.getLogger(__name__)

SET_LIMITS: Final = "nvmlDeviceSetMemoryLimits_v1"
_EVENTS: Final[dict[int, EventKind]] = {0x8: "xid", 0x2: "ecc", 0x4000: "unavailable", 0x8000: "recovery"}
"""nvmlEventType* (nvml.h): XID, double-bit ECC, GPU unavailable, recovery action."""
_MOST_EVENTS: Final = 256
_MOST_SLOTS: Final = 32
_HOSTBRIDGE: Final = 30
_NODE: Final = 40
_PROFILE: Final = re.compile(r"\bMIG (\d+g\.\d+gb(?:[+.-][\w.+-]+)?)$", re.ASCII)
"""How NVML ends the name of an instance: ``NVIDIA A100-SXM4-80GB MIG 1g.10gb``, ``… 1g.10gb+me``."""

T = TypeVar("T")


class Driver(Protocol):
    """What the agent needs of the driver; every method blocks."""

    def open(self) -> None:
        """Connect; may raise NvmlUnavailableError."""
        ...

    def close(self) -> None:
        """Disconnect; never raises."""
        ...

    def read(self) -> NodeFacts:
        """Read the node; may raise NvmlCallError where the connection is gone."""
        ...

    def look(self) -> Look:
        """See what the GPUs of the last `read` are doing; may raise NvmlCallError where the connection is gone."""
        ...


class NvmlDriver:
    """The real thing."""

    def __init__(self, binding: Binding, pci: PciBus) -> None:
        """Say which library to use, and where NUMA nodes are looked up that NVML doesn't know."""
        self._nvml = binding
        self._pci = pci
        self._handles: dict[str, Handle] = {}
        self._names: dict[str, str] = {}
        self._cut: frozenset[str] = frozenset()
        self._events: Handle | None = None
        self._registered: dict[int, str] = {}

    def open(self) -> None:
        """Load and initialise NVML.

        Raises:
            NvmlUnavailableError: it can't be used.
        """
        self._nvml.open()

    def close(self) -> None:
        """Shut NVML down; it never fails."""
        if self._events is not None:
            try:
                self._nvml.free_event_set(self._events)
            except NvmlCallError as error:
                _log.debug("event set not freed: %s", error)
        self._events = None
        self._registered, self._handles, self._names = {}, {}, {}
        self._nvml.close()

    def read(self) -> NodeFacts:
        """Read everything that is constant for a while; GPUs that can't be read are told apart.

        Raises:
            NvmlCallError: the connection is gone.
        """
        nvml = self._nvml
        gpus: list[GpuFacts] = []
        unreadable: list[UnreadableGpu] = []
        handles: dict[str, Handle] = {}
        for index in range(min(nvml.count(), MOST_GPUS)):
            try:
                device, facts = self._gpu(index)
            except NvmlCallError as error:
                if error.session:
                    raise
                uuid = error.gpu if error.gpu.startswith("GPU-") else ""
                unreadable.append(UnreadableGpu(index=index, uuid=uuid, reason=str(error)))
            except AnnotationError as error:
                unreadable.append(UnreadableGpu(index=index, uuid="", reason=str(error)))
            else:
                gpus.append(facts)
                handles[facts.uuid] = device
        self._handles = handles
        self._names = {facts.uuid: facts.id for facts in gpus}
        self._cut = frozenset(facts.uuid for facts in gpus if facts.mig_mode)
        links = self._links(gpus)
        self._register()
        return NodeFacts(
            driver=nvml.driver_version(),
            nvml=_or(nvml.library_version, ""),
            cuda=_or(nvml.cuda_version, 0),
            memory_limits=nvml.has(SET_LIMITS),
            gpus=tuple(_with_links(facts, links) for facts in gpus),
            unreadable=tuple(unreadable),
        )

    def look(self) -> Look:
        """Collect events, then look at every GPU.

        Raises:
            NvmlCallError: the connection is gone.
        """
        # Events first: a recovery action that is read afterwards is at least as new as they are.
        events = self._collect()
        samples: dict[str, GpuSample | NvmlCallError] = {}
        for uuid, device in self._handles.items():
            try:
                samples[self._names[uuid]] = self._sample(uuid, device)
            except NvmlCallError as error:
                if error.session:
                    raise
                samples[self._names[uuid]] = error
        return Look(samples=samples, events=events)

    # Reading.

    def _gpu(self, index: int) -> tuple[Handle, GpuFacts]:
        nvml = self._nvml
        device = nvml.handle(index)
        uuid = nvml.uuid(device, f"with index {index}")
        total, reserved, _ = nvml.memory(device, uuid)
        pci = _or(lambda: nvml.pci(device, uuid), "")
        mig_mode = self._mig_mode(device, uuid)
        return device, GpuFacts(
            id=gpu_id(uuid),
            uuid=uuid,
            index=index,
            name=nvml.name(device, uuid),
            memory=total,
            reserved=min(reserved, total),
            numa=self._numa(device, uuid, pci),
            pci=pci,
            capability=_or(lambda: nvml.capability(device, uuid), None),
            mig_mode=mig_mode,
            mig=self._instances(device, uuid) if mig_mode else (),
            accounting=_or(lambda: nvml.processes(device, uuid), None) is not None,
            exclusive=_or(lambda: nvml.exclusive(device, uuid), False),
        )

    def _mig_mode(self, device: Handle, uuid: str) -> bool:
        """A wrong no here would hand out slices that CUDA can't use, so only a product without MIG is a no."""
        try:
            return self._nvml.mig_mode(device, uuid)
        except NvmlCallError as error:
            if not error.absent:
                raise
            return False

    def _numa(self, device: Handle, uuid: str, pci: str) -> int:
        none: tuple[int, ...] = ()
        nodes = _or(lambda: self._nvml.numa_nodes(device, uuid), none)
        return nodes[0] if len(nodes) == 1 else self._pci.numa(pci) if pci else -1

    def _instances(self, device: Handle, uuid: str) -> tuple[MigFacts, ...]:
        """The MIG instances of a GPU; of one that is cut further into compute instances, none can be handed out whole."""
        nvml = self._nvml
        found: dict[int, list[MigFacts]] = {}
        for slot in range(min(nvml.mig_slots(device, uuid), _MOST_SLOTS)):
            instance = nvml.mig_handle(device, slot, uuid)
            if instance is None:
                continue
            number = nvml.gpu_instance(instance, uuid)
            slices, mebibytes = nvml.instance_shape(instance, uuid)
            name = _PROFILE.search(nvml.name(instance, uuid))
            profile = name[1] if name else f"{slices}g.{(mebibytes + 1023) // 1024}gb"
            facts = MigFacts(id=f"g{number}", uuid=nvml.uuid(instance, uuid), profile=profile, memory=mebibytes * MIB)
            found.setdefault(number, []).append(facts)
        for number, parts in found.items():
            if len(parts) > 1:
                _log.warning("GPU %s: MIG instance g%d has %d compute instances; not served", uuid, number, len(parts))
        return tuple(parts[0] for _, parts in sorted(found.items()) if len(parts) == 1)

    def _links(self, gpus: list[GpuFacts]) -> dict[tuple[str, str], Link]:
        """The best path between any two GPUs; pairs of which NVML says nothing are absent."""
        links: dict[tuple[str, str], Link] = {}
        for place, one in enumerate(gpus):
            for other in gpus[place + 1 :]:
                link = self._link(one.uuid, other.uuid)
                if link is not None:
                    links[one.id, other.id] = links[other.id, one.id] = link
        return links

    def _link(self, one: str, other: str) -> Link | None:
        ends = self._handles[one], self._handles[other]
        try:
            if _or(lambda: self._nvml.nvlinked(*ends, one), default=False):
                return "nvlink"
            level = _or(lambda: self._nvml.common_ancestor(*ends, one), None)
        except NvmlCallError as error:
            # One of the two has just been lost; the next look will say so.
            if error.session:
                raise
            return None
        if level is None:
            return None
        return "pcie" if level <= _HOSTBRIDGE else "numa" if level <= _NODE else "system"

    # Looking.

    def _sample(self, uuid: str, device: Handle) -> GpuSample:
        total, _, used = self._nvml.memory(device, uuid)
        listed = _or(lambda: self._nvml.processes(device, uuid), None)
        return GpuSample(
            processes=None
            if listed is None
            else tuple(
                # A driver's counter that ran below zero reads as 17 TB: more than the card has is no number.
                GpuProcess(
                    pid=pid,
                    memory=memory if memory is None or memory <= total else None,
                    instance=f"g{number}" if uuid in self._cut and number != NO_INSTANCE else None,
                )
                for (pid, number), memory in listed.items()
            ),
            used=min(used, total),
            recovery=_or(lambda: self._nvml.recovery_action(device, uuid), None),
        )

    def _register(self) -> None:
        """Ask for the events of every GPU that hasn't been asked yet; one that has none is watched by polling alone."""
        nvml = self._nvml
        if self._events is None:
            self._events = _or(nvml.event_set, None)
        for uuid, device in self._handles.items():
            address = nvml.address(device)
            if self._events is None or address in self._registered:
                continue
            try:
                wanted = sum(_EVENTS) & nvml.supported_events(device, uuid)
                if wanted:
                    nvml.register_events(device, wanted, self._events, uuid)
            except NvmlCallError as error:
                if error.session:
                    raise
                _log.warning("no events from this GPU, its health is polled only: %s", error)
            self._registered[address] = self._names[uuid]

    def _collect(self) -> tuple[GpuEvent, ...]:
        found: list[GpuEvent] = []
        while self._events is not None and len(found) < _MOST_EVENTS:
            event = self._nvml.next_event(self._events)
            if event is None:
                break
            device, kind, data = event
            gpu = self._registered.get(self._nvml.address(device)) or self._asked(device)
            if gpu is not None and kind in _EVENTS:
                found.append(GpuEvent(gpu=gpu, kind=_EVENTS[kind], data=data))
        return tuple(found)

    def _asked(self, device: Handle) -> str | None:
        """The GPU of an event whose handle is not one of those that were registered."""
        try:
            return self._names.get(self._nvml.uuid(device, "of an event"))
        except NvmlCallError as error:
            _log.warning("an event can't be told to a GPU: %s", error)
            return None


def _or(ask: Callable[[], T], default: T) -> T:
    """The answer, or the default where there is none; only a GPU or a connection that is gone is an error here."""
    try:
        return ask()
    except NvmlCallError as error:
        if error.lost or error.session:
            raise
        if not error.absent:
            _log.debug("taken as unknown: %s", error)
        return default


def _with_links(facts: GpuFacts, links: dict[tuple[str, str], Link]) -> GpuFacts:
    mine = {other: link for (one, other), link in links.items() if one == facts.id}
    return msgspec.structs.replace(facts, links=mine)
