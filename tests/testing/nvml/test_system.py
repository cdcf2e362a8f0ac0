"""Coming up, going down, and what is asked of the driver as a whole."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.testing.nvml import STATE_VARIABLE, NvmlReturn


def test_versions(node) -> None:
    assert node.nvml.nvmlSystemGetDriverVersion() == "615.10"
    assert node.nvml.nvmlSystemGetNVMLVersion() == "13.615.10"
    assert node.nvml.nvmlSystemGetCudaDriverVersion() == 13040
    assert node.nvml.nvmlSystemGetCudaDriverVersion_v2() == 13040


def test_another_driver_is_seen_at_once(node) -> None:
    node.fake.set_driver("580.65.06", cuda_version=13000)
    assert node.nvml.nvmlSystemGetDriverVersion() == "580.65.06"
    assert node.nvml.nvmlSystemGetNVMLVersion() == "13.580.65.06"
    assert node.nvml.nvmlSystemGetCudaDriverVersion() == 13000


def test_short_buffer_is_refused_and_left_alone(node) -> None:
    buffer = ctypes.create_string_buffer(b"xxxxxx", 16)
    assert node.nvml.nvmlLib.nvmlSystemGetDriverVersion(buffer, 6) == NvmlReturn.INSUFFICIENT_SIZE
    assert buffer.value == b"xxxxxx"
    assert node.nvml.nvmlLib.nvmlSystemGetDriverVersion(buffer, 7) == NvmlReturn.SUCCESS
    assert buffer.value == b"615.10"
    assert node.nvml.nvmlLib.nvmlSystemGetDriverVersion(None, 80) == NvmlReturn.INVALID_ARGUMENT


def test_counts_gpus(node) -> None:
    assert node.nvml.nvmlDeviceGetCount() == 3


def test_before_init_everything_is_uninitialized(make_node) -> None:
    node = make_node("T4", init=False)
    for call in (node.nvml.nvmlDeviceGetCount, node.nvml.nvmlSystemGetDriverVersion, node.nvml.nvmlEventSetCreate):
        with pytest.raises(node.nvml.NVMLError_Uninitialized):
            call()
    with pytest.raises(node.nvml.NVMLError_Uninitialized):
        node.nvml.nvmlShutdown()
    # Documented to work before: the library's own version, and CUDA's.
    assert node.nvml.nvmlSystemGetNVMLVersion() == "13.615.10"
    assert node.nvml.nvmlSystemGetCudaDriverVersion() == 13040


def test_init_is_counted(node) -> None:
    node.nvml.nvmlInit()
    node.nvml.nvmlShutdown()
    assert node.nvml.nvmlDeviceGetCount() == 3
    node.nvml.nvmlShutdown()
    with pytest.raises(node.nvml.NVMLError_Uninitialized):
        node.nvml.nvmlDeviceGetCount()


def test_init_v2(make_node) -> None:
    node = make_node("T4", init=False)
    assert node.nvml.nvmlLib.nvmlInit_v2() == NvmlReturn.SUCCESS
    assert node.nvml.nvmlDeviceGetCount() == 1


@pytest.mark.parametrize("error", [NvmlReturn.DRIVER_NOT_LOADED, NvmlReturn.LIB_RM_VERSION_MISMATCH])
def test_init_fails_as_told_and_works_again(make_node, error: NvmlReturn) -> None:
    node = make_node("T4", init=False)
    node.fake.fail_init(error)
    with pytest.raises(node.nvml.NVMLError) as raised:
        node.nvml.nvmlInit()
    assert raised.value.value == error
    node.fake.fail_init(None)
    node.nvml.nvmlInit()
    assert node.nvml.nvmlDeviceGetCount() == 1


def test_no_gpu_fails_init_unless_that_is_welcome(make_node) -> None:
    node = make_node(init=False)
    with pytest.raises(node.nvml.NVMLError) as raised:
        node.nvml.nvmlInit()
    assert raised.value.value == NvmlReturn.GPU_NOT_FOUND
    node.nvml.nvmlInitWithFlags(node.nvml.NVML_INIT_FLAG_NO_GPUS)
    assert node.nvml.nvmlDeviceGetCount() == 0


def test_without_a_state_file_there_is_no_driver(make_node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = make_node("T4", init=False)
    for value in (None, "", str(tmp_path / "nowhere"), str(tmp_path)):
        if value is None:
            monkeypatch.delenv(STATE_VARIABLE)
        else:
            monkeypatch.setenv(STATE_VARIABLE, value)
        with pytest.raises(node.nvml.NVMLError_DriverNotLoaded):
            node.nvml.nvmlInit()
        with pytest.raises(node.nvml.NVMLError_DriverNotLoaded):
            node.nvml.nvmlSystemGetNVMLVersion()


def test_every_error_has_a_text(node) -> None:
    texts = {code: node.nvml.nvmlErrorString(code) for code in NvmlReturn}
    assert all(texts.values())
    assert texts[NvmlReturn.GPU_IS_LOST] == "GPU is lost"
    assert node.nvml.nvmlErrorString(12345) == "Unknown Error"


def test_process_name(node, error_of: Callable[..., int]) -> None:
    node.fake.add_process(0, 4711, memory=1, name="/usr/bin/train")
    assert node.nvml.nvmlSystemGetProcessName(4711) == "/usr/bin/train"
    assert error_of(node.nvml.nvmlSystemGetProcessName, 4712) == NvmlReturn.NOT_FOUND
    assert node.nvml.nvmlLib.nvmlSystemGetProcessName(4711, None, 80) == NvmlReturn.INVALID_ARGUMENT


def test_injected_error_strikes_one_function_until_healed(node, error_of: Callable[..., int]) -> None:
    node.fake.fail("nvmlSystemGetDriverVersion", NvmlReturn.UNKNOWN)
    assert error_of(node.nvml.nvmlSystemGetDriverVersion) == NvmlReturn.UNKNOWN
    assert node.nvml.nvmlDeviceGetCount() == 3
    node.fake.fail("nvmlSystemGetDriverVersion", NvmlReturn.NO_PERMISSION)
    assert error_of(node.nvml.nvmlSystemGetDriverVersion) == NvmlReturn.NO_PERMISSION
    node.fake.heal("nvmlSystemGetDriverVersion")
    assert node.nvml.nvmlSystemGetDriverVersion() == "615.10"


def test_injected_error_may_strike_one_gpu_only(node, error_of: Callable[..., int]) -> None:
    first, second = node.handle(0), node.handle(1)
    node.fake.fail("nvmlDeviceGetMemoryInfo", NvmlReturn.UNKNOWN, gpu=1)
    node.fake.fail("nvmlDeviceGetHandleByIndex_v2", NvmlReturn.IN_USE, gpu=2)
    assert error_of(node.nvml.nvmlDeviceGetMemoryInfo, first) == 0
    assert error_of(node.nvml.nvmlDeviceGetMemoryInfo, second) == NvmlReturn.UNKNOWN
    assert error_of(node.nvml.nvmlDeviceGetHandleByIndex, 0) == 0
    assert error_of(node.nvml.nvmlDeviceGetHandleByIndex, 2) == NvmlReturn.IN_USE
    node.fake.heal()
    assert error_of(node.nvml.nvmlDeviceGetMemoryInfo, second) == 0
