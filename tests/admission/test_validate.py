"""The last look, after every other webhook: what mutation made passes, and each way to change it afterwards is refused."""

import copy
import json

import pytest

from tessera.model.config import Config
from tessera.model.errors import RequestError
from webhook.admission.validate import Validator

T = "tessera.dev/"
UNITS, PERCENT, COMPUTE = T + "gpu-memory.256Mi", T + "gpu-memory.percent", T + "gpu-compute.percent"
REQUEST, PLAN = T + "request", T + "plan"


@pytest.fixture
def mutated(admit):
    """A pod that mutation has seen: two containers, one of them in another system's words."""
    given = {
        "metadata": {"name": "p"},
        "spec": {
            "containers": [
                {"name": "a", "resources": {"limits": {T + "gpu": 2, T + "gpu-memory": "3Gi", T + "gpu-compute": 10}}},
                {"name": "b", "resources": {"limits": {"nvidia.com/gpumem": 1000, "cpu": "1"}}},
                {"name": "c"},
            ]
        },
    }
    return admit(given)[0]


@pytest.fixture
def refusal(manifest):
    """What validation says to a pod; None where it passes."""
    validator = Validator(Config())

    def run(pod):
        try:
            validator.validate(manifest(pod))
        except RequestError as error:
            return str(error)
        return None

    return run


def test_what_mutation_made_passes(refusal, mutated):
    assert refusal(mutated) is None


@pytest.mark.parametrize(
    "pod",
    [
        {"metadata": {}, "spec": {"containers": [{"name": "a"}]}},
        {"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": 1}}}]}},
        {"metadata": {"annotations": None}, "spec": {"containers": None}},
        {"metadata": {}, "spec": {"containers": [{"name": "a", "resources": {"limits": {T + "gpu": 0}}}]}},
    ],
    ids=str,
)
def test_what_asks_nothing_of_ours_passes(refusal, pod):
    assert refusal(pod) is None


def _resources(pod, at=0):
    return pod["spec"]["containers"][at]["resources"]


def _request(pod, **changes):
    said = json.loads(pod["metadata"]["annotations"][REQUEST])
    said["containers"]["a"] |= changes
    pod["metadata"]["annotations"][REQUEST] = json.dumps(said)


def _set(place, name, value):
    place[name] = value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p["metadata"]["annotations"].pop(REQUEST), ["did not pass", "MutatingWebhookConfiguration"]),
        (lambda p: _set(p["metadata"]["annotations"], REQUEST, "{"), ["can't be read", "remove annotation"]),
        (lambda p: _set(p["metadata"]["annotations"], PLAN, "{}"), [PLAN, "extender", "remove it"]),
        (lambda p: _request(p, gpus=4), ['container "a"', "tickets", "ask for what is meant in one place"]),
        (lambda p: _request(p, compute=11), ['container "a"', "22", "20"]),
        (
            lambda p: [_set(_resources(p)[side], UNITS, "25") for side in ("limits", "requests")],
            ['container "a"', "25", "24"],
        ),
        (
            lambda p: [_resources(p)[side].pop(COMPUTE) for side in ("limits", "requests")],
            ['container "a"', "another webhook"],
        ),
        (lambda p: _set(_resources(p)["requests"], UNITS, "23"), ['container "a"', UNITS, "limits and requests differ"]),
        (lambda p: _resources(p)["requests"].pop(UNITS), ['container "a"', "differ", "same in both"]),
        (lambda p: _resources(p)["limits"].pop(UNITS), ['container "a"', "differ"]),
        (lambda p: _set(_resources(p, 1)["limits"], T + "gpu-memory", "1000Mi"), ['container "b"', T + "gpu-memory", "afterwards"]),
        (lambda p: _set(_resources(p, 1)["limits"], T + "gpu", "0"), ['container "b"', T + "gpu", "reinvocationPolicy"]),
        (lambda p: _set(_resources(p, 1)["requests"], T + "gpu-compute", "5"), ['container "b"', "keep one"]),
        (lambda p: _set(p["spec"]["containers"][2], "resources", {"limits": {T + "gpu": 1}}), ['container "c"', T + "gpu"]),
        (
            lambda p: _set(p["spec"]["containers"][2], "resources", {"limits": {UNITS: 1}, "requests": {UNITS: 1}}),
            ['container "c"', "{'tessera.dev/gpu-memory.256Mi': 1}", "{}"],
        ),
        (lambda p: _set(p["spec"]["containers"][0], "name", "renamed"), ['container "renamed"']),
        (lambda p: _set(_resources(p)["limits"], UNITS, "many"), ['container "a"', UNITS, "'many'"]),
    ],
)  # fmt: skip
def test_what_was_changed_afterwards_is_refused(refusal, mutated, change, words):
    changed = copy.deepcopy(mutated)
    change(changed)
    said = refusal(changed)
    assert said is not None
    assert not [word for word in words if word not in said], said


@pytest.mark.parametrize(
    "change",
    [
        lambda p: _set(p["metadata"], "labels", {"injected": "yes"}),
        lambda p: p["spec"]["containers"].append({"name": "sidecar", "resources": {"limits": {"cpu": "1"}}}),
        lambda p: p["spec"].update(schedulerName="mine"),
        lambda p: [_set(_resources(p)[side], UNITS, 24) for side in ("limits", "requests")],
        lambda p: _set(_resources(p)["limits"], UNITS, "24e0"),
        lambda p: p["spec"]["containers"].reverse(),
    ],
)
def test_what_has_nothing_to_do_with_it_may_change(refusal, mutated, change):
    change(mutated)
    assert refusal(mutated) is None


def test_a_plan_is_taken_where_the_binding_brings_it(refusal, mutated):
    """Plan and nodeName appear together; an update of a bound pod carries both."""
    mutated["metadata"]["annotations"][PLAN] = "{}"
    mutated["spec"]["nodeName"] = "n1"
    assert refusal(mutated) is None


def test_a_plan_is_refused_on_pods_that_ask_nothing_too(refusal):
    said = refusal({"metadata": {"annotations": {PLAN: "{}"}}, "spec": {"containers": [{"name": "a"}]}})
    assert said is not None
    assert PLAN in said
