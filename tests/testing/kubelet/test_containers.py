"""What containers are started with, and what is written down of them for others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from tessera.testing.kubelet import FakeKubelet, Hooks, Settings
from tessera.testing.kubelet.containers import DeviceNode, Mount, combine

GPU = "example.com/gpu"
OTHER = "example.com/other"


def answer(**fields):
    async def allocate(_):
        return api.ContainerAllocateResponse(**fields)

    return allocate


def record_of(kubelet, pod="p", container="main"):
    path = Path(kubelet.paths.containers, f"default_{pod}_uid-{pod}", f"{container}.json")
    return json.loads(path.read_text())


def cgroup_of(kubelet, pid):
    return Path(kubelet.paths.proc, str(pid), "cgroup").read_text()


def test_answers_are_merged():
    merged = combine(
        [
            api.ContainerAllocateResponse(
                envs={"A": "1"},
                mounts=[api.Mount(container_path="/m", host_path="/h", read_only=True)],
                cdi_devices=[api.CDIDevice(name="v/c=1"), api.CDIDevice(name="v/c=2")],
            ),
            api.ContainerAllocateResponse(
                envs={"B": "2"},
                devices=[api.DeviceSpec(container_path="/dev/a", host_path="/dev/b", permissions="rw")],
                annotations={"k": "v"},
                cdi_devices=[api.CDIDevice(name="v/c=1")],
            ),
        ],
        Random(1),
    )

    assert merged.env == {"A": "1", "B": "2"}
    assert merged.mounts == (Mount("/m", "/h", read_only=True),)
    assert merged.devices == (DeviceNode("/dev/a", "/dev/b", "rw"),)
    assert merged.annotations == {"k": "v"}
    assert sorted(merged.cdi) == ["v/c=1", "v/c=2"]


def test_a_name_given_twice_with_two_values_gets_either():
    answers = [
        api.ContainerAllocateResponse(envs={"A": value}, mounts=[api.Mount(container_path="/m", host_path=value)])
        for value in ("1", "2")
    ]

    merged = [combine(answers, Random(seed)) for seed in range(20)]

    assert {(each.env["A"], each.mounts[0].host_path) for each in merged} == {("1", "1"), ("2", "2")}


async def test_a_started_container_is_written_down(kubelet, make_plugin, make_pod):
    await make_plugin(GPU, ["d0", "d1"], allocate=answer(envs={"G": "gpu"}, cdi_devices=[api.CDIDevice(name="v/c=1")]))
    await make_plugin(OTHER, ["x"], allocate=answer(mounts=[api.Mount(container_path="/m", host_path="/h")]))
    await kubelet.admit(make_pod(limits={GPU: 2, OTHER: 1}))
    await kubelet.settled("uid-p")

    record = record_of(kubelet)

    assert (record["namespace"], record["pod"], record["uid"], record["container"]) == ("default", "p", "uid-p", "main")
    assert (record["state"], record["restartCount"], record["role"]) == ("running", 0, "main")
    assert record["env"] == {"G": "gpu"}
    assert record["mounts"] == [{"containerPath": "/m", "hostPath": "/h", "readOnly": False}]
    assert record["cdi"] == ["v/c=1"]
    assert record["deviceIds"] == {GPU: ["d0", "d1"], OTHER: ["x"]}


async def test_the_pod_s_own_variables_win_over_the_plugin_s(kubelet, make_plugin, make_pod):
    """The kubelet puts them behind the plugin's; the last one of a name counts."""
    await make_plugin(GPU, allocate=answer(envs={"NVIDIA_VISIBLE_DEVICES": "GPU-1", "B": "b"}))
    pod = make_pod()
    pod["spec"]["containers"][0]["env"] = [
        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"},
        {"name": "FROM", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    await kubelet.admit(pod)
    await kubelet.settled("uid-p")

    record = record_of(kubelet)

    assert record["env"] == {"NVIDIA_VISIBLE_DEVICES": "all", "B": "b"}
    assert record["pluginEnv"] == {"NVIDIA_VISIBLE_DEVICES": "GPU-1", "B": "b"}


async def test_a_process_leads_to_its_container(kubelet, make_pod):
    await kubelet.admit(make_pod())
    await kubelet.settled("uid-p")

    record = record_of(kubelet)
    container_id = record["containerID"].removeprefix("containerd://")
    assert cgroup_of(kubelet, record["pid"]) == f"0::/kubepods/besteffort/poduid-p/{container_id}\n"
    await kubelet.terminate("uid-p")
    assert os.listdir(kubelet.paths.proc) == []


async def test_init_containers_end_before_the_others_start(kubelet, make_pod):
    await kubelet.admit(make_pod(sidecars=[("s", {})], init=[("i", {})], containers=[("main", {})]))
    await kubelet.settled("uid-p")

    states = {each.container: (each.state, each.exit_code) for each in kubelet.containers()}

    assert states == {"s": ("running", None), "i": ("exited", 0), "main": ("running", None)}


async def test_hooks_hear_of_starts_and_ends(directory, make_pod):
    heard = []
    hooks = Hooks(
        started=lambda record: heard.append(("started", record.container, record.pid)),
        ended=lambda record: heard.append(("ended", record.container, record.exit_code)),
    )
    async with FakeKubelet(directory, settings=Settings(first_pid=500), hooks=hooks) as kubelet:
        await kubelet.admit(make_pod(init=[("i", {})]))
        await kubelet.settled("uid-p")
        await kubelet.terminate("uid-p", "Failed", exit_code=3)

    assert heard == [("started", "i", 500), ("ended", "i", 0), ("started", "main", 501), ("ended", "main", 3)]


async def test_a_restarted_container_has_another_process_and_id(kubelet, make_pod):
    await kubelet.admit(make_pod())
    await kubelet.settled("uid-p")
    before = record_of(kubelet)

    kubelet.restart_container("uid-p", "main", exit_code=2)
    await kubelet.settled("uid-p")

    after = record_of(kubelet)
    assert after["restartCount"] == 1
    assert (after["pid"], after["containerID"]) != (before["pid"], before["containerID"])


async def test_the_longest_names_fit_into_files(kubelet, make_pod):
    pod = make_pod("p", containers=[("c" * 63, {})])
    pod["metadata"].update(name="n" * 253, namespace="s" * 63, uid="u" * 36)
    await kubelet.admit(pod)

    assert await kubelet.settled("u" * 36) == {"c" * 63: ""}


async def test_records_go_with_the_pod(kubelet, make_pod):
    await kubelet.admit(make_pod())
    await kubelet.settled("uid-p")

    await kubelet.remove("uid-p")

    assert os.listdir(kubelet.paths.containers) == []
    assert kubelet.containers() == []


async def test_what_lingers_keeps_its_record_until_it_is_reaped(kubelet, make_plugin, make_pod):
    """A pod's object can vanish before its processes do; the kubelet counts its devices free all the same."""
    await make_plugin(GPU, ["d0"])
    await kubelet.admit(make_pod())
    await kubelet.settled("uid-p")

    await kubelet.remove("uid-p", lingering=True)

    assert record_of(kubelet)["state"] == "running"
    assert (await kubelet.admit(make_pod("next"))).admitted
    kubelet.reap("uid-p")
    assert "default_p_uid-p" not in os.listdir(kubelet.paths.containers)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
async def test_a_finished_pod_s_containers_say_how_they_ended(kubelet, make_pod, phase):
    await kubelet.admit(make_pod())
    await kubelet.settled("uid-p")

    await kubelet.terminate("uid-p", phase)

    assert record_of(kubelet)["exitCode"] == (0 if phase == "Succeeded" else 1)
    assert kubelet.pod("uid-p").phase == phase
