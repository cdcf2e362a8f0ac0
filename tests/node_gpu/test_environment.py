"""What the machine brings: CDI specs, the runtime's switch, NVIDIA's toolkit, cgroups."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from deviceplugin.isolation import cdi, runtime, toolkit
from deviceplugin.isolation.environment import Environment, HostPaths, survey
from deviceplugin.isolation.toolkit import Toolkit

UUID = "GPU-9f2c1ab4-d0e7-4000-8000-000000000001"
HOOK = {"hookName": "createRuntime", "path": "/usr/bin/nvidia-cdi-hook",
        "args": ["nvidia-cdi-hook", "apply-cuda-memory-limits", "--gpu-id", UUID]}  # fmt: skip


def spec(*devices: dict, kind: str = "nvidia.com/gpu", **more: object) -> dict:
    return {"cdiVersion": "0.5.0", "kind": kind, "devices": list(devices), **more}


def put(folder: Path, name: str, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    (folder / name).write_text(text)


def test_cdi_names_and_who_is_limited(tmp_path: Path) -> None:
    put(tmp_path / "etc", "nvidia.yaml", spec({"name": "0", "containerEdits": {"hooks": [HOOK]}},
                                              {"name": UUID, "containerEdits": {"hooks": [HOOK]}},
                                              {"name": "GPU-2", "containerEdits": {"deviceNodes": [{"path": "/dev/x"}]}}))  # fmt: skip
    put(tmp_path / "run", "more.json", json.dumps(spec({"name": "GPU-3"}, containerEdits={"hooks": [HOOK]})))
    put(tmp_path / "run", "other.yaml", spec({"name": "x"}, kind="management.nvidia.com/gpu"))
    found = cdi.read([str(tmp_path / "etc"), str(tmp_path / "absent"), str(tmp_path / "run")])
    assert found.names == {"0", UUID, "GPU-2", "GPU-3"}
    assert found.limited == {"0", UUID, "GPU-3"}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "kind: [nvidia.com/gpu]", "a: &a [*a]", "\x00", "kind: nvidia.com/gpu\ndevices: 7\n",
     "- " * 3000, "{" * 3000, "!!python/object/apply:os.system ['true']"],
)  # fmt: skip
def test_a_spec_that_is_none_spoils_nothing(tmp_path: Path, text: str) -> None:
    put(tmp_path, "bad.yaml", text)
    put(tmp_path, "bad.json", text)
    put(tmp_path, "good.yaml", spec({"name": UUID}))
    assert cdi.read([str(tmp_path)]).names == {UUID}


def test_a_huge_spec_is_not_read(tmp_path: Path) -> None:
    put(tmp_path, "huge.yaml", "kind: nvidia.com/gpu\n#" + "x" * (5 << 20))
    assert cdi.read([str(tmp_path)]).names == frozenset()


@pytest.mark.parametrize(
    ("version", "config", "expected"),
    [
        ("containerd://2.1.3", None, True),
        ("containerd://1.7.27", None, None),
        ("", None, None),
        ("cri-o://1.34.0", None, True),
        ("docker://27.0.0", None, None),
        ("docker://27.0.0", "version = 3", None),
        ("", "version = 3", True),
        ("", "version = 2", None),
        ("containerd://2.0.0", "version = 2", True),
        ("containerd://1.7.27", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nenable_cdi = true', True),
        ("containerd://2.1.3", 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nenable_cdi = false', False),
        ("containerd://2.1.3", 'version = 3\n[plugins."io.containerd.cri.v1.runtime"]\nenable_cdi = false', False),
        ("", 'version = 3\n[plugins."io.containerd.cri.v1.runtime"]\nenable_cdi = "yes"', True),
        ("", "version = [", None),
        ("", "plugins = 3", None),
        ("nonsense", "version = 3", None),
    ],
)
def test_whether_the_runtime_injects_cdi(
    tmp_path: Path, version: str, config: str | None, expected: bool | None
) -> None:
    if config is not None:
        put(tmp_path / "etc/containerd", "config.toml", config)
    paths = HostPaths.under(str(tmp_path))
    found = runtime.cdi_enabled(version=version, root=paths.root, containerd=paths.containerd, crio=paths.crio)
    assert found is expected


def test_a_drop_in_is_read_below_the_hosts_root(tmp_path: Path) -> None:
    put(tmp_path / "etc/containerd", "config.toml", 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml", 7, "x"]')
    put(tmp_path / "etc/containerd/conf.d", "99-nvidia.toml",
        '[plugins."io.containerd.cri.v1.runtime"]\nenable_cdi = false')  # fmt: skip
    paths = HostPaths.under(str(tmp_path))
    assert runtime.cdi_enabled(version="", root=paths.root, containerd=paths.containerd, crio=paths.crio) is False


def test_cri_o_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "etc/crio/crio.conf.d").mkdir(parents=True)
    paths = HostPaths.under(str(tmp_path))
    assert runtime.cdi_enabled(version="", root=paths.root, containerd=paths.containerd, crio=paths.crio) is True


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("NVIDIA Container Toolkit CLI version 1.20.1\ncommit: a470818\n", (1, 20, 1)),
        ("NVIDIA Container Toolkit CLI version 1.9.0\n", (1, 9, 0)),
        ("NVIDIA Container Toolkit CLI version v2.0.0\n", (2, 0, 0)),
        ("NVIDIA Container Toolkit CLI version 1.20.1-rc.1\n", (1, 20, 0)),
        ("version 1.20\n", None),
        ("", None),
        ("version 99999999999.1.1", None),
    ],
)
def test_versions(printed: str, expected: tuple[int, int, int] | None) -> None:
    assert toolkit.parse_version(printed) == expected


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Toolkit(version=(1, 20, 1)), None),
        (Toolkit(version=(2, 0, 0), mode="jit-cdi"), None),
        (Toolkit(version=(1, 20, 0)), "1.20.0"),
        (Toolkit(), "not known"),
        (Toolkit(version=(1, 20, 1), mode="legacy"), "legacy"),
        (Toolkit(version=(1, 20, 1), mode="cdi"), "cdi"),
    ],
)
def test_which_toolkit_applies_limits(found: Toolkit, words: str | None) -> None:
    problem = found.limit_problem()
    assert problem is None if words is None else words in (problem or "")


def program(folder: Path, text: str) -> None:
    put(folder / "usr/bin", "nvidia-ctk", f"#!/bin/sh\n{text}\n")
    (folder / "usr/bin/nvidia-ctk").chmod(0o755)


async def test_the_toolkit_is_asked_itself(tmp_path: Path) -> None:
    program(tmp_path, 'echo "NVIDIA Container Toolkit CLI version 1.21.0 $1"')
    put(tmp_path / "etc/nvidia-container-runtime", "config.toml", '[nvidia-container-runtime]\nmode = "legacy"')
    paths = HostPaths.under(str(tmp_path))
    found = await toolkit.probe(paths.toolkit_programs, paths.toolkit_configs)
    assert found == Toolkit(version=(1, 21, 0), mode="legacy")


@pytest.mark.parametrize("text", ["exit 3", "yes", "kill -9 $$", "exit 0"])
async def test_a_program_that_misbehaves_is_not_believed(tmp_path: Path, text: str) -> None:
    program(tmp_path, text)
    paths = HostPaths.under(str(tmp_path))
    assert (await toolkit.probe(paths.toolkit_programs, paths.toolkit_configs)).version is None


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ("", "auto"),
        ("[nvidia-container-runtime]\n", "auto"),
        ("nvidia-container-runtime = 3", "auto"),
        ("[nvidia-container-runtime]\nmode = 3", "unknown"),
        ("[", "unknown"),
    ],
)
async def test_the_runtimes_mode(tmp_path: Path, config: str, mode: str) -> None:
    put(tmp_path, "config.toml", config)
    assert (await toolkit.probe([], [str(tmp_path / "absent"), str(tmp_path / "config.toml")])).mode == mode


async def test_a_survey_of_a_whole_host(tmp_path: Path) -> None:
    put(tmp_path / "sys/fs/cgroup", "cgroup.controllers", "cpu memory")
    put(tmp_path / "var/run/cdi", "nvidia.yaml", spec({"name": UUID, "containerEdits": {"hooks": [HOOK]}}))
    put(tmp_path / "usr/local/nvidia/toolkit", "nvidia-ctk", "x")
    (tmp_path / "usr/local/nvidia/toolkit/nvidia-ctk").chmod(0o755)
    put(tmp_path / "proc/1", "cgroup", "0::/init.scope")
    put(tmp_path / "proc/self", "cgroup", "0::/")

    async def run(program: str, *arguments: str) -> str:
        assert program.endswith("toolkit/nvidia-ctk")
        assert arguments == ("--version",)
        return "CLI version 1.20.1"

    found = await survey(HostPaths.under(str(tmp_path)), runtime_version="containerd://2.0.1", run=run)
    assert found.cgroup_v2
    assert found.cdi.limited == {UUID}
    assert found.runtime_cdi is True
    assert found.toolkit == Toolkit(version=(1, 20, 1))
    assert found.process_problem is None


async def test_a_survey_of_nothing_claims_nothing(tmp_path: Path) -> None:
    found = await survey(HostPaths.under(str(tmp_path)))
    assert found == Environment(process_problem=found.process_problem)
    assert found.process_problem is not None
