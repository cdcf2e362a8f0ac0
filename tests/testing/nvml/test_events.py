"""Events: waiting, waking, and what every set sees."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tessera.testing.nvml import EventType, NvmlReturn, RecoveryAction

ErrorOf = Callable[..., int]


def register(node, types: EventType = EventType.XID, gpus: tuple[int, ...] = (0, 1, 2)):
    event_set = node.nvml.nvmlEventSetCreate()
    for gpu in gpus:
        node.nvml.nvmlDeviceRegisterEvents(node.handle(gpu), int(types), event_set)
    return event_set


def drain(node, event_set) -> list[tuple[int, int, int]]:
    """All events that are ready: (GPU index, type, data)."""
    seen = []
    while True:
        try:
            data = node.nvml.nvmlEventSetWait_v2(event_set, 0)
        except node.nvml.NVMLError_Timeout:
            return seen
        seen.append((node.nvml.nvmlDeviceGetIndex(data.device), data.eventType, data.eventData))


def test_events_come_in_order_and_once(node) -> None:
    event_set = register(node)
    for gpu, xid in ((1, 31), (0, 48), (1, 79)):
        node.fake.push_event(gpu, EventType.XID, xid)
    assert drain(node, event_set) == [(1, 8, 31), (0, 8, 48), (1, 8, 79)]
    assert drain(node, event_set) == []


def test_what_happened_before_registering_is_not_recorded(node) -> None:
    early = register(node)
    node.fake.push_event(0, EventType.XID, 31)
    event_set = node.nvml.nvmlEventSetCreate()
    node.fake.push_event(0, EventType.XID, 43)
    node.nvml.nvmlDeviceRegisterEvents(node.handle(0), int(EventType.XID), event_set)
    node.fake.push_event(0, EventType.XID, 48)
    assert [data for *_, data in drain(node, event_set)] == [48]
    assert [data for *_, data in drain(node, early)] == [31, 43, 48]


def test_only_registered_gpus_and_types(node) -> None:
    event_set = register(node, EventType.XID, gpus=(0,))
    node.fake.push_event(1, EventType.XID, 31)
    node.fake.push_event(0, EventType.SINGLE_BIT_ECC)
    node.fake.push_event(0, EventType.XID, 63)
    assert drain(node, event_set) == [(0, 8, 63)]


def test_wait_times_out_honestly(node, error_of: ErrorOf) -> None:
    event_set = register(node)
    assert error_of(node.nvml.nvmlEventSetWait_v2, event_set, 30) == NvmlReturn.TIMEOUT
    assert error_of(node.nvml.nvmlEventSetWait, event_set, 0) == NvmlReturn.TIMEOUT


def test_push_wakes_a_waiting_thread(node) -> None:
    event_set = register(node)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.nvml.nvmlEventSetWait_v2, event_set, 60_000)
        node.fake.push_event(2, EventType.XID, 94, gpu_instance=5, compute_instance=0)
        data = waiting.result(timeout=30)
    assert (data.eventType, data.eventData) == (EventType.XID, 94)
    assert (data.gpuInstanceId, data.computeInstanceId) == (5, 0)
    assert node.nvml.nvmlDeviceGetIndex(data.device) == 2


def test_a_wait_blocks_neither_queries_nor_shutdown(node) -> None:
    event_set = register(node)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.nvml.nvmlLib.nvmlEventSetWait_v2, event_set, ctypes.byref(_data(node)), 60_000)
        assert node.nvml.nvmlDeviceGetCount() == 3
        node.nvml.nvmlShutdown()
        assert waiting.result(timeout=30) == NvmlReturn.UNINITIALIZED


def _data(node) -> ctypes.Structure:
    data: ctypes.Structure = node.nvml.c_nvmlEventData_t()
    return data


def test_sickness_reports_xid_and_recovery_action(node) -> None:
    event_set = register(node, EventType.XID | EventType.GPU_RECOVERY_ACTION)
    node.fake.mark_sick(0, 48, RecoveryAction.GPU_RESET)
    node.fake.mark_sick(0, 48, RecoveryAction.GPU_RESET)
    node.fake.recover(0)
    assert drain(node, event_set) == [
        (0, EventType.XID, 48),
        (0, EventType.GPU_RECOVERY_ACTION, RecoveryAction.GPU_RESET),
        (0, EventType.XID, 48),
        (0, EventType.GPU_RECOVERY_ACTION, RecoveryAction.NONE),
    ]
    assert [(gpu.last_xid, gpu.recovery_action) for gpu in node.fake.gpus()] == [(0, 0)] * 3


def test_lost_gpu_says_its_last_word_then_is_lost(node, error_of: ErrorOf) -> None:
    event_set, others = register(node), register(node, gpus=(1, 2))
    node.fake.lose(0)
    data = node.nvml.nvmlEventSetWait_v2(event_set, 0)
    assert (data.eventType, data.eventData) == (EventType.XID, 79)
    assert error_of(node.nvml.nvmlDeviceGetUUID, data.device) == NvmlReturn.GPU_IS_LOST
    assert error_of(node.nvml.nvmlEventSetWait_v2, event_set, 60_000) == NvmlReturn.GPU_IS_LOST
    assert error_of(node.nvml.nvmlEventSetWait_v2, others, 0) == NvmlReturn.TIMEOUT
    node.fake.return_gpu(0)
    assert error_of(node.nvml.nvmlEventSetWait_v2, event_set, 0) == NvmlReturn.TIMEOUT


def test_vanishing_wakes_a_waiting_thread(node) -> None:
    event_set = register(node)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(node.nvml.nvmlLib.nvmlEventSetWait_v2, event_set, ctypes.byref(_data(node)), 60_000)
        node.fake.lose(0, xid=None)
        assert waiting.result(timeout=30) == NvmlReturn.GPU_IS_LOST


def test_slow_set_loses_the_oldest(node) -> None:
    event_set = register(node)
    for xid in range(1, 301):
        node.fake.push_event(0, EventType.XID, xid)
    assert [data for *_, data in drain(node, event_set)] == list(range(45, 301))


def test_bad_sets_and_types(node, error_of: ErrorOf) -> None:
    nvml, handle, event_set = node.nvml, node.handle(), register(node)
    supported = nvml.nvmlDeviceGetSupportedEventTypes(handle)
    assert supported & EventType.XID
    assert error_of(nvml.nvmlDeviceRegisterEvents, handle, 1 << 40, event_set) == NvmlReturn.NOT_SUPPORTED
    nvml.nvmlEventSetFree(event_set)
    for bad in (event_set, None, ctypes.c_void_p(1)):
        assert error_of(nvml.nvmlEventSetWait_v2, bad, 0) == NvmlReturn.INVALID_ARGUMENT
        assert error_of(nvml.nvmlEventSetFree, bad) == NvmlReturn.INVALID_ARGUMENT
        assert error_of(nvml.nvmlDeviceRegisterEvents, handle, 8, bad) == NvmlReturn.INVALID_ARGUMENT
    assert nvml.nvmlLib.nvmlEventSetWait_v2(register(node), None, 0) == NvmlReturn.INVALID_ARGUMENT


def test_sets_are_bounded_and_reused(node, error_of: ErrorOf) -> None:
    sets = [node.nvml.nvmlEventSetCreate() for _ in range(64)]
    assert error_of(node.nvml.nvmlEventSetCreate) == NvmlReturn.INSUFFICIENT_RESOURCES
    node.nvml.nvmlEventSetFree(sets[7])
    assert error_of(node.nvml.nvmlEventSetCreate) == 0


def test_shutdown_ends_all_sets(node, error_of: ErrorOf) -> None:
    event_set = register(node)
    node.nvml.nvmlShutdown()
    node.nvml.nvmlInit()
    assert error_of(node.nvml.nvmlEventSetWait_v2, event_set, 0) == NvmlReturn.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [NvmlReturn.UNKNOWN, NvmlReturn.GPU_IS_LOST])
def test_injected_error_in_a_wait(node, error_of: ErrorOf, error: NvmlReturn) -> None:
    event_set = register(node)
    node.fake.fail("nvmlEventSetWait_v2", error)
    assert error_of(node.nvml.nvmlEventSetWait_v2, event_set, 60_000) == error
