"""Pod objects as a kubelet reads them."""

from __future__ import annotations

import pytest

from tessera.testing.kubelet import PodError
from tessera.testing.kubelet.pods import read_pod

GPU = "example.com/gpu"


def test_containers_come_in_the_order_of_admission(make_pod):
    pod = read_pod(make_pod(sidecars=[("s", {})], init=[("i", {})], containers=[("b", {}), ("a", {})]))

    assert [(each.name, each.role) for each in pod.containers] == [
        ("s", "sidecar"),
        ("i", "init"),
        ("b", "main"),
        ("a", "main"),
    ]


@pytest.mark.parametrize(("written", "read"), [("2", 2), ("1k", 1000), ("1e3", 1000), ("500m", 1), ("0", 0), (3, 3)])
def test_amounts_are_rounded_up_as_the_kubelet_does(make_pod, written, read):
    raw = make_pod()
    raw["spec"]["containers"][0]["resources"] = {"limits": {GPU: written}}

    assert read_pod(raw).container("main").limits == {GPU: read}


@pytest.mark.parametrize(
    ("sidecars", "init", "main", "expected"),
    [
        ([], [], [2, 3], 5),
        ([], [4], [2], 4),
        ([], [1], [2], 2),
        ([2], [], [2], 4),
        ([2], [4], [2], 6),
    ],
)
def test_a_pod_holds_what_the_scheduler_counts(make_pod, sidecars, init, main, expected):
    def amounts(prefix, values):
        return [(f"{prefix}{index}", {GPU: value}) for index, value in enumerate(values)]

    pod = make_pod(sidecars=amounts("s", sidecars), init=amounts("i", init), containers=amounts("m", main))

    assert read_pod(pod).requests(GPU) == expected


@pytest.mark.parametrize(
    ("resources", "qos"),
    [
        ({}, "BestEffort"),
        ({"limits": {GPU: "1"}}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
    ],
)
def test_the_class_of_service_depends_on_cpu_and_memory_alone(make_pod, resources, qos):
    raw = make_pod()
    raw["spec"]["containers"][0]["resources"] = resources

    assert read_pod(raw).qos() == qos


def test_the_object_is_copied(make_pod):
    raw = make_pod()
    pod = read_pod(raw)

    raw["metadata"]["name"] = "other"

    assert pod.raw["metadata"]["name"] == "p"


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod.clear(),
        lambda pod: pod.update(spec=None),
        lambda pod: pod.update(spec=[]),
        lambda pod: pod["metadata"].update(uid=""),
        lambda pod: pod["metadata"].update(uid=7),
        lambda pod: pod["metadata"].update(uid="../../etc"),
        lambda pod: pod["metadata"].update(name=".."),
        lambda pod: pod["metadata"].update(name="n" * 254),
        lambda pod: pod["metadata"].update(name="\ud800"),
        lambda pod: pod["metadata"].update(namespace=""),
        lambda pod: pod["spec"].update(containers=[]),
        lambda pod: pod["spec"].update(containers=[{"name": ""}]),
        lambda pod: pod["spec"].update(containers=[{"name": "a/b"}]),
        lambda pod: pod["spec"].update(containers=[{"name": "a"}, {"name": "a"}]),
        lambda pod: pod["spec"].update(initContainers=[{"name": "main"}]),
        lambda pod: pod["spec"].update(containers=[{"name": f"c{n}"} for n in range(600)]),
        lambda pod: pod["spec"]["containers"][0].update(resources={"limits": {GPU: "many"}}),
        lambda pod: pod["spec"]["containers"][0].update(resources={"limits": {GPU: []}}),
    ],
)
def test_what_no_api_server_would_send_is_refused(make_pod, change):
    raw = make_pod()
    change(raw)

    with pytest.raises(PodError):
        read_pod(raw)


def test_an_unknown_container_is_named_with_those_that_are_there(make_pod):
    with pytest.raises(PodError, match=r'pod default/p has no container "x"; it has main'):
        read_pod(make_pod()).container("x")
