"""What a new state file holds: one node's driver, its GPUs, and the paths between them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Final

from tessera.testing.nvml.codes import EventType, TopologyLevel
from tessera.testing.nvml.errors import FakeNvmlError
from tessera.testing.nvml.layout import MAX_GPUS, NAME_SIZE, SYMBOL_SIZE, VERSION_SIZE, Gpu, State
from tessera.testing.nvml.mig import cut, fill_profiles
from tessera.testing.nvml.products import FakeGpu

# NVIDIA's NVML change log: the driver branch in which a function appeared.
SINCE_DRIVER: Final = {
    "nvmlDeviceGetComputeRunningProcesses_v3": 535,
    "nvmlDeviceGetGraphicsRunningProcesses_v3": 535,
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": 535,
    "nvmlDeviceGetNumaNodeId": 550,
    "nvmlDeviceGetMemoryLimits_v1": 615,
    "nvmlDeviceSetMemoryLimits_v1": 615,
}
_RECOVERY_EVENTS_SINCE: Final = 565
_FIRST_BUS: Final = 0x17
_BUS_STEP: Final = 0x10


def major(driver_version: str) -> int:
    """The branch of a driver, ``615`` of ``615.10``; 0 where there is no number."""
    digits = driver_version.partition(".")[0]
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 4 else 0


def missing_of(driver_version: str) -> frozenset[str]:
    """The functions that a driver of this version doesn't have yet."""
    return frozenset(name for name, since in SINCE_DRIVER.items() if major(driver_version) < since)


def text(value: str, size: int, what: str) -> bytes:
    """Encode for a field of ``size`` bytes.

    Raises:
        FakeNvmlError: it doesn't fit, or holds a zero byte.
    """
    encoded = value.encode()
    if len(encoded) >= size or b"\0" in encoded:
        raise FakeNvmlError(
            f"{what} {value[:80]!r} takes {len(encoded)} bytes; at most {size - 1} fit, none of them zero"
        )
    return encoded


def fill_driver(state: State, *, driver_version: str, nvml_version: str, cuda_version: int) -> None:
    """Write the versions, and the event types that such a driver reports.

    The library's own version follows NVIDIA's scheme, ``13.615.10``, where none is given.
    """
    state.driver_version = text(driver_version, VERSION_SIZE, "driver version")
    library = nvml_version or f"{cuda_version // 1000}.{driver_version}"
    state.nvml_version = text(library, VERSION_SIZE, "NVML version")
    state.cuda_version = cuda_version
    for index in range(state.gpu_count):
        state.gpus[index].supported_events = int(supported_events(driver_version))


def fill_missing(state: State, names: frozenset[str]) -> None:
    """Write which functions this node's library lacks.

    Raises:
        FakeNvmlError: more than the table holds.
    """
    if len(names) > len(state.missing):
        raise FakeNvmlError(
            f"{len(names)} functions are to be missing; a state file names {len(state.missing)} at most"
        )
    state.missing_count = len(names)
    for index, name in enumerate(sorted(names)):
        state.missing[index].value = text(name, SYMBOL_SIZE, "function name")


def fill_gpus(state: State, gpus: Sequence[FakeGpu], *, seed: str) -> None:
    """Write the GPUs and the default paths between them: one host bridge per NUMA node.

    Raises:
        FakeNvmlError: more GPUs than the table holds, two with one UUID, or a cut that doesn't fit.
    """
    if len(gpus) > MAX_GPUS:
        raise FakeNvmlError(f"{len(gpus)} GPUs are asked for; a fake node holds {MAX_GPUS} at most")
    state.gpu_count = len(gpus)
    for index, card in enumerate(gpus):
        gpu = state.gpus[index]
        _fill_gpu(gpu, card, index=index, seed=seed)
        for other, peer in enumerate(gpus):
            near = card.numa == peer.numa
            gpu.topology[other] = TopologyLevel.NODE if near else TopologyLevel.SYSTEM
    uuids = {state.gpus[index].uuid for index in range(len(gpus))}
    if len(uuids) < len(gpus):
        raise FakeNvmlError(f"{len(gpus)} GPUs have {len(uuids)} different UUIDs; give each its own")


def supported_events(driver_version: str) -> EventType:
    """The event types that a data centre GPU reports under this driver."""
    old = EventType.SINGLE_BIT_ECC | EventType.DOUBLE_BIT_ECC | EventType.PSTATE | EventType.XID | EventType.CLOCK
    new = EventType.GPU_UNAVAILABLE | EventType.GPU_RECOVERY_ACTION
    return old | new if major(driver_version) >= _RECOVERY_EVENTS_SINCE else old


def _fill_gpu(gpu: Gpu, card: FakeGpu, *, index: int, seed: str) -> None:
    identity = card.uuid or f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{seed}/{index}')}"
    gpu.uuid = text(identity, NAME_SIZE, "GPU UUID")
    gpu.name = text(card.name, NAME_SIZE, "GPU name")
    gpu.memory_total = card.memory_total
    gpu.memory_reserved = card.memory_reserved
    # Eight buses of a PCI domain, then the next domain, so that 32 GPUs have 32 addresses.
    gpu.pci_domain = index // 8
    gpu.pci_bus = _FIRST_BUS + _BUS_STEP * (index % 8) if card.pci_bus is None else card.pci_bus
    gpu.pci_device_id = card.pci_device_id
    gpu.pci_subsystem_id = card.pci_device_id
    gpu.minor = index
    gpu.numa = card.numa
    gpu.coherent = int(card.coherent)
    gpu.capability_major, gpu.capability_minor = card.capability
    gpu.architecture = card.architecture
    gpu.brand = card.brand
    gpu.persistence_mode = 1
    gpu.temperature = 34
    gpu.power_milliwatts = 62_000
    gpu.nvlink_ports = card.nvlink_ports
    gpu.ecc_mode = int(card.ecc)
    gpu.mig_capable = int(bool(card.profiles))
    fill_profiles(gpu, card.profiles)
    cut(gpu, card.mig)
