"""Queries about one GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace

import pytest

from tessera.testing.nvml import (
    PRODUCTS,
    ComputeMode,
    EventType,
    FakeGpu,
    FakeNvml,
    FakeNvmlError,
    NvmlReturn,
    RecoveryAction,
    TopologyLevel,
)

MIB = 1 << 20
ErrorOf = Callable[..., int]


@pytest.mark.parametrize(
    ("product", "name", "total_mib", "capability"),
    [
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", 81920, (8, 0)),
        ("A10", "NVIDIA A10", 23028, (8, 6)),
        ("T4", "Tesla T4", 15360, (7, 5)),
        ("H100", "NVIDIA H100 80GB HBM3", 81559, (9, 0)),
        ("V100-32GB", "Tesla V100-SXM2-32GB", 32768, (7, 0)),
    ],
)
def test_products_answer_as_the_real_ones(
    make_node, product: str, name: str, total_mib: int, capability: tuple[int, int]
) -> None:
    node = make_node(product)
    handle = node.handle()
    assert node.nvml.nvmlDeviceGetName(handle) == name
    assert node.nvml.nvmlDeviceGetMemoryInfo(handle).total // MIB == total_mib
    assert node.nvml.nvmlDeviceGetCudaComputeCapability(handle) == capability
    assert node.nvml.nvmlDeviceGetArchitecture(handle) == PRODUCTS[product].architecture
    assert node.nvml.nvmlDeviceGetBrand(handle) == node.nvml.NVML_BRAND_NVIDIA


def test_identity_leads_back_to_the_same_handle(node) -> None:
    for index, status in enumerate(node.fake.gpus()):
        handle = node.handle(index)
        pci = node.nvml.nvmlDeviceGetPciInfo(handle)
        assert node.nvml.nvmlDeviceGetUUID(handle) == status.uuid
        assert node.nvml.nvmlDeviceGetIndex(handle) == index
        assert node.nvml.nvmlDeviceGetMinorNumber(handle) == index
        for found in (
            node.nvml.nvmlDeviceGetHandleByUUID(status.uuid),
            node.nvml.nvmlDeviceGetHandleByPciBusId(pci.busId),
            node.nvml.nvmlDeviceGetHandleByPciBusId(pci.busIdLegacy.lower()),
        ):
            assert ctypes.addressof(found.contents) == ctypes.addressof(handle.contents)


def test_pci_addresses(node) -> None:
    pci = node.nvml.nvmlDeviceGetPciInfo(node.handle(1))
    assert (pci.domain, pci.bus, pci.device) == (0, 0x27, 0)
    assert (pci.busId, pci.busIdLegacy) == ("00000000:27:00.0", "0000:27:00.0")
    assert pci.pciDeviceId == 0x20B210DE


def test_uuids_differ_between_nodes_and_can_be_given(make_node, tmp_path) -> None:
    given = "GPU-9f2c1ab4-d0e7-1111-2222-333344445555"
    node = make_node("T4", FakeGpu.of("T4", uuid=given))
    with FakeNvml.create(tmp_path / "other", gpus=[FakeGpu.of("T4")]) as other:
        uuids = {other.gpus()[0].uuid, node.fake.gpus()[0].uuid, node.nvml.nvmlDeviceGetUUID(node.handle(1))}
    assert len(uuids) == 3
    assert given in uuids


@pytest.mark.parametrize(
    ("uuid", "error"),
    [
        ("GPU-00000000-0000-0000-0000-000000000000", NvmlReturn.NOT_FOUND),
        ("nonsense", NvmlReturn.INVALID_ARGUMENT),
        ("", NvmlReturn.INVALID_ARGUMENT),
        (None, NvmlReturn.INVALID_ARGUMENT),
    ],
)
def test_unknown_uuid(node, error_of: ErrorOf, uuid: str | None, error: NvmlReturn) -> None:
    assert error_of(node.nvml.nvmlDeviceGetHandleByUUID, uuid) == error


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("0000:77:00.0", NvmlReturn.NOT_FOUND),
        ("0000:17:00.1", NvmlReturn.NOT_FOUND),
        ("0000:17:00.0x", NvmlReturn.INVALID_ARGUMENT),
        ("17", NvmlReturn.INVALID_ARGUMENT),
        (None, NvmlReturn.INVALID_ARGUMENT),
    ],
)
def test_unknown_pci_address(node, error_of: ErrorOf, address: str | None, error: NvmlReturn) -> None:
    assert error_of(node.nvml.nvmlDeviceGetHandleByPciBusId, address) == error


def test_index_out_of_range_and_foreign_handles(node, error_of: ErrorOf) -> None:
    assert error_of(node.nvml.nvmlDeviceGetHandleByIndex, 3) == NvmlReturn.INVALID_ARGUMENT
    nobody = ctypes.pointer(node.nvml.struct_c_nvmlDevice_t())
    for bad in (nobody, None, ctypes.c_void_p(1)):
        assert error_of(node.nvml.nvmlDeviceGetName, bad) == NvmlReturn.INVALID_ARGUMENT


def test_memory_counts_the_reserve_in_the_first_version_only(node) -> None:
    handle, status = node.handle(), node.fake.gpus()[0]
    node.fake.add_process(0, 10, memory=3 << 30)
    node.fake.add_process(0, 11, memory=1 << 30)
    node.fake.add_process(1, 10, memory=5 << 30)
    old = node.nvml.nvmlDeviceGetMemoryInfo(handle)
    new = node.nvml.nvmlDeviceGetMemoryInfo(handle, node.nvml.nvmlMemory_v2)
    assert old.total == new.total == status.memory_total
    assert new.used == 4 << 30
    assert new.reserved == status.memory_reserved
    assert old.used == new.used + new.reserved
    assert old.free == new.free == old.total - old.used


def test_memory_of_another_struct_version_is_refused(node, error_of: ErrorOf) -> None:
    for version in (1, 0x01000028, 0x02000020):
        assert (
            error_of(node.nvml.nvmlDeviceGetMemoryInfo, node.handle(), version) == NvmlReturn.ARGUMENT_VERSION_MISMATCH
        )


def test_numa_node_is_the_affinitys_business_where_gpus_are_no_numa_nodes(node, error_of: ErrorOf) -> None:
    for index, numa in enumerate((0, 0, 1)):
        handle = node.handle(index)
        assert error_of(node.nvml.nvmlDeviceGetNumaNodeId, handle) == NvmlReturn.NOT_SUPPORTED
        assert list(node.nvml.nvmlDeviceGetMemoryAffinity(handle, 2, 0)) == [1 << numa, 0]


def test_numa_node_of_a_gpu_that_is_one(make_node) -> None:
    node = make_node(replace(FakeGpu.of("H100", numa=9), coherent=True))
    assert node.nvml.nvmlDeviceGetNumaNodeId(node.handle()) == 9


def test_affinity_of_an_unknown_or_far_node(make_node) -> None:
    node = make_node(FakeGpu.of("T4", numa=-1), FakeGpu.of("T4", numa=70))
    with pytest.raises(node.nvml.NVMLError_NotSupported):
        node.nvml.nvmlDeviceGetMemoryAffinity(node.handle(0), 1, 0)
    with pytest.raises(node.nvml.NVMLError_InsufficientSize):
        node.nvml.nvmlDeviceGetMemoryAffinity(node.handle(1), 1, 0)
    assert list(node.nvml.nvmlDeviceGetMemoryAffinity(node.handle(1), 2, 0)) == [0, 1 << 6]


def test_compute_mode_is_shared_state(node, error_of: ErrorOf) -> None:
    handle = node.handle()
    assert node.nvml.nvmlDeviceGetComputeMode(handle) == ComputeMode.DEFAULT
    node.nvml.nvmlDeviceSetComputeMode(handle, ComputeMode.EXCLUSIVE_PROCESS)
    assert node.nvml.nvmlDeviceGetComputeMode(handle) == ComputeMode.EXCLUSIVE_PROCESS
    assert [gpu.compute_mode for gpu in node.fake.gpus()] == [ComputeMode.EXCLUSIVE_PROCESS, *[ComputeMode.DEFAULT] * 2]
    assert error_of(node.nvml.nvmlDeviceSetComputeMode, handle, 1) == NvmlReturn.NOT_SUPPORTED
    assert error_of(node.nvml.nvmlDeviceSetComputeMode, handle, 4) == NvmlReturn.INVALID_ARGUMENT


def test_sensors_and_modes(node, error_of: ErrorOf) -> None:
    handle = node.handle()
    node.fake.set_sensors(0, celsius=71, watts=391.5)
    assert node.nvml.nvmlDeviceGetTemperature(handle, node.nvml.NVML_TEMPERATURE_GPU) == 71
    assert error_of(node.nvml.nvmlDeviceGetTemperature, handle, 9) == NvmlReturn.INVALID_ARGUMENT
    assert node.nvml.nvmlDeviceGetPowerUsage(handle) == 391_500
    assert node.nvml.nvmlDeviceGetPersistenceMode(handle) == node.nvml.NVML_FEATURE_ENABLED


def test_ecc(node, error_of: ErrorOf) -> None:
    node.fake.set_ecc(0, corrected=7, uncorrected=2, pending_remap=True)
    ampere, turing = node.handle(0), node.handle(2)
    assert node.nvml.nvmlDeviceGetEccMode(ampere) == [1, 1]
    assert node.nvml.nvmlDeviceGetTotalEccErrors(ampere, 0, 0) == 7
    assert node.nvml.nvmlDeviceGetTotalEccErrors(ampere, 1, 0) == 2
    assert node.nvml.nvmlDeviceGetRemappedRows(ampere) == (0, 0, 1, 0)
    assert error_of(node.nvml.nvmlDeviceGetTotalEccErrors, ampere, 2, 0) == NvmlReturn.INVALID_ARGUMENT
    assert error_of(node.nvml.nvmlDeviceGetRemappedRows, turing) == NvmlReturn.NOT_SUPPORTED


def test_recovery_action_by_field(node) -> None:
    nvml, handle = node.nvml, node.handle()
    fields = [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, nvml.NVML_FI_DEV_RETIRED_PENDING, nvml.NVML_FI_MAX, 0]
    node.fake.mark_sick(0, 48, RecoveryAction.DRAIN_AND_RESET)
    answers = nvml.nvmlDeviceGetFieldValues(handle, fields)
    assert [answer.nvmlReturn for answer in answers] == [
        NvmlReturn.SUCCESS,
        NvmlReturn.NOT_SUPPORTED,
        NvmlReturn.INVALID_ARGUMENT,
        NvmlReturn.INVALID_ARGUMENT,
    ]
    assert answers[0].value.uiVal == RecoveryAction.DRAIN_AND_RESET
    assert answers[0].valueType == nvml.NVML_VALUE_TYPE_UNSIGNED_INT
    assert answers[0].timestamp > 0
    node.fake.recover(0)
    assert nvml.nvmlDeviceGetFieldValues(handle, fields[:1])[0].value.uiVal == RecoveryAction.NONE


def test_recovery_action_came_with_driver_565(make_node) -> None:
    node = make_node("A100-80GB", driver_version="560.35.03")
    answer = node.nvml.nvmlDeviceGetFieldValues(node.handle(), [node.nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])[0]
    assert answer.nvmlReturn == NvmlReturn.NOT_SUPPORTED
    assert not node.nvml.nvmlDeviceGetSupportedEventTypes(node.handle()) & EventType.GPU_RECOVERY_ACTION


def test_lost_gpu_answers_nothing_but_its_neighbours_do(node, error_of: ErrorOf) -> None:
    nvml, lost, other = node.nvml, node.handle(0), node.handle(1)
    node.fake.lose(0)
    for call in (nvml.nvmlDeviceGetMemoryInfo, nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetComputeRunningProcesses):
        assert error_of(call, lost) == NvmlReturn.GPU_IS_LOST
        assert error_of(call, other) == 0
    assert error_of(nvml.nvmlDeviceGetHandleByIndex, 0) == NvmlReturn.GPU_IS_LOST
    assert error_of(nvml.nvmlDeviceGetHandleByUUID, node.fake.gpus()[0].uuid) == NvmlReturn.GPU_IS_LOST
    assert error_of(nvml.nvmlDeviceGetTopologyCommonAncestor, other, lost) == NvmlReturn.GPU_IS_LOST
    assert nvml.nvmlDeviceGetCount() == 3
    assert [gpu.lost for gpu in node.fake.gpus()] == [True, False, False]
    node.fake.return_gpu(0)
    assert error_of(nvml.nvmlDeviceGetMemoryInfo, lost) == 0


def test_topology(node, error_of: ErrorOf) -> None:
    nvml, (first, second, far) = node.nvml, (node.handle(i) for i in range(3))
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, second) == TopologyLevel.NODE
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, far) == TopologyLevel.SYSTEM
    node.fake.connect(0, 1, level=TopologyLevel.SINGLE)
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, second) == TopologyLevel.SINGLE
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(second, first) == TopologyLevel.SINGLE
    assert nvml.nvmlDeviceGetP2PStatus(first, second, 1) == nvml.NVML_P2P_STATUS_OK
    assert nvml.nvmlDeviceGetP2PStatus(first, second, 2) == nvml.NVML_P2P_STATUS_NOT_SUPPORTED
    assert nvml.nvmlDeviceGetP2PStatus(first, far, 1) == nvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED
    assert error_of(nvml.nvmlDeviceGetP2PStatus, first, second, 5) == NvmlReturn.INVALID_ARGUMENT
    assert error_of(nvml.nvmlDeviceGetP2PStatus, first, first, 1) == NvmlReturn.INVALID_ARGUMENT
    assert nvml.nvmlDeviceGetTopologyCommonAncestor(first, first) == TopologyLevel.INTERNAL


def test_nvlinks(node, error_of: ErrorOf) -> None:
    nvml, first, second = node.nvml, node.handle(0), node.handle(1)
    node.fake.connect(0, 1, nvlinks=4)
    assert [nvml.nvmlDeviceGetNvLinkState(first, link) for link in range(12)] == [1] * 4 + [0] * 8
    assert nvml.nvmlDeviceGetNvLinkRemotePciInfo(first, 3).busId == nvml.nvmlDeviceGetPciInfo(second).busId
    assert error_of(nvml.nvmlDeviceGetNvLinkRemotePciInfo, first, 4) == NvmlReturn.NOT_SUPPORTED
    assert error_of(nvml.nvmlDeviceGetNvLinkState, first, 12) == NvmlReturn.NOT_SUPPORTED
    assert error_of(nvml.nvmlDeviceGetNvLinkState, first, 36) == NvmlReturn.INVALID_ARGUMENT
    assert error_of(nvml.nvmlDeviceGetNvLinkState, node.handle(2), 0) == NvmlReturn.NOT_SUPPORTED
    assert nvml.nvmlDeviceGetP2PStatus(first, second, 2) == nvml.NVML_P2P_STATUS_OK


def test_nvlinks_to_several_peers_are_numbered_peer_by_peer(make_node) -> None:
    node = make_node("A100-80GB", "A100-80GB", "A100-80GB")
    node.fake.connect(0, 1, nvlinks=2)
    node.fake.connect(2, 0, nvlinks=3)
    peers = [node.nvml.nvmlDeviceGetNvLinkRemotePciInfo(node.handle(0), link).bus for link in range(5)]
    assert peers == [0x27, 0x27, 0x37, 0x37, 0x37]


def test_nvlinks_are_limited_by_the_product(node) -> None:
    for one, other, links in ((0, 1, 13), (0, 2, 1), (1, 1, 1)):
        with pytest.raises(FakeNvmlError):
            node.fake.connect(one, other, nvlinks=links)
