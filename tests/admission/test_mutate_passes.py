"""What must not be believed of a pod that comes in, and what a second pass does: nothing, unless somebody changed the pod."""

import copy
import json

import pytest

from tessera.model.names import names
from webhook.admission.mutate import Mutator

T = "tessera.dev/"
UNITS, PERCENT, COMPUTE = names().tickets
REQUEST, PLAN = T + "request", T + "plan"
GI = 1 << 30


def pod(limits, *, annotations=None, labels=None, more=()):
    metadata = {"name": "p", "annotations": annotations, "labels": labels}
    containers = [{"name": "a", "resources": {"limits": limits}}, *more]
    return {"metadata": {k: v for k, v in metadata.items() if v is not None}, "spec": {"containers": containers}}


def asking(**containers):
    return json.dumps({"v": 1, "dialect": "hami", "containers": containers})


def request(found):
    return json.loads(found["metadata"]["annotations"][REQUEST])


@pytest.fixture
def again(admit):
    """A second pass over what the first made changes nothing and understands the same."""

    def run(found, first, config=None):
        same, second = admit(found, config)
        assert (same, second.operations) == (found, ())
        assert second.request == first.request
        return second

    return run


@pytest.mark.parametrize(
    "asked",
    [
        {T + "gpu": 2, T + "gpu-memory": "3Gi", T + "gpu-compute": 10},
        {T + "gpu-memory": "257Mi"},
        {T + "gpu": 3},
        {T + "gpu": 3, T + "gpu-compute": 50},
        {"nvidia.com/gpu": 2, "nvidia.com/gpumem": 3000},
        {"nvidia.com/gpucores": 30},
        {"aliyun.com/gpu-mem": 3},
        {UNITS: 8, COMPUTE: 10},
        {T + "mig-1g.10gb": 2},
    ],
    ids=str,
)
def test_a_second_pass_changes_nothing(admit, again, asked):
    again(*admit(pod(asked)))


def test_a_second_pass_after_annotations_asked_changes_nothing(admit, again):
    again(*admit(pod({}, annotations={T + "gpu": "2", T + "gpu-memory": "1500Mi"})))


def test_what_only_our_parts_write_is_stripped_with_a_warning(admit):
    """A dump of a live pod carries these, and a forger writes them; neither is believed."""
    given = pod(
        {T + "gpu": 1},
        annotations={PLAN: '{"v":1,"node":"n","containers":{}}', "mine": "kept"},
        labels={T + "unit": "idc", T + "region": "cn-x", "app": "kept"},
    )
    found, outcome = admit(given)
    assert found["metadata"]["annotations"].keys() == {"mine", REQUEST}
    assert found["metadata"]["labels"] == {"app": "kept"}
    assert [w for w in outcome.warnings if all(name in w for name in (PLAN, T + "unit", T + "region"))]


def test_it_is_stripped_from_pods_that_ask_nothing_too(admit):
    given = pod(
        {"cpu": 1}, annotations={PLAN: "x", REQUEST: asking(a={"gpus": 1, "whole": True})}, labels={T + "unit": "u"}
    )
    found, outcome = admit(given)
    assert found == pod({"cpu": 1}, annotations={}, labels={})
    assert all(name in outcome.warnings[0] for name in (PLAN, REQUEST, T + "unit"))
    assert outcome.request is None


TRUE = {"gpus": 2, "memory": 3 * GI, "compute": 10}


def test_a_request_is_kept_where_it_yields_the_tickets(admit, again):
    """Tickets alone can't say on how many GPUs they lie; the annotation of an earlier pass can."""
    given = pod({UNITS: 24, COMPUTE: 20}, annotations={REQUEST: asking(a=TRUE)})
    found, outcome = admit(given)
    assert request(found) == {"v": 1, "dialect": "hami", "containers": {"a": TRUE}}
    again(found, outcome)


@pytest.mark.parametrize(
    "forged",
    [
        asking(a=TRUE | {"gpus": 1}),
        asking(a=TRUE | {"memory": 2 * GI}),
        asking(a=TRUE | {"compute": 11}),
        asking(a={"gpus": 1, "whole": True}),
        asking(b=TRUE),
        asking(),
        asking(a=TRUE).replace('"v": 1', '"v": 2'),
        asking(a=TRUE | {"memoryPercent": 10}),
        asking(a=TRUE | {"gpus": -2}),
        asking(a=TRUE | {"gpus": 10**6}),
        "",
        "{",
        "[]",
        "[" * 10_000,
        "null",
        "x" * 300_000,
    ],
    ids=lambda text: text[:70],
)
def test_a_request_that_does_not_is_dropped(admit, again, forged):
    given = pod({UNITS: 24, COMPUTE: 20}, annotations={REQUEST: forged})
    found, outcome = admit(given)
    assert request(found) == {
        "v": 1,
        "dialect": "tickets",
        "containers": {"a": {"gpus": 1, "memory": 6 * GI, "compute": 20}},
    }
    again(found, outcome)


def test_of_a_request_that_is_kept_nothing_is_believed_that_tickets_do_not_prove(admit, again):
    """Whether an init container asks is seen from the pod; a dialect that there is not is none."""
    forged = json.dumps({"v": 1, "dialect": "x" * 1000, "containers": {"a": TRUE | {"init": True}}})
    found, outcome = admit(pod({UNITS: 24, COMPUTE: 20}, annotations={REQUEST: forged}))
    assert request(found) == {"v": 1, "dialect": "tickets", "containers": {"a": TRUE}}
    again(found, outcome)


def test_what_is_asked_anew_is_not_read_from_an_old_request(admit):
    given = pod({T + "gpu-memory": "1Gi"}, annotations={REQUEST: asking(a=TRUE)})
    assert request(admit(given)[0])["containers"] == {"a": {"gpus": 1, "memory": GI}}


def test_a_dump_of_a_live_pod_asks_what_it_asked(admit):
    live, first = admit(pod({T + "gpu": 2, T + "gpu-memory": "3Gi"}))
    live["metadata"]["annotations"][PLAN] = "{}"
    live["metadata"]["uid"] = "u"
    live["status"] = {"phase": "Running"}
    found, outcome = admit(live)
    assert outcome.request == first.request
    assert PLAN not in found["metadata"]["annotations"]
    assert found["status"] == {"phase": "Running"}


# Other webhooks between two passes (reinvocationPolicy: IfNeeded).


def test_a_sidecar_injected_in_another_dialect_is_understood_beside_the_rest(admit, again):
    found, _ = admit(pod({T + "gpu": 2, T + "gpu-memory": "3Gi"}))
    injected = copy.deepcopy(found)
    injected["spec"]["containers"].append({"name": "exporter", "resources": {"limits": {"aliyun.com/gpu-mem": 1}}})
    found, outcome = admit(injected)
    assert request(found) == {
        "v": 1,
        "dialect": "tessera",
        "containers": {
            "a": {"gpus": 2, "memory": 3 * GI},
            "exporter": {"gpus": 1, "memory": GI, "dialect": "aliyun"},
        },
    }
    assert found["spec"]["containers"][1]["resources"]["limits"] == {UNITS: "4"}
    again(found, outcome)


def test_one_injected_in_front_takes_the_pods_dialect_and_the_others_keep_theirs(admit, again):
    found, _ = admit(pod({T + "gpu": 2, T + "gpu-memory": "3Gi"}))
    first = {"name": "proxy", "restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpumem": 100}}}
    found["spec"]["initContainers"] = [first]
    found, outcome = admit(found)
    assert request(found) == {
        "v": 1,
        "dialect": "hami",
        "containers": {
            "proxy": {"gpus": 1, "memory": 100 << 20},
            "a": {"gpus": 2, "memory": 3 * GI, "dialect": "tessera"},
        },
    }
    again(found, outcome)


def test_a_container_taken_away_takes_its_request_with_it(admit, again):
    both = {"name": "b", "resources": {"limits": {T + "gpu": 1}}}
    found, _ = admit(pod({T + "gpu-memory": "1Gi"}, more=[both]))
    del found["spec"]["containers"][1]
    found, outcome = admit(found)
    assert list(request(found)["containers"]) == ["a"]
    again(found, outcome)


def test_tickets_that_another_webhook_changed_are_what_counts(admit, again):
    found, _ = admit(pod({T + "gpu": 2, T + "gpu-memory": "3Gi"}))
    resources = found["spec"]["containers"][0]["resources"]
    resources["limits"][UNITS] = "40"
    found, outcome = admit(found)
    assert request(found)["containers"] == {"a": {"gpus": 1, "memory": 10 * GI}}
    assert resources_of(found) == {"limits": {UNITS: "40"}, "requests": {UNITS: "40"}}
    again(found, outcome)


def resources_of(found):
    return found["spec"]["containers"][0]["resources"]


def test_annotations_that_ask_are_read_once(admit, again):
    """They stay on the pod, and must not ask a second time for what has become tickets."""
    found, outcome = admit(pod({}, annotations={T + "gpu-memory": "8Gi"}))
    again(found, outcome)
    found["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1"
    assert admit(found)[1].operations == ()


def test_a_pod_for_a_cluster_of_another_unit_is_read_anew(admit, manifest):
    from tessera.model.config import parse

    found, _ = admit(pod({T + "gpu-memory": "8Gi"}))
    other = parse("memoryUnit: 1Gi")
    outcome = Mutator(other).mutate(manifest(found), namespace="team")
    assert outcome.request is None, "its tickets are no names of that cluster's; a node there has none of them"
