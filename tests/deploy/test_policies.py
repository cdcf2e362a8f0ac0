"""The guard, evaluated in-process: what it denies and what passes, what it says, and how its objects are made.

The same table is judged by a real API server in the cluster tests, with every subresource.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tessera.deploy.policies import policies
from tessera.model.config import Config, parse
from tessera.model.errors import ConfigError
from tessera.model.names import names

NAMES = names()
CASES = yaml.safe_load((Path(__file__).parent / "cases" / "guard.yaml").read_text())
EXTENDER = "system:serviceaccount:tessera-system:tessera-extender"
AGENT = "system:serviceaccount:tessera-system:tessera-node"
LIMITS = {"limits": {NAMES.memory_units: "4"}}


@pytest.fixture(scope="module")
def gate(make):
    return make.Gate(Config())


def pod(*containers, **spec):
    return {"metadata": {"name": "p"}, "spec": {"containers": list(containers) or [{"name": "main"}], **spec}}


def carrying(**metadata):
    return {"metadata": {"name": "p", **metadata}, "spec": {"containers": [{"name": "main"}]}}


@pytest.mark.parametrize("each", CASES["variables"]["denied"], ids=str)
def test_variables_that_show_gpus_or_lift_limits_are_denied_in_every_kind_of_container(gate, each):
    bad, fine = {"name": "bad", "env": [{"name": "A"}, each]}, {"name": "fine"}
    created = [pod(fine, bad), pod(fine, initContainers=[fine, bad])]
    updated = pod(fine, ephemeralContainers=[bad])
    for said in (*(gate.refusals(body) for body in created), update(gate, updated, "pods/ephemeralcontainers")):
        (message,) = said
        assert message.startswith(f'tessera-environment: container "bad": {each["name"]}')
        assert "remove it" in message
        assert "\n" not in message


def update(gate, new, resource="pods", old=None, **who):
    return gate.refusals(new, old or pod(), resource=resource, operation="UPDATE", **who)


@pytest.mark.parametrize("each", CASES["variables"]["allowed"], ids=str)
def test_their_neighbours_pass(gate, each):
    assert gate.refusals(pod({"name": "main", "env": [each]})) == []


@pytest.mark.parametrize("path", CASES["hostPaths"]["denied"])
def test_host_paths_that_reach_gpus_are_denied(gate, path):
    volumes = [{"name": "fine", "emptyDir": {}}, {"name": "host", "hostPath": {"path": path}}]
    mounting = {"name": "bad", "volumeMounts": [{"name": "host", "mountPath": "/host"}]}
    (message,) = gate.refusals(pod({"name": "fine"}, mounting, volumes=volumes))
    assert message.startswith('tessera-host-paths: container "bad" mounts volume "host", hostPath /')
    (message,) = gate.refusals(pod(volumes=volumes))
    assert message.startswith('tessera-host-paths: the pod has volume "host"')
    # A pod that was there before the policy was can be updated, but no new container may mount it.
    there = pod(mounting, volumes=volumes)
    assert update(gate, there, old=there) == []
    assert update(gate, {**there, "spec": {**there["spec"], "ephemeralContainers": [mounting]}}, old=there) != []


@pytest.mark.parametrize("path", CASES["hostPaths"]["allowed"])
def test_other_host_paths_pass(gate, path):
    assert gate.refusals(pod(volumes=[{"name": "host", "hostPath": {"path": path}}])) == []


@pytest.mark.parametrize("path", ["/var/log/../lib/kubelet", "/..", "/x/.."])
def test_steps_back_are_denied(gate, path):
    assert gate.refusals(pod(volumes=[{"name": "host", "hostPath": {"path": path}}])) != []


@pytest.mark.parametrize(("kind", "denied"), [("denied", True), ("allowed", False)])
def test_mount_points_that_choose_gpus_are_denied(gate, kind, denied):
    for path in CASES["mountPaths"][kind]:
        body = pod({"name": "main", "volumeMounts": [{"name": "null", "mountPath": path}]})
        assert bool(gate.refusals(body)) == denied


@pytest.mark.parametrize("key", ["cdi.k8s.io/x", "nvidia.cdi.k8s.io/x"])
def test_annotations_that_inject_gpus_are_denied(gate, key):
    for value in ("nvidia.com/gpu=all", "vendor.com/nic=0,runtime.nvidia.com/gpu=0"):
        (message,) = gate.refusals(carrying(annotations={key: value}))
        assert message.startswith(f"tessera-host-paths: annotation {key} would inject GPUs")
        assert update(gate, carrying(annotations={key: value}), old=carrying()) != []
        assert update(gate, carrying(annotations={key: value}), old=carrying(annotations={key: value})) == []
    assert gate.refusals(carrying(annotations={key: "vendor.com/nic=0", "note": "nvidia.com/gpu"})) == []


def test_privilege_and_a_gpu_do_not_go_together(gate):
    privileged = {"name": "bad", "securityContext": {"privileged": True}}
    asking = {"name": "asking", "resources": LIMITS}
    for body in (
        pod(privileged | {"resources": LIMITS}),
        pod(asking, privileged),
        pod(privileged, initContainers=[asking]),
    ):
        (message,) = gate.refusals(body)
        assert message.startswith('tessera-privileged: container "bad" is privileged')
    assert gate.refusals(pod(privileged)) == []
    assert gate.refusals(pod(asking, {"name": "b", "securityContext": {"privileged": False}})) == []


@pytest.mark.parametrize(
    ("resources", "passes"),
    [
        ({}, False),
        ({"limits": {"cpu": "1", "example.com/nic": "1"}}, False),
        ({"limits": {"nvidia.com/gpu": "0"}}, False),
        ({"limits": {"nvidia.com/gpu": "1"}}, True),
        ({"requests": {"nvidia.com/mig-1g.10gb": "1"}}, True),
        ({"limits": {"aliyun.com/gpu-mem": "3"}}, True),
        (LIMITS, True),
    ],
    ids=str,
)
def test_nvidias_runtime_is_for_pods_that_ask(gate, resources, passes):
    for body in (
        pod({"name": "main", "resources": resources}, runtimeClassName="nvidia"),
        pod(
            {"name": "main"}, initContainers=[{"name": "first", "resources": resources}], runtimeClassName="nvidia-cdi"
        ),
    ):
        assert (gate.refusals(body) == []) == passes
        assert gate.refusals(body, namespace="kube-system") == []
    (message,) = gate.refusals(pod(runtimeClassName="nvidia"))
    assert message.startswith('tessera-runtime-class: container "main" would see the GPUs that its image asks for')
    assert gate.refusals(pod(runtimeClassName="gvisor")) == []
    assert gate.refusals(pod(runtimeClassName="nvidia", resourceClaims=[{"name": "gpu"}])) == []


def test_what_admission_writes_passes(gate, make):
    """Pods of every dialect after admission, and the repair of a CNI pod, have nothing that the guard denies."""
    seen = 0
    for case in make.cases():
        after = make.admitted(case)
        if after is not None:
            seen += 1
            assert gate.refusals(after) == []
    assert seen > 100


@pytest.mark.parametrize("each", CASES["variables"]["denied"], ids=str)
def test_admission_that_strips_leaves_nothing_to_deny(gate, make, each):
    asking = {
        "name": "asking",
        "resources": {"limits": {NAMES.gpu_memory: "1Gi"}},
        "env": [{"name": "A", "value": "b"}, each],
    }
    body = pod(asking, {"name": "beside", "env": [each]}, initContainers=[{"name": "first", "env": [each]}])
    for hide in ("true", "false"):
        after = make.mutated(body, parse(f"guard: {{environment: strip, hideOthers: {hide}}}"))
        assert gate.refusals(after) == []
        assert {"name": "A", "value": "b"} in after["spec"]["containers"][0]["env"]
    assert gate.refusals(make.mutated(body, Config())) != []


def test_exempt_namespaces_and_ours_are_not_looked_at(gate):
    body = pod({"name": "main", "env": [{"name": "CUDA_MPS_X"}]}, volumes=[{"name": "v", "hostPath": {"path": "/"}}])
    assert gate.refusals(body, namespace="kube-system") == []
    assert gate.refusals(body, namespace="tessera-system") == []
    assert len(gate.refusals(body, namespace="team")) == 2


@pytest.mark.parametrize(
    ("kind", "name"),
    [("annotations", NAMES.plan), ("annotations", NAMES.request), ("labels", NAMES.unit), ("labels", NAMES.region)],
)
@pytest.mark.parametrize("resource", ["pods", "pods/status", "pods/resize", "pods/ephemeralcontainers"])
def test_pods_keep_what_we_wrote(gate, kind, name, resource):
    there, without = carrying(**{kind: {name: "a", "x": "y"}}), carrying(**{kind: {"x": "z"}})
    for new, old in ((carrying(**{kind: {name: "b"}}), there), (without, there), (there, without)):
        (message,) = update(gate, new, resource, old)
        assert message.startswith(f"tessera-pod-annotations: {name} is for Tessera to write")
        passes = kind == "labels"
        assert (update(gate, new, resource, old, user=EXTENDER) == []) == passes
    assert update(gate, {**there, "status": {"phase": "Running"}}, resource, there) == []


def test_bindings_carry_plans_of_the_extender_only(gate):
    for resource in ("bindings", "pods/binding"):
        plan = carrying(annotations={NAMES.plan: "{}"})
        assert gate.refusals(plan, resource=resource) != []
        assert gate.refusals(plan, resource=resource, user=EXTENDER) == []
        assert gate.refusals(carrying(annotations={NAMES.request: "{}"}), resource=resource, user=EXTENDER) != []
        assert gate.refusals(carrying(annotations={"x": "y"}), resource=resource) == []


@pytest.mark.parametrize("resource", ["nodes", "nodes/status"])
def test_a_node_is_described_by_its_own_agent(gate, resource):
    old, new = carrying(annotations={}), carrying(annotations={NAMES.inventory: "{}"})
    assert update(gate, new, resource, old) != []
    assert (update(gate, new, resource, old, user=AGENT, node="p") == []) == (resource == "nodes")
    assert update(gate, new, resource, old, user=AGENT, node="other") != []
    assert update(gate, new, resource, old, user=AGENT) != []
    woken = carrying(annotations={NAMES.wake: "1"})
    assert update(gate, woken, resource, old, user=EXTENDER) == []
    assert update(gate, woken, resource, old, user=AGENT, node="p") != []


def test_an_agent_may_do_nothing_else(gate):
    node, who = carrying(labels={"a": "b"}), {"user": AGENT, "node": "p"}
    tainted = {**node, "spec": {**node["spec"], "unschedulable": True}}
    assert update(gate, tainted, "nodes", node, **who) != []
    assert update(gate, carrying(labels={}), "nodes", node, **who) != []
    assert gate.refusals(None, node, resource="nodes", operation="DELETE", **who) != []
    assert gate.refusals(None, node, resource="pods", operation="DELETE", **who) != []
    assert gate.refusals(node, resource="pods/eviction", **who) != []
    assert update(gate, node, "pods/status", node, **who) != []


def test_who_is_trusted_may_write_for_all_of_them(make):
    gate = make.Gate(parse("guard: {trusted: [backup, 'system:restorers']}"))
    new, old = carrying(annotations={NAMES.plan: "x"}), carrying()
    assert update(gate, new, old=old) != []
    assert update(gate, new, old=old, user="backup") == []
    assert update(gate, new, old=old, groups=("system:restorers",)) == []
    assert gate.refusals(new, resource="bindings", user="backup") == []
    shown = pod({"name": "main", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]})
    assert gate.refusals(shown, user="backup") != [], "trust is about annotations, not about GPUs"


def test_the_config_says_what_is_protected(make):
    config = parse(
        "domain: gpu.example.org\n"
        "guard: {driverCapabilities: [compute, video], hostPaths: [/srv/gpu, /dev/xpu*], exemptNamespaces: [infra]}\n"
    )
    gate = make.Gate(config)
    capable = lambda value: pod({"name": "m", "env": [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": value}]})  # noqa: E731
    assert gate.refusals(capable("video,compute")) == []
    (message,) = gate.refusals(capable("utility"))
    assert "(compute,video)" in message
    host = lambda path: pod(volumes=[{"name": "v", "hostPath": {"path": path}}])  # noqa: E731
    assert [bool(gate.refusals(host(path))) for path in ("/srv", "/srv/gpu/x", "/dev/xpu1", "/dev/nvidia0")] == [
        True,
        True,
        True,
        False,
    ]
    assert gate.refusals(host("/srv"), namespace="infra") == []
    assert gate.refusals(host("/srv"), namespace="kube-system") != []
    new = carrying(annotations={"gpu.example.org/plan": "x"})
    assert gate.refusals(new) != []
    assert gate.refusals(carrying(annotations={NAMES.plan: "x"})) == [], "another domain's names are another's"


@pytest.mark.parametrize(
    "text",
    [
        "guard: {exemptNamespaces: ['*']}",
        "guard: {driverCapabilities: ['all,compute']}",
        "guard: {driverCapabilities: ['.*']}",
        "guard: {hostPaths: ['dev']}",
        'guard: {hostPaths: ["/dev/\'"]}',
        "guard: {hostPaths: ['/']}",
        "guard: {trusted: ['']}",
        "guard: {environment: ignore}",
    ],
)
def test_a_config_that_would_make_a_hole_is_refused(text):
    with pytest.raises(ConfigError):
        parse(text)


def test_each_policy_has_its_binding_and_denies_where_it_can_not_tell():
    found = policies(Config(), namespace="gpu", extender="e", agent="a")
    by_kind = {}
    for each in found:
        by_kind.setdefault(each["kind"], {})[each["metadata"]["name"]] = each["spec"]
    made, bound = by_kind["ValidatingAdmissionPolicy"], by_kind["ValidatingAdmissionPolicyBinding"]
    assert made.keys() == bound.keys()
    for name, spec in made.items():
        assert bound[name] == {"policyName": name, "validationActions": ["Deny"]}
        assert spec["failurePolicy"] == "Fail"
        assert all(each["message"] and each["messageExpression"] for each in spec["validations"])
        assert len(spec.get("variables", ())) <= 64
    text = str(found)
    assert "system:serviceaccount:gpu:e" in text
    assert "system:serviceaccount:gpu:a" in text
    assert "tessera-system" not in text


def test_what_pods_may_not_say_can_be_warned_of_and_what_we_write_is_guarded_all_the_same():
    strict, soft = policies(Config()), policies(parse("guard: {actions: warn}"))
    actions = {
        each["spec"]["policyName"]: each["spec"]["validationActions"] for each in soft if "Binding" in each["kind"]
    }
    said = {"tessera-environment", "tessera-host-paths", "tessera-privileged", "tessera-runtime-class"}
    assert {name for name, found in actions.items() if found == ["Warn", "Audit"]} == said
    assert all(found == ["Deny"] for name, found in actions.items() if name not in said)
    without = lambda found: [each for each in found if "Binding" not in each["kind"]]  # noqa: E731
    assert without(soft) == without(strict)
