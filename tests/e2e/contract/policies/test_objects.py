"""How the API server takes the objects: types checked without a warning, costs far below the limit, dry-run honoured."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from cluster.processes import until
from contract.policies.conftest import NAMES, STRATEGIC, carrying, container, pod, refusal

from tessera.deploy.policies import policies
from tessera.deploy.webhooks import webhook_configurations
from tessera.model.config import Config, parse

GROUP = "/apis/admissionregistration.k8s.io/v1"
POLICIES = f"{GROUP}/validatingadmissionpolicies"


def test_every_policy_passes_the_servers_type_check(admin):
    for each in policies(Config()):
        if each["kind"] != "ValidatingAdmissionPolicy":
            continue
        name = each["metadata"]["name"]

        def checked(found: dict[str, Any]) -> bool:
            status = found.get("status", {})
            return status.get("observedGeneration") == found["metadata"]["generation"] and "typeChecking" in status

        found = admin.wait(f"{POLICIES}/{name}", checked, what="type-checked")
        assert found["status"]["typeChecking"].get("expressionWarnings", []) == [], name


def test_other_configs_are_valid_too(guarded):
    """Written for show: the server compiles every expression."""
    config = parse(
        "domain: gpu.example.org\n"
        "guard: {actions: warn, driverCapabilities: [], hostPaths: [], exemptNamespaces: [], trusted: [backup, system:restorers]}\n"
        "cni: {apps: []}\n"
    )
    for found in (Config(), config):
        for each in (*policies(found), *webhook_configurations(found, ca_bundle="")):
            body = {**each, "metadata": {"name": f"x-{uuid.uuid4().hex[:8]}"}}
            plural = each["kind"].lower() + "s"
            path = f"{GROUP}/{plural.replace('policys', 'policies')}"
            assert refusal(guarded.api("admin"), "POST", path, body) == ""


def crowd(**last: Any) -> dict[str, Any]:
    """A pod as large as pods get: 64 containers with many variables, amounts, mounts and volumes that are all harmless."""
    env = [{"name": f"NVIDIA_{n}", "value": "x" * 24} for n in range(100)]
    env += [{"name": f"SETTING_{n}", "value": "x" * 24} for n in range(100)]
    resources = {"limits": {f"example.com/{'x' * 40}{n}": "1" for n in range(8)}}
    mounts = [{"name": f"v{n}", "mountPath": f"/mnt/{'x' * 30}/{n}"} for n in range(30)]
    volumes = [{"name": f"v{n}", "hostPath": {"path": f"/data/{'x/' * 20}{n}"}} for n in range(30)]
    found = [container(f"c{n}", env=env, volumeMounts=mounts) | {"resources": resources} for n in range(64)]
    found[-1] |= last
    body = pod("crowd", containers=found, volumes=volumes)
    annotations = {f"example.com/{n}": "x" * 200 for n in range(100)}
    return carrying(body, annotations=annotations, labels={f"example.com/{n}": "x" for n in range(100)})


def test_a_pod_of_64_containers_stays_below_the_cost_that_is_allowed(admin, pods):
    assert refusal(admin, "POST", pods, crowd()) == ""
    said = refusal(admin, "POST", pods, crowd(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]))
    assert "tessera-environment" in said
    assert 'container \\"c63\\"' in said
    privileged = {"securityContext": {"privileged": True}, "resources": {"limits": {NAMES.memory_units: "1"}}}
    assert 'container \\"c63\\" is privileged' in refusal(admin, "POST", pods, crowd(**privileged))
    mounts = [{"name": "v0", "mountPath": "/var/run/nvidia-container-devices/all"}]
    assert 'container \\"c63\\" mounts' in refusal(admin, "POST", pods, crowd(volumeMounts=mounts))


def test_updates_of_it_too(admin, pods):
    admin.post(pods, crowd())
    path = f"{pods}/crowd"
    assert refusal(admin, "PATCH", path, {"metadata": {"labels": {"a": "b"}}}, kind=STRATEGIC) == ""
    forged = {"metadata": {"annotations": {NAMES.plan: "{}"}}}
    assert "tessera-pod-annotations" in refusal(admin, "PATCH", path, forged, kind=STRATEGIC)
    debug = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x"}]}}
    assert refusal(admin, "PATCH", f"{path}/ephemeralcontainers", debug, kind=STRATEGIC) == ""


@pytest.fixture
def older(lone):
    """A pod that was there before the guard was, and says what is denied now; in an exempt namespace, which then is none."""
    name = f"g-{uuid.uuid4().hex[:8]}"
    admin = lone.api("admin")
    admin.post("/api/v1/namespaces", {"metadata": {"name": name}})
    policy = next(each for each in policies(Config()) if each["metadata"]["name"] == "tessera-environment")
    before = parse(f"guard: {{exemptNamespaces: [kube-system, {name}]}}")
    exempting = next(each for each in policies(before) if each["metadata"]["name"] == "tessera-environment")
    pods = f"/api/v1/namespaces/{name}/pods"
    body = pod(containers=[container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}])])
    body["metadata"]["finalizers"] = ["example.com/wait"]
    admin.apply(exempting)
    until("the namespace is exempt", lambda: refusal(admin, "POST", pods, body) == "", seconds=30)
    admin.post(pods, body)
    admin.apply(policy)
    body["metadata"]["name"] = "second"
    until("it is not any more", lambda: refusal(admin, "POST", pods, body) != "", seconds=30)
    return f"{pods}/p"


@pytest.mark.usefixtures("guarded")
def test_a_pod_that_was_there_before_can_still_be_ended(lone, older):
    admin = lone.api("admin")
    assert refusal(admin, "PATCH", older, {"metadata": {"labels": {"a": "b"}}}, kind=STRATEGIC) == ""
    assert (
        refusal(admin, "PATCH", older, {"spec": {"containers": [{"name": "main", "image": "y"}]}}, kind=STRATEGIC) == ""
    )
    admin.delete(older)
    admin.patch(older, {"metadata": {"finalizers": None}})
    assert not admin.exists(older) or admin.get(older)["metadata"].get("finalizers") is None


@pytest.mark.usefixtures("guarded")
def test_a_soft_start_lets_pass_what_is_denied_otherwise_and_guards_what_is_ours(admin, pods):
    def bind(config: Config) -> None:
        for each in policies(config):
            if each["kind"] == "ValidatingAdmissionPolicyBinding":
                admin.apply(each)

    body = pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}])
    bind(parse("guard: {actions: warn}"))
    try:
        until("it only warns", lambda: refusal(admin, "POST", pods, body) == "", seconds=30)
        forged = carrying(pod(), annotations={NAMES.plan: "{}"})
        assert "tessera-pod-annotations" in refusal(admin, "POST", pods, forged)
    finally:
        bind(Config())
    until("it denies again", lambda: "tessera-host-paths" in refusal(admin, "POST", pods, body), seconds=30)
