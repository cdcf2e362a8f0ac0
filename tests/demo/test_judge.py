"""The judge finds what is wrong: each way to betray a pod is put before it once."""

import json

import pytest

from tessera.demo.evidence import Evidence
from tessera.demo.judge import holders, idc_first, judge, used_again

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
M, P, C = (f"tessera.dev/{name}" for name in ("gpu-memory.256Mi", "gpu-memory.percent", "gpu-compute.percent"))


def _pod(name, limits, slices, node="n1", phase="Running"):
    annotations = {"tessera.dev/plan": json.dumps({"containers": {"main": slices}})} if slices else {}
    return {
        "metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "annotations": annotations},
        "spec": {"nodeName": node, "containers": [{"name": "main", "resources": {"limits": limits}}]},
        "status": {"phase": phase},
    }


def _slice(gpu, units, compute=0):
    return {"gpu": gpu, "units": units, "compute": compute}


def _ids(gpu, kind, start, count):
    return [f"{gpu}-{kind}{number:03d}" for number in range(start, start + count)]


@pytest.fixture
def node(tmp_path):
    """A node on which every pod has the devices and environment that it is given here."""

    def make(*pods, name="n1", cpu="64"):
        folder = tmp_path / name
        entries = []
        for pod, devices, env in pods:
            uid = pod["metadata"]["uid"]
            for resource, ids in devices.items():
                entries.append(
                    {"PodUID": uid, "ContainerName": "main", "ResourceName": resource, "DeviceIDs": {"-1": ids}}
                )
            record = {"uid": uid, "container": "main", "env": env, "cdi": [], "mounts": [], "devices": []}
            (folder / "containers" / uid).mkdir(parents=True)
            (folder / "containers" / uid / "main.json").write_text(json.dumps(record))
        (folder / "device-plugins").mkdir(parents=True, exist_ok=True)
        data = {"Data": {"PodDeviceEntries": entries, "RegisteredDevices": {}}, "Checksum": 0}
        (folder / "device-plugins" / "kubelet_internal_checkpoint").write_text(json.dumps(data))
        gpus = [
            {"id": gpu, "uuid": f"GPU-{gpu}", "index": at, "units": 100, "health": "ok"}
            for at, gpu in enumerate((A, B))
        ]
        inventory = json.dumps({"v": 1, "gpus": gpus})
        return Evidence(
            {
                "metadata": {"name": name, "annotations": {"tessera.dev/inventory": inventory}},
                "status": {"allocatable": {"cpu": cpu}},
            },
            str(folder),
        )

    return make


def _env(*gpus):
    uuids = ",".join(f"GPU-{gpu}" for gpu in gpus)
    return {"NVIDIA_VISIBLE_DEVICES": uuids, "TESSERA_GPU_IDS": uuids}


def _problems(checks):
    return {check.title: check.problems for check in checks if check.problems}


def test_a_right_node_passes_every_check(node):
    slice_ = _pod("a", {M: "10", C: "30"}, [_slice(A, 10, 30)])
    half = _pod("b", {P: "50"}, [_slice(A, 50)])
    whole = _pod("c", {P: "100", C: "100"}, [_slice(B, 100, 100)])
    plain = _pod("d", {"cpu": "1"}, [])
    evidence = node(
        (slice_, {M: _ids(A, "m", 0, 10), C: _ids(A, "c", 0, 30)}, _env(A)),
        (half, {P: _ids(A, "p", 0, 50)}, _env(A)),
        (whole, {P: _ids(B, "p", 0, 100), C: _ids(B, "c", 0, 100)}, _env(B)),
        (plain, {}, {"HOME": "/"}),
    )
    checks = judge([slice_, half, whole, plain], [evidence])
    assert _problems(checks) == {}
    assert all(check.passed for check in checks)


@pytest.mark.parametrize(
    ("devices", "env", "what"),
    [
        ({M: _ids(B, "m", 0, 10)}, _env(B), "devices of its plan"),
        ({M: _ids(A, "m", 0, 9)}, _env(A), "devices of its plan"),
        ({M: _ids(A, "m", 0, 5) + _ids(B, "m", 0, 5)}, _env(A), "devices of its plan"),
        ({}, {}, "devices of its plan"),
        ({M: _ids(A, "m", 0, 10)}, _env(A, B), "sees the GPUs"),
        ({M: _ids(A, "m", 0, 10)}, _env(B), "sees the GPUs"),
        ({M: _ids(A, "m", 0, 10)}, {}, "sees the GPUs"),
        ({M: _ids(A, "m", 0, 10)}, {"NVIDIA_VISIBLE_DEVICES": "all"}, "sees the GPUs"),
    ],
)
def test_a_container_with_something_else_is_found(node, devices, env, what):
    pod = _pod("a", {M: "10"}, [_slice(A, 10)])
    problems = _problems(judge([pod], [node((pod, devices, env))]))
    assert any(what in title for title in problems)


def test_a_container_that_never_started_is_found(node):
    pod = _pod("a", {M: "10"}, [_slice(A, 10)])
    assert "was never started" in str(_problems(judge([pod], [node()])))


def test_a_gpu_in_a_container_that_asked_for_none_is_found(node):
    pod = _pod("a", {"cpu": "1"}, [])
    problems = _problems(judge([pod], [node((pod, {}, {"NVIDIA_VISIBLE_DEVICES": "all"}))]))
    assert list(problems) == ["containers that asked for no GPU have none"]


def test_one_unit_for_two_pods_is_found(node):
    pods = [_pod(name, {M: "10"}, [_slice(A, 10)]) for name in "ab"]
    problems = _problems(judge(pods, [node(*((pod, {M: _ids(A, "m", 0, 10)}, _env(A)) for pod in pods))]))
    assert "no unit of a GPU is given to two pods" in problems


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({M: _ids(A, "m", 0, 60)}, {P: _ids(A, "p", 0, 50)}),
        ({P: _ids(A, "p", 0, 60)}, {P: _ids(A, "p", 60, 41)}),
        ({M: _ids(A, "m", 0, 1), C: _ids(A, "c", 0, 60)}, {M: _ids(A, "m", 1, 1), C: _ids(A, "c", 60, 41)}),
    ],
)
def test_overallocation_in_any_view_is_found(node, first, second):
    pods = [_pod(name, {M: "1"}, [_slice(A, 1)]) for name in "ab"]
    problems = _problems(judge(pods, [node((pods[0], first, _env(A)), (pods[1], second, _env(A)))]))
    assert any("over-allocated" in title for title in problems)


def test_an_ended_pod_holds_nothing_any_more(node):
    ended = _pod("a", {M: "10"}, [_slice(A, 10)], phase="Succeeded")
    running = _pod("b", {M: "10"}, [_slice(A, 10)])
    evidence = node(
        (ended, {M: _ids(A, "m", 0, 10)}, _env(A)),
        (running, {M: _ids(A, "m", 0, 10)}, _env(A)),
    )
    assert _problems(judge([ended, running], [evidence])) == {}


def test_a_check_that_saw_nothing_has_not_passed(node):
    assert not any(check.passed for check in judge([], [node()]) if "plan" in check.title)


def test_cloud_before_a_full_data_centre_is_found(node):
    nodes = {name: node(name=name) for name in ("idc", "cloud")}
    early = _pod("early", {M: "10"}, [_slice(A, 10)], node="cloud")
    assert idc_first([early], nodes, frozenset({"idc"})).problems
    full = [_pod(f"full-{gpu}", {M: "95"}, [_slice(gpu, 95)], node="idc") for gpu in (A, B)]
    check = idc_first([*full, early], nodes, frozenset({"idc"}))
    assert check.passed


def test_a_data_centre_without_cpu_is_full_too(node):
    nodes = {"idc": node(name="idc", cpu="2"), "cloud": node(name="cloud")}
    pod = _pod("p", {M: "10"}, [_slice(A, 10)], node="cloud")
    pod["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "2500m"}
    assert idc_first([pod], nodes, frozenset({"idc"})).passed


def test_reuse_is_seen_and_its_absence_too(node):
    first = _pod("a", {M: "10"}, [_slice(A, 10)])
    second = _pod("b", {M: "10"}, [_slice(A, 10)])
    earlier = holders([node((first, {M: _ids(A, "m", 0, 10)}, _env(A)), name="before")])
    now = node((second, {M: _ids(A, "m", 5, 10)}, _env(A)), name="after")
    assert used_again(earlier, [now], [second]).looked_at == 5
    assert not used_again(earlier, [now], [first, second]).passed
    assert not used_again(earlier, [node(name="empty")], []).passed
