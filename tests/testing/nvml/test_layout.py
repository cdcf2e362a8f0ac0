"""Struct by struct, field by field: C against pynvml, and C against the Python mirror of the state file."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import groupby

import pynvml
import pytest

from tessera.testing.nvml import (
    ComputeMode,
    EventType,
    NvmlReturn,
    RecoveryAction,
    TopologyLevel,
    build_library,
    known_functions,
    layout,
)
from tessera.testing.nvml.build import SOURCE_FOLDER

Rows = list[tuple[str, int, int]]

ABI = {
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlProcessInfo_t": pynvml.c_nvmlProcessInfo_v3_t,
    "nvmlProcessUtilizationSample_t": pynvml.c_nvmlProcessUtilizationSample_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "nvmlValue_t": pynvml.c_nvmlValue_t,
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlDeviceAttributes_t": pynvml.c_nvmlDeviceAttributes,
    "nvmlGpuInstanceProfileInfo_t": pynvml.c_nvmlGpuInstanceProfileInfo_t,
    "nvmlGpuInstanceProfileInfo_v2_t": pynvml.c_nvmlGpuInstanceProfileInfo_v2_t,
    "nvmlGpuInstancePlacement_t": pynvml.c_nvmlGpuInstancePlacement_t,
    "nvmlGpuInstanceInfo_t": pynvml.c_nvmlGpuInstanceInfo_t,
    "nvmlSetMemoryLimits_v1_t": pynvml.c_nvmlSetMemoryLimits_v1_t,
    "nvmlGetMemoryLimits_v1_t": pynvml.c_nvmlGetMemoryLimits_v1_t,
}
STATE = {
    kind.__name__: kind
    for kind in (
        layout.MigProfile,
        layout.MigInstance,
        layout.Gpu,
        layout.Process,
        layout.Event,
        layout.Fault,
        layout.MemoryLimit,
        layout.State,
    )
}


class _Row(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("field", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


@pytest.fixture(scope="module")
def compiled() -> dict[str, Rows]:
    """What the compiler says: per struct, (field, offset, size) in order; the first row is the struct itself."""
    export = ctypes.CDLL(str(build_library())).tessera_layout
    export.restype = ctypes.POINTER(_Row)
    count = ctypes.c_uint()
    rows = export(ctypes.byref(count))[: count.value]
    return {
        name: [(row.field.decode(), row.offset, row.size) for row in group]
        for name, group in groupby(rows, key=lambda row: row.type.decode())
    }


def rows_of(kind: type[ctypes.Structure]) -> Rows:
    fields = [(name, getattr(kind, name).offset, getattr(kind, name).size) for name, *_ in kind._fields_]
    return [("", 0, ctypes.sizeof(kind)), *fields]


@pytest.mark.parametrize("name", sorted(ABI))
def test_struct_is_laid_out_as_pynvml_expects(compiled: dict[str, Rows], name: str) -> None:
    assert compiled[name] == rows_of(ABI[name])


@pytest.mark.parametrize("name", sorted(STATE))
def test_state_file_looks_the_same_from_c_and_from_python(compiled: dict[str, Rows], name: str) -> None:
    assert compiled[name] == rows_of(STATE[name])


def test_every_struct_of_the_headers_is_compared(compiled: dict[str, Rows]) -> None:
    assert set(compiled) == set(ABI) | set(STATE)
    text = (SOURCE_FOLDER / "abi.h").read_text() + (SOURCE_FOLDER / "state.h").read_text()
    assert text.count("typedef struct {") + text.count("typedef union {") == len(compiled)


@pytest.mark.parametrize(
    ("kind", "version", "number"),
    [
        (pynvml.c_nvmlMemory_v2_t, pynvml.nvmlMemory_v2, 2),
        (pynvml.c_nvmlGpuInstanceProfileInfo_v2_t, pynvml.nvmlGpuInstanceProfileInfo_v2, 2),
    ],
)
def test_struct_versions_follow_their_size(kind: type[ctypes.Structure], version: int, number: int) -> None:
    assert version == ctypes.sizeof(kind) | number << 24


@pytest.mark.parametrize(
    ("enum", "name_of"),
    [
        (NvmlReturn, lambda name: "NVML_SUCCESS" if name == "SUCCESS" else f"NVML_ERROR_{name}"),
        (RecoveryAction, lambda name: f"NVML_GPU_RECOVERY_ACTION_{name}"),
        (TopologyLevel, lambda name: f"NVML_TOPOLOGY_{name}"),
        (ComputeMode, lambda name: f"NVML_COMPUTEMODE_{name}"),
    ],
)
def test_numbers_are_pynvmls(
    enum: type[NvmlReturn | RecoveryAction | TopologyLevel | ComputeMode], name_of: Callable[[str], str]
) -> None:
    assert {member.name: member.value for member in enum} == {
        member.name: getattr(pynvml, name_of(member.name)) for member in enum
    }


def test_event_types_are_pynvmls() -> None:
    assert {
        EventType.SINGLE_BIT_ECC: pynvml.nvmlEventTypeSingleBitEccError,
        EventType.DOUBLE_BIT_ECC: pynvml.nvmlEventTypeDoubleBitEccError,
        EventType.PSTATE: pynvml.nvmlEventTypePState,
        EventType.XID: pynvml.nvmlEventTypeXidCriticalError,
        EventType.CLOCK: pynvml.nvmlEventTypeClock,
        EventType.MIG_CONFIG: pynvml.nvmlEventMigConfigChange,
        EventType.GPU_UNAVAILABLE: pynvml.nvmlEventTypeGpuUnavailableError,
        EventType.GPU_RECOVERY_ACTION: pynvml.nvmlEventTypeGpuRecoveryAction,
    } == {member: member.value for member in EventType}


def test_constants_of_the_c_side_are_pynvmls() -> None:
    header = (SOURCE_FOLDER / "abi.h").read_text()
    for line in (
        f"#define FIELD_GPU_RECOVERY_ACTION {pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION}u",
        f"#define FIELD_COUNT {pynvml.NVML_FI_MAX}u",
        f"#define NVLINK_MAX_LINKS {pynvml.NVML_NVLINK_MAX_LINKS}u",
        f"#define GPU_INSTANCE_PROFILE_COUNT {pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT}u",
        f"#define INIT_FLAG_NO_GPUS {pynvml.NVML_INIT_FLAG_NO_GPUS}u",
    ):
        assert line in header


def test_every_known_function_is_exported() -> None:
    library = ctypes.CDLL(str(build_library()))
    assert [name for name in sorted(known_functions()) if not hasattr(library, name)] == []
