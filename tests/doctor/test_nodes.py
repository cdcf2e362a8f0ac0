"""Nodes and GPUs: closed, without agent, with rivals, sick, used by strangers; and how runtimes inject devices."""

import dataclasses

import pytest

from tessera.doctor.check import examine
from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Look

A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def second(node):
    return lambda trees: [trees[0], node]


@pytest.mark.parametrize(
    ("changes", "said", "severity"),
    [
        ({"text": "{"}, "inventory can't be read: inventory annotation", "error"),
        ({"ready": "False"}, "is not ready", "warning"),
        ({"annotations": {"tessera.dev/drift": "["}}, "drift", "error"),
        ({"allocatable": {"tessera.dev/gpu-memory.256Mi": "0"}}, "its agent does not serve GPUs now", "error"),
    ],
)
def test_closed_nodes(findings, cluster, changes, said, severity):
    (found,) = findings(nodes=second(cluster.node("n2", **changes)))["node-closed"]
    assert said in found.seen
    assert (found.object, found.severity) == ("node/n2", severity)


def test_a_draining_agent(only, cluster):
    found = only("node-closed", nodes=second(cluster.node("n2", text=cluster.inventory(state="draining"))))
    assert "draining" in found.seen


def test_a_cordoned_node_is_a_note(healthy, cluster):
    evidence = healthy(nodes=second(cluster.node("n2", unschedulable=True)))
    notes = [note for each in examine(CHECKS, evidence).checks for note in each.notes]
    assert "cordoned by somebody: n2" in notes


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu.present": "true"},
        {"feature.node.kubernetes.io/pci-10de.present": "true"},
        {"aliyun.accelerator/nvidia_name": "Tesla-T4"},
        {"cloud.google.com/gke-accelerator": "nvidia-l4"},
    ],
)
def test_hardware_without_an_agent(only, cluster, labels):
    found = only("node-agent", nodes=lambda trees: [*trees, cluster.node("n3", text="", labels=labels, allocatable={})])
    assert next(iter(labels)) in found.seen


def test_virtual_nodes_have_no_agent(findings, cluster):
    labels = {"nvidia.com/gpu.present": "true", "type": "virtual-kubelet"}
    assert findings(nodes=lambda t: [*t, cluster.node("vk", text="", labels=labels, allocatable={})]) == {}


def test_a_stale_inventory(only):
    found = only("node-agent", pods=lambda trees: [trees[0], *trees[2:]])
    assert "no agent's pod is there" in found.seen
    assert found.object == "node/n2"


def test_an_agent_that_is_not_ready(only, cluster):
    conditions = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    found = only("node-agent", pods=lambda trees: [trees[0], cluster.agent("n2", conditions=conditions), *trees[2:]])
    assert "ContainersNotReady" in found.seen
    assert "/proxy/readyz" in found.mend


def test_a_part_of_the_control_plane_is_not_ready(only, cluster):
    bad = [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}]
    found = only(
        "part-ready", pods=lambda t: [*t, cluster.pod("webhook-1", namespace="tessera-system", conditions=bad)]
    )
    assert (found.object, found.seen) == (
        "pod/tessera-system/webhook-1",
        "is not ready (ContainersNotReady), on no node yet",
    )


def test_a_part_that_has_just_been_made_may_take_its_time(findings, cluster):
    bad = [{"type": "Ready", "status": "False"}]
    new = cluster.pod("webhook-1", namespace="tessera-system", conditions=bad, age=30)
    assert findings(pods=lambda trees: [*trees, new]) == {}


@pytest.mark.parametrize(
    "resource",
    [
        "nvidia.com/gpu",
        "nvidia.com/gpu.shared",
        "nvidia.com/mig-1g.5gb",
        "aliyun.com/gpu-mem",
        "volcano.sh/vgpu-number",
    ],
)
def test_another_plugin_advertises_the_same_gpus(only, cluster, resource):
    there = {cluster.names.memory_units: "180", resource: "2"}
    assert resource in only("node-rivals", nodes=second(cluster.node("n2", allocatable=there))).seen


def test_what_another_plugin_has_left_behind_is_nothing(findings, cluster):
    there = {cluster.names.memory_units: "180", "nvidia.com/gpu": "0"}
    assert findings(nodes=second(cluster.node("n2", allocatable=there))) == {}


@pytest.mark.parametrize(
    "image",
    ["nvcr.io/nvidia/k8s-device-plugin:v0.17.0", "projecthami/hami:v2.7", "registry/k8s-gpushare-plugin@sha256:0"],
)
def test_another_plugin_runs_beside_ours(only, cluster, image):
    found = only("node-rivals", pods=lambda t: [*t, cluster.pod("rival", node="n1", image=image)])
    assert image.split("/")[-1].partition(":")[0].partition("@")[0] in found.seen


@pytest.mark.parametrize("image", ["projecthami/hami-webui:1", "projecthami/other:hami", "hami.example/app:1"])
def test_images_that_only_sound_like_it(findings, cluster, image):
    assert findings(pods=lambda trees: [*trees, cluster.pod("web", node="n1", image=image)]) == {}


def test_network_devices_of_nvidia_are_no_rivals(findings, cluster):
    there = {cluster.names.memory_units: "180", "nvidia.com/hostdev": "8"}
    assert findings(nodes=second(cluster.node("n2", allocatable=there))) == {}


@pytest.mark.parametrize(("health", "severity"), [("sick", "warning"), ("lost", "error"), ("recovering", "warning")])
def test_sick_gpus(only, cluster, health, severity):
    text = cluster.inventory(cluster.gpu(A), cluster.gpu(B, 1, health=health, model="A\x1b[31m10"))
    found = only("gpu-health", nodes=second(cluster.node("n2", text=text)))
    assert (found.object, found.severity) == ("node/n2/gpu/1", severity)


def test_memory_that_strangers_use(only, cluster):
    text = cluster.inventory(cluster.gpu(A, held=8))
    assert "2 GiB of GPU aaaaaaaaaaaa" in only("gpu-foreign-use", nodes=second(cluster.node("n2", text=text))).seen


def test_pods_that_outlive_their_objects(only, cluster):
    text = cluster.inventory(lingering=("u1", "u2"))
    assert (
        "2 pods whose object is gone: u1, u2" in only("pod-lingering", nodes=second(cluster.node("n2", text=text))).seen
    )


@pytest.mark.parametrize(
    ("mode", "runtime", "told"),
    [
        ("cdi", "containerd://1.6.20", {"injection-runtime": "error"}),
        ("cdi", "docker://26.1", {"injection-runtime": "error"}),
        ("cdi", "containerd://1.7.27", {"injection-runtime": "warning"}),
        ("envvar", "containerd://2.1.4", {"injection-open": "warning"}),
        ("auto", "containerd://1.7.27", {"injection-open": "warning"}),
        ("auto", "containerd://2.0.0", {}),
        ("auto", "cri-o://1.34.1", {}),
        ("volume-mounts", "containerd://1.6.20", {}),
        ("cdi", "", {}),
        ("cdi", "some nonsense \x1b", {}),
    ],
)
def test_injection(findings, cluster, mode, runtime, told):
    found = findings(config=f"deviceInjection: {mode}\n", nodes=second(cluster.node("n2", runtime=runtime)))
    assert {key: each[0].severity for key, each in found.items()} == told


def test_envvar_mode_names_the_pods_whose_environment_is_hidden(only, cluster):
    hidden = cluster.pod("hidden", node="n1", env_from=[{"configMapRef": {"name": "env"}}])
    with_gpu = cluster.pod("fine", {cluster.names.memory_units: "1"}, {"main": (cluster.slice(units=1),)}, node="n1",
                           env_from=[{"secretRef": {"name": "env"}}])  # fmt: skip
    found = only("injection-open", config="deviceInjection: envvar\n", pods=lambda t: [*t, hidden, with_gpu])
    assert "1 pod there without a GPU take environment from elsewhere: team/hidden" in found.seen


@pytest.mark.parametrize(
    ("change", "env", "default"),
    [
        ({}, {"NVIDIA_VISIBLE_DEVICES": "all"}, True),
        ({"conditions": [{"type": "Ready", "status": "False"}]}, {"NVIDIA_VISIBLE_DEVICES": "all"}, False),
        ({"runtimeClassName": "nvidia"}, {"NVIDIA_VISIBLE_DEVICES": "all"}, False),
        ({}, {"NVIDIA_VISIBLE_DEVICES": "void", "TESSERA_NVML_LIBRARY": "/driver/x"}, False),
        ({}, {"NVIDIA_VISIBLE_DEVICES": "all", "TESSERA_NVML_LIBRARY": "/driver/x"}, False),
    ],
)
def test_an_agent_tells_whether_nvidias_runtime_is_the_default(healthy, cluster, change, env, default):
    agent = cluster.agent("n1", **{"conditions": [{"type": "Ready", "status": "True"}]} | change)
    agent["spec"]["containers"][0]["env"] = [{"name": name, "value": value} for name, value in env.items()]
    for mode in ("cdi", "envvar"):
        evidence = healthy(config=f"deviceInjection: {mode}\n", pods=[agent, cluster.agent("n2")])
        (found,) = (each for each in examine(CHECKS, evidence).checks if each.check == "injection-open")
        said = " ".join((*found.notes, *(each.seen for each in found.findings)))
        assert ("NVIDIA's runtime is the default on n1 (" in said) == default
        assert found.result == ("ok" if mode == "cdi" else "warning")


def test_a_runtime_class_that_is_not_there(findings):
    text = "deviceInjection: cdi\nruntimeClassName: gpu\n"
    assert findings(config=text)["runtime-class"][0].severity == "error"
    assert "runtime-class" not in findings(config=text.replace("gpu", "nvidia"))


def test_without_nodes_every_check_of_them_says_so(healthy):
    evidence = dataclasses.replace(healthy(), nodes=Look(problem="nodes: not permitted (403)"))
    blind = {each.check for each in examine(CHECKS, evidence).checks if each.result == "blind"}
    assert {"node-closed", "node-agent", "node-rivals", "gpu-health", "pod-waiting", "config-units"} <= blind
    assert "api-version" not in blind
