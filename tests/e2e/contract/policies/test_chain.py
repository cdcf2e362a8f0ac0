"""All of it at once on a real API server: match conditions, the product's own mutation and validation, and the policies."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from cluster.processes import until
from contract.loader import load
from contract.policies.conftest import NAMES, STRATEGIC, carrying, container, pod, refusal
from prometheus_client import CollectorRegistry

from tessera.deploy.webhooks import webhook_configurations
from tessera.dialects.registry import OPTIONS
from tessera.model.config import Config, parse
from webhook.admission.metrics import Metrics
from webhook.admission.paths import Paths

theirs: Any = load("dialects/conftest.py")
GROUP = "/apis/admissionregistration.k8s.io/v1"
SHOWN = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}


@pytest.fixture(scope="module")
def install(admin, recorder):
    """Register both configurations of a config for a namespace of its own; return the path of its pods."""
    made = []

    def install(config: Config) -> str:
        name = f"w-{uuid.uuid4().hex[:8]}"
        admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
        paths = Paths(config, Metrics(CollectorRegistry()))
        found: list[Any] = list(webhook_configurations(config))
        for configuration in found:
            configuration["metadata"]["name"] = name
            for entry in configuration["webhooks"]:
                path = entry["clientConfig"]["service"]["path"]
                recorder.answer(f"/{name}{path}", paths.handlers[path])
                entry["timeoutSeconds"] = 30  # the machine of a test may be busy
                entry["clientConfig"] = recorder.client(f"/{name}{path}")
                only = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [name]}
                entry["namespaceSelector"] = {"matchExpressions": [only]}
            plural = f"{GROUP}/{configuration['kind'].lower()}s"
            admin.post(plural, configuration)
            made.append(f"{plural}/{name}")
        pods = f"/api/v1/namespaces/{name}/pods"
        asking = pod(containers=[container() | {"resources": {"limits": {NAMES.gpu_memory: "1Gi"}}}])
        ready = lambda: NAMES.request in show(admin, pods, asking)["metadata"].get("annotations", {})  # noqa: E731
        until("the webhook is called", ready, seconds=30)
        recorder.taken(f"/{name}/validate")
        until(
            "the other one too", lambda: show(admin, pods, asking) and recorder.taken(f"/{name}/validate"), seconds=30
        )
        return pods

    yield install
    for path in made:
        admin.delete(path)


def show(admin, pods, body):
    """What would be made of a pod."""
    return admin.post(pods, body, dryRun="All")


@pytest.fixture(scope="module")
def pods(install):
    return install(parse("schedulerName: default-scheduler", dialects=OPTIONS))


def test_what_admission_writes_in_every_dialect_passes_everything(admin, pods):
    """Of each case that is understood without options: created, with tickets, a request, and nothing that is denied."""
    wrong, seen = [], 0
    for case in theirs.cases():
        if case.means is None or case.config:
            continue
        body = theirs.whole(case.pod)
        status, answer = admin.raw("POST", pods, body, dryRun="All")
        found = json.loads(answer)
        seen += 1
        if status != 201:
            wrong.append(f"{case.dialect}: {case.name}: {found['message']}")
        elif set(json.loads(found["metadata"]["annotations"][NAMES.request])["containers"]) != set(case.means):
            wrong.append(f"{case.dialect}: {case.name}: {found['metadata']['annotations']}")
    assert wrong == []
    assert seen > 100


def test_what_is_forged_is_stripped_at_creation_and_denied_later(admin, pods):
    asking = pod("forged", containers=[container() | {"resources": {"limits": {NAMES.gpu_memory: "1Gi"}}}])
    forged = {NAMES.plan: "{}", NAMES.request: '{"v":1}', NAMES.inventory: "{}", "team": "a"}
    admin.post(pods, carrying(asking, annotations=forged, labels={NAMES.unit: "idc", NAMES.region: "r", "team": "a"}))
    found = admin.get(f"{pods}/forged")["metadata"]
    assert found["annotations"].keys() == {NAMES.request, "team"}
    assert json.loads(found["annotations"][NAMES.request])["containers"] == {"main": {"gpus": 1, "memory": 2**30}}
    assert found["labels"] == {"team": "a"}
    for name in (NAMES.plan, NAMES.request):
        body = {"metadata": {"annotations": {name: "{}"}}}
        for subresource in ("", "/status"):
            assert "tessera-pod-annotations" in refusal(
                admin, "PATCH", f"{pods}/forged{subresource}", body, kind=STRATEGIC
            )


def test_a_manifest_is_applied_twice(admin, pods):
    body = {"apiVersion": "v1", "kind": "Pod"} | pod("twice")
    body["spec"]["containers"] = [container() | {"resources": {"limits": {NAMES.gpu_memory: "1Gi"}}}]
    admin.post(pods, body)
    before = admin.get(f"{pods}/twice")
    admin.patch(f"{pods}/twice", {"spec": body["spec"]}, kind=STRATEGIC)
    assert admin.get(f"{pods}/twice")["spec"] == before["spec"]


def test_a_pod_of_64_containers_that_all_ask(admin, pods):
    many = [container(f"c{n}") | {"resources": {"limits": {NAMES.gpu_compute: "1"}}} for n in range(64)]
    found = show(admin, pods, pod(containers=many))
    assert all(NAMES.compute_percent in each["resources"]["limits"] for each in found["spec"]["containers"])


def test_variables_are_denied_or_stripped_as_config_says(admin, install, pods):
    asking = container(env=[SHOWN]) | {"resources": {"limits": {NAMES.gpu_memory: "1Gi"}}}
    beside = container("beside", env=[SHOWN])
    assert "tessera-environment" in refusal(admin, "POST", pods, pod(containers=[asking, beside]))
    stripping = install(parse("guard: {environment: strip, hideOthers: true}", dialects=OPTIONS))
    first, second = show(admin, stripping, pod(containers=[asking, beside]))["spec"]["containers"]
    assert "env" not in first
    assert second["env"] == [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]
    # A pod that asks for nothing is nobody's to clean.
    assert "tessera-environment" in refusal(admin, "POST", stripping, pod(containers=[beside]))
