"""Who may write our annotations and labels: every subresource, each writer, and those who only pass by."""

from __future__ import annotations

import json
import uuid

import pytest
from contract.policies.conftest import NAMES, STRATEGIC, carrying, container, pod, refusal

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
PLAN = json.dumps({"v": 1, "node": "n1", "containers": {}})
SUBRESOURCES = ["", "/status", "/resize", "/ephemeralcontainers"]
GUARDED = [
    ("annotations", NAMES.plan),
    ("annotations", NAMES.request),
    ("labels", NAMES.unit),
    ("labels", NAMES.region),
]


@pytest.fixture(scope="session")
def extender(guarded):
    return guarded.as_account("tessera-extender", node="n1")


@pytest.fixture(scope="session")
def agent(guarded):
    return guarded.as_account("tessera-node", node="n1")


@pytest.fixture(scope="session")
def impostor(guarded):
    """An account of the right name in a namespace that is not ours."""
    guarded.api("admin").post("/api/v1/namespaces", {"metadata": {"name": "elsewhere"}})
    return guarded.as_account("tessera-extender", node="n1", namespace="elsewhere")


@pytest.fixture(scope="session")
def kubelet(guarded):
    return guarded.api("node-n1")


@pytest.fixture
def planned(admin, pods, extender):
    """A pod that was bound with a plan."""
    body = carrying(pod(containers=[container(tickets=4)]), annotations={NAMES.request: "{}"})
    admin.post(pods, body)
    extender.patch(f"{pods}/p", {"metadata": {"labels": {NAMES.unit: "idc", NAMES.region: "r1"}}})
    extender.post(f"{pods}/p/binding", binding(annotations={NAMES.plan: PLAN}))
    found = admin.get(f"{pods}/p")
    assert found["metadata"]["annotations"] == {NAMES.request: "{}", NAMES.plan: PLAN}
    assert found["spec"]["nodeName"] == "n1"
    return f"{pods}/p"


def binding(name="p", *, annotations=None, labels=None):
    body = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}}
    return carrying(body, annotations=annotations, labels=labels)


def change(kind, name, value):
    return {"metadata": {kind: {name: value}}}


@pytest.mark.parametrize("subresource", SUBRESOURCES)
@pytest.mark.parametrize("value", ["forged", None, ""])
def test_nobody_changes_a_pods_annotations(*, admin, agent, impostor, planned, subresource, value):
    for kind, name in GUARDED:
        for api in (admin, impostor):
            said = refusal(api, "PATCH", planned + subresource, change(kind, name, value), kind=STRATEGIC)
            assert denied(said) or kept(api, planned + subresource, change(kind, name, value))
        said = refusal(agent, "PATCH", planned + subresource, change(kind, name, value), kind=STRATEGIC)
        assert "tessera-" in said


def denied(said):
    """Whether a policy has said no, and what to do instead."""
    return "tessera-pod-annotations" in said and "leave it as it is" in said


def kept(api, path, body):
    """Whether the subresource takes no annotations or labels at all: pods/resize and pods/ephemeralcontainers drop them."""
    before = api.get(path.removesuffix("/resize").removesuffix("/ephemeralcontainers"))
    status, answer = api.raw("PATCH", path, body, kind=STRATEGIC, dryRun="All")
    after = json.loads(answer)
    return status < 300 and all(
        before["metadata"][each] == after["metadata"][each] for each in ("annotations", "labels")
    )


@pytest.mark.parametrize("subresource", SUBRESOURCES)
@pytest.mark.parametrize("name", [NAMES.plan, NAMES.request])
def test_not_even_the_extender_rewrites_a_plan(extender, planned, subresource, name):
    body = change("annotations", name, "[]")
    said = refusal(extender, "PATCH", planned + subresource, body, kind=STRATEGIC)
    assert denied(said) or kept(extender, planned + subresource, body)


def test_all_at_once_and_by_other_kinds_of_patch(admin, planned):
    assert "tessera-pod" in refusal(admin, "PATCH", planned, {"metadata": {"annotations": None}}, kind=MERGE)
    operation = {"op": "remove", "path": "/metadata/annotations"}
    assert "tessera-pod" in refusal(admin, "PATCH", planned, [operation], kind=JSON_PATCH)
    found = admin.get(planned)
    found["metadata"]["annotations"][NAMES.plan] += " "
    assert "tessera-pod" in refusal(admin, "PUT", planned, found)
    applied = {"apiVersion": "v1", "kind": "Pod"} | change("annotations", NAMES.plan, "{}")
    status, answer = admin.raw(
        "PATCH", planned, applied, kind="application/apply-patch+yaml", fieldManager="x", force="true", dryRun="All"
    )
    assert status >= 400
    assert b"tessera-pod" in answer


def test_the_extender_labels_a_pod(extender, planned):
    for name in (NAMES.unit, NAMES.region):
        for value in ("other", None):
            assert refusal(extender, "PATCH", planned, change("labels", name, value), kind=STRATEGIC) == ""


def test_whoever_leaves_them_alone_passes(admin, kubelet, planned):
    for body in (change("annotations", "team", "a"), change("labels", "team", "a"), change("annotations", "a/b", None)):
        assert refusal(admin, "PATCH", planned, body, kind=STRATEGIC) == ""
    wishes = change("annotations", NAMES.resize, "main=2Gi")
    assert refusal(admin, "PATCH", planned, wishes, kind=STRATEGIC) == ""
    running = {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}
    assert refusal(kubelet, "PATCH", f"{planned}/status", running, kind=STRATEGIC) == ""
    resized = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"cpu": "1"}}}]}}
    said = refusal(admin, "PATCH", f"{planned}/resize", resized, kind=STRATEGIC)
    assert "tessera" not in said
    admin.patch(f"{planned}", change("labels", "team", "b"))
    assert refusal(admin, "DELETE", planned) == ""


@pytest.mark.parametrize(("kind", "name"), [each for each in GUARDED if each[1] != NAMES.request])
def test_a_pod_is_not_born_with_what_we_write(*, admin, extender, agent, pods, kind, name):
    """The webhook strips it; what is still there was put past the webhook."""
    for api in (admin, agent, extender):
        said = refusal(api, "POST", pods, carrying(pod(), **{kind: {name: "x"}}))
        if api is extender and kind == "labels":
            assert said == ""
        else:
            assert "tessera-pod-annotations" in said or "tessera-agents" in said
    said = refusal(admin, "POST", "/api/v1/namespaces/kube-system/pods", carrying(pod(), **{kind: {name: "x"}}))
    assert "tessera-pod-annotations" in said, "no namespace is exempt from what our parts believe"


def test_a_request_annotation_is_what_the_webhook_wrote(admin, pods):
    assert refusal(admin, "POST", pods, carrying(pod(), annotations={NAMES.request: "{}"})) == ""


def test_the_kubelets_mirror_of_a_static_pod_is_left_alone(admin, kubelet, pods):
    annotations = {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x", NAMES.plan: "{}"}
    mirror = carrying(
        pod(nodeName="n1", containers=[container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}])]),
        annotations=annotations,
    )
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": admin.get("/api/v1/nodes/n1")["metadata"]["uid"]}
    mirror["metadata"]["ownerReferences"] = [owner | {"controller": True}]
    assert refusal(kubelet, "POST", pods, mirror) == ""
    assert "tessera-" in refusal(admin, "POST", pods, mirror), "the annotation alone makes nobody a kubelet"


@pytest.fixture
def waiting(admin, pods):
    admin.post(pods, pod("w"))
    return pods


@pytest.mark.parametrize("where", ["pods/w/binding", "bindings"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [*GUARDED, ("annotations", "tessera.dev/anything"), ("labels", "tessera.dev/anything")],
)
def test_nothing_of_ours_rides_in_a_strangers_binding(*, admin, agent, impostor, waiting, where, kind, name):
    path = waiting.removesuffix("pods") + where
    for api in (admin, agent, impostor):
        said = refusal(api, "POST", path, binding("w", **{kind: {name: "x"}}))
        if api is agent and "tessera-agents" in said:
            continue
        assert "tessera-bindings" in said
        assert name in said


@pytest.mark.parametrize("where", ["pods/w/binding", "bindings"])
def test_a_binding_without_them_is_anybodys_and_with_a_plan_the_extenders(admin, extender, waiting, where):
    path = waiting.removesuffix("pods") + where
    assert refusal(admin, "POST", path, binding("w", annotations={"team": "a"})) == ""
    assert refusal(extender, "POST", path, binding("w", annotations={NAMES.plan: PLAN})) == ""
    said = refusal(extender, "POST", path, binding("w", annotations={NAMES.request: "{}"}))
    assert "tessera-bindings" in said


NODE_ANNOTATIONS = [NAMES.inventory, NAMES.drift, NAMES.wake]
NODE_LABELS = [NAMES.node_model, NAMES.node_count, NAMES.node_memory, NAMES.node_sharing]
NODE = "/api/v1/nodes/n1"
OF_NODES = [("annotations", name) for name in NODE_ANNOTATIONS] + [("labels", name) for name in NODE_LABELS]


@pytest.mark.parametrize("subresource", ["", "/status"])
@pytest.mark.parametrize(("kind", "name"), OF_NODES)
def test_a_node_says_of_itself_what_its_agent_says(*, admin, kubelet, extender, agent, subresource, kind, name):
    body = change(kind, name, "x")
    for api in (admin, kubelet):
        said = refusal(api, "PATCH", NODE + subresource, body, kind=STRATEGIC)
        assert "tessera-nodes" in said
        assert name in said
    said = refusal(extender, "PATCH", NODE + subresource, body, kind=STRATEGIC)
    assert ("tessera-nodes" in said) == (name != NAMES.wake)
    said = refusal(agent, "PATCH", NODE + subresource, body, kind=STRATEGIC)
    if subresource:
        assert "tessera-" in said
    else:
        assert ("tessera-nodes" in said) == (name == NAMES.wake)
        assert (said == "") == (name != NAMES.wake)


@pytest.mark.parametrize(("kind", "name"), [each for each in OF_NODES if each[1] != NAMES.wake])
def test_another_nodes_agent_and_a_token_of_no_node_say_nothing(guarded, agent, kind, name):
    body = change(kind, name, "x")
    said = refusal(agent, "PATCH", "/api/v1/nodes/n2", body, kind=STRATEGIC)
    assert "tessera-agents" in said or "tessera-nodes" in said
    said = refusal(guarded.as_account("tessera-node"), "PATCH", NODE, body, kind=STRATEGIC)
    assert "tessera-agents" in said or "tessera-nodes" in said
    abroad = guarded.as_account("tessera-node", node="n2")
    assert refusal(abroad, "PATCH", "/api/v1/nodes/n2", body, kind=STRATEGIC) == ""


def test_what_is_there_is_not_taken_away(admin, agent, extender):
    agent.patch(NODE, change("annotations", NAMES.inventory, "{}"))
    extender.patch(NODE, change("annotations", NAMES.wake, "7"))
    assert "tessera-nodes" in refusal(admin, "PATCH", NODE, {"metadata": {"annotations": None}}, kind=MERGE)
    assert refusal(agent, "PATCH", NODE, change("annotations", NAMES.inventory, None), kind=MERGE) == ""
    assert refusal(extender, "PATCH", NODE, change("annotations", NAMES.wake, "8"), kind=MERGE) == ""
    assert "tessera-nodes" in refusal(extender, "PATCH", NODE, change("annotations", NAMES.inventory, "[]"), kind=MERGE)


def test_a_kubelet_goes_on_with_its_own_work(kubelet, admin):
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}], "capacity": {"tessera.dev/x": "1"}}}
    assert refusal(kubelet, "PATCH", f"{NODE}/status", ready, kind=STRATEGIC) == ""
    assert refusal(kubelet, "PATCH", NODE, change("labels", "team", "a"), kind=STRATEGIC) == ""
    assert refusal(admin, "PATCH", NODE, {"spec": {"unschedulable": True}}, kind=MERGE) == ""


def test_a_new_node_may_be_labelled_by_its_pool_and_not_described(admin):
    body = {"metadata": {"name": f"n-{uuid.uuid4().hex[:8]}"}}
    for label in NODE_LABELS:
        assert refusal(admin, "POST", "/api/v1/nodes", carrying(body, labels={label: "x"})) == ""
    for annotation in NODE_ANNOTATIONS:
        said = refusal(admin, "POST", "/api/v1/nodes", carrying(body, annotations={annotation: "x"}))
        assert "tessera-nodes" in said


@pytest.mark.parametrize(
    "body",
    [
        {"spec": {"unschedulable": True}},
        {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}},
        {"metadata": {"labels": {"team": "a"}}},
        {"metadata": {"annotations": {"team": "a"}}},
        {"metadata": {"labels": {"kept": None}}},
    ],
    ids=json.dumps,
)
def test_an_agent_changes_nothing_else_of_its_node(admin, agent, body):
    admin.patch(NODE, {"metadata": {"labels": {"kept": "yes"}}})
    assert "tessera-agents" in refusal(agent, "PATCH", NODE, body, kind=STRATEGIC)
    ours = change("labels", NAMES.node_sharing, "true")
    assert refusal(agent, "PATCH", NODE, ours, kind=STRATEGIC) == ""


def test_an_agent_touches_no_pod_and_makes_no_node(admin, agent, pods):
    assert "tessera-agents" in refusal(agent, "POST", pods, pod())
    admin.post(pods, pod())
    path = f"{pods}/p"
    assert "tessera-agents" in refusal(agent, "PATCH", path, change("labels", "a", "b"), kind=MERGE)
    assert "tessera-agents" in refusal(agent, "PATCH", f"{path}/status", {"status": {"phase": "Failed"}}, kind=MERGE)
    assert "tessera-agents" in refusal(agent, "DELETE", path)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    assert "tessera-agents" in refusal(agent, "POST", f"{path}/eviction", eviction)
    assert "tessera-agents" in refusal(agent, "POST", f"{path}/binding", binding())
    assert "tessera-agents" in refusal(agent, "DELETE", "/api/v1/nodes/n2")
    assert "tessera-agents" in refusal(agent, "POST", "/api/v1/nodes", {"metadata": {"name": "n9"}})
