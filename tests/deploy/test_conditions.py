"""Which pods are sent, as data and as the CEL made of it, is what the code acts on: for pods that say a bit of everything."""

from __future__ import annotations

import cel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.deploy import conditions
from tessera.deploy.webhooks import webhook_configurations
from tessera.dialects.reader import PodReader
from tessera.dialects.trigger import holds
from tessera.model.config import Cni, Config, parse
from tessera.model.names import names
from webhook.admission.cni import concerns
from webhook.admission.paths import MUTATE, MUTATE_CNI, VALIDATE

NAMES = names()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_pod_that_the_code_would_touch_is_sent_and_no_other(make, data):
    pod, section = data.draw(make.pods()), data.draw(make.dialects())
    sent = holds(conditions.concerned(make.config_of(section)), PodReader(make.decoded(pod)))
    acted_on = make.acted_on(make.mutator(section), pod)
    assert sent or not acted_on
    assert acted_on or not sent or make.idle(pod)
    assert make.asks(section).execute({"object": pod}) == sent, "the CEL says something else than the description"


def test_the_cases_of_every_dialect_too(make):
    for case in make.cases():
        pod = make.whole(case["pod"])
        for section in (case.get("config", {}), {"hami": False, "kai": False}):
            sent = holds(conditions.concerned(make.config_of(section)), PodReader(make.decoded(pod)))
            acted_on = make.acted_on(make.mutator(section), pod)
            assert sent or not acted_on, case["case"]
            assert acted_on or not sent or make.idle(pod), case["case"]


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"spec": {"containers": None, "initContainers": None}},
        {"spec": {"containers": [{"name": "m"}]}},
        {"spec": {"containers": [{"name": "m", "resources": {"limits": None, "requests": None}}]}},
        {"metadata": {"annotations": None, "labels": None}, "spec": {"containers": []}},
    ],
    ids=str,
)
def test_what_is_not_there_is_no_error(make, pod):
    body = {"metadata": {}, "spec": {}} | pod
    assert make.asks({}).execute({"object": body}) is False
    assert cel.compile(conditions.cni(Cni())).execute({"object": body}) is False


def update(new, old):
    request = {"operation": "UPDATE" if old else "CREATE"}
    return cel.compile(conditions.repeats(Config())).execute({"object": new, "oldObject": old, "request": request})


def test_an_update_is_sent_where_a_converted_pod_comes_with_another_spec():
    def pod(image, **annotations):
        return {"metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "m", "image": image}]}}

    request = {NAMES.request: "{}"}
    assert update(pod("a"), None)
    assert update(pod("b", **request), pod("a", **request))
    assert not update(pod("a", more="x", **request), pod("a", **request))
    assert not update(pod("b"), pod("a"))
    assert not update(pod("b", **request), {"metadata": {}, "spec": {}})


def cni_pod(**change):
    body = {
        "metadata": {
            "labels": {"app": "terway"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "t", "uid": "u"}],
        },
        "spec": {"hostNetwork": True, "containers": [{"name": "m"}]},
    }
    for part, fields in change.items():
        body[part] = {**body[part], **fields}
    return body


@pytest.mark.parametrize(
    "pod",
    [
        cni_pod(),
        cni_pod(metadata={"labels": {"k8s-app": "cilium"}}),
        cni_pod(metadata={"labels": {"app": "web"}}),
        cni_pod(metadata={"labels": {"name": "terway"}}),
        cni_pod(metadata={"ownerReferences": [{"kind": "ReplicaSet", "name": "t"}]}),
        cni_pod(metadata={"ownerReferences": []}),
        cni_pod(spec={"hostNetwork": False}),
    ],
    ids=str,
)
def test_the_repair_is_asked_about_pods_that_it_is_for(make, pod):
    sent = cel.compile(conditions.cni(Cni())).execute({"object": pod})
    assert sent == concerns(make.decoded(pod), cni=Cni(), namespace="kube-system")


@pytest.mark.parametrize("value", ["plain", "it's", 'a "b"', "back\\slash", "\\d+", "ä\n\t"])
def test_texts_are_quoted_for_cel(value):
    assert cel.evaluate(f"{conditions.text(value)} == x", {"x": value})


def entries(config, **more):
    found = webhook_configurations(config, **more)
    assert [each["kind"] for each in found] == ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"]
    assert {each["metadata"]["name"] for each in found} == {"tessera-webhook"}
    return {entry["clientConfig"]["service"]["path"]: entry for each in found for entry in each["webhooks"]}


def test_refusing_where_gpus_are_asked_for_and_never_where_the_network_heals():
    found = entries(Config())
    assert found.keys() == {MUTATE, MUTATE_CNI, VALIDATE}
    assert {path: entry["failurePolicy"] for path, entry in found.items()} == {
        MUTATE: "Fail",
        VALIDATE: "Fail",
        MUTATE_CNI: "Ignore",
    }
    for entry in found.values():
        assert entry["sideEffects"] == "None"
        assert entry["matchPolicy"] == "Equivalent"
        assert 1 <= entry["timeoutSeconds"] <= 10
        assert entry["matchConditions"]
        assert "caBundle" not in entry["clientConfig"]
    assert found[MUTATE]["reinvocationPolicy"] == "IfNeeded"
    assert found[MUTATE]["rules"][0]["operations"] == ["CREATE", "UPDATE"]
    assert found[VALIDATE]["rules"][0]["operations"] == ["CREATE"]


def test_our_own_pods_and_the_clusters_can_always_be_made():
    found = entries(Config(), namespace="gpu-system", service="hook", ca_bundle="QQ==")
    for path in (MUTATE, VALIDATE):
        (expression,) = found[path]["namespaceSelector"]["matchExpressions"]
        assert expression["operator"] == "NotIn"
        assert expression["values"] == ["gpu-system", "kube-system"]
    for entry in found.values():
        assert entry["clientConfig"]["service"]["namespace"] == "gpu-system"
        assert entry["clientConfig"]["service"]["name"] == "hook"
        assert entry["clientConfig"]["caBundle"] == "QQ=="


def test_a_repair_that_is_off_asks_nobody():
    assert MUTATE_CNI not in entries(parse("cni: {enabled: false}"))
    assert MUTATE_CNI not in entries(parse("cni: {namespaces: []}"))
