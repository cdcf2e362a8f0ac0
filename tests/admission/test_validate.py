"""The last look, after every other webhook: what mutation made passes, and each way to change it afterwards is refused."""

import copy
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.config import Config
from tessera.model.errors import RequestError
from tessera.model.quantity import whole
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


@pytest.fixture(scope="session")
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


@pytest.mark.parametrize("node", [None, "n1"])
def test_no_pod_is_created_with_a_plan(refusal, mutated, node):
    """It comes with the Binding. A webhook that writes one at creation, bound or not, forges it."""
    mutated["metadata"]["annotations"][PLAN] = "{}"
    if node:
        mutated["spec"]["nodeName"] = node
    assert PLAN in refusal(mutated)


@pytest.mark.parametrize("label", [T + "unit", T + "region"])
def test_no_pod_is_created_with_a_label_of_the_extenders(refusal, mutated, label):
    mutated["metadata"]["labels"] = {label: "cloud"}
    assert label in refusal(mutated)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p: p["metadata"]["annotations"].update({T + "gpu-memory": "8Gi", T + "container": "c"}),
            ['container "c"', "8Gi", "did not see", "reinvocationPolicy"],
        ),
        (
            lambda p: p["metadata"]["annotations"].update({"gpu-fraction": "0.5", "gpu-fraction-container-name": "c"}),
            ['container "c"', "50 %"],
        ),
        (lambda p: _said(p, dialect="other"), ["annotation", "not what admission wrote", "'other'"]),
        (lambda p: _request(p, dialect="zzz"), ['container "a"', "not what admission wrote"]),
        (lambda p: _request(p, init=True), ['container "a"', "init"]),
        (lambda p: _into_init(p, "b"), ['container "b"', "init"]),
    ],
)
def test_what_would_be_read_otherwise_is_refused_though_the_tickets_agree(refusal, mutated, change, words):
    changed = copy.deepcopy(mutated)
    change(changed)
    said = refusal(changed)
    assert said is not None
    assert not [word for word in words if word not in said], said


def _said(pod, **changes):
    pod["metadata"]["annotations"][REQUEST] = json.dumps(json.loads(pod["metadata"]["annotations"][REQUEST]) | changes)


def _into_init(pod, name):
    """Another webhook makes an init container of one that asks; the others ask no more than one GPU then."""
    moved = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    pod["spec"]["containers"].remove(moved)
    pod["spec"]["initContainers"] = [moved]
    pod["spec"]["containers"] = [each for each in pod["spec"]["containers"] if each["name"] != "a"]
    said = json.loads(pod["metadata"]["annotations"][REQUEST])
    said["containers"] = {name: said["containers"][name] | {"dialect": None}}
    said["containers"][name].pop("dialect")
    pod["metadata"]["annotations"][REQUEST] = json.dumps(said | {"dialect": "hami"})


AMOUNTS = st.sampled_from([0, "0", 1, "1", "8", "24", "32", "1k", "0.5", "-1", "x"])
NAMES = st.sampled_from(
    [
        UNITS,
        PERCENT,
        COMPUTE,
        T + "gpu",
        T + "gpu-memory",
        T + "mig-1g.5gb",
        "nvidia.com/gpumem",
        "nvidia.com/gpu",
        "cpu",
    ]
)
REQUESTS = st.sampled_from(
    [
        None,
        "{}",
        "x",
        '{"v":1,"dialect":"tessera","containers":{}}',
        '{"v":1,"dialect":"tessera","containers":{"a":{"gpus":1,"memory":8589934592}}}',
        '{"v":1,"dialect":"tickets","containers":{"a":{"gpus":1,"memory":268435456}}}',
        '{"v":1,"dialect":"tessera","containers":{"a":{"gpus":2,"memory":3221225472,"compute":10}}}',
    ]
)
DEEDS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 2), st.sampled_from(["limits", "requests", "both"]), NAMES, AMOUNTS),
    st.tuples(st.just("drop"), st.integers(0, 2), st.sampled_from(["limits", "requests", "both"]), NAMES),
    st.tuples(st.just("request"), REQUESTS),
    st.tuples(st.just("rename"), st.integers(0, 2), st.sampled_from(["a", "z"])),
    st.tuples(st.just("remove"), st.integers(0, 2)),
)


@given(st.lists(DEEDS, max_size=4))
def test_whatever_a_second_webhook_does_what_passes_agrees(admit, refusal, deeds):
    """Checked by the contract's table: tickets on both sides are those of the request, and no other name is left."""
    given = [
        {"name": "a", "resources": {"limits": {T + "gpu-memory": "8Gi"}}},
        {"name": "b", "resources": {"limits": {T + "gpu-compute": 30}}},
        {"name": "c"},
    ]
    found, _ = admit({"metadata": {"name": "p"}, "spec": {"containers": given}})
    found = copy.deepcopy(found)
    for deed in deeds:
        _do(found, *deed)
    try:
        if refusal(found) is not None:
            return
    except msgspec.ValidationError:
        return
    text = found["metadata"]["annotations"].get(REQUEST)
    said = json.loads(text)["containers"] if text is not None else {}
    for container in found["spec"]["containers"]:
        wanted = _tickets(said.get(container["name"]))
        for side in ("limits", "requests"):
            there = container.get("resources", {}).get(side, {})
            assert {n: whole(v) for n, v in there.items() if n in (UNITS, PERCENT, COMPUTE) and whole(v)} == wanted
            assert not {T + "gpu", T + "gpu-memory"} & there.keys() or not wanted
    assert said.keys() <= {container["name"] for container in found["spec"]["containers"]}


def _tickets(asked):
    if asked is None:
        return {}
    memory = {UNITS: -(-asked["memory"] // (256 << 20)) * asked["gpus"]} if "memory" in asked else {}
    percent = {PERCENT: asked["memoryPercent"] * asked["gpus"]} if "memoryPercent" in asked else {}
    return memory | percent | ({COMPUTE: asked["compute"] * asked["gpus"]} if "compute" in asked else {})


def _do(pod, kind, *arguments):
    containers = pod["spec"]["containers"]
    if kind == "request":
        pod["metadata"].setdefault("annotations", {}).pop(REQUEST, None)
        if arguments[0] is not None:
            pod["metadata"]["annotations"][REQUEST] = arguments[0]
        return
    at = arguments[0]
    if at >= len(containers):
        return
    if kind == "remove":
        del containers[at]
    elif kind == "rename":
        containers[at]["name"] = arguments[1]
    else:
        for side in ("limits", "requests") if arguments[1] == "both" else (arguments[1],):
            amounts = containers[at].setdefault("resources", {}).setdefault(side, {})
            if kind == "set":
                amounts[arguments[2]] = arguments[3]
            else:
                amounts.pop(arguments[2], None)


def test_a_plan_is_refused_on_pods_that_ask_nothing_too(refusal):
    said = refusal({"metadata": {"annotations": {PLAN: "{}"}}, "spec": {"containers": [{"name": "a"}]}})
    assert said is not None
    assert PLAN in said
