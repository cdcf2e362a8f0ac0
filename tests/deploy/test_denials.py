"""The guard's rules in Python say what they say in CEL: against the same pods, in the same order, in the same words."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.deploy.policies import denials
from tessera.model.config import Config, parse
from tessera.model.names import names

NAMES = names()
CASES = yaml.safe_load((Path(__file__).parent / "cases" / "guard.yaml").read_text())
CONFIGS = (
    "",
    "guard: {driverCapabilities: []}",
    "guard: {driverCapabilities: [compute, video], hostPaths: [/srv/gpu, /dev/xpu*], exemptNamespaces: [infra]}",
    "guard: {runtimeClasses: [], hostPaths: []}",
    "{domain: gpu.example.org, guard: {runtimeClasses: [gvisor]}}",
)
NAMESPACES = ("team", "team", "team", "infra", "kube-system", "tessera-system")


@pytest.fixture(scope="module")
def twins(make):
    """Compare what both say against a pod's creation; returns it."""
    gates = lru_cache(lambda config: make.Gate(parse(config)))

    def compare(pod, config="", namespace="team"):
        body = {**pod, "metadata": {"name": "p", "namespace": namespace, **pod.get("metadata", {})}}
        said = gates(config).refusals(body, namespace=namespace, groups=("system:nodes",))
        found = denials(make.decoded(body), parse(config))
        assert len(found) == len(said), (found, said)
        for mine, theirs in zip(found, said, strict=True):
            assert theirs.startswith(f"{mine.policy}: {mine.said}")
        return found

    return compare


def pod(*containers, metadata=None, **spec):
    body = {"spec": {"containers": list(containers) or [{"name": "main"}], **spec}}
    return {**body, "metadata": metadata} if metadata else body


@pytest.mark.parametrize(("kind", "count"), [("denied", 1), ("allowed", 0)])
def test_the_cases(twins, kind, count):
    for each in CASES["variables"][kind]:
        body = pod({"name": "fine"}, initContainers=[{"name": "bad", "env": [{"name": "A", "value": "b"}, each]}])
        assert len(twins(body)) == count
    for path in CASES["hostPaths"][kind]:
        volumes = [{"name": "fine", "emptyDir": {}}, {"name": "host", "hostPath": {"path": path}}]
        mounting = {"name": "bad", "volumeMounts": [{"name": "host", "mountPath": "/host"}]}
        assert len(twins(pod({"name": "fine"}, mounting, volumes=volumes))) == count
        assert len(twins(pod(volumes=volumes))) == count
    for path in CASES["mountPaths"][kind]:
        assert len(twins(pod({"name": "main", "volumeMounts": [{"name": "null", "mountPath": path}]}))) == count


PARTS = ["", ".", "..", "dev", "nvidia0", "var", "run", "lib", "kubelet", "device-plugins", "proc", "self", "17", "srv",
         "gpu", "xpu1", "cdi", "etc", "tmp", "nvidia-mps-1", "data", "nvidia", "mps", "a\nb", "ü"]  # fmt: skip
PATHS = st.lists(st.sampled_from(PARTS), max_size=5).map("/".join).map(lambda path: f"/{path}") | st.sampled_from(
    [path + tail for path in Config().guard.host_paths for tail in ("", "/", "/x", "x")]
    + [path[:most] for path in Config().guard.host_paths for most in (3, 4, 8, 12)]
    + CASES["hostPaths"]["denied"]
    + CASES["hostPaths"]["allowed"]
)
VALUES = st.sampled_from(["all", "void", "none", "compute", "compute,utility", "compute,", ",video", "video,compute",
                          "compute\n", "\n", "x" * 65, "ü", "0"])  # fmt: skip
VARIABLES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(
            sorted(
                {each["name"] for kind in CASES["variables"].values() for each in kind}
                | {"CUDA_MPS_", "NVIDIA_VISIBLE_DEVICES_", "CUDA_DEVICE_MEMORY_LIMI"}
            )
        )
    }
) | st.one_of(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "A"]), "value": VALUES}
    ),
    st.just({"name": "NVIDIA_VISIBLE_DEVICES", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
)
RESOURCES = st.dictionaries(
    st.sampled_from([NAMES.memory_units, "gpu.example.org/gpu", "nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "cpu",
                     "aliyun.com/gpu-mem", "nvidia.com/gpux", "tessera.devil/x"]),
    st.sampled_from(["0", "1", "8Gi", "500m"]), max_size=2,
)  # fmt: skip


@st.composite
def container(draw, name):
    found = {"name": name}
    if draw(st.booleans()):
        found["env"] = draw(st.lists(VARIABLES, min_size=1, max_size=3))
    sides = {side: draw(RESOURCES) for side in ("limits", "requests")}
    if any(sides.values()):
        found["resources"] = {side: amounts for side, amounts in sides.items() if amounts}
    if draw(st.booleans()):
        found["securityContext"] = draw(st.sampled_from([{}, {"privileged": True}, {"privileged": False}]))
    if draw(st.booleans()):
        mount = st.fixed_dictionaries(
            {
                "name": st.sampled_from(["v0", "v1"]),
                "mountPath": st.sampled_from(["/x", *CASES["mountPaths"]["denied"]]),
            }
        )
        found["volumeMounts"] = draw(st.lists(mount, min_size=1, max_size=2))
    return found


@st.composite
def pods(draw):
    spec = {"containers": [draw(container("main"))]}
    for kind in ("initContainers", "ephemeralContainers"):
        if draw(st.integers(0, 2)) == 0:
            spec[kind] = [draw(container(kind))]
    if draw(st.booleans()):
        volume = st.just({"emptyDir": {}}) | PATHS.map(lambda path: {"hostPath": {"path": path}})
        spec["volumes"] = [{"name": f"v{at}", **draw(volume)} for at in range(draw(st.integers(1, 3)))]
    if draw(st.booleans()):
        spec["runtimeClassName"] = draw(st.sampled_from(["nvidia", "nvidia-cdi", "gvisor"]))
    if draw(st.integers(0, 4)) == 0:
        spec["resourceClaims"] = [{"name": "gpu"}]
    body = {"spec": spec}
    key = draw(st.sampled_from(["cdi.k8s.io/x", "nvidia.cdi.k8s.io/x", "note", "kubernetes.io/config.mirror", ""]))
    if key:
        value = draw(st.sampled_from(["nvidia.com/gpu=all", "vendor.com/nic=0"]))
        body["metadata"] = {"annotations": {key: value}}
    return body


@settings(max_examples=400, deadline=None, derandomize=True)
@given(body=pods(), config=st.sampled_from(CONFIGS), namespace=st.sampled_from(NAMESPACES))
def test_pods_that_say_a_bit_of_everything(twins, body, config, namespace):
    twins(body, config, namespace)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(path=PATHS, config=st.sampled_from(CONFIGS))
def test_paths(twins, path, config):
    twins(pod(volumes=[{"name": "host", "hostPath": {"path": path}}]), config)


def test_a_pod_that_admission_has_not_seen_is_judged_as_if_it_had(make):
    body = pod({"name": "main", "securityContext": {"privileged": True}}, metadata={"name": "p", "namespace": "team"})
    assert denials(make.decoded(body), Config()) == ()
    ((policy, said),) = denials(make.decoded(body), Config(), asking=True)
    assert policy == "tessera-privileged"
    assert said == 'container "main" is privileged in a pod that asks for a GPU'


def test_our_own_namespace_is_the_one_that_is_said(make):
    body = pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}], metadata={"name": "p", "namespace": "gpus"})
    assert denials(make.decoded(body), Config()) != ()
    assert denials(make.decoded(body), Config(), namespace="gpus") == ()
