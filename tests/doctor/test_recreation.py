"""Pods that run and that the guard would deny at their next creation: by whom they are owned, why, and which are none."""

import pytest

from tessera.doctor.evidence import Look
from tessera.doctor.recreation import MOST_WORKLOADS

ROOT = [{"name": "root", "hostPath": {"path": "/"}}]
CHECK = "guard-recreation"


@pytest.fixture
def told(findings):
    """The check's findings in a cluster with more pods; and that no other check is moved by them."""

    def run(*pods, **changes):
        told = findings(pods=lambda trees: [*trees, *pods], **changes)
        assert told.keys() <= {CHECK}, told
        return told.get(CHECK, ())

    return run


@pytest.fixture
def made(cluster):
    """A pod on a node that says something the guard denies, made by somebody."""

    def build(name, kind="", owner="", *, namespace="team", env=None, privileged=None, limits=None, **more):
        found = cluster.pod(name, limits, namespace=namespace, node="n1", **more)
        if kind:
            found["metadata"]["ownerReferences"] = [{"kind": kind, "name": owner, "uid": "u", "controller": True}]
        (container,) = found["spec"]["containers"]
        if env:
            container["env"] = env
        if privileged:
            container["securityContext"] = {"privileged": True}
        return found

    return build


def test_pods_of_a_daemonset_are_one(told, made):
    pods = [made(f"e{at}", "DaemonSet", "node-exporter", volumes=ROOT) for at in range(3)]
    (found,) = told(*pods, made("plain"))
    assert found.object == "namespace/team"
    assert found.severity == "warning"
    assert 'daemonset/node-exporter (3 pods): the pod has volume "root", hostPath /' in found.seen
    assert "Add team to guard.exemptNamespaces" in found.mend


@pytest.mark.parametrize(
    ("owner", "labels", "said"),
    [
        (("ReplicaSet", "web-7f9c"), {"pod-template-hash": "7f9c"}, "deployment/web (1 pod)"),
        (("ReplicaSet", "web-7f9c"), {}, "replicaset/web-7f9c (1 pod)"),
        (("Job", "backup-29400180"), {}, "cronjob/backup (1 pod)"),
        (("Job", "import"), {}, "job/import (1 pod)"),
        (("StatefulSet", "db"), {}, "statefulset/db (1 pod)"),
        ((), {}, "pod/p (1 pod)"),
    ],
)
def test_who_makes_a_pod_again(told, made, owner, labels, said):
    (found,) = told(made("p", *owner, labels=labels, volumes=ROOT))
    assert said in found.seen


def test_of_what_has_ended_only_a_cronjobs_comes_again(told, made):
    assert told(made("a", phase="Succeeded", volumes=ROOT), made("b", "Job", "j", phase="Failed", volumes=ROOT)) == ()
    (found,) = told(made("c", "Job", "backup-29400180", phase="Succeeded", volumes=ROOT))
    assert "cronjob/backup" in found.seen


def test_namespaces_that_are_exempt_and_mirrors_of_static_pods_pass(told, made):
    mirror = {"kubernetes.io/config.mirror": "x"}
    pods = (made("a", namespace="kube-system", volumes=ROOT), made("b", annotations=mirror, volumes=ROOT))
    assert told(*pods) == ()
    exempt = "deviceInjection: cdi\nguard: {exemptNamespaces: [infra]}\n"
    assert told(made("c", namespace="infra", volumes=ROOT), config=exempt) == ()
    (found,) = told(made("d", namespace="kube-system", volumes=ROOT), config=exempt)
    assert found.object == "namespace/kube-system"


def test_a_container_that_was_added_to_look_does_not_come_again(told, made):
    debug = {"name": "debug", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}
    assert told(made("p", ephemeralContainers=[debug])) == ()


def test_privilege_counts_in_pods_that_would_be_given_a_gpu(told, made):
    assert told(made("p", privileged=True)) == ()
    assert told(made("p", privileged=True, limits={"nvidia.com/gpu": "1"})) == ()
    (found,) = told(made("p", privileged=True, limits={"aliyun.com/gpu-mem": "3"}))
    assert 'container "main" is privileged in a pod that asks for a GPU' in found.seen


def test_variables_that_admission_takes_away_deny_nothing(told, made):
    env = [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"}]
    limits = {"aliyun.com/gpu-mem": "3"}
    strip = "deviceInjection: cdi\nguard: {environment: strip}\n"
    (found,) = told(made("p", env=env, limits=limits))
    assert "NVIDIA_DRIVER_CAPABILITIES=all" in found.seen
    assert told(made("p", env=env, limits=limits), config=strip) == ()
    assert len(told(made("p", env=env), config=strip)) == 1


def test_many_are_few_lines(told, made):
    pods = [made(f"p{at:03}", namespace=f"ns{at % 3}", volumes=ROOT) for at in range(90)]
    found = told(*pods)
    assert [each.object for each in found] == ["namespace/ns0", "namespace/ns1", "namespace/ns2"]
    assert all(each.seen.count("hostPath") == MOST_WORKLOADS for each in found)
    assert all("and 26 workloads more" in each.seen for each in found)


def test_a_long_name_makes_no_long_line(told, made):
    (found,) = told(made("p", env=[{"name": "CUDA_MPS_" + "X" * 100_000}]))
    assert 'container "main": CUDA_MPS_XXX' in found.seen
    assert len(found.seen) < 1000


def test_what_is_not_known_is_said(findings):
    assert findings(guard=Look(problem="no guard")) == {"blind": {CHECK: "no guard"}}
