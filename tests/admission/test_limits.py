"""The most that a pod of a namespace may ask for: at the limit yes, one above it no, with both numbers and the fix."""

import json

import pytest

from tessera.model.config import parse
from tessera.model.errors import ConfigError, RequestError
from webhook.admission.paths import MUTATE, Paths

T = "tessera.dev/"


def pod(*limits, init=()):
    def built(prefix, each):
        return [{"name": f"{prefix}{at}", "resources": {"limits": limit}} for at, limit in enumerate(each)]

    return {"metadata": {}, "spec": {"containers": built("c", limits), "initContainers": built("i", init)}}


def starting(*init, main=()):
    """A pod with init containers in their order: (GPUs, whether it is a sidecar)."""
    asking = lambda gpus: {T + "gpu": gpus, T + "gpu-memory": "1Gi"} if gpus else {}  # noqa: E731
    found = pod(*(asking(gpus) for gpus in main), init=[asking(gpus) for gpus, _ in init])
    for container, (_, sidecar) in zip(found["spec"]["initContainers"], init, strict=True):
        container.update({"restartPolicy": "Always"} if sidecar else {})
    return found


@pytest.fixture
def asks(admit):
    """Ask for a pod in a namespace under limits of the config; returns the refusal, or None."""

    def run(given, limits, *, namespace="team", unit="256Mi"):
        config = parse(f"memoryUnit: {unit}\nlimits: {limits}")
        try:
            admit(given, config, namespace=namespace)
        except RequestError as error:
            return error
        return None

    return run


@pytest.mark.parametrize(
    ("given", "limits", "words"),
    [
        (pod({T + "gpu": 4}), "{team: {gpus: 4}}", None),
        (pod({T + "gpu": 5}), "{team: {gpus: 4}}", ["5 GPUs", '"team"', "allows 4 per pod", "fewer"]),
        (pod({T + "gpu": 2}, {T + "gpu": 2}), "{team: {gpus: 4}}", None),
        (pod({T + "gpu": 2}, {T + "gpu": 3}), "{team: {gpus: 4}}", ["5 GPUs in all"]),
        (pod({T + "gpu-compute": 10}), "{team: {gpus: 0}}", ["1 GPUs", "allows 0"]),
        (pod({T + "gpu-memory": "8Gi"}), "{team: {memory: 8Gi}}", None),
        (pod({T + "gpu-memory": "8193Mi"}), "{team: {memory: 8Gi}}", ['"c0"', "8193Mi", "allows 8Gi", "less"]),
        (pod({T + "gpu": 3, T + "gpu-memory": "8Gi"}), "{team: {memory: 8Gi}}", None),
        (pod({T + "gpu-memory": "1Gi"}, {T + "gpu-memory": "9Gi"}), "{team: {memory: 8Gi}}", ['"c1"', "9Gi"]),
        (pod({T + "gpu-memory-percent": 1}), "{team: {memory: 8Gi}}", ['"c0"', "not known yet", "8Gi", "gpu-memory"]),
        (pod({T + "gpu": 1}), "{team: {memory: 8Gi}}", ["not known yet"]),
        (pod({T + "gpu-memory": "1Gi", T + "gpu-compute": 50}), "{team: {compute: 50}}", None),
        (pod({T + "gpu-memory": "1Gi", T + "gpu-compute": 51}), "{team: {compute: 50}}", ['"c0"', "51", "allows 50"]),
        (pod({T + "gpu": 1}), "{team: {compute: 99}}", ['"c0"', "100 percent", "allows 99"]),
        (pod({T + "gpu-memory": "80Gi"}), "{team: {compute: 1}}", None),
        (pod({}, init=[{T + "gpu-memory": "9Gi"}]), "{team: {memory: 8Gi}}", ['"i0"', "9Gi"]),
        (pod({"nvidia.com/gpumem": 9000}), "{team: {memory: 8Gi}}", ['"c0"', "9000Mi"]),
        (pod({T + "gpu-memory.256Mi": 33}), "{team: {memory: 8Gi}}", ['"c0"', "8448Mi", "allows 8Gi"]),
        (pod({"cpu": 1}), "{team: {gpus: 0, memory: '0', compute: 0}}", None),
        (pod({T + "gpu": 64}), "{}", None),
        (pod({T + "gpu-memory": "8Gi"}), "{team: {memory: 8589934592}}", None),
        (pod({T + "gpu-memory": "9Gi"}), "{team: {memory: 8589934592}}", ['"c0"', "9Gi", "allows 8Gi"]),
        (pod({T + "gpu-memory": "9Gi"}), "{team: {memory: 8.0}}", ['"c0"', "9Gi", "allows 8 "]),
    ],
    ids=str,
)
def test_at_the_limit_yes_and_above_it_no(asks, given, limits, words):
    refusal = asks(given, limits)
    if words is None:
        assert refusal is None
    else:
        assert not [word for word in words if word not in str(refusal)], str(refusal)


def test_a_namespace_has_its_own_limit_and_the_others_share_one(asks):
    limits = '{"*": {gpus: 1}, rich: {gpus: 8}, free: {}}'
    assert asks(pod({T + "gpu": 2}), limits, namespace="rich") is None
    assert asks(pod({T + "gpu": 64}), limits, namespace="free") is None
    assert "allows 1" in str(asks(pod({T + "gpu": 2}), limits, namespace="poor"))
    assert asks(pod({T + "gpu": 64}), "{rich: {gpus: 8}}", namespace="poor") is None


def test_a_limit_is_as_coarse_as_what_is_handed_out(asks):
    """With units of 1 GiB, 1.5 GiB is two of them; a limit of 1.5 GiB allows these two."""
    assert asks(pod({T + "gpu-memory": "2Gi"}), "{team: {memory: 1.5Gi}}", unit="1Gi") is None
    assert asks(pod({T + "gpu-memory": "2049Mi"}), "{team: {memory: 1.5Gi}}", unit="1Gi") is not None


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        (starting((1, False), main=(1,)), 1),
        (starting((1, False), (1, False), main=()), 1),
        (starting((1, True), (1, False), main=()), 2),
        (starting((1, False), (1, True), main=(1,)), 2),
        (starting((1, True), (1, False), main=(1,)), 2),
        (starting((2, True), main=(2, 1)), 5),
        (starting((1, True), (1, True), (1, False), main=(0,)), 3),
    ],
)
def test_gpus_are_counted_as_kubernetes_counts(asks, given, gpus):
    """An init container is over when the others start; a sidecar runs beside whatever comes after it."""
    assert asks(given, f"{{team: {{gpus: {gpus}}}}}") is None
    assert f"asks for {gpus} GPUs in all" in str(asks(given, f"{{team: {{gpus: {gpus - 1}}}}}"))


def test_a_limit_is_a_403_and_a_request_that_makes_no_sense_is_a_400(review, metrics):
    handler = Paths(parse("limits: {team: {gpus: 1}}"), metrics).handlers[MUTATE]

    def status(limits):
        answer = json.loads(handler(json.dumps(review(pod(limits))).encode()).body)
        return answer["response"]["status"]

    found = status({T + "gpu": 2})
    assert (found["code"], found["reason"]) == (403, "Forbidden")
    assert found["message"] == (
        'asks for 2 GPUs in all; namespace "team" allows 1 per pod; '
        "ask for fewer, or have limits in Tessera's config raised"
    )
    assert status({T + "gpu": "half"})["code"] == 400


@pytest.mark.parametrize("memory", ["-1", "-1Gi", "true", "[1]", "1.5", "0x10"])
def test_an_amount_that_is_none_is_refused_with_its_place(memory):
    with pytest.raises(ConfigError, match=r"limits\.team\.memory \(line 1\)"):
        parse(f"limits: {{team: {{memory: {memory}}}}}")


@pytest.mark.parametrize("limits", ["3", "[]", "{team: 3}", "{team: [memory]}", "{3: {memory: 1}}"])
def test_limits_of_another_shape_are_refused(limits):
    with pytest.raises(ConfigError):
        parse(f"limits: {limits}")
