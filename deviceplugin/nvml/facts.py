"""What NVML says about a node, as plain values: nothing here has a handle or calls anything."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Literal

import msgspec

from deviceplugin.nvml.errors import GpuClashError, NvmlCallError
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, Health, Link, MigInstance, usable_units

MOST_GPUS: Final = 64
"""No node holds more; a limit keeps a broken driver's count from becoming an endless loop."""
MOST_PROCESSES: Final = 4096
"""Of one GPU in one look."""


class RecoveryAction(IntEnum):
    """NVML_GPU_RECOVERY_ACTION_* (field 230, driver 565 and newer): what the driver recommends to do about a GPU.

    UNKNOWN is ours, for one that this program doesn't know yet.
    """

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3
    DRAIN_AND_RESET = 4
    RECOVER_IMEX_DOMAIN = 5
    BUS_RESET = 6
    SYSTEM_REBOOT = 7
    UNKNOWN = -1


class MigFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One MIG instance: its id on the GPU (``g7``), UUID (``MIG-…``), profile (``1g.10gb``), bytes of memory."""

    id: str
    uuid: str
    profile: str
    memory: int


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU.

    Attributes:
        id: first 12 hex digits of the UUID. uuid: ``GPU-…``. index: NVML's, of this boot only. name: the product.
        memory: bytes in all. reserved: bytes that the driver keeps for itself, 0 where it doesn't say.
        numa: the host's NUMA node, -1 unknown. pci: bus address as sysfs writes it, ``0000:17:00.0``.
        capability: CUDA compute capability, None where unknown.
        mig_mode: MIG is on. mig: its instances. links: by the other GPU's id, the best path.
        accounting: NVML lists this GPU's processes. exclusive: its compute mode is EXCLUSIVE_PROCESS.
    """

    id: str
    uuid: str
    index: int
    name: str
    memory: int
    reserved: int
    numa: int = -1
    pci: str = ""
    capability: tuple[int, int] | None = None
    mig_mode: bool = False
    mig: tuple[MigFacts, ...] = ()
    links: dict[str, Link] = {}
    accounting: bool = False
    exclusive: bool = False


class UnreadableGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU that NVML counts and can't describe; `uuid` is "" where even that failed."""

    index: int
    uuid: str
    reason: str


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One node.

    Attributes:
        driver: version of the kernel driver, ``615.10``. nvml: version of the library. cuda: 13040 is CUDA 13.4.
        memory_limits: the library can set cgroup memory limits (nvmlDeviceSetMemoryLimits_v1).
        gpus: in NVML's order. unreadable: those that could not be read.
    """

    driver: str
    nvml: str = ""
    cuda: int = 0
    memory_limits: bool = False
    gpus: tuple[GpuFacts, ...] = ()
    unreadable: tuple[UnreadableGpu, ...] = ()

    @property
    def branch(self) -> int:
        """The driver's branch: 615 of ``615.10``; 0 where the version has no number."""
        digits = self.driver.partition(".")[0]
        return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 5 else 0


class GpuProcess(msgspec.Struct, frozen=True, kw_only=True):
    """One process on one GPU.

    Attributes:
        pid: as the host numbers it (as seen from the agent's PID namespace).
        memory: bytes, None where the driver can't tell.
        instance: MIG instance (``g7``) it runs in, None where not in one.
    """

    pid: int
    memory: int | None
    instance: str | None = None


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """One look at one GPU.

    Attributes:
        processes: None where NVML doesn't list them. used: bytes in use by all, without the driver's reserve where the
            driver tells them apart.
        recovery: what the driver recommends; None where this driver doesn't say.
    """

    processes: tuple[GpuProcess, ...] | None
    used: int
    recovery: RecoveryAction | None


EventKind = Literal["xid", "ecc", "unavailable", "recovery"]


class GpuEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something the driver reported by itself: `data` is the XID where it is one, else what NVML put there."""

    gpu: str
    kind: EventKind
    data: int = 0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """All GPUs at one moment: by GPU id what was seen, or the error that was the answer; events since the last look."""

    samples: dict[str, GpuSample | NvmlCallError]
    events: tuple[GpuEvent, ...] = ()


def inventory_gpus(
    gpus: tuple[GpuFacts, ...],
    *,
    unit: int,
    headroom: int,
    health: Mapping[str, Health],
    guarantees: Mapping[str, Guarantees],
    held: Mapping[str, int],
) -> tuple[Gpu, ...]:
    """Say facts in the language of the inventory annotation.

    A GPU with MIG on has no units: its memory can't be handed out in slices, cut or not.

    Args:
        gpus: the facts.
        unit: bytes of one memory unit.
        headroom: bytes of each GPU that are never handed out.
        health: by GPU id; absent is "ok".
        guarantees: by GPU id; absent is none.
        held: units in foreign use by GPU id; absent is 0.

    Raises:
        GpuClashError: two GPUs have the same id.
    """
    refuse_clash(gpus)
    return tuple(
        Gpu(
            id=gpu.id,
            uuid=gpu.uuid,
            index=gpu.index,
            model=gpu.name,
            memory=gpu.memory,
            units=0
            if gpu.mig_mode
            else usable_units(total=gpu.memory, reserved=gpu.reserved, headroom=headroom, unit=unit),
            numa=gpu.numa,
            health=health.get(gpu.id, "ok"),
            guarantee=guarantees.get(gpu.id, Guarantees()),
            links=gpu.links,
            held=held.get(gpu.id, 0),
            mig=tuple(MigInstance(id=instance.id, profile=instance.profile) for instance in gpu.mig),
        )
        for gpu in gpus
    )


def refuse_clash(gpus: tuple[GpuFacts, ...]) -> None:
    """Device IDs are made of the first 12 hex digits, so two GPUs that share them can't both be served.

    Raises:
        GpuClashError: two do.
    """
    seen: dict[str, GpuFacts] = {}
    for gpu in gpus:
        other = seen.setdefault(gpu.id, gpu)
        if other is not gpu:
            raise GpuClashError(
                f"GPUs {other.uuid} (index {other.index}) and {gpu.uuid} (index {gpu.index}) both shorten to {gpu.id}, "
                "so their device IDs would be the same: keep one of them away from this node"
            )
