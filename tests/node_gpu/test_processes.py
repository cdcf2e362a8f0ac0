"""Cgroup paths of every kubelet and runtime, and hostile ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from deviceplugin.processes import ContainerRef, ProcessMap, parse_cgroup

UID = "0f9f3ec6-5fbd-4f0a-9c0a-3b2f4f0a1b2c"
UNDER = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"
CID = "ab" * 32
OTHER = "cd" * 32
FOUND = ContainerRef(UID, CID)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"0::/kubepods/burstable/pod{UID}/{CID}\n", FOUND, id="v2 cgroupfs"),
        pytest.param(f"0::/kubepods/pod{UID}/{CID}\n", FOUND, id="v2 cgroupfs, guaranteed"),
        pytest.param(
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-{CID}.scope",
            FOUND, id="v2 systemd containerd"),
        pytest.param(f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{CID}.scope", FOUND, id="v2 systemd cri-o"),
        pytest.param(f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{CID}.scope/container", FOUND, id="cri-o, nested"),
        pytest.param(f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/docker-{CID}.scope", FOUND, id="docker"),
        pytest.param(f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{CID}.scope/init.scope", FOUND,
                     id="systemd inside the container"),
        pytest.param(
            f"12:memory:/kubepods/besteffort/pod{UID}/{CID}\n11:cpu,cpuacct:/kubepods/besteffort/pod{UID}/{CID}\n",
            FOUND, id="v1 cgroupfs"),
        pytest.param(
            f"3:name=systemd:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UNDER}.slice/docker-{CID}.scope",
            FOUND, id="v1 systemd"),
        pytest.param(f"12:rdma:/\n11:memory:/system.slice\n3:pids:/kubepods/pod{UID}/{CID}\n0::/\n", FOUND,
                     id="v1, only one controller names it"),
        pytest.param(f"0::/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{CID}", FOUND,
                     id="a systemd path given to a cgroupfs runtime"),
        pytest.param(f"0::/../../kubepods-burstable-pod{UNDER}.slice/cri-containerd-{CID}.scope", FOUND,
                     id="seen from another cgroup namespace"),
        pytest.param(f"0::/../pod{UID}/{CID}", FOUND, id="the same, cgroupfs"),
        pytest.param(f"0::/docker/{OTHER}/kubelet/kubepods/burstable/pod{UID}/{CID}", FOUND, id="kind"),
        pytest.param(f"0::/kubepods/pod{UID}/{CID}/docker/{OTHER}", FOUND, id="docker inside a pod"),
        pytest.param(f"0::/kubepods/burstable/pod{STATIC}/{CID}", ContainerRef(STATIC, CID), id="static pod"),
        pytest.param(f"0::/kubepods/burstable/pod{UID}", ContainerRef(UID, ""), id="the pod's own cgroup"),
        pytest.param("0::/", None, id="root"),
        pytest.param("0::/system.slice/sshd.service", None, id="a service"),
        pytest.param("0::/user.slice/user-1000.slice/session-3.scope", None, id="a person"),
        pytest.param(f"0::/docker/{CID}", None, id="a container outside Kubernetes"),
        pytest.param("0::/kubepods/burstable", None, id="no pod in it"),
        pytest.param(f"0::/mypod{UID}/{CID}", None, id="a name that only ends like one"),
        pytest.param(f"0::/kubepods/pod{UID}x/{CID}", None, id="a UID that goes on"),
        pytest.param(f"0::/kubepods/pod{UID}/{'ab' * 33}", ContainerRef(UID, ""), id="an ID too long"),
        pytest.param("", None, id="nothing"),
        pytest.param(":::::\n\0\n" * 100, None, id="noise"),
    ],
)  # fmt: skip
def test_layouts(text: str, expected: ContainerRef | None) -> None:
    assert parse_cgroup(text) == expected


@pytest.fixture
def proc(tmp_path: Path):
    def put(pid: str, text: str) -> None:
        (tmp_path / pid).mkdir(exist_ok=True)
        (tmp_path / pid / "cgroup").write_text(text)

    return tmp_path, put


def test_places(proc) -> None:
    root, put = proc
    put("1", "0::/init.scope\n")
    put("77", f"0::/kubepods/pod{UID}/{CID}\n")
    found = ProcessMap(str(root))
    assert found.locate(1) == "host"
    assert found.locate(77) == FOUND
    assert found.locate(78) == "gone"


def test_a_real_process_is_found() -> None:
    assert ProcessMap().locate(1) != "gone"
    assert ProcessMap().locate(2**22 + 1) == "gone"


def test_seeing_only_oneself_is_a_problem(proc) -> None:
    root, put = proc
    put("self", "0::/\n")
    put("1", "0::/\n")
    put("33", "0::/\n")
    found = ProcessMap(str(root))
    assert "hostPID" in (found.problem() or "")
    put("40", f"0::/../pod{UID}/{CID}\n")
    assert found.problem() is None


def test_no_proc_at_all_is_a_problem(tmp_path: Path) -> None:
    assert "can't be read" in (ProcessMap(str(tmp_path / "absent")).problem() or "")
    assert ProcessMap(str(tmp_path)).problem() is None, "a folder without self is somebody's own picture of /proc"
