"""What can be read back from a state file: plain values, copied out under the lock."""

from __future__ import annotations

from dataclasses import dataclass

from tessera.testing.nvml.codes import ComputeMode, ProcessKind, RecoveryAction
from tessera.testing.nvml.layout import Gpu, MemoryLimit, Process, State


@dataclass(frozen=True, kw_only=True)
class MigDevice:
    """One MIG instance of a GPU: its slot is the index by which NVML finds it; ``memory`` in bytes."""

    slot: int
    uuid: str
    profile: str
    gpu_instance: int
    memory: int


@dataclass(frozen=True, kw_only=True)
class GpuStatus:
    """One GPU as it stands now; memory in bytes, ``memory_used`` without the driver's reserve."""

    index: int
    uuid: str
    name: str
    numa: int
    memory_total: int
    memory_reserved: int
    memory_used: int
    compute_mode: ComputeMode
    lost: bool
    last_xid: int
    recovery_action: RecoveryAction
    mig: tuple[MigDevice, ...] | None


@dataclass(frozen=True, kw_only=True)
class FakeProcess:
    """One process on one GPU; ``memory`` in bytes, utilisation in percent of the GPU's SMs and memory time."""

    gpu: int
    pid: int
    memory: int
    kind: ProcessKind
    sm_percent: int
    memory_percent: int
    mig: int | None
    name: str
    cgroup: str


@dataclass(frozen=True, kw_only=True)
class CgroupLimit:
    """A memory limit that somebody set by NVML: bytes, on one GPU, for one cgroup directory."""

    gpu: int
    cgroup: str
    soft: int
    hard: int


def gpu_status(state: State, index: int) -> GpuStatus:
    """Copy one GPU out."""
    gpu: Gpu = state.gpus[index]
    return GpuStatus(
        index=index,
        uuid=gpu.uuid.decode(),
        name=gpu.name.decode(),
        numa=gpu.numa,
        memory_total=gpu.memory_total,
        memory_reserved=gpu.memory_reserved,
        memory_used=sum(cell.memory_used for cell in process_cells(state) if cell.gpu == index),
        compute_mode=ComputeMode(gpu.compute_mode),
        lost=bool(gpu.lost),
        last_xid=gpu.last_xid,
        recovery_action=RecoveryAction(gpu.recovery_action),
        mig=_mig(gpu) if gpu.mig_mode else None,
    )


def process_cells(state: State) -> list[Process]:
    """The used part of the process table; valid only while the state is locked."""
    return [state.processes[i] for i in range(state.process_count)]


def process_view(cell: Process) -> FakeProcess:
    """Copy one process out."""
    return FakeProcess(
        gpu=cell.gpu,
        pid=cell.pid,
        memory=cell.memory_used,
        kind=ProcessKind(cell.kind),
        sm_percent=cell.sm_percent,
        memory_percent=cell.memory_percent,
        mig=cell.mig if cell.mig >= 0 else None,
        name=cell.name.decode(),
        cgroup=cell.cgroup.decode(),
    )


def limit_cells(state: State) -> list[MemoryLimit]:
    """The used part of the limit table; valid only while the state is locked."""
    return [state.limits[i] for i in range(state.limit_count)]


def limit_view(cell: MemoryLimit) -> CgroupLimit:
    """Copy one limit out."""
    return CgroupLimit(gpu=cell.gpu, cgroup=cell.name_space.decode(), soft=cell.soft, hard=cell.hard)


def _mig(gpu: Gpu) -> tuple[MigDevice, ...]:
    return tuple(
        MigDevice(
            slot=slot,
            uuid=cell.uuid.decode(),
            profile=gpu.profiles[cell.profile].name.decode(),
            gpu_instance=cell.gpu_instance,
            memory=gpu.profiles[cell.profile].memory_mib << 20,
        )
        for slot, cell in enumerate(gpu.mig)
        if cell.present
    )
