"""The only user of pynvml: NVML's functions as typed methods, its errors in our words.

pynvml keeps the library, its reference count and its function pointers in module globals, and always loads
``libnvidia-ml.so.1``. Here another file can be named, and after a close the library is really let go of: a driver that was
replaced meanwhile comes with a new library, and the old one answers LIB_RM_VERSION_MISMATCH for ever. So a process may
have one open `Binding` at a time. Every method blocks and runs in the worker's thread.

pynvml is imported at the first `open`: it costs 20 ms and 6 MiB, and most nodes of a DaemonSet may have no GPU.
"""

from __future__ import annotations

import _ctypes
import ctypes
import importlib
import re
from collections.abc import Callable
from typing import Any, Final

from deviceplugin.nvml.errors import Code, NvmlCallError, NvmlUnavailableError
from deviceplugin.nvml.facts import MOST_PROCESSES, RecoveryAction

DEFAULT_LIBRARY: Final = "libnvidia-ml.so.1"
NO_INSTANCE: Final = 0xFFFFFFFF
# nvml.h, by these names in pynvml (a test compares them).
NVML_P2P_CAPS_INDEX_NVLINK: Final = 2
NVML_P2P_STATUS_OK: Final = 0
NVML_AFFINITY_SCOPE_NODE: Final = 0
NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: Final = 3
NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: Final = 230
nvmlMemory_v2: Final = 0x02000028  # noqa: N816 - pynvml's name
_BUS_ID: Final = re.compile(r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7])", re.ASCII)
_NUMA_WORDS: Final = 16  # 1,024 NUMA nodes, the kernel's own limit
_PROCESS_LISTS: Final = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
_UNAVAILABLE: Final = {
    Code.DRIVER_NOT_LOADED: "the NVIDIA kernel driver is not loaded; load it (modprobe nvidia) or install it",
    Code.LIB_RM_VERSION_MISMATCH: "library and kernel driver have different versions, as after an upgrade; reload the "
    "kernel modules or reboot the node",
    Code.NO_PERMISSION: "no permission to open /dev/nvidiactl; the node agent's container must be privileged",
    Code.GPU_NOT_FOUND: "the driver runs and finds no GPU that it can drive; look for NVRM lines in the kernel's log",
}

Handle = object
"""A device handle; only this module looks into it."""


class Binding:
    """NVML, from nvmlInit to nvmlShutdown."""

    def __init__(self, library: str | None = None) -> None:
        """Say which library to load; None lets the dynamic linker find it."""
        self.path = library or DEFAULT_LIBRARY
        self._library: ctypes.CDLL | None = None
        self._pynvml: Any = None

    def open(self) -> None:
        """Load the library and initialise it.

        Raises:
            NvmlUnavailableError: it can't be loaded, or the driver can't be used.
        """
        if self._library is not None:
            return
        try:
            self._library = ctypes.CDLL(self.path)
        except OSError as error:
            raise NvmlUnavailableError(
                f"NVML can't be loaded: {error}; install the NVIDIA driver's libraries where the node agent sees them, or "
                "say where they are with --nvml-library"
            ) from error
        self._pynvml = importlib.import_module("pynvml")
        self._pynvml.nvmlLib = self._library
        self._pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - pointers into a library that is gone
        try:
            self._call("nvmlInit")
        except NvmlCallError as error:
            self._unload()
            why = _UNAVAILABLE.get(Code(error.code)) if error.code in _UNAVAILABLE else None
            raise NvmlUnavailableError(f"{error}{f': {why}' if why else ''}") from error

    def close(self) -> None:
        """Shut NVML down and unload the library; it never fails."""
        if self._library is None:
            return
        try:
            self._call("nvmlShutdown")
        except NvmlCallError:
            # A driver that went away can't be said goodbye to.
            pass
        finally:
            self._unload()

    def has(self, function: str) -> bool:
        """Whether the loaded library exports a function."""
        return self._library is not None and hasattr(self._library, function)

    # The system.

    def driver_version(self) -> str:
        return str(self._call("nvmlSystemGetDriverVersion"))

    def library_version(self) -> str:
        return str(self._call("nvmlSystemGetNVMLVersion"))

    def cuda_version(self) -> int:
        return int(self._call("nvmlSystemGetCudaDriverVersion_v2"))

    def count(self) -> int:
        return int(self._call("nvmlDeviceGetCount"))

    # One GPU. `gpu` names it in errors.

    def handle(self, index: int) -> Handle:
        return self._call("nvmlDeviceGetHandleByIndex", index, gpu=f"with index {index}")

    def uuid(self, device: Handle, gpu: str) -> str:
        return str(self._call("nvmlDeviceGetUUID", device, gpu=gpu))

    def name(self, device: Handle, gpu: str) -> str:
        return str(self._call("nvmlDeviceGetName", device, gpu=gpu))

    def memory(self, device: Handle, gpu: str) -> tuple[int, int, int]:
        """Bytes in all, reserved by the driver, and in use.

        The old call counts the reserve as used and doesn't tell it apart, so there it is 0.
        """
        try:
            found = self._call("nvmlDeviceGetMemoryInfo", device, nvmlMemory_v2, gpu=gpu)
        except NvmlCallError as error:
            if not error.absent:
                raise
            found = self._call("nvmlDeviceGetMemoryInfo", device, gpu=gpu)
            return int(found.total), 0, int(found.used)
        return int(found.total), int(found.reserved), int(found.used)

    def capability(self, device: Handle, gpu: str) -> tuple[int, int]:
        major, minor = self._call("nvmlDeviceGetCudaComputeCapability", device, gpu=gpu)
        return int(major), int(minor)

    def exclusive(self, device: Handle, gpu: str) -> bool:
        """Whether one process at a time may use the GPU; an MPS server is one, whoever its clients are."""
        return bool(self._call("nvmlDeviceGetComputeMode", device, gpu=gpu) == NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)

    def pci(self, device: Handle, gpu: str) -> str:
        """Bus address as sysfs writes it: NVML's has eight digits of domain, in capitals; "" for a text that is none."""
        raw = self._call("nvmlDeviceGetPciInfo", device, gpu=gpu).busId
        match = _BUS_ID.fullmatch(raw.decode("ascii", "replace") if isinstance(raw, bytes) else str(raw))
        return f"{int(match[1], 16):04x}:{match[2].lower()}" if match else ""

    def numa_nodes(self, device: Handle, gpu: str) -> tuple[int, ...]:
        """NUMA nodes of the host that are near the GPU."""
        words = self._call("nvmlDeviceGetMemoryAffinity", device, _NUMA_WORDS, NVML_AFFINITY_SCOPE_NODE, gpu=gpu)
        return tuple(64 * word + bit for word in range(_NUMA_WORDS) for bit in range(64) if words[word] >> bit & 1)

    def common_ancestor(self, device: Handle, other: Handle, gpu: str) -> int:
        """NVML_TOPOLOGY_* of what two GPUs have in common."""
        return int(self._call("nvmlDeviceGetTopologyCommonAncestor", device, other, gpu=gpu))

    def nvlinked(self, device: Handle, other: Handle, gpu: str) -> bool:
        """Whether two GPUs can read each other's memory over NVLink, by a cable or by a switch."""
        return bool(
            self._call("nvmlDeviceGetP2PStatus", device, other, NVML_P2P_CAPS_INDEX_NVLINK, gpu=gpu)
            == NVML_P2P_STATUS_OK
        )

    def recovery_action(self, device: Handle, gpu: str) -> RecoveryAction | None:
        """What the driver recommends; None before driver 565."""
        field = NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
        value = self._call("nvmlDeviceGetFieldValues", device, [field], gpu=gpu)[0]
        if value.nvmlReturn:
            error = self._error("nvmlDeviceGetFieldValues", int(value.nvmlReturn), gpu)
            # A library that doesn't know the field calls it an invalid argument.
            if error.absent or error.code == Code.INVALID_ARGUMENT:
                return None
            raise error
        try:
            return RecoveryAction(int(value.value.uiVal))
        except ValueError:
            return RecoveryAction.UNKNOWN

    def processes(self, device: Handle, gpu: str) -> dict[tuple[int, int], int | None] | None:
        """Bytes by (process, MIG instance's number or `NO_INSTANCE`); None where NVML doesn't list processes here.

        One process stands in several lists (compute and graphics, say) with the same number, so the largest counts.
        """
        found: dict[tuple[int, int], int | None] = {}
        for position, name in enumerate(_PROCESS_LISTS):
            try:
                listed = self._listed(name, device, gpu)
            except NvmlCallError as error:
                if not error.absent:
                    raise
                if position == 0:
                    return None
                continue
            for process in listed[:MOST_PROCESSES]:
                key = (int(process.pid), int(process.gpuInstanceId))
                memory = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
                before = found.get(key)
                found[key] = memory if before is None else before if memory is None else max(before, memory)
        return found

    # MIG.

    def mig_mode(self, device: Handle, gpu: str) -> bool:
        return bool(self._call("nvmlDeviceGetMigMode", device, gpu=gpu)[0])

    def mig_slots(self, device: Handle, gpu: str) -> int:
        return int(self._call("nvmlDeviceGetMaxMigDeviceCount", device, gpu=gpu))

    def mig_handle(self, device: Handle, slot: int, gpu: str) -> Handle | None:
        """The instance in one slot; None where the slot is empty."""
        try:
            found: Handle = self._call("nvmlDeviceGetMigDeviceHandleByIndex", device, slot, gpu=gpu)
        except NvmlCallError as error:
            if error.code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
                return None
            raise
        return found

    def gpu_instance(self, instance: Handle, gpu: str) -> int:
        return int(self._call("nvmlDeviceGetGpuInstanceId", instance, gpu=gpu))

    def instance_shape(self, instance: Handle, gpu: str) -> tuple[int, int]:
        """Compute slices and MiB of memory of a MIG instance."""
        found = self._call("nvmlDeviceGetAttributes_v2", instance, gpu=gpu)
        return int(found.gpuInstanceSliceCount), int(found.memorySizeMB)

    # Events.

    def event_set(self) -> Handle:
        found: Handle = self._call("nvmlEventSetCreate")
        return found

    def free_event_set(self, events: Handle) -> None:
        self._call("nvmlEventSetFree", events)

    def supported_events(self, device: Handle, gpu: str) -> int:
        return int(self._call("nvmlDeviceGetSupportedEventTypes", device, gpu=gpu))

    def register_events(self, device: Handle, types: int, events: Handle, gpu: str) -> None:
        self._call("nvmlDeviceRegisterEvents", device, types, events, gpu=gpu)

    def next_event(self, events: Handle) -> tuple[Handle, int, int] | None:
        """The next event that is there already: device, type, data; None where there is none.

        A set with a lost GPU answers GPU_IS_LOST once its events are out: there is none either.
        """
        try:
            found = self._call("nvmlEventSetWait_v2", events, 0)
        except NvmlCallError as error:
            if error.code == Code.TIMEOUT or error.lost or error.absent:
                return None
            raise
        return found.device, int(found.eventType), int(found.eventData)

    @staticmethod
    def address(device: Handle) -> int:
        """What tells whether two handles are the same."""
        return ctypes.cast(device, ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    # The inside.

    def _listed(self, name: str, device: Handle, gpu: str) -> list[Any]:
        """One list of processes, by the newest symbol that there is.

        The list may have grown beyond the buffer between the two calls that pynvml makes; then it is asked again.
        """
        symbol = f"{name}_v3" if self.has(f"{name}_v3") else f"{name}_v2"
        for _ in range(3):
            try:
                return list(self._call(symbol, device, gpu=gpu))
            except NvmlCallError as error:
                if error.code != Code.INSUFFICIENT_SIZE:
                    raise
        return list(self._call(symbol, device, gpu=gpu))

    def _call(self, name: str, *arguments: object, gpu: str = "") -> Any:
        if self._library is None:
            raise NvmlCallError(name, Code.UNINITIALIZED, "NVML is not open", gpu=gpu)
        function: Callable[..., Any] = getattr(self._pynvml, name)
        try:
            return function(*arguments)
        except self._pynvml.NVMLError as error:
            raise self._error(name, int(error.value), gpu) from error
        except UnicodeDecodeError as error:
            raise NvmlCallError(name, Code.UNKNOWN, f"answered a text that is none: {error}", gpu=gpu) from error

    def _error(self, name: str, code: int, gpu: str) -> NvmlCallError:
        text = self._pynvml.NVMLError._errcode_to_string.get(code) or "unknown"  # noqa: SLF001 - no other table
        return NvmlCallError(name, code, text.rstrip("."), gpu=gpu)

    def _unload(self) -> None:
        library, self._library = self._library, None
        self._pynvml.nvmlLib = None
        self._pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001
        self._pynvml._nvmlLib_refcount = 0  # noqa: SLF001
        if library is not None:
            _ctypes.dlclose(library._handle)  # noqa: SLF001 - ctypes has no public way to let a library go
