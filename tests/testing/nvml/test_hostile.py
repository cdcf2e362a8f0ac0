"""Bad state files: an NVML error, whatever they hold, and never a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tessera.testing.nvml import STATE_VARIABLE, FakeGpu, FakeNvml, NvmlReturn, StateFileError
from tessera.testing.nvml.build import FLAGS, SOURCE_FOLDER, sources
from tessera.testing.nvml.layout import State

DRIVER = Path(__file__).with_name("driver.c")


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "empty":
        content = bytearray()
    elif kind == "cut":
        del content[-1:]
    elif kind == "magic":
        content[0] ^= 1
    elif kind == "layout":
        content[State.layout.offset] += 1
    elif kind == "size":
        content[State.size.offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("empty", NvmlReturn.DRIVER_NOT_LOADED),
        ("cut", NvmlReturn.DRIVER_NOT_LOADED),
        ("magic", NvmlReturn.DRIVER_NOT_LOADED),
        ("layout", NvmlReturn.LIB_RM_VERSION_MISMATCH),
        ("size", NvmlReturn.LIB_RM_VERSION_MISMATCH),
    ],
)
def test_damaged_file(make_node, kind: str, error: NvmlReturn) -> None:
    node = make_node("T4", init=False)
    damage(node.fake.path, kind)
    with pytest.raises(node.nvml.NVMLError) as raised:
        node.nvml.nvmlInit()
    assert raised.value.value == error
    with pytest.raises(StateFileError):
        FakeNvml.open(node.fake.path)
    with pytest.raises(StateFileError):
        node.fake.gpus()


def test_file_cut_while_in_use(make_node) -> None:
    node = make_node("T4")
    handle = node.handle()
    os.truncate(node.fake.path, 100)
    for call in (node.nvml.nvmlDeviceGetCount, lambda: node.nvml.nvmlDeviceGetMemoryInfo(handle)):
        with pytest.raises(node.nvml.NVMLError_Unknown):
            call()
    with pytest.raises(StateFileError, match="100 bytes"):
        node.fake.add_process(0, 1, memory=1)


def test_counts_beyond_the_tables(make_node) -> None:
    node = make_node("T4", init=False)
    with open(node.fake.path, "r+b") as file:
        file.seek(State.gpu_count.offset)
        file.write(b"\xff" * 4 * 4)
    node.nvml.nvmlInit()
    assert node.nvml.nvmlDeviceGetCount() == 32
    assert node.nvml.nvmlDeviceGetMemoryInfo(node.handle()).total == 15360 << 20
    with pytest.raises(StateFileError, match="4294967295 entries where 32 fit"):
        node.fake.gpus()


def test_file_that_may_not_be_opened_or_is_none(make_node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = make_node("T4", init=False)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null")):
        monkeypatch.setenv(STATE_VARIABLE, str(path))
        with pytest.raises(node.nvml.NVMLError_DriverNotLoaded):
            node.nvml.nvmlInit()


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's sources and the driver in one program, under the sanitizers where the compiler has them."""
    program = tmp_path_factory.mktemp("driver") / "driver"
    flags = [flag for flag in FLAGS if flag != "-shared" and not flag.startswith("-Wl,")]
    base = [shutil.which("cc"), *flags, f"-I{SOURCE_FOLDER}", "-o", str(program), str(DRIVER), *map(str, sources())]
    wanted = [*base, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    done = subprocess.run(wanted, capture_output=True, text=True, check=False)
    if done.returncode:  # no libasan on this machine: the noise still must not crash it
        done = subprocess.run(base, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def test_noise_under_the_sanitizers(sanitized: Path, tmp_path: Path) -> None:
    cards = [FakeGpu.of("A100-80GB", mig=("1g.10gb", "3g.40gb")), FakeGpu.of("T4"), FakeGpu.of("H100")]
    with FakeNvml.create(tmp_path / "state", gpus=cards) as fake:
        fake.connect(0, 2, nvlinks=4)
        fake.add_process(0, 4711, memory=1 << 30, mig=0, sm_percent=5)
        fake.add_process(1, 4711, memory=1 << 30, sm_percent=5)
    done = subprocess.run(
        [str(sanitized), str(tmp_path / "state"), "12"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
