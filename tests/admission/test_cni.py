"""The CNI repair: what it mends, and above all which pods it never touches."""

import copy

import pytest

from tessera.model.config import Cni, Config
from webhook.admission.cni import BIN, CONTAINER, repair

IMAGE = "registry.example/tessera-webhook:1"
CNI = Cni(image=IMAGE)


def terway(**changes):
    """A pod of terway's DaemonSet, as its controller creates it (after the chart at its HEAD, shortened)."""
    found = {
        "metadata": {
            "generateName": "terway-eniip-",
            "labels": {"app": "terway-eniip", "controller-revision-hash": "5d4"},
            "ownerReferences": [{"kind": "DaemonSet", "name": "terway-eniip", "uid": "u", "controller": True}],
        },
        "spec": {
            "hostNetwork": True,
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["cn-hangzhou.i-1"]}]}
                        ]
                    }
                }
            },
            "initContainers": [{"name": "terway-init", "image": "terway"}],
            "containers": [{"name": "terway", "image": "terway"}, {"name": "policy", "image": "terway"}],
            "volumes": [
                {"name": "configvolume", "configMap": {"name": "eni-config"}},
                {"name": "cni-bin", "hostPath": {"path": "/opt/cni/bin", "type": "Directory"}},
                {"name": "host-cni", "hostPath": {"path": "/etc/cni/net.d"}},
                {"name": "eni-run", "hostPath": {"path": "/var/run", "type": "Directory"}},
                {"name": "host-root", "hostPath": {"path": "/", "type": "Directory"}},
                {"name": "cni-terway", "hostPath": {"path": "/var/lib/cni/terway/", "type": "Directory"}},
                {"name": "xtables", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
            ],
        },
    }
    for path, value in changes.items():
        here = found
        *parents, last = path.split("__")
        for step in parents:
            here = here[step]
        here[last] = value
    return found


@pytest.fixture
def mended(manifest, applied):
    def run(pod, *, cni=CNI, namespace="kube-system"):
        return applied(copy.deepcopy(pod), repair(manifest(pod), cni=cni, namespace=namespace))

    return run


def types_of(pod):
    return {v["name"]: v["hostPath"].get("type") for v in pod["spec"]["volumes"] if "hostPath" in v}


def test_cni_directories_may_be_created_and_others_stay_as_they_are(mended):
    assert types_of(mended(terway())) == {
        "cni-bin": "DirectoryOrCreate",
        "host-cni": None,
        "eni-run": "Directory",
        "host-root": "Directory",
        "cni-terway": "DirectoryOrCreate",
        "xtables": "FileOrCreate",
    }


def test_the_loopback_container_stands_in_front_and_uses_the_pods_own_volume(mended):
    found = mended(terway())
    first, *others = found["spec"]["initContainers"]
    assert first["name"] == CONTAINER
    assert first["image"] == IMAGE
    assert first["volumeMounts"] == [{"name": "cni-bin", "mountPath": first["command"][-1]}]
    assert [container["name"] for container in others] == ["terway-init"]
    assert len(found["spec"]["volumes"]) == len(terway()["spec"]["volumes"])


def test_the_loopback_container_may_do_nothing_but_write_there(mended):
    context = mended(terway())["spec"]["initContainers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["privileged"] is False


@pytest.mark.parametrize("volumes", [None, [], [{"name": "x", "emptyDir": {}}]])
def test_the_volume_is_added_where_the_pod_has_none(mended, volumes):
    found = mended(terway(spec__volumes=volumes, spec__initContainers=None))
    container = found["spec"]["initContainers"][0]
    volume = next(v for v in found["spec"]["volumes"] if v["name"] == container["volumeMounts"][0]["name"])
    assert volume["hostPath"] == {"path": BIN, "type": "DirectoryOrCreate"}


def test_a_second_pass_changes_nothing(mended):
    for pod in (terway(), terway(spec__volumes=None), terway(spec__initContainers=[])):
        once = mended(pod)
        assert mended(once) == once
        assert once != pod


def test_without_an_image_only_the_paths_are_mended(mended):
    found = mended(terway(), cni=Cni())
    assert types_of(found)["cni-bin"] == "DirectoryOrCreate"
    assert found["spec"]["initContainers"] == terway()["spec"]["initContainers"]


def test_our_volume_name_in_other_use_leaves_the_containers_alone(mended):
    pod = terway(spec__volumes=[{"name": "tessera-cni-bin", "emptyDir": {}}])
    assert mended(pod) == pod


@pytest.mark.parametrize(
    "path", ["/opt/cni/bin/../../../etc", "opt/cni/bin", "/opt/cnid", "/opt/cni-bin", "/etc/cni..", ""]
)
def test_paths_that_only_look_like_cni(mended, path):
    found = mended(terway(spec__volumes=[{"name": "v", "hostPath": {"path": path, "type": "Directory"}}]))
    assert types_of(found)["v"] == "Directory"


@pytest.mark.parametrize("path", ["/opt/cni/bin/", "//opt//cni/bin", "/opt/cni/./bin"])
def test_spellings_of_the_same_path(mended, path):
    found = mended(terway(spec__volumes=[{"name": "v", "hostPath": {"path": path, "type": "Directory"}}]))
    assert types_of(found) == {"v": "DirectoryOrCreate"}
    assert found["spec"]["initContainers"][0]["volumeMounts"][0]["name"] == "v"


def virtual(**how):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [how]}}}


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(terway(spec__hostNetwork=False), id="not on the host's network"),
        pytest.param(terway(spec__hostNetwork=None), id="hostNetwork null"),
        pytest.param(terway(metadata__labels={"app": "web"}), id="another app"),
        pytest.param(terway(metadata__labels=None), id="no labels"),
        pytest.param(terway(metadata__ownerReferences=None), id="no owner"),
        pytest.param(terway(metadata__ownerReferences=[{"kind": "ReplicaSet", "name": "r"}]), id="another owner"),
        pytest.param(terway(spec__nodeSelector={"type": "virtual-kubelet"}), id="virtual node by selector"),
        pytest.param(terway(spec__nodeName="virtual-kubelet-cn-hangzhou-i"), id="virtual node by nodeName"),
        pytest.param(
            terway(
                spec__affinity=virtual(
                    matchFields=[
                        {"key": "metadata.name", "operator": "In", "values": ["virtual-kubelet-cn-hangzhou-i"]}
                    ]
                )
            ),
            id="virtual node by the DaemonSet controller",
        ),
        pytest.param(
            terway(
                spec__affinity=virtual(
                    matchExpressions=[{"key": "type", "operator": "In", "values": ["virtual-kubelet"]}]
                )
            ),
            id="virtual node by affinity",
        ),
    ],
)
def test_pods_that_are_never_touched(mended, pod):
    assert mended(pod) == pod


def test_other_namespaces_and_the_switch(mended):
    assert mended(terway(), namespace="team") == terway()
    assert mended(terway(), cni=Cni(enabled=False, image=IMAGE)) == terway()


def test_k8s_app_counts_too(mended):
    found = mended(terway(metadata__labels={"k8s-app": "calico-node"}))
    assert found["spec"]["initContainers"][0]["name"] == CONTAINER


def test_a_repair_by_the_entry_for_all_is_in_the_audit_log_too(admit):
    _, outcome = admit(terway(), Config(cni=CNI), namespace="kube-system")
    assert outcome.operations
    assert outcome.audit == {"cni": "repaired"}


def test_a_pod_that_is_not_repaired_is_not_in_the_audit_log(admit):
    assert admit(terway(), Config(cni=CNI), namespace="team")[1].audit == {}
