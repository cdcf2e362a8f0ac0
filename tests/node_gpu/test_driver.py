"""Reading a node: what NVML says becomes facts, and one bad GPU spoils nothing else."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pynvml
import pytest

from deviceplugin.nvml import binding, errors
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.errors import Code, GpuClashError, NvmlCallError, NvmlUnavailableError
from deviceplugin.nvml.facts import GpuEvent, GpuSample, NodeFacts, RecoveryAction, inventory_gpus
from deviceplugin.nvml.pci import PciBus
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import VERSION, Inventory, decode, encode
from tessera.testing.nvml import EventType, FakeGpu, NvmlReturn, ProcessKind, TopologyLevel
from tessera.testing.nvml import RecoveryAction as FakeAction

GIB = 1 << 30
MIB = 1 << 20
UNIT = 256 * MIB


def sample(driver: NvmlDriver, gpu: str) -> GpuSample:
    found = driver.look().samples[gpu]
    assert isinstance(found, GpuSample)
    return found


def test_our_numbers_are_pynvmls() -> None:
    for code in Code:
        assert getattr(pynvml, f"NVML_ERROR_{code.name}") == code
    for name in (
        "NVML_P2P_CAPS_INDEX_NVLINK",
        "NVML_P2P_STATUS_OK",
        "NVML_AFFINITY_SCOPE_NODE",
        "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION",
        "nvmlMemory_v2",
    ):
        assert getattr(pynvml, name) == getattr(binding, name)
    for action in RecoveryAction:
        if action is not RecoveryAction.UNKNOWN:
            assert getattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{action.name}") == action


def test_a_node_is_read_as_it_is(make_fake, make_driver) -> None:
    fake = make_fake("A100-80GB", FakeGpu.of("T4", numa=1), driver_version="580.65.06")
    facts = make_driver(fake).read()
    assert (facts.driver, facts.branch, facts.cuda) == ("580.65.06", 580, 13040)
    assert not facts.memory_limits
    assert facts.unreadable == ()
    a100, t4 = facts.gpus
    assert a100.uuid == fake.gpus()[0].uuid
    assert a100.id == a100.uuid.removeprefix("GPU-").replace("-", "")[:12]
    assert (a100.name, a100.memory) == ("NVIDIA A100-SXM4-80GB", 80 * GIB)
    assert a100.reserved == fake.gpus()[0].memory_reserved
    assert (a100.numa, t4.numa) == (0, 1)
    assert (a100.capability, t4.capability) == ((8, 0), (7, 5))
    assert a100.pci == "0000:17:00.0"
    assert (a100.index, t4.index) == (0, 1)
    assert a100.accounting
    assert not a100.mig_mode


def test_memory_limits_are_seen_by_their_symbol(make_fake, make_driver) -> None:
    assert make_driver(make_fake("A10", driver_version="615.10")).read().memory_limits


def test_links_are_the_best_path_and_the_same_from_both_ends(make_fake, make_driver) -> None:
    fake = make_fake("H100", "H100", "H100", FakeGpu.of("H100", numa=1))
    fake.connect(0, 1, nvlinks=9)
    fake.connect(0, 2, level=TopologyLevel.MULTIPLE)
    fake.connect(1, 2, level=TopologyLevel.NODE)
    gpus = make_driver(fake).read().gpus
    ids = [gpu.id for gpu in gpus]
    assert gpus[0].links == {ids[1]: "nvlink", ids[2]: "pcie", ids[3]: "system"}
    assert gpus[2].links == {ids[0]: "pcie", ids[1]: "numa", ids[3]: "system"}
    for gpu in gpus:
        for other in gpus:
            assert gpu.links.get(other.id) == other.links.get(gpu.id)


def test_numa_comes_from_sysfs_where_nvml_is_silent(make_fake, make_driver, make_sysfs) -> None:
    fake = make_fake(FakeGpu.of("T4", numa=-1), FakeGpu.of("T4", numa=-1))
    sysfs = make_sysfs({"0000:17:00.0": ("0x10de", "0x030200", "1"), "0000:27:00.0": ("0x10de", "0x030200", "-1")})
    assert [gpu.numa for gpu in make_driver(fake, pci=PciBus(sysfs)).read().gpus] == [1, -1]


def test_mig_instances(make_fake, make_driver) -> None:
    fake = make_fake(FakeGpu.of("A100-80GB", mig=("1g.10gb", "3g.40gb")), "A100-80GB")
    cut, whole = make_driver(fake).read().gpus
    mig = {f"g{each.gpu_instance}": each for each in fake.gpus()[0].mig or ()}
    assert cut.mig_mode
    assert not whole.mig_mode
    assert {part.id: (part.uuid, part.profile) for part in cut.mig} == {
        name: (each.uuid, each.profile) for name, each in mig.items()
    }
    assert all(part.memory == mig[part.id].memory for part in cut.mig)
    listed = inventory_gpus((cut, whole), unit=UNIT, headroom=0, health={}, guarantees={}, held={})
    assert listed[0].units == 0, "memory of a card with MIG on can't be sliced"
    assert {part.profile for part in listed[0].mig} == {"1g.10gb", "3g.40gb"}


def test_processes_of_all_lists_counted_once_with_their_instance(make_fake, make_driver) -> None:
    fake = make_fake(FakeGpu.of("A100-80GB", mig=("3g.40gb",)), "A100-80GB")
    driver = make_driver(fake)
    cut, whole = driver.read().gpus
    fake.add_process(0, 11, memory=GIB, mig=0)
    fake.add_process(1, 12, memory=2 * GIB, kind=ProcessKind.COMPUTE | ProcessKind.GRAPHICS)
    fake.add_process(1, 13, memory=3 * GIB, kind=ProcessKind.MPS)
    inside = sample(driver, cut.id).processes
    assert inside is not None
    assert [(each.pid, each.memory, each.instance) for each in inside] == [(11, GIB, cut.mig[0].id)]
    outside = sample(driver, whole.id).processes
    assert outside is not None
    assert {(each.pid, each.memory, each.instance) for each in outside} == {(12, 2 * GIB, None), (13, 3 * GIB, None)}


@pytest.mark.parametrize("lacking", ["nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3"])
def test_older_symbols_are_used_where_the_newer_are_missing(make_fake, make_driver, lacking: str) -> None:
    fake = make_fake("T4", missing=[lacking])
    driver = make_driver(fake)
    facts = driver.read()
    assert facts.gpus[0].memory == 15360 * MIB
    assert (facts.gpus[0].reserved == 0) == ("Memory" in lacking)
    fake.add_process(0, 7, memory=GIB)
    processes = sample(driver, facts.gpus[0].id).processes
    assert processes is not None
    assert [each.pid for each in processes] == [7]


def test_no_process_lists_is_data_not_an_error(make_fake, make_driver) -> None:
    fake = make_fake("T4")
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", NvmlReturn.NOT_SUPPORTED)
    driver = make_driver(fake)
    gpu = driver.read().gpus[0]
    assert not gpu.accounting
    assert sample(driver, gpu.id).processes is None


@pytest.mark.parametrize(
    "function",
    [
        "nvmlDeviceGetTopologyCommonAncestor",
        "nvmlDeviceGetP2PStatus",
        "nvmlDeviceGetMemoryAffinity",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetPciInfo_v3",
        "nvmlDeviceGetSupportedEventTypes",
        "nvmlDeviceRegisterEvents",
        "nvmlSystemGetNVMLVersion",
    ],
)
@pytest.mark.parametrize("error", [NvmlReturn.NOT_SUPPORTED, NvmlReturn.UNKNOWN])
def test_what_is_only_nice_to_know_never_costs_a_gpu(make_fake, make_driver, function: str, error: NvmlReturn) -> None:
    fake = make_fake("T4", "T4")
    fake.fail(function, error)
    driver = make_driver(fake)
    facts = driver.read()
    assert len(facts.gpus) == 2
    assert all(isinstance(found, GpuSample) for found in driver.look().samples.values())


def test_one_unreadable_gpu_leaves_the_others(make_fake, make_driver) -> None:
    fake = make_fake("T4", "T4", "T4")
    fake.fail("nvmlDeviceGetMemoryInfo_v2", NvmlReturn.UNKNOWN, gpu=1)
    driver = make_driver(fake)
    facts = driver.read()
    assert [gpu.index for gpu in facts.gpus] == [0, 2]
    assert [gpu.index for gpu in facts.unreadable] == [1]
    assert fake.gpus()[1].uuid in facts.unreadable[0].reason
    assert "nvmlDeviceGetMemoryInfo" in facts.unreadable[0].reason


def test_an_error_of_the_mig_mode_is_never_taken_for_a_no(make_fake, make_driver) -> None:
    fake = make_fake(FakeGpu.of("A100-80GB", mig=("1g.10gb",)))
    fake.fail("nvmlDeviceGetMigMode", NvmlReturn.UNKNOWN)
    facts = make_driver(fake).read()
    assert facts.gpus == ()
    assert "nvmlDeviceGetMigMode" in facts.unreadable[0].reason


def test_a_uuid_that_is_none_makes_the_gpu_unreadable(make_fake, make_driver) -> None:
    facts = make_driver(make_fake(FakeGpu.of("T4", uuid="GPU-zz"), "T4")).read()
    assert [gpu.index for gpu in facts.gpus] == [1]
    assert "12 hex digits" in facts.unreadable[0].reason


def test_two_gpus_that_shorten_alike_are_refused_by_name(make_fake, make_driver) -> None:
    uuids = ("GPU-9f2c1ab4-d0e7-4000-8000-000000000001", "GPU-9f2c1ab4-d0e7-4000-8000-000000000002")
    facts = make_driver(make_fake(*(FakeGpu.of("T4", uuid=uuid) for uuid in uuids))).read()
    with pytest.raises(GpuClashError) as caught:
        inventory_gpus(facts.gpus, unit=UNIT, headroom=0, health={}, guarantees={}, held={})
    for uuid in uuids:
        assert uuid in str(caught.value)


def test_a_lost_gpu_is_an_answer_about_it_alone(make_fake, make_driver) -> None:
    fake = make_fake("T4", "T4")
    driver = make_driver(fake)
    first, second = driver.read().gpus
    fake.lose(0, xid=None)
    look = driver.look()
    lost = look.samples[first.id]
    assert isinstance(lost, NvmlCallError)
    assert lost.lost
    assert first.uuid in str(lost)
    assert isinstance(look.samples[second.id], GpuSample)


def test_events_name_their_gpu_in_the_order_they_came(make_fake, make_driver) -> None:
    fake = make_fake("A100-80GB", "A100-80GB")
    driver = make_driver(fake)
    first, second = (gpu.id for gpu in driver.read().gpus)
    fake.mark_sick(1, 95, FakeAction.GPU_RESET)
    fake.push_event(0, EventType.DOUBLE_BIT_ECC)
    fake.push_event(0, EventType.CLOCK)
    look = driver.look()
    assert look.events == (
        GpuEvent(gpu=second, kind="xid", data=95),
        GpuEvent(gpu=second, kind="recovery", data=look.events[1].data),
        GpuEvent(gpu=first, kind="ecc"),
    )
    found = look.samples[second]
    assert isinstance(found, GpuSample)
    assert found.recovery is RecoveryAction.GPU_RESET
    assert driver.look().events == ()


def test_an_event_before_a_loss_is_still_heard(make_fake, make_driver) -> None:
    fake = make_fake("T4")
    driver = make_driver(fake)
    gpu = driver.read().gpus[0]
    fake.lose(0)
    assert GpuEvent(gpu=gpu.id, kind="xid", data=79) in driver.look().events


def test_an_old_driver_recommends_nothing_and_still_reports_xids(make_fake, make_driver) -> None:
    fake = make_fake("T4", driver_version="470.82.01")
    driver = make_driver(fake)
    gpu = driver.read().gpus[0]
    fake.push_event(0, EventType.XID, 48)
    look = driver.look()
    assert look.events == (GpuEvent(gpu=gpu.id, kind="xid", data=48),)
    found = look.samples[gpu.id]
    assert isinstance(found, GpuSample)
    assert found.recovery is None


def test_a_counter_below_zero_is_no_number(make_fake, monkeypatch) -> None:
    fake = make_fake("T4")
    monkeypatch.setattr(Binding, "processes", lambda *_: {(5, 0xFFFFFFFF): 2**64 - 4096, (6, 0xFFFFFFFF): GIB})
    driver = NvmlDriver(Binding(str(fake.library)), PciBus("/nowhere"))
    driver.open()
    try:
        gpu = driver.read().gpus[0]
        processes = sample(driver, gpu.id).processes
    finally:
        driver.close()
    assert processes is not None
    assert {each.pid: each.memory for each in processes} == {5: None, 6: GIB}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (NvmlReturn.DRIVER_NOT_LOADED, "modprobe"),
        (NvmlReturn.LIB_RM_VERSION_MISMATCH, "reload"),
        (NvmlReturn.NO_PERMISSION, "privileged"),
        (NvmlReturn.UNKNOWN, "nvmlInit"),
    ],
)
def test_an_nvml_that_cannot_start_says_what_to_do(make_fake, code: NvmlReturn, words: str) -> None:
    fake = make_fake("T4")
    fake.fail_init(code)
    nvml = Binding(str(fake.library))
    with pytest.raises(NvmlUnavailableError, match=words):
        nvml.open()
    fake.fail_init(None)
    nvml.open()
    assert nvml.count() == 1
    nvml.close()
    with pytest.raises(NvmlCallError, match="not open"):
        nvml.count()


def test_a_missing_or_broken_library_is_named(tmp_path) -> None:
    text = tmp_path / "libnvidia-ml.so.1"
    text.write_text("not a library")
    for path in (text, tmp_path / "absent.so"):
        with pytest.raises(NvmlUnavailableError, match=str(path)):
            Binding(str(path)).open()


def test_a_closed_library_is_let_go_of_and_opens_again(make_fake) -> None:
    fake = make_fake("T4")
    one = Binding(str(fake.library))
    one.open()
    one.close()
    one.close()
    assert pynvml.nvmlLib is None
    assert str(fake.library) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    two = Binding(str(fake.library))
    two.open()
    assert two.driver_version() == "615.10"
    two.close()


def test_the_end_of_the_session_is_raised_not_blamed_on_a_gpu(make_fake, make_driver) -> None:
    fake = make_fake("T4", "T4")
    driver = make_driver(fake)
    driver.read()
    fake.fail("nvmlDeviceGetMemoryInfo_v2", NvmlReturn.DRIVER_NOT_LOADED)
    with pytest.raises(NvmlCallError) as caught:
        driver.look()
    assert caught.value.session


def test_units_leave_the_reserve_and_the_headroom(facts_of) -> None:
    gpu = facts_of(memory=16 * GIB, reserved=300 * MIB)
    listed = inventory_gpus(
        (gpu,),
        unit=UNIT,
        headroom=GIB,
        health={gpu.id: "sick"},
        guarantees={gpu.id: Guarantees(memory=Guarantee.WATCHED)},
        held={gpu.id: 3},
    )
    assert listed[0].units == (16 * GIB - 300 * MIB - GIB) // UNIT == 58
    assert (listed[0].health, listed[0].held) == ("sick", 3)
    assert listed[0].guarantee == Guarantees(memory=Guarantee.WATCHED)
    assert decode(encode(Inventory(v=VERSION, unit=UNIT, gpus=listed))).gpus == listed


@pytest.mark.parametrize(
    ("version", "branch"), [("615.10", 615), ("470", 470), ("", 0), ("x.1", 0), ("٣٣.1", 0), ("9" * 50, 0)]
)
def test_the_branch_of_a_driver(version: str, branch: int) -> None:
    assert NodeFacts(driver=version).branch == branch


def test_errors_name_gpu_call_and_code() -> None:
    error = errors.NvmlCallError("nvmlDeviceGetName", 15, "GPU is lost", gpu="GPU-1")
    assert str(error) == "GPU GPU-1: nvmlDeviceGetName: GPU is lost (NVML error 15)"
    assert error.lost
    assert not error.absent


def test_handles_are_known_in_events_by_their_address() -> None:
    cell = ctypes.c_int()
    assert Binding.address(ctypes.pointer(cell)) == ctypes.addressof(cell)
