"""Memory limits of a cgroup, driver 615's kernel guarantee."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.testing.nvml import CgroupLimit, LimitsBackend, NvmlReturn, OutOfMemoryError

GIB = 1 << 30
UNLIMITED = (1 << 64) - 1
ErrorOf = Callable[..., int]


def set_limit(node, cgroup: Path | str | None, soft: int, hard: int, gpu: int = 0) -> None:
    name = None if cgroup is None else str(cgroup).encode()
    node.nvml.nvmlDeviceSetMemoryLimits_v1(node.handle(gpu), node.nvml.c_nvmlSetMemoryLimits_v1_t(name, soft, hard))


def get_limit(node, cgroup: Path | str, gpu: int = 0) -> tuple[int, int, int]:
    limits = node.nvml.c_nvmlGetMemoryLimits_v1_t(str(cgroup).encode())
    node.nvml.nvmlDeviceGetMemoryLimits_v1(node.handle(gpu), limits)
    return limits.softLimit, limits.hardLimit, limits.currentUsed


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    path = tmp_path / "kubepods" / "pod1" / "container1"
    path.mkdir(parents=True)
    return path


def test_set_read_change_clear(node, cgroup: Path) -> None:
    assert get_limit(node, cgroup) == (0, UNLIMITED, 0)
    set_limit(node, cgroup, 4 * GIB, 8 * GIB)
    assert get_limit(node, cgroup) == (4 * GIB, 8 * GIB, 0)
    assert get_limit(node, cgroup, gpu=1) == (0, UNLIMITED, 0)
    set_limit(node, f"{cgroup}/", 6 * GIB, 6 * GIB)
    assert node.fake.memory_limits() == (CgroupLimit(gpu=0, cgroup=str(cgroup), soft=6 * GIB, hard=6 * GIB),)
    set_limit(node, cgroup, 0, UNLIMITED)
    assert node.fake.memory_limits() == ()


def test_hard_limit_refuses_allocations_of_the_whole_container(node, cgroup: Path) -> None:
    set_limit(node, cgroup, 8 * GIB, 8 * GIB)
    node.fake.add_process(0, 10, memory=5 * GIB, cgroup=str(cgroup))
    node.fake.add_process(0, 11, memory=2 * GIB, cgroup=f"{cgroup}/nested")
    node.fake.add_process(0, 12, memory=20 * GIB, cgroup=f"{cgroup}2")
    assert get_limit(node, cgroup)[2] == 7 * GIB
    with pytest.raises(OutOfMemoryError, match=r"hard limit of cgroup .*container1 leaves it 3072 MiB"):
        node.fake.set_process_memory(0, 11, 4 * GIB)
    node.fake.set_process_memory(0, 11, 3 * GIB)
    assert get_limit(node, cgroup)[2] == 8 * GIB


def test_limit_below_what_is_used_stops_growth_only(node, cgroup: Path) -> None:
    node.fake.add_process(0, 10, memory=5 * GIB, cgroup=str(cgroup))
    set_limit(node, cgroup, GIB, GIB)
    assert get_limit(node, cgroup) == (GIB, GIB, 5 * GIB)
    with pytest.raises(OutOfMemoryError):
        node.fake.set_process_memory(0, 10, 5 * GIB + 1)


def test_limit_dies_with_its_cgroup(node, cgroup: Path) -> None:
    set_limit(node, cgroup, GIB, GIB)
    keep = cgroup.with_name("keeps-the-inode-busy")
    cgroup.rename(keep)
    cgroup.mkdir()
    assert get_limit(node, cgroup) == (0, UNLIMITED, 0)
    node.fake.add_process(0, 10, memory=2 * GIB, cgroup=str(cgroup))
    set_limit(node, cgroup.parent, GIB, GIB)
    assert [Path(limit.cgroup).name for limit in node.fake.memory_limits()] == ["pod1"]


@pytest.mark.parametrize(
    ("cgroup_name", "soft", "error"),
    [
        (None, 0, NvmlReturn.INVALID_ARGUMENT),
        ("", 0, NvmlReturn.INVALID_ARGUMENT),
        ("relative/path", 0, NvmlReturn.INVALID_ARGUMENT),
        ("/" + "x" * 600, 0, NvmlReturn.INVALID_ARGUMENT),
        ("/no/such/cgroup", 0, NvmlReturn.NOT_FOUND),
        ("/", GIB + 1, NvmlReturn.INVALID_ARGUMENT),
    ],
)
def test_bad_limits(node, error_of: ErrorOf, cgroup_name: str | None, soft: int, error: NvmlReturn) -> None:
    assert error_of(set_limit, node, cgroup_name, soft, GIB) == error
    assert node.fake.memory_limits() == ()


def test_a_file_is_no_cgroup(node, error_of: ErrorOf, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert error_of(get_limit, node, tmp_path / "file") == NvmlReturn.NOT_FOUND


def test_null_struct(node) -> None:
    for call in (node.nvml.nvmlLib.nvmlDeviceSetMemoryLimits_v1, node.nvml.nvmlLib.nvmlDeviceGetMemoryLimits_v1):
        assert call(node.handle(), None) == NvmlReturn.INVALID_ARGUMENT


def test_table_is_bounded(node, tmp_path: Path, error_of: ErrorOf) -> None:
    for index in range(257):
        (tmp_path / f"c{index}").mkdir()
    for index in range(256):
        set_limit(node, tmp_path / f"c{index}", 1, 1)
    assert error_of(set_limit, node, tmp_path / "c256", 1, 1) == NvmlReturn.INSUFFICIENT_RESOURCES
    (tmp_path / "c7").rmdir()
    assert error_of(set_limit, node, tmp_path / "c256", 1, 1) == 0


def test_misc_backend_inherits_and_knows_no_unlimited(make_node, cgroup: Path) -> None:
    node = make_node("A100-80GB", limits_backend=LimitsBackend.MISC)
    with pytest.raises(node.nvml.NVMLError_NotSupported):
        get_limit(node, cgroup)
    set_limit(node, cgroup.parent, GIB, 2 * GIB)
    assert get_limit(node, cgroup)[:2] == (GIB, 2 * GIB)
    set_limit(node, cgroup, 3 * GIB, 4 * GIB)
    assert get_limit(node, cgroup)[:2] == (3 * GIB, 4 * GIB)


def test_no_backend(make_node, cgroup: Path) -> None:
    node = make_node("A100-80GB", limits_backend=LimitsBackend.NONE)
    for call in (lambda: get_limit(node, cgroup), lambda: set_limit(node, cgroup, 0, 1)):
        with pytest.raises(node.nvml.NVMLError_NotSupported):
            call()


def test_mig_has_no_limits(make_node, cgroup: Path) -> None:
    node = make_node("A100-80GB")
    node.fake.set_mig(0, ["1g.10gb"])
    with pytest.raises(node.nvml.NVMLError_NotSupported):
        set_limit(node, cgroup, 0, 1)
