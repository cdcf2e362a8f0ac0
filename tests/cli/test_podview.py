"""The pod that a cluster's admission would see, and patches that hold both for it and for what the file says."""

import copy
import json

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.cli.podview import admitted, decode, portable
from tessera.model.config import Config
from tessera.model.errors import RequestError
from webhook.admission.mutate import Mutator

T = "tessera.dev/"


def pod(*containers, **more):
    return {"metadata": {"name": "p"}, "spec": {"containers": list(containers)}} | more


def test_limits_are_copied_into_absent_requests():
    seen = admitted(
        pod(
            {"name": "a", "resources": {"limits": {"cpu": 4, T + "gpu": 1}}},
            {"name": "b", "resources": {"limits": {"cpu": 4, "memory": "1Gi"}, "requests": {"cpu": 1}}},
            {"name": "c", "resources": {"requests": {"cpu": 1}}},
            {"name": "d"},
        )
    )
    found = [container.get("resources") for container in seen["spec"]["containers"]]
    assert found[0]["requests"] == {"cpu": 4, T + "gpu": 1}
    assert found[1]["requests"] == {"cpu": 1, "memory": "1Gi"}
    assert found[2:] == [{"requests": {"cpu": 1}}, None]


def test_nulls_are_what_decoding_makes_of_them():
    given = {
        "metadata": {"annotations": {"a": None, "b": "x"}, "labels": None, "name": "p"},
        "spec": {
            "nodeSelector": {"k": None},
            "volumes": None,
            "containers": [{"name": "a", "env": None, "resources": {"limits": {"cpu": None}, "requests": None}}],
        },
    }
    before = copy.deepcopy(given)
    assert admitted(given) == {
        "metadata": {"annotations": {"a": "", "b": "x"}, "name": "p"},
        "spec": {
            "nodeSelector": {"k": ""},
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "0"}, "requests": {"cpu": "0"}}}],
        },
    }
    assert given == before


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"metadata": None, "spec": None},
        {"spec": []},
        {"spec": {"containers": "x"}},
        {"spec": {"containers": [1, None]}},
    ],
)
def test_whatever_is_there_is_seen_somehow(given):
    assert admitted(given).keys() == {"metadata", "spec"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            pod(metadata={"annotations": {"a": "x", T + "gpu-memory": 8}}),
            f"metadata.annotations[{T}gpu-memory] is a number (8), where a text belongs; put it in quotes",
        ),
        (pod(metadata={"annotations": {"a": True}}), "metadata.annotations[a] is true or false (true), where a text belongs; put it in quotes"),
        (pod(metadata={"labels": {"v": 1.5}}), "metadata.labels[v] is a number (1.5), where a text belongs; put it in quotes"),
        (pod(metadata={"annotations": {"a": {"b": 1}}}), "metadata.annotations[a] is a mapping, where a text belongs"),
        (pod(metadata={"annotations": []}), "metadata.annotations is a list, where a mapping belongs"),
        (pod(metadata="p"), 'metadata is a text ("p"), where a mapping belongs'),
        (pod(spec=[]), "spec is a list, where a mapping belongs"),
        (pod(spec={"containers": {"name": "a"}}), "spec.containers is a mapping, where a list belongs"),
        (pod({"name": "a"}, None), "spec.containers[1] is nothing, where a mapping belongs"),
        (pod({"name": 7}), "spec.containers[0].name is a number (7), where a text belongs; put it in quotes"),
        (pod({"name": "a", "resources": []}), "spec.containers[0].resources is a list, where a mapping belongs"),
        (pod({"name": "a", "resources": {"limits": [1]}}), "spec.containers[0].resources.limits is a list, where a mapping belongs"),
        (
            pod({"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": 1, T + "gpu": True}}}),
            f"spec.containers[1].resources.limits[{T}gpu] is true or false (true), where a number or a text belongs",
        ),
        (pod({"name": "a", "env": [{"name": "A", "value": 1}]}), "spec.containers[0].env[0].value is a number (1), where a text belongs; put it in quotes"),
        (pod(spec={"hostNetwork": "yes"}), 'spec.hostNetwork is a text ("yes"), where true or false belongs'),
        (pod(spec={"priority": "high"}), 'spec.priority is a text ("high"), where a number belongs'),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_a_wrong_type_is_said_with_its_path_and_what_belongs_there(given, message):
    with pytest.raises(RequestError) as refused:
        decode(admitted(given))
    assert str(refused.value) == f"the pod can't be read: {message}"


def test_a_daemon_sets_pods_are_seen_as_its_controller_makes_them():
    assert [owner.kind for owner in decode(admitted(pod()), owner="DaemonSet").metadata.owner_references] == [
        "DaemonSet"
    ]
    assert decode(admitted(pod()), owner="Deployment").metadata.owner_references is None


AMOUNTS = st.dictionaries(
    st.sampled_from(["cpu", "memory", "example.com/a~b"]), st.sampled_from([1, "1", None]), max_size=2
)
ASK = st.sampled_from([{}, {T + "gpu": 1}, {T + "gpu-memory": "1Gi", T + "gpu-compute": 10}, {"aliyun.com/gpu-mem": 2}])


@st.composite
def written(draw):
    """A pod as people write it: nulls, parts left out, amounts on either side."""

    def container(name):
        found = {"name": name}
        resources = {}
        for side in ("limits", "requests"):
            how = draw(st.sampled_from(["absent", "null", "there", "there"]))
            if how != "absent":
                resources[side] = None if how == "null" else draw(AMOUNTS) | draw(ASK)
        if resources or draw(st.booleans()):
            found["resources"] = draw(st.sampled_from([resources, resources, None]))
        return found

    spec = {"containers": [container(name) for name in "ab"[: draw(st.integers(1, 2))]]}
    if draw(st.booleans()):
        spec["initContainers"] = [container("i") | {"restartPolicy": "Always"}]
    found = {"spec": spec}
    for name, values in (
        ("metadata", [..., None, {}, {"annotations": None}, {"annotations": {"a": None}, "labels": {}}]),
    ):
        value = draw(st.sampled_from(values))
        if value is not ...:
            found[name] = copy.deepcopy(value)
    return found


@given(written())
def test_a_patch_holds_for_the_file_and_for_what_admission_sees(given):
    seen = admitted(given)
    try:
        outcome = Mutator(Config()).mutate(decode(seen), namespace="team")
    except RequestError:
        return  # two amounts that contradict each other; tests of admission have these
    patch = portable(outcome.operations, written=given, seen=seen)
    in_cluster = jsonpatch.apply_patch(seen, json.loads(json.dumps(patch)))
    in_file = jsonpatch.apply_patch(given, patch)
    assert admitted(in_file) == in_cluster
    direct = jsonpatch.apply_patch(seen, [json.loads(_wire(operation)) for operation in outcome.operations])
    assert in_cluster == direct, "what admission itself would have made of it"
    assert bool(patch) == bool(outcome.operations)


def _wire(operation):
    from webhook.admission.patch import WIRE

    return WIRE.encode(operation)
