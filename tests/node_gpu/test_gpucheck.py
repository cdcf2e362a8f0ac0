"""The one command for a machine with a GPU."""

from __future__ import annotations

import pytest

from deviceplugin.gpucheck import BAD, GOOD, NO_GPU, check, main
from deviceplugin.isolation.environment import HostPaths
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.pci import PciBus
from tessera.testing.nvml import FakeGpu, NvmlReturn

GIB = 1 << 30


@pytest.fixture
def look(tmp_path, make_sysfs):
    """Run the check on a fake node; the exit code and the lines."""

    def run(fake, *, cards: tuple[str, ...] = ("0000:17:00.0", "0000:27:00.0")) -> tuple[int, str]:
        sysfs = make_sysfs(dict.fromkeys(cards, ("0x10de", "0x030200", "0")))
        paths = HostPaths.under(str(tmp_path / "host"), proc="/proc", sysfs=sysfs)
        lines: list[str] = []
        driver = NvmlDriver(Binding(str(fake.library) if fake else "/nowhere/libnvidia-ml.so.1"), PciBus(sysfs))
        return check(driver, paths, say=lines.append), "\n".join(lines)

    return run


def test_a_good_node(make_fake, look) -> None:
    fake = make_fake("A100-80GB", FakeGpu.of("A100-80GB", mig=("1g.10gb", "3g.40gb")))
    fake.connect(0, 1, nvlinks=12)
    fake.add_process(0, 1, memory=GIB)
    code, said = look(fake)
    assert code == GOOD, said
    for word in (
        "NVIDIA A100-SXM4-80GB",
        "316 units",
        "nvlink",
        "1g.10gb",
        "process 1: 1 GiB",
        "not kernel",
        "as assumed",
    ):
        assert word in said
    assert "BAD" not in said


@pytest.mark.parametrize(
    ("function", "error", "word"),
    [
        ("nvmlDeviceGetMemoryInfo_v2", NvmlReturn.UNKNOWN, "can be read"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", NvmlReturn.NOT_SUPPORTED, "processes are listed"),
        ("nvmlDeviceGetTopologyCommonAncestor", NvmlReturn.NOT_SUPPORTED, "path to every other GPU"),
        ("nvmlDeviceGetFieldValues", NvmlReturn.NOT_SUPPORTED, "recovery actions"),
        ("nvmlSystemGetDriverVersion", NvmlReturn.UNKNOWN, "every call is answered"),
    ],
)
def test_what_is_not_as_assumed_is_said(make_fake, look, function: str, error: NvmlReturn, word: str) -> None:
    fake = make_fake("T4", "T4")
    fake.fail(function, error)
    code, said = look(fake)
    assert code == BAD
    assert any(line.startswith("  BAD") and word in line for line in said.splitlines()), said


def test_a_process_that_is_not_of_this_proc(make_fake, look) -> None:
    fake = make_fake("T4")
    fake.add_process(0, 2**22, memory=GIB)
    code, said = look(fake, cards=("0000:17:00.0",))
    assert code == BAD
    assert "BAD its number is one of this /proc" in said


def test_no_gpu_is_said_clearly(look) -> None:
    code, said = look(None, cards=())
    assert code == NO_GPU
    assert "no GPU on this machine: nothing was checked" in said


def test_a_gpu_that_cannot_be_used_is_no_success(look, make_fake) -> None:
    code, said = look(None)
    assert code == BAD
    assert "0000:17:00.0" in said
    fake = make_fake("T4")
    fake.fail_init(NvmlReturn.DRIVER_NOT_LOADED)
    assert look(fake)[0] == BAD


def test_the_command_itself(capsys, tmp_path) -> None:
    assert main(["--nvml-library", str(tmp_path / "absent.so"), "--host-root", str(tmp_path)]) == NO_GPU
    assert "absent.so" in capsys.readouterr().out
