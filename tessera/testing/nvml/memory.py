"""Whether an allocation succeeds: on the card, in a MIG instance, and under the hard limit of the process's cgroup."""

from __future__ import annotations

import os
from typing import Final

from tessera.testing.nvml.edit import require_range
from tessera.testing.nvml.errors import OutOfMemoryError
from tessera.testing.nvml.layout import Gpu, MemoryLimit, Process, State
from tessera.testing.nvml.views import limit_cells, process_cells

MIB: Final = 1 << 20


def require_room(state: State, cell: Process, memory: int) -> None:
    """Let a process grow to ``memory`` bytes, or refuse as the driver would.

    Raises:
        OutOfMemoryError: the card, the MIG instance or a cgroup's hard limit has less.
    """
    require_range(memory, f"memory of process {cell.pid}")
    gpu: Gpu = state.gpus[cell.gpu]
    others = [other for other in process_cells(state) if other.gpu == cell.gpu and other.pid != cell.pid]
    if cell.mig >= 0:
        room = gpu.profiles[gpu.mig[cell.mig].profile].memory_mib * MIB
        where = f"MIG instance {gpu.mig[cell.mig].uuid.decode()}"
        others = [other for other in others if other.mig == cell.mig]
    else:
        room = gpu.memory_total - gpu.memory_reserved
        where = f"GPU {gpu.uuid.decode()}"
    _require(cell, memory, room=room - sum(other.memory_used for other in others), where=where)
    for limit in limit_cells(state):
        if limit.gpu == cell.gpu and _inside(cell.cgroup, limit.name_space) and _alive(limit):
            held = sum(other.memory_used for other in others if _inside(other.cgroup, limit.name_space))
            where = f"the hard limit of cgroup {limit.name_space.decode()}"
            _require(cell, memory, room=limit.hard - held, where=where)


def _require(cell: Process, memory: int, *, room: int, where: str) -> None:
    if memory > room:
        raise OutOfMemoryError(
            f"process {cell.pid} asks for {memory // MIB} MiB; {where} leaves it {max(0, room) // MIB} MiB"
        )


def _inside(cgroup: bytes, parent: bytes) -> bool:
    return cgroup == parent or cgroup.startswith(parent + b"/")


def _alive(limit: MemoryLimit) -> bool:
    """A limit ends with its cgroup: a directory made anew under the same name has none."""
    try:
        status = os.stat(limit.name_space.decode())
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (limit.device, limit.inode)
