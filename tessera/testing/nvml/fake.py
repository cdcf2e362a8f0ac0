"""The handle by which tests, the demo and benchmarks drive one node's fake driver.

Every method is one locked change of the state file, seen by all processes that use the library at once. Several handles
may be open on one file; none of them is special.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tessera.testing.nvml import create as creation
from tessera.testing.nvml import edit, views
from tessera.testing.nvml.build import build_library, known_functions
from tessera.testing.nvml.codes import (
    ComputeMode,
    EventType,
    LimitsBackend,
    NvmlReturn,
    ProcessKind,
    RecoveryAction,
    TopologyLevel,
)
from tessera.testing.nvml.edit import NO_INSTANCE, GpuRef
from tessera.testing.nvml.errors import FakeNvmlError
from tessera.testing.nvml.layout import (
    MAX_FAULTS,
    MAX_PROCESSES,
    NAME_SIZE,
    PATH_SIZE,
    SYMBOL_SIZE,
    Fault,
    Process,
    State,
)
from tessera.testing.nvml.memory import require_room
from tessera.testing.nvml.mig import cut
from tessera.testing.nvml.products import FakeGpu
from tessera.testing.nvml.statefile import StateFile

STATE_VARIABLE: Final = "TESSERA_FAKE_NVML_STATE"
FALLEN_OFF_THE_BUS: Final = 79
MAX_PID: Final = 1 << 22  # Linux's own limit


class FakeNvml:
    """One node's fake NVIDIA driver, in a state file.

    A GPU is named by its index or its UUID. Methods raise FakeNvmlError for a GPU, process or function that isn't there.
    """

    def __init__(self, file: StateFile) -> None:
        """Wrap an open state file; use ``create`` or ``open``."""
        self._file = file

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        gpus: Sequence[FakeGpu],
        driver_version: str = "615.10",
        nvml_version: str = "",
        cuda_version: int = 13040,
        missing: Iterable[str] | None = None,
        limits_backend: LimitsBackend = LimitsBackend.DMEM,
        seed: str = "",
    ) -> FakeNvml:
        """Make a new node.

        Args:
            path: the state file; it must not exist yet.
            gpus: in NVML's order; none is a driver without a GPU.
            driver_version: as NVML answers it.
            nvml_version: the library's own; made from the other two if empty.
            cuda_version: ``13040`` is CUDA 13.4.
            missing: functions that this node's library lacks; ``None`` = what a driver of this version lacks.
            limits_backend: how the kernel module keeps cgroup memory limits.
            seed: GPU UUIDs are made from it; the path if empty, so two nodes never share one.

        Raises:
            FakeNvmlError: what is asked can't stand on one node; StateFileError: the file can't be made.
        """
        lacking = creation.missing_of(driver_version) if missing is None else frozenset(missing)

        def fill(state: State) -> None:
            creation.fill_gpus(state, gpus, seed=seed or str(path.absolute()))
            creation.fill_driver(
                state, driver_version=driver_version, nvml_version=nvml_version, cuda_version=cuda_version
            )
            creation.fill_missing(state, lacking)
            state.limits_backend = limits_backend

        return cls(StateFile.create(path, fill))

    @classmethod
    def open(cls, path: Path) -> FakeNvml:
        """Open a node that another process made.

        Raises:
            StateFileError: there is no such file, or it is not one.
        """
        return cls(StateFile(path))

    def __enter__(self) -> Self:
        """Use as a context manager: the file is let go at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._file.close()

    @property
    def path(self) -> Path:
        """The state file."""
        return self._file.path

    @property
    def library(self) -> Path:
        """The library of this node, built if need be: what ``--nvml-library`` takes.

        Raises:
            LibraryBuildError: it can't be built.
        """
        with self._file.read() as state:
            names = [state.missing[i].value.decode() for i in range(state.missing_count)]
        return build_library(missing=names)

    def environment(self, *, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a child process needs to find this node by ``libnvidia-ml.so.1`` alone.

        ``inherited`` (this process's environment if not given) is read for the LD_LIBRARY_PATH that is to stay.
        """
        others = (os.environ if inherited is None else inherited).get("LD_LIBRARY_PATH")
        folder = str(self.library.parent)
        return {
            STATE_VARIABLE: str(self.path.absolute()),
            "LD_LIBRARY_PATH": f"{folder}:{others}" if others else folder,
        }

    # Reading back -----------------------------------------------------------------------------------------------------

    def gpus(self) -> tuple[views.GpuStatus, ...]:
        """All GPUs as they stand."""
        with self._file.read() as state:
            return tuple(views.gpu_status(state, index) for index in range(state.gpu_count))

    def processes(self) -> tuple[views.FakeProcess, ...]:
        """All processes on all GPUs."""
        with self._file.read() as state:
            return tuple(views.process_view(cell) for cell in views.process_cells(state))

    def memory_limits(self) -> tuple[views.CgroupLimit, ...]:
        """The memory limits that were set by NVML."""
        with self._file.read() as state:
            return tuple(views.limit_view(cell) for cell in views.limit_cells(state))

    # Processes --------------------------------------------------------------------------------------------------------

    def add_process(
        self,
        gpu: GpuRef,
        pid: int,
        *,
        memory: int,
        kind: ProcessKind = ProcessKind.COMPUTE,
        sm_percent: int = 0,
        memory_percent: int = 0,
        mig: int | None = None,
        name: str = "python3",
        cgroup: str = "",
    ) -> None:
        """Let a process use a GPU; once per GPU that it uses.

        Args:
            gpu: which GPU.
            pid: as the host numbers it.
            memory: bytes.
            kind: which of NVML's lists it stands in.
            sm_percent: how busy it keeps the SMs.
            memory_percent: how busy it keeps the memory.
            mig: slot of the MIG instance, on a GPU that is cut.
            name: what nvmlSystemGetProcessName answers.
            cgroup: its cgroup directory, for limits on it.

        Raises:
            OutOfMemoryError: it doesn't fit.
        """
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            cell = Process(
                pid=edit.require_range(pid, "process ID", least=1, most=MAX_PID),
                gpu=index,
                kind=int(kind),
                sm_percent=edit.require_range(sm_percent, "SM utilisation", most=100),
                memory_percent=edit.require_range(memory_percent, "memory utilisation", most=100),
                mig=edit.mig_slot(state, index, mig),
                name=creation.text(name, NAME_SIZE, "process name"),
                cgroup=creation.text(cgroup, PATH_SIZE, "cgroup"),
            )
            if any((other.gpu, other.pid) == (index, pid) for other in views.process_cells(state)):
                raise FakeNvmlError(f"process {pid} already uses GPU {index}; use set_process_memory")
            if state.process_count >= MAX_PROCESSES:
                raise FakeNvmlError(f"{state.process_count} processes run; a fake node holds {MAX_PROCESSES}")
            require_room(state, cell, memory)
            cell.memory_used = memory
            state.processes[state.process_count] = cell
            state.process_count += 1

    def remove_process(self, pid: int, *, gpu: GpuRef | None = None) -> None:
        """End a process: on one GPU, or wherever it runs."""
        with self._file.write() as state:
            index = None if gpu is None else edit.index_of(state, gpu)
            cells = views.process_cells(state)
            kept = [cell for cell in cells if cell.pid != pid or index not in {None, cell.gpu}]
            if len(kept) == len(cells):
                raise FakeNvmlError(f"process {pid} uses no GPU{'' if index is None else f' {index}'} of this node")
            for slot, copy in enumerate([Process.from_buffer_copy(cell) for cell in kept]):
                state.processes[slot] = copy
            state.process_count = len(kept)

    def set_process_memory(self, gpu: GpuRef, pid: int, memory: int) -> None:
        """Let a process grow or shrink to ``memory`` bytes.

        Raises:
            OutOfMemoryError: it doesn't fit; the process keeps what it had.
        """
        with self._file.write() as state:
            cell = edit.process_of(state, gpu, pid)
            require_room(state, cell, memory)
            cell.memory_used = memory

    def set_process_utilization(self, gpu: GpuRef, pid: int, *, sm_percent: int, memory_percent: int = 0) -> None:
        """Say how busy a process keeps the GPU."""
        with self._file.write() as state:
            cell = edit.process_of(state, gpu, pid)
            cell.sm_percent = edit.require_range(sm_percent, "SM utilisation", most=100)
            cell.memory_percent = edit.require_range(memory_percent, "memory utilisation", most=100)

    # Health and events ------------------------------------------------------------------------------------------------

    def mark_sick(self, gpu: GpuRef, xid: int, recovery_action: RecoveryAction = RecoveryAction.GPU_RESET) -> None:
        """An XID strikes: its event, and the recovery action that the driver now recommends, with its own event."""
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            edit.strike(state, index, xid)
            edit.recommend(state, index, recovery_action)

    def recover(self, gpu: GpuRef) -> None:
        """The GPU was reset, or the error proved transient: nothing is recommended any more."""
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            state.gpus[index].last_xid = 0
            edit.recommend(state, index, RecoveryAction.NONE)

    def lose(self, gpu: GpuRef, *, xid: int | None = FALLEN_OFF_THE_BUS) -> None:
        """The GPU falls off the bus: every query about it answers GPU_IS_LOST; an event goes first unless xid is None."""
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            if xid is not None:
                edit.strike(state, index, xid)
            state.gpus[index].lost = 1

    def return_gpu(self, gpu: GpuRef) -> None:
        """The lost GPU answers again (a bus reset or reboot), healthy."""
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            state.gpus[index].lost = state.gpus[index].last_xid = 0
            edit.recommend(state, index, RecoveryAction.NONE)

    def push_event(
        self,
        gpu: GpuRef,
        event: EventType,
        data: int = 0,
        *,
        gpu_instance: int = NO_INSTANCE,
        compute_instance: int = NO_INSTANCE,
    ) -> None:
        """Let an event happen; ``data`` is the XID where it is one. The ring keeps the last 256."""
        with self._file.write() as state:
            edit.push(
                state,
                edit.index_of(state, gpu),
                event,
                data,
                gpu_instance=gpu_instance,
                compute_instance=compute_instance,
            )

    def set_sensors(self, gpu: GpuRef, *, celsius: int, watts: float) -> None:
        """Say how hot the GPU is and what it draws."""
        with self._file.write() as state:
            cell = state.gpus[edit.index_of(state, gpu)]
            cell.temperature, cell.power_milliwatts = celsius, round(watts * 1000)

    def set_ecc(self, gpu: GpuRef, *, corrected: int, uncorrected: int, pending_remap: bool = False) -> None:
        """Set the ECC counters, and whether rows wait for a reset to be remapped."""
        with self._file.write() as state:
            cell = state.gpus[edit.index_of(state, gpu)]
            cell.ecc_corrected, cell.ecc_uncorrected = corrected, uncorrected
            cell.remapped_pending = int(pending_remap)

    def set_compute_mode(self, gpu: GpuRef, mode: ComputeMode) -> None:
        """Say who may use the GPU, as an administrator does with ``nvidia-smi -c``."""
        with self._file.write() as state:
            state.gpus[edit.index_of(state, gpu)].compute_mode = int(mode)

    # The machine and its driver ---------------------------------------------------------------------------------------

    def connect(
        self, gpu: GpuRef, other: GpuRef, *, level: TopologyLevel | None = None, nvlinks: int | None = None
    ) -> None:
        """Change the path between two GPUs: what they have in common on PCIe, and how many NVLinks join them."""
        with self._file.write() as state:
            ends = edit.index_of(state, gpu), edit.index_of(state, other)
            if ends[0] == ends[1]:
                raise FakeNvmlError(f"GPU {ends[0]} has no path to itself; name two GPUs")
            for one, two in (ends, ends[::-1]):
                cell = state.gpus[one]
                taken = sum(cell.nvlinks) - cell.nvlinks[two]
                if nvlinks is not None and not 0 <= nvlinks <= cell.nvlink_ports - taken:
                    raise FakeNvmlError(f"GPU {one} has {cell.nvlink_ports - taken} NVLinks left, not {nvlinks}")
            for one, two in (ends, ends[::-1]):
                if level is not None:
                    state.gpus[one].topology[two] = level
                if nvlinks is not None:
                    state.gpus[one].nvlinks[two] = nvlinks

    def set_mig(self, gpu: GpuRef, profiles: Sequence[str] | None) -> None:
        """Cut a GPU into these instances, or end MIG on it with ``None``; refused while a process uses it."""
        with self._file.write() as state:
            index = edit.index_of(state, gpu)
            if any(cell.gpu == index for cell in views.process_cells(state)):
                raise FakeNvmlError(f"GPU {index} is in use; end its processes before it is cut anew")
            cut(state.gpus[index], profiles)
            edit.push(state, index, EventType.MIG_CONFIG, 0)

    def set_driver(self, driver_version: str, *, nvml_version: str = "", cuda_version: int | None = None) -> None:
        """Another driver version; the library's functions stay what they were built to be."""
        with self._file.write() as state:
            creation.fill_driver(
                state,
                driver_version=driver_version,
                nvml_version=nvml_version,
                cuda_version=state.cuda_version if cuda_version is None else cuda_version,
            )

    def fail_init(self, error: NvmlReturn | None) -> None:
        """Let nvmlInit fail from now on (no driver, a library that doesn't match it), or work again with ``None``."""
        with self._file.write() as state:
            state.init_error = error or NvmlReturn.SUCCESS

    def fail(self, function: str, error: NvmlReturn, *, gpu: GpuRef | None = None) -> None:
        """Let one function (by its C name, ``nvmlDeviceGetMemoryInfo_v2``) answer an error, for one GPU or for all."""
        if function not in known_functions():
            raise FakeNvmlError(f"no function {function!r} to let fail; see tessera.testing.nvml.known_functions()")
        with self._file.write() as state:
            index = -1 if gpu is None else edit.index_of(state, gpu)
            if state.fault_count >= MAX_FAULTS:
                raise FakeNvmlError(f"{MAX_FAULTS} functions fail already; heal() some")
            # The newest stands first: it is the one that counts.
            state.faults[1:] = [Fault.from_buffer_copy(cell) for cell in state.faults[:-1]]
            state.faults[0] = Fault(
                function=creation.text(function, SYMBOL_SIZE, "function"), gpu=index, error=int(error)
            )
            state.fault_count += 1

    def heal(self, function: str | None = None) -> None:
        """Let a function work again, or all of them."""
        with self._file.write() as state:
            cells = [Fault.from_buffer_copy(state.faults[i]) for i in range(state.fault_count)]
            kept = [cell for cell in cells if function is not None and cell.function != function.encode()]
            for slot, cell in enumerate(kept):
                state.faults[slot] = cell
            state.fault_count = len(kept)
