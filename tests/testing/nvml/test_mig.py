"""GPUs cut by MIG."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from tessera.testing.nvml import FakeGpu, FakeNvmlError, NvmlReturn, OutOfMemoryError

GIB = 1 << 30
MIB = 1 << 20
ErrorOf = Callable[..., int]


@pytest.fixture
def cut(make_node):
    """An A100 in three instances beside a whole one."""
    return make_node(FakeGpu.of("A100-80GB", mig=("1g.10gb", "3g.40gb", "2g.20gb")), "A100-80GB")


def instance(cut, slot: int):
    return cut.nvml.nvmlDeviceGetMigDeviceHandleByIndex(cut.handle(0), slot)


def test_modes_and_counts(cut) -> None:
    nvml = cut.nvml
    assert nvml.nvmlDeviceGetMigMode(cut.handle(0)) == [1, 1]
    assert nvml.nvmlDeviceGetMigMode(cut.handle(1)) == [0, 0]
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(cut.handle(0)) == 7
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(cut.handle(1)) == 0


def test_a_product_without_mig(make_node) -> None:
    node = make_node("T4")
    with pytest.raises(node.nvml.NVMLError_NotSupported):
        node.nvml.nvmlDeviceGetMigMode(node.handle())
    with pytest.raises(FakeNvmlError, match="no MIG"):
        node.fake.set_mig(0, ["1g.10gb"])


def test_instances_are_found_and_lead_back(cut) -> None:
    nvml, parent = cut.nvml, cut.handle(0)
    mig = cut.fake.gpus()[0].mig
    assert mig is not None
    for slot, profile in enumerate(("1g.10gb", "3g.40gb", "2g.20gb")):
        handle = instance(cut, slot)
        assert nvml.nvmlDeviceIsMigDeviceHandle(handle).value == 1
        assert nvml.nvmlDeviceGetName(handle) == f"NVIDIA A100-SXM4-80GB MIG {profile}"
        assert nvml.nvmlDeviceGetUUID(handle) == mig[slot].uuid
        assert mig[slot].profile == profile
        assert nvml.nvmlDeviceGetIndex(handle) == slot
        assert nvml.nvmlDeviceGetGpuInstanceId(handle) == mig[slot].gpu_instance
        assert nvml.nvmlDeviceGetComputeInstanceId(handle) == 0
        back = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        assert ctypes.addressof(back.contents) == ctypes.addressof(parent.contents)
        by_uuid = nvml.nvmlDeviceGetHandleByUUID(mig[slot].uuid)
        assert ctypes.addressof(by_uuid.contents) == ctypes.addressof(handle.contents)
    assert nvml.nvmlDeviceIsMigDeviceHandle(parent).value == 0


def test_where_there_is_no_instance(cut) -> None:
    nvml = cut.nvml
    with pytest.raises(nvml.NVMLError_NotFound):
        instance(cut, 3)
    with pytest.raises(nvml.NVMLError_NotFound):
        instance(cut, 99)
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetMigDeviceHandleByIndex(cut.handle(1), 0)
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetGpuInstanceId(cut.handle(0))


def test_attributes_and_profiles_agree(cut) -> None:
    nvml, parent = cut.nvml, cut.handle(0)
    names = {}
    for number in range(nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
        try:
            info = nvml.nvmlDeviceGetGpuInstanceProfileInfo(parent, number)
        except nvml.NVMLError_NotSupported:
            continue
        old = nvml.nvmlDeviceGetGpuInstanceProfileInfo(parent, number, version=1)
        assert (old.id, old.memorySizeMB) == (info.id, info.memorySizeMB)
        names[info.id] = (info.name, info.sliceCount, info.memorySizeMB)
    assert {name for name, *_ in names.values()} == {
        f"MIG {profile}" for profile in ("1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
    }
    for slot in range(3):
        attributes = nvml.nvmlDeviceGetAttributes(instance(cut, slot))
        gpu_instance = nvml.nvmlDeviceGetGpuInstanceById(parent, nvml.nvmlDeviceGetGpuInstanceId(instance(cut, slot)))
        info = nvml.nvmlGpuInstanceGetInfo(gpu_instance)
        assert names[info.profileId][1:] == (attributes.gpuInstanceSliceCount, attributes.memorySizeMB)
    with pytest.raises(nvml.NVMLError_NotSupported):
        nvml.nvmlDeviceGetAttributes(parent)
    with pytest.raises(nvml.NVMLError_InvalidArgument):
        nvml.nvmlDeviceGetGpuInstanceProfileInfo(parent, 18)
    with pytest.raises(nvml.NVMLError_NotFound):
        nvml.nvmlDeviceGetGpuInstanceById(parent, 63)


def test_placements_do_not_overlap(cut) -> None:
    nvml = cut.nvml
    taken: list[int] = []
    for slot in range(3):
        identity = nvml.nvmlDeviceGetGpuInstanceId(instance(cut, slot))
        place = nvml.nvmlGpuInstanceGetInfo(nvml.nvmlDeviceGetGpuInstanceById(cut.handle(0), identity)).placement
        taken += range(place.start, place.start + place.size)
    assert sorted(taken) == sorted(set(taken))
    assert max(taken) < 8


def test_processes_live_in_instances(cut) -> None:
    nvml, parent = cut.nvml, cut.handle(0)
    cut.fake.add_process(0, 10, memory=GIB, mig=1)
    cut.fake.add_process(0, 11, memory=2 * GIB, mig=2)
    identity = nvml.nvmlDeviceGetGpuInstanceId(instance(cut, 1))
    (inside,) = nvml.nvmlDeviceGetComputeRunningProcesses(instance(cut, 1))
    assert (inside.pid, inside.gpuInstanceId, inside.computeInstanceId) == (10, identity, 0)
    assert {entry.pid for entry in nvml.nvmlDeviceGetComputeRunningProcesses(parent)} == {10, 11}
    memory = nvml.nvmlDeviceGetMemoryInfo(instance(cut, 1))
    assert (memory.total, memory.used) == (40192 * MIB, GIB)
    assert nvml.nvmlDeviceGetMemoryInfo(instance(cut, 0)).used == 0
    assert nvml.nvmlDeviceGetMemoryInfo(parent, nvml.nvmlMemory_v2).used == 3 * GIB
    for call in (nvml.nvmlDeviceGetUtilizationRates, lambda handle: nvml.nvmlDeviceGetProcessUtilization(handle, 0)):
        with pytest.raises(nvml.NVMLError_NotSupported):
            call(parent)


def test_an_instance_is_as_large_as_its_profile(cut) -> None:
    with pytest.raises(OutOfMemoryError, match="MIG instance MIG-"):
        cut.fake.add_process(0, 10, memory=9728 * MIB + 1, mig=0)
    cut.fake.add_process(0, 10, memory=9728 * MIB, mig=0)


@pytest.mark.parametrize("slot", [None, 3, -1])
def test_a_process_on_a_cut_gpu_names_its_instance(cut, slot: int | None) -> None:
    with pytest.raises(FakeNvmlError, match="MIG instances"):
        cut.fake.add_process(0, 10, memory=1, mig=slot)


@pytest.mark.parametrize(
    "profiles",
    [
        ["1g.10gb"] * 7,
        ["7g.80gb"],
        ["3g.40gb", "3g.40gb"],
        ["1g.10gb", "2g.20gb", "4g.40gb"],
        ["1g.20gb"] * 4,
        ["2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb"],
        [],
    ],
)
def test_cuts_that_fit(cut, profiles: list[str]) -> None:
    cut.fake.set_mig(1, profiles)
    mig = cut.fake.gpus()[1].mig
    assert mig is not None
    assert [device.profile for device in mig] == profiles
    assert len({device.gpu_instance for device in mig}) == len(profiles)
    assert len({device.uuid for device in mig}) == len(profiles)


@pytest.mark.parametrize(
    "profiles",
    [["1g.10gb"] * 8, ["4g.40gb", "4g.40gb"], ["7g.80gb", "1g.10gb"], ["3g.40gb", "3g.40gb", "1g.10gb"], ["9g.1gb"]],
)
def test_cuts_that_do_not_fit(cut, profiles: list[str]) -> None:
    with pytest.raises(FakeNvmlError):
        cut.fake.set_mig(1, profiles)
    assert cut.fake.gpus()[1].mig is None


def test_cutting_anew_ends_old_handles_and_needs_an_idle_gpu(cut) -> None:
    old = instance(cut, 2)
    cut.fake.add_process(0, 10, memory=1, mig=0)
    with pytest.raises(FakeNvmlError, match="in use"):
        cut.fake.set_mig(0, None)
    cut.fake.remove_process(10)
    cut.fake.set_mig(0, None)
    with pytest.raises(cut.nvml.NVMLError_InvalidArgument):
        cut.nvml.nvmlDeviceGetUUID(old)
    assert cut.fake.gpus()[0].mig is None
    assert cut.nvml.nvmlDeviceGetMigMode(cut.handle(0)) == [0, 0]


def test_things_that_a_mig_handle_cannot_do(cut) -> None:
    nvml, handle = cut.nvml, instance(cut, 0)
    event_set = nvml.nvmlEventSetCreate()
    limits = nvml.c_nvmlSetMemoryLimits_v1_t(b"/", 0, 1)
    for call in (
        nvml.nvmlDeviceGetPowerUsage,
        lambda device: nvml.nvmlDeviceRegisterEvents(device, nvml.nvmlEventTypeXidCriticalError, event_set),
        lambda device: nvml.nvmlDeviceSetMemoryLimits_v1(device, limits),
    ):
        with pytest.raises(nvml.NVMLError) as raised:
            call(handle)
        assert raised.value.value == NvmlReturn.NOT_SUPPORTED
