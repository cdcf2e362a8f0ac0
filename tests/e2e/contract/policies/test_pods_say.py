"""What a pod may not say: variables, host paths, privilege; and the neighbours of each that it may."""

from __future__ import annotations

import pytest
import yaml
from contract.loader import TESTS
from contract.policies.conftest import NAMES, STRATEGIC, carrying, container, pod, refusal

CASES = yaml.safe_load((TESTS / "deploy" / "cases" / "guard.yaml").read_text())
DENIED, ALLOWED = CASES["variables"]["denied"], CASES["variables"]["allowed"]
DEVICES = "NVIDIA_VISIBLE_DEVICES"


def shown(each):
    return f"{each['name']}={each.get('value', '')!r}{' by reference' if 'valueFrom' in each else ''}"


@pytest.mark.parametrize("each", DENIED, ids=shown)
@pytest.mark.parametrize("where", ["containers", "initContainers"])
def test_a_variable_that_shows_gpus_or_lifts_limits_is_denied(admin, pods, where, each):
    innocent = container("innocent", env=[{"name": "A", "value": "b"}])
    body = pod(**{"containers": [innocent], where: [innocent | {"name": "first"}, container("second", env=[each])]})
    said = refusal(admin, "POST", pods, body)
    assert "tessera-environment" in said
    assert 'container \\"second\\"' in said
    assert each["name"] in said
    assert "remove it" in said


@pytest.mark.parametrize("each", ALLOWED, ids=shown)
def test_a_variable_beside_it_is_nobodys_business(admin, pods, each):
    assert refusal(admin, "POST", pods, pod(containers=[container(env=[each])])) == ""


def test_the_second_of_two_that_are_called_the_same_counts_too(admin, pods):
    both = [{"name": DEVICES, "value": "void"}, {"name": DEVICES, "value": "all"}]
    assert "tessera-environment" in refusal(admin, "POST", pods, pod(containers=[container(env=both)]))


def test_a_long_value_is_not_repeated(admin, pods):
    said = refusal(admin, "POST", pods, pod(containers=[container(env=[{"name": DEVICES, "value": "x" * 5000}])]))
    assert "tessera-environment" in said
    assert "xxxx" not in said


@pytest.fixture
def running(admin, pods):
    """A pod that is there, with a GPU."""
    body = pod(containers=[container(tickets=4)], volumes=[{"name": "logs", "hostPath": {"path": "/var/log"}}])
    admin.post(pods, body)
    return f"{pods}/p"


def ephemeral(running, admin, **more):
    patch = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "x", **more}]}}
    return refusal(admin, "PATCH", f"{running}/ephemeralcontainers", patch, kind=STRATEGIC)


@pytest.mark.parametrize("each", DENIED, ids=shown)
def test_ephemeral_containers_are_looked_at(admin, running, each):
    said = ephemeral(running, admin, env=[each])
    assert "tessera-environment" in said
    assert 'container \\"debug\\"' in said


def test_ephemeral_containers_that_say_nothing_may_come(admin, running):
    assert ephemeral(running, admin, env=[{"name": DEVICES, "value": "void"}]) == ""


def test_a_privileged_ephemeral_container_of_a_pod_with_a_gpu_is_denied(admin, running, pods):
    said = ephemeral(running, admin, securityContext={"privileged": True})
    assert "tessera-privileged" in said
    assert 'container \\"debug\\"' in said
    admin.post(pods, pod("plain"))
    assert ephemeral(f"{pods}/plain", admin, securityContext={"privileged": True}) == ""


def test_an_ephemeral_container_chooses_no_gpu_by_a_mount(admin, running):
    mount = {"name": "logs", "mountPath": "/var/run/nvidia-container-devices/all"}
    assert "tessera-host-paths" in ephemeral(running, admin, volumeMounts=[mount])
    assert ephemeral(running, admin, volumeMounts=[mount | {"mountPath": "/logs"}]) == ""


@pytest.mark.parametrize("path", CASES["hostPaths"]["denied"])
def test_a_host_path_that_reaches_gpus_is_denied(admin, pods, path):
    volumes = [{"name": "fine", "emptyDir": {}}, {"name": "host", "hostPath": {"path": path}}]
    mounts = [{"name": "host", "mountPath": "/host", "readOnly": True}]
    said = refusal(admin, "POST", pods, pod(volumes=volumes, initContainers=[container("setup", volumeMounts=mounts)]))
    assert "tessera-host-paths" in said
    assert 'container \\"setup\\" mounts volume \\"host\\"' in said
    said = refusal(admin, "POST", pods, pod(volumes=volumes))
    assert 'the pod has volume \\"host\\"' in said


@pytest.mark.parametrize("path", CASES["hostPaths"]["allowed"])
def test_other_host_paths_are_nobodys_business(admin, pods, path):
    assert refusal(admin, "POST", pods, pod(volumes=[{"name": "host", "hostPath": {"path": path}}])) == ""


@pytest.mark.parametrize("path", ["/var/log/../lib/kubelet/device-plugins", "/x/..", "/..", "/var/log/../../dev"])
def test_steps_back_lead_nowhere(admin, pods, path):
    """The API server itself refuses them before any policy is asked."""
    said = refusal(admin, "POST", pods, pod(volumes=[{"name": "host", "hostPath": {"path": path}}]))
    assert "must not contain '..'" in said or "tessera-host-paths" in said


@pytest.mark.parametrize("path", CASES["mountPaths"]["denied"])
def test_a_mount_point_that_chooses_gpus_is_denied(admin, pods, path):
    volumes = [{"name": "null", "hostPath": {"path": "/dev/null", "type": "CharDevice"}}]
    mounts = [{"name": "null", "mountPath": path}]
    said = refusal(admin, "POST", pods, pod(volumes=volumes, containers=[container("sly", volumeMounts=mounts)]))
    assert "tessera-host-paths" in said
    assert 'container \\"sly\\"' in said
    assert refusal(admin, "POST", pods, pod(volumes=volumes)) == ""


def test_an_annotation_that_injects_a_gpu_is_denied(admin, pods):
    sly = carrying(pod(), annotations={"cdi.k8s.io/x": "nvidia.com/gpu=all"})
    assert "tessera-host-paths" in refusal(admin, "POST", pods, sly)
    assert refusal(admin, "POST", pods, carrying(pod(), annotations={"cdi.k8s.io/x": "vendor.com/nic=0"})) == ""


PRIVILEGED = {"securityContext": {"privileged": True}}


@pytest.mark.parametrize("where", ["containers", "initContainers"])
@pytest.mark.parametrize(
    "name", [NAMES.memory_units, NAMES.memory_percent, NAMES.compute_percent, NAMES.mig("1g.10gb"), NAMES.gpu]
)
def test_privilege_beside_a_gpu_is_denied(admin, pods, where, name):
    asking = container("asking") | {"resources": {"limits": {name: "1"}}}
    for body in (
        pod(**{"containers": [container()], where: [asking | PRIVILEGED]}),
        pod(**{"containers": [container()], where: [asking, container("beside", **PRIVILEGED)]}),
    ):
        said = refusal(admin, "POST", pods, body)
        assert "tessera-privileged" in said
        assert 'container \\"' in said
        assert "drop securityContext.privileged" in said


@pytest.mark.parametrize(
    "security",
    [{}, {"privileged": False}, {"capabilities": {"add": ["SYS_ADMIN"]}}, {"allowPrivilegeEscalation": True}],
    ids=str,
)
def test_a_gpu_without_privilege_and_privilege_without_a_gpu_are_fine(admin, pods, security):
    assert refusal(admin, "POST", pods, pod(containers=[container(tickets=4, securityContext=security)])) == ""
    assert refusal(admin, "POST", pods, pod(containers=[container(**PRIVILEGED)])) == ""
    plain = container(**PRIVILEGED) | {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    assert refusal(admin, "POST", pods, pod(containers=[plain])) == ""


def test_nvidias_runtime_is_for_pods_that_ask(admin, pods):
    said = refusal(admin, "POST", pods, pod(runtimeClassName="nvidia"))
    assert "tessera-runtime-class" in said
    assert "would see the GPUs that its image asks for" in said
    zero = container() | {"resources": {"limits": {"nvidia.com/gpu": "0"}}}
    assert "tessera-runtime-class" in refusal(admin, "POST", pods, pod(containers=[zero], runtimeClassName="nvidia"))
    assert refusal(admin, "POST", pods, pod(runtimeClassName="plain")) == ""
    for name in (NAMES.memory_units, "nvidia.com/gpu", "nvidia.com/mig-1g.10gb"):
        asking = container() | {"resources": {"limits": {name: "1"}}}
        assert refusal(admin, "POST", pods, pod(containers=[asking], runtimeClassName="nvidia")) == ""


@pytest.mark.parametrize("exempt", ["kube-system", "tessera-system"])
def test_exempt_namespaces_are_not_looked_at(admin, exempt):
    said = refusal(
        admin,
        "POST",
        f"/api/v1/namespaces/{exempt}/pods",
        pod(
            containers=[container(tickets=1, env=[{"name": DEVICES, "value": "all"}], **PRIVILEGED)],
            volumes=[{"name": "host", "hostPath": {"path": "/dev"}}],
        ),
    )
    assert said == ""
