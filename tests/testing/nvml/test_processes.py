"""Processes: NVML's lists of unknown length, utilisation, and whether an allocation succeeds."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from tessera.testing.nvml import FakeNvmlError, NvmlReturn, OutOfMemoryError, ProcessKind

GIB = 1 << 30
ErrorOf = Callable[..., int]


def test_lists_by_kind(node) -> None:
    nvml, handle = node.nvml, node.handle()
    node.fake.add_process(0, 10, memory=GIB)
    node.fake.add_process(0, 11, memory=2 * GIB, kind=ProcessKind.COMPUTE | ProcessKind.MPS)
    node.fake.add_process(0, 12, memory=3 * GIB, kind=ProcessKind.GRAPHICS)
    node.fake.add_process(1, 10, memory=4 * GIB)
    seen = {
        "compute": nvml.nvmlDeviceGetComputeRunningProcesses(handle),
        "compute v2": nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle),
        "graphics": nvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
        "mps": nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle),
    }
    assert {kind: {entry.pid: entry.usedGpuMemory for entry in entries} for kind, entries in seen.items()} == {
        "compute": {10: GIB, 11: 2 * GIB},
        "compute v2": {10: GIB, 11: 2 * GIB},
        "graphics": {12: 3 * GIB},
        "mps": {11: 2 * GIB},
    }
    assert {entry.gpuInstanceId for entry in seen["compute"]} == {0xFFFFFFFF}


def test_nobody_runs(node) -> None:
    assert node.nvml.nvmlDeviceGetComputeRunningProcesses(node.handle()) == []


def test_buffer_protocol(node) -> None:
    nvml, handle = node.nvml, node.handle()
    call = nvml.nvmlLib.nvmlDeviceGetComputeRunningProcesses_v3
    array, count = (nvml.c_nvmlProcessInfo_t * 2)(), ctypes.c_uint(0)
    assert call(handle, ctypes.byref(count), None) == NvmlReturn.SUCCESS
    for pid in (1, 2, 3):
        node.fake.add_process(0, pid, memory=pid)
    assert call(handle, ctypes.byref(count), None) == NvmlReturn.INSUFFICIENT_SIZE
    assert count.value == 3
    assert call(handle, ctypes.byref(count), None) == NvmlReturn.INVALID_ARGUMENT
    count.value = 2
    assert call(handle, ctypes.byref(count), array) == NvmlReturn.INSUFFICIENT_SIZE
    assert count.value == 3
    node.fake.remove_process(2)
    assert call(handle, ctypes.byref(count), (nvml.c_nvmlProcessInfo_t * 3)()) == NvmlReturn.SUCCESS
    assert count.value == 2
    assert call(handle, None, array) == NvmlReturn.INVALID_ARGUMENT


def test_utilization(node, error_of: ErrorOf) -> None:
    nvml, handle = node.nvml, node.handle()
    node.fake.add_process(0, 10, memory=GIB, sm_percent=60, memory_percent=20)
    node.fake.add_process(0, 11, memory=GIB, sm_percent=70)
    node.fake.add_process(0, 12, memory=GIB)
    samples = nvml.nvmlDeviceGetProcessUtilization(handle, 0)
    assert {sample.pid: (sample.smUtil, sample.memUtil) for sample in samples} == {10: (60, 20), 11: (70, 0)}
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    assert (rates.gpu, rates.memory) == (100, 20)
    newest = max(sample.timeStamp for sample in samples)
    assert error_of(nvml.nvmlDeviceGetProcessUtilization, handle, newest + 10**12) == NvmlReturn.NOT_FOUND
    node.fake.set_process_utilization(0, 10, sm_percent=0)
    node.fake.set_process_utilization(0, 11, sm_percent=5)
    assert [sample.pid for sample in nvml.nvmlDeviceGetProcessUtilization(handle, 0)] == [11]
    assert nvml.nvmlDeviceGetUtilizationRates(handle).gpu == 5


def test_utilization_buffer_protocol(node) -> None:
    nvml, handle = node.nvml, node.handle()
    call, count = nvml.nvmlLib.nvmlDeviceGetProcessUtilization, ctypes.c_uint(0)
    for pid in (1, 2):
        node.fake.add_process(0, pid, memory=1, sm_percent=1)
    assert call(handle, None, ctypes.byref(count), ctypes.c_ulonglong(0)) == NvmlReturn.INSUFFICIENT_SIZE
    assert count.value == 100
    count.value = 1
    array = (nvml.c_nvmlProcessUtilizationSample_t * 1)()
    assert call(handle, array, ctypes.byref(count), ctypes.c_ulonglong(0)) == NvmlReturn.INSUFFICIENT_SIZE
    assert call(handle, None, None, ctypes.c_ulonglong(0)) == NvmlReturn.INVALID_ARGUMENT


def test_quiet_gpu_has_no_samples(node, error_of: ErrorOf) -> None:
    assert error_of(node.nvml.nvmlDeviceGetProcessUtilization, node.handle(), 0) == NvmlReturn.NOT_FOUND


def test_process_grows_shrinks_and_ends(node) -> None:
    node.fake.add_process(0, 10, memory=GIB)
    node.fake.add_process(1, 10, memory=GIB)
    node.fake.set_process_memory(0, 10, 7 * GIB)
    assert [gpu.memory_used for gpu in node.fake.gpus()] == [7 * GIB, GIB, 0]
    node.fake.remove_process(10, gpu=1)
    assert [(process.gpu, process.memory) for process in node.fake.processes()] == [(0, 7 * GIB)]
    node.fake.remove_process(10)
    assert node.fake.processes() == ()


def test_allocation_beyond_the_card_fails_and_changes_nothing(node) -> None:
    status = node.fake.gpus()[0]
    room = status.memory_total - status.memory_reserved
    node.fake.add_process(0, 10, memory=room - GIB)
    with pytest.raises(OutOfMemoryError, match=r"process 11 asks for 1025 MiB; GPU GPU-.* leaves it 1024 MiB"):
        node.fake.add_process(0, 11, memory=GIB + (1 << 20))
    with pytest.raises(OutOfMemoryError):
        node.fake.set_process_memory(0, 10, room + 1)
    assert [process.pid for process in node.fake.processes()] == [10]
    node.fake.set_process_memory(0, 10, room)
    assert node.nvml.nvmlDeviceGetMemoryInfo(node.handle()).free == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda fake: fake.add_process(9, 1, memory=1),
        lambda fake: fake.add_process(-1, 1, memory=1),
        lambda fake: fake.add_process("GPU-none", 1, memory=1),
        lambda fake: fake.add_process(0, 0, memory=1),
        lambda fake: fake.add_process(0, 1, memory=-1),
        lambda fake: fake.add_process(0, 1, memory=1, sm_percent=101),
        lambda fake: fake.add_process(0, 1, memory=1, mig=0),
        lambda fake: fake.add_process(0, 1, memory=1, name="n" * 200),
        lambda fake: fake.add_process(0, 1, memory=1, cgroup="/a\0b"),
        lambda fake: fake.remove_process(1),
        lambda fake: fake.remove_process(1, gpu=0),
        lambda fake: fake.set_process_memory(0, 1, 1),
        lambda fake: fake.set_process_utilization(0, 1, sm_percent=1),
        lambda fake: fake.fail("nvmlDeviceGetNothing", NvmlReturn.UNKNOWN),
        lambda fake: fake.push_event(0, 8, -1),
    ],
)
def test_nonsense_is_refused_with_words_and_without_a_change(node, change: Callable[[object], None]) -> None:
    before = node.fake.gpus(), node.fake.processes()
    with pytest.raises(FakeNvmlError):
        change(node.fake)
    assert (node.fake.gpus(), node.fake.processes()) == before


def test_a_process_stands_once_per_gpu_and_the_table_is_bounded(node) -> None:
    node.fake.add_process(0, 1, memory=1)
    with pytest.raises(FakeNvmlError, match="already uses GPU 0"):
        node.fake.add_process(0, 1, memory=1)
    for pid in range(2, 1025):
        node.fake.add_process(0, pid, memory=1)
    with pytest.raises(FakeNvmlError, match="1024 processes"):
        node.fake.add_process(0, 1025, memory=1)
    assert len(node.nvml.nvmlDeviceGetComputeRunningProcesses(node.handle())) == 1024
