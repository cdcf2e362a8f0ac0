"""Steps that several changes of a locked state share: finding what is named, checking amounts, pushing events."""

from __future__ import annotations

from typing import Final

from tessera.testing.nvml.codes import EventType, RecoveryAction
from tessera.testing.nvml.errors import FakeNvmlError
from tessera.testing.nvml.layout import MAX_EVENTS, Event, Process, State
from tessera.testing.nvml.views import process_cells

NO_INSTANCE: Final = 0xFFFFFFFF
_UINT32: Final = 0xFFFFFFFF
_UINT64: Final = 0xFFFFFFFFFFFFFFFF

GpuRef = int | str


def index_of(state: State, gpu: GpuRef) -> int:
    """The index of a GPU that is named by index or UUID.

    Raises:
        FakeNvmlError: there is no such GPU.
    """
    if isinstance(gpu, str):
        for index in range(state.gpu_count):
            if state.gpus[index].uuid == gpu.encode():
                return index
    elif 0 <= gpu < state.gpu_count:
        return gpu
    raise FakeNvmlError(f"no GPU {gpu!r} on this node; it has {state.gpu_count}")


def mig_slot(state: State, index: int, slot: int | None) -> int:
    """Check the MIG instance that a process is to run in; -1 = none, on a GPU that isn't cut.

    Raises:
        FakeNvmlError: the GPU is cut and no instance, or one that isn't there, is named; or it isn't cut and one is.
    """
    gpu = state.gpus[index]
    if not gpu.mig_mode and slot is None:
        return -1
    slots = [i for i, cell in enumerate(gpu.mig) if cell.present]
    if slot is None or slot not in slots:
        raise FakeNvmlError(f"GPU {index} has MIG instances {slots}; a process runs in one of them, not in {slot}")
    return slot


def process_of(state: State, gpu: GpuRef, pid: int) -> Process:
    """The table's cell of a process on a GPU.

    Raises:
        FakeNvmlError: it doesn't use that GPU.
    """
    index = index_of(state, gpu)
    for cell in process_cells(state):
        if (cell.gpu, cell.pid) == (index, pid):
            return cell
    raise FakeNvmlError(f"process {pid} doesn't use GPU {index}; add_process first")


def require_range(value: int, what: str, *, least: int = 0, most: int = _UINT64) -> int:
    """Refuse a number that ctypes would silently cut to its field.

    Raises:
        FakeNvmlError: it lies outside.
    """
    if not least <= value <= most:
        raise FakeNvmlError(f"{what} is {value}; it must be {least} to {most}")
    return value


def push(
    state: State,
    index: int,
    event: EventType,
    data: int,
    *,
    gpu_instance: int = NO_INSTANCE,
    compute_instance: int = NO_INSTANCE,
) -> None:
    """Append an event to the ring."""
    state.events[state.event_count % MAX_EVENTS] = Event(
        sequence=state.event_count + 1,
        type=int(event),
        data=require_range(data, "event data"),
        gpu=index,
        gpu_instance=require_range(gpu_instance, "GPU instance", most=_UINT32),
        compute_instance=require_range(compute_instance, "compute instance", most=_UINT32),
    )
    state.event_count += 1


def strike(state: State, index: int, xid: int) -> None:
    """An XID: its event, and a note of it on the GPU."""
    state.gpus[index].last_xid = require_range(xid, "XID", most=_UINT32)
    push(state, index, EventType.XID, xid)


def recommend(state: State, index: int, action: RecoveryAction) -> None:
    """Change the recovery action; the driver reports a change by an event of its own since 565."""
    if state.gpus[index].recovery_action != action:
        state.gpus[index].recovery_action = int(action)
        push(state, index, EventType.GPU_RECOVERY_ACTION, int(action))
