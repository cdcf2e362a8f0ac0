"""One lone API server for all tests of policies and match conditions, with every policy in force."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cluster import Settings, machine
from cluster.api import Api, ApiError
from cluster.processes import until
from contract.policies.lone import ADMIN, Lone
from contract.policies.recorder import Recorder

from tessera.deploy.policies import policies
from tessera.model.config import Config
from tessera.model.names import names

NAMES = names()
STRATEGIC = "application/strategic-merge-patch+json"
Object = dict[str, Any]


def pod(name: str = "p", **spec: Any) -> Object:
    """A pod; whatever is given of its spec replaces what is there."""
    return {"metadata": {"name": name}, "spec": {"containers": [container()], **spec}}


def container(name: str = "main", *, tickets: int = 0, **more: Any) -> Object:
    """A container, with so many tickets of memory."""
    resources = {"resources": {"limits": {NAMES.memory_units: str(tickets)}}} if tickets else {}
    return {"name": name, "image": "x", **resources, **more}


def carrying(
    body: Object, *, annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None
) -> Object:
    """The object with annotations and labels."""
    metadata = {**body["metadata"], "annotations": annotations or {}, "labels": labels or {}}
    return {**body, "metadata": metadata}


def refusal(api: Api, method: str, path: str, body: Object | None = None, *, kind: str = "application/json") -> str:
    """What the API server says against a request, which changes nothing; "" where it would do it."""
    status, answer = api.raw(method, path, body, kind=kind, dryRun="All")
    return "" if status < 300 else str(ApiError(status, "", answer.decode(errors="replace")))


OFFENDERS: dict[str, tuple[str, Object]] = {
    "tessera-environment": (
        "/api/v1/namespaces/default/pods",
        pod(containers=[container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}])]),
    ),
    "tessera-host-paths": (
        "/api/v1/namespaces/default/pods",
        pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
    ),
    "tessera-privileged": (
        "/api/v1/namespaces/default/pods",
        pod(containers=[container(tickets=1, securityContext={"privileged": True})]),
    ),
    "tessera-runtime-class": ("/api/v1/namespaces/default/pods", pod(runtimeClassName="nvidia")),
    "tessera-pod-annotations": (
        "/api/v1/namespaces/default/pods",
        carrying(pod(), annotations={NAMES.plan: "{}"}),
    ),
    "tessera-nodes": ("/api/v1/nodes", carrying({"metadata": {"name": "n"}}, annotations={NAMES.drift: "{}"})),
    "tessera-bindings": (
        "/api/v1/namespaces/default/bindings",
        carrying({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}, annotations={NAMES.plan: "{}"}),
    ),
}
"""By policy, something that it and no other denies."""


@pytest.fixture(scope="session")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lone]:
    """An API server that has never seen us."""
    with Lone(tmp_path_factory.mktemp("lone"), machine.binaries(), Settings().logs / "lone") as lone:
        lone.start()
        lone.api(ADMIN).post("/api/v1/namespaces", {"metadata": {"name": "tessera-system"}})
        for name in ("nvidia", "plain"):
            body = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name}
            lone.api(ADMIN).apply(body)
        yield lone


@pytest.fixture(scope="session")
def guarded(lone: Lone) -> Lone:
    """The API server with the policies in force: one is a moment after it is there, so each is seen to deny."""
    admin = lone.api(ADMIN)
    for name in ("nvidia", "plain"):
        admin.apply(
            {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": name}
        )
    admin.post("/api/v1/nodes", {"metadata": {"name": "n1"}})
    admin.post("/api/v1/nodes", {"metadata": {"name": "n2"}})
    agent = lone.as_account("tessera-node", node="n1")
    for each in policies(Config()):
        admin.apply(each)
    for policy, (path, body) in OFFENDERS.items():
        until(f"{policy} denies", lambda p=policy, at=path, b=body: p in refusal(admin, "POST", at, b), seconds=30)
    taint = {"spec": {"unschedulable": True}}
    until(
        "tessera-agents denies",
        lambda: (
            "tessera-agents" in refusal(agent, "PATCH", "/api/v1/nodes/n1", taint, kind="application/merge-patch+json")
        ),
        seconds=30,
    )
    return lone


@pytest.fixture(scope="session")
def admin(guarded: Lone) -> Api:
    """The cluster's administrator."""
    return guarded.api(ADMIN)


@pytest.fixture
def namespace(admin: Api) -> str:
    """A namespace of its own."""
    name = f"g-{uuid.uuid4().hex[:8]}"
    admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def pods(namespace: str) -> str:
    """The path of the namespace's pods."""
    return f"/api/v1/namespaces/{namespace}/pods"


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    """A webhook of the tests."""
    with Recorder(tmp_path_factory.mktemp("recorder")) as recorder:
        yield recorder
