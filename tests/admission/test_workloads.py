"""Pods as all kinds of clients send them, taken through both paths as the API server would, and once more."""

import copy
import json

import pytest

from tessera.model.config import Config
from webhook.admission.paths import MUTATE, VALIDATE, Paths

T = "tessera.dev/"
UNITS, PERCENT, COMPUTE = T + "gpu-memory.256Mi", T + "gpu-memory.percent", T + "gpu-compute.percent"
ASK = {T + "gpu-memory": "1Gi"}


def container(name="main", limits=None, **more):
    return {"name": name, "image": "x", "resources": {"limits": dict(ASK) if limits is None else limits}, **more}


def pod(*containers, metadata=None, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"} if metadata is None else metadata,
        "spec": {"containers": list(containers or [container()]), **spec},
    }


@pytest.fixture
def gate(review, patched, uncounted):
    """Send a pod to /mutate, then what came out to /mutate again and to /validate; returns both responses of the first."""
    handlers = Paths(Config(), uncounted).handlers

    def ask(path, given, **request):
        answer = handlers[path](json.dumps(review(given, **request)).encode())
        assert answer.status == 200
        return json.loads(answer.body)["response"]

    def run(given, **request):
        first = ask(MUTATE, given, **request)
        if not first["allowed"]:
            return None, first
        found = patched(copy.deepcopy(given), first)
        again = ask(MUTATE, found, **request)
        assert again["allowed"]
        assert "patch" not in again
        assert ask(VALIDATE, found, **request)["allowed"]
        return found, first

    return run


def tickets(found):
    """By container, the tickets in its limits; those in its requests are the same."""
    amounts = {}
    for each in (found["spec"].get("initContainers") or []) + (found["spec"].get("containers") or []):
        resources = each.get("resources") or {}
        limits, requests = (
            {name: amount for name, amount in (resources.get(side) or {}).items() if name.startswith(T)}
            for side in ("limits", "requests")
        )
        assert limits == requests
        if limits:
            amounts[each["name"]] = {name: str(amount) for name, amount in limits.items()}
    return amounts


FOUR = {"main": {UNITS: "4"}}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        pytest.param(pod(), FOUR, id="a bare pod"),
        pytest.param(pod(metadata={"generateName": "train-"}), FOUR, id="generateName"),
        pytest.param(pod(metadata={"name": "p", "annotations": None, "labels": None}), FOUR, id="annotations: null"),
        pytest.param(pod(metadata={}), FOUR, id="no name at all"),
        pytest.param({"spec": {"containers": [container()]}}, FOUR, id="no metadata at all"),
        pytest.param(
            pod(container(), container("log", {"cpu": "1"}), container("two", {T + "gpu": 2})),
            FOUR | {"two": {PERCENT: "200", COMPUTE: "200"}},
            id="several containers",
        ),
        pytest.param(
            pod(container(limits={}), initContainers=[container("fetch")]),
            {"fetch": {UNITS: "4"}},
            id="an init container",
        ),
        pytest.param(
            pod(initContainers=[container("proxy", restartPolicy="Always")]),
            FOUR | {"proxy": {UNITS: "4"}},
            id="a sidecar",
        ),
        pytest.param(
            pod(resources={"limits": {"cpu": "2", "memory": "4Gi"}, "requests": {"cpu": "1"}}),
            FOUR,
            id="pod-level resources",
        ),
        pytest.param(pod({"name": "main", "resources": {"requests": ASK}}), FOUR, id="requests without limits"),
        pytest.param(
            pod({"name": "main", "resources": {"limits": ASK, "requests": {T + "gpu-memory": "1024Mi"}}}),
            FOUR,
            id="requests in other words",
        ),
        pytest.param(pod(container(limits={T + "gpu-memory": 1 << 30})), FOUR, id="a number"),
        pytest.param(pod(container(limits={T + "gpu-memory": "1073741824"})), FOUR, id="a number as text"),
        pytest.param(pod(container(limits={T + "gpu-memory": "1e9"})), FOUR, id="an exponent"),
        pytest.param(pod(container(limits={T + "gpu-memory": 0.5e9})), {"main": {UNITS: "2"}}, id="a floating number"),
        pytest.param(pod(container(limits={"aliyun.com/gpu-mem": "5500m"})), {"main": {UNITS: "22"}}, id="a fraction"),
        pytest.param(
            pod(container(limits={"nvidia.com/gpu": 0.5})), {"main": {PERCENT: "50"}}, id="a fraction of a card"
        ),
        pytest.param(
            pod({"name": "main", "resources": {"limits": None, "requests": ASK, "claims": [{"name": "c"}]}}),
            FOUR,
            id="limits: null beside a claim",
        ),
        pytest.param(pod(nodeName="n1"), FOUR, id="spec.nodeName"),
        pytest.param(pod(schedulingGates=[{"name": "wait"}]), FOUR, id="a gate"),
        pytest.param(pod(initContainers=None, ephemeralContainers=None), FOUR, id="lists that are null"),
        pytest.param(pod(os={"name": "linux"}, futureField={"a": [1]}), FOUR, id="fields that nobody here knows"),
    ],
)
def test_it_gets_its_tickets(gate, given, meant):
    found, _ = gate(given)
    assert tickets(found) == meant
    unknown = {key: value for key, value in given["spec"].items() if key not in ("containers", "initContainers")}
    assert unknown.items() <= found["spec"].items()


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(pod(container(limits={"cpu": "1"})), id="no GPU"),
        pytest.param(
            pod(metadata={"name": "p", "annotations": {"kubernetes.io/config.mirror": "x"}}), id="a static pod's mirror"
        ),
        pytest.param(
            pod(container(limits={}), ephemeralContainers=[container("debug")]), id="an ephemeral container at creation"
        ),
        pytest.param(
            pod({"name": "main", "resources": {"claims": [{"name": "gpu"}]}}, resourceClaims=[{"name": "gpu"}]),
            id="DRA",
        ),
    ],
)
def test_it_is_left_alone(gate, given):
    found, response = gate(given)
    assert found == given
    assert "warnings" not in response


@pytest.mark.parametrize(
    "request_",
    [
        {"subResource": "ephemeralcontainers", "operation": "UPDATE"},
        {"subResource": "status", "operation": "UPDATE"},
        {"subResource": "resize", "operation": "UPDATE"},
        {"subResource": "binding", "kind": {"group": "", "version": "v1", "kind": "Binding"}},
        {"operation": "DELETE", "object": None},
        {"kind": {"group": "apps", "version": "v1", "kind": "Deployment"}},
    ],
    ids=str,
)
def test_what_is_no_pod_that_is_made_or_changed_is_let_through(gate, request_):
    given = pod(container("debug"), ephemeralContainers=[container("x")])
    assert gate(given, **request_)[0] == given


def test_a_dry_run_is_answered_like_any_other(gate):
    assert gate(pod(), dryRun=True)[1] == gate(pod())[1]


def test_a_pod_whose_name_and_namespace_are_not_known_yet_is_judged_by_the_requests(review, uncounted, patched):
    given = pod(metadata={"generateName": "x-"})
    for namespace in ("team", None):
        body = json.dumps(review(given, namespace=namespace)).encode()
        response = json.loads(Paths(Config(), uncounted).handlers[MUTATE](body).body)["response"]
        assert tickets(patched(copy.deepcopy(given), response)) == FOUR


@pytest.mark.parametrize("operation", ["CREATE", "UPDATE"])
def test_every_warning_is_as_short_as_clients_show_it_and_every_change_is_audited(gate, operation):
    given = pod(
        container("a" * 63, {"aliyun.com/gpu-mem": 40000, "aliyun.com/gpu-count": 1}),
        metadata={"name": "p", "annotations": {T + "plan": "x", T + "drift": "x"}, "labels": {T + "unit": "y"}},
        schedulerName="s" * 63,
        nodeSelector={"gpushare": "true", "cgpu": "true"},
        nodeName="n",
    )
    _, response = gate(given, operation=operation)
    assert all(len(warning) <= 120 for warning in response.get("warnings", ()))
    assert ("patch" in response) == ("auditAnnotations" in response) == (operation == "CREATE")
