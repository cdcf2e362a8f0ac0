"""Scale pods: for whom only fragmentation keeps pending, one at a time, and gone when they have done their part."""

from __future__ import annotations

import pytest

from tessera.model.config import Autoscaler, Config
from tessera.model.names import names
from tessera.testing.apiserver import StatusError, on

NAMES = names()
SPACE = "tessera-system"


@pytest.fixture
async def scaling(rig):
    """Two GPUs on n1 with 24 units free each: 48 in sum."""
    rig.config = Config(autoscaler=Autoscaler(enabled=True, after=30, interval=10, most=2))
    rig.server.add_namespace(SPACE)
    rig.server.put(
        "priorityclasses", {"metadata": {"name": "tessera-scale"}, "value": -10, "preemptionPolicy": "Never"}
    )
    rig.put_node("n1", 64, 64, labels={"kubernetes.io/hostname": "host-1"})
    for number in range(2):
        await half(rig, f"half-{number}", "n1")
    return rig


async def half(rig, name, node):
    await rig.caught_up()
    assert await rig.bind(rig.put_pod(name, units=40), node) == ""
    await rig.caught_up()


async def waits(rig, name="cause", nodes=(), **asked):
    made = rig.put_pod(name, **(asked or {"units": 40}))
    await rig.caught_up()
    assert (await rig.filter(made, *nodes))["NodeNames"] == []
    return made


async def sweep(rig, clock=None, seconds=0):
    if seconds:
        await clock.advance(seconds)
    await rig.soon(rig.scaler.sweep())
    await rig.caught_up()


def scale_pods(rig):
    return [p for p in rig.server.objects("pods") if NAMES.scale_for in p["metadata"]["labels"]]


async def test_one_is_made_after_a_while(scaling, clock):
    await waits(scaling)
    await sweep(scaling)
    assert scale_pods(scaling) == [], "not at once"
    await sweep(scaling, clock, 31)
    (made,) = scale_pods(scaling)
    assert made["metadata"]["namespace"] == SPACE
    assert made["metadata"]["labels"][NAMES.scale_for] == "uid-cause"
    assert made["spec"]["priority"] == -10
    (container,) = made["spec"]["containers"]
    assert container["resources"]["limits"] == {NAMES.memory_percent: "100", NAMES.compute_percent: "100"}
    (term,) = made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"] == [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["host-1"]}]
    assert scaling.events.of("cause") == ["ScalePodCreated"]
    await sweep(scaling, clock, 100)
    assert len(scale_pods(scaling)) == 1, "one for each"


async def test_off_by_default(scaling, clock):
    scaling.config = Config()
    await waits(scaling)
    await sweep(scaling, clock, 100)
    assert scale_pods(scaling) == []


@pytest.mark.parametrize(
    ("why", "asked"),
    [
        ("the autoscaler sees it too: not enough in sum", {"units": 30, "gpus": 2}),
        ("no node like these would do", {"units": 65}),
    ],
)
async def test_only_where_fragmentation_is_the_cause(scaling, clock, why, asked):
    await waits(scaling, **asked)
    await sweep(scaling, clock, 100)
    assert scale_pods(scaling) == [], why


async def test_it_goes_where_its_cause_may_go(scaling, clock):
    expression = {"key": "zone", "operator": "In", "values": ["a"]}
    spec = {
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [expression]}, {}]
                }
            }
        },
    }
    await waits(scaling, units=40, gpus=2, spec=spec, nodes=("n1",))
    scaling.put_node("n2", 64, 64, 64, 64)
    for number in range(4):
        await half(scaling, f"more-{number}", "n2")
    await scaling.filter(scaling.server.get("pods", "cause", "default"))
    await sweep(scaling, clock, 31)
    (made,) = scale_pods(scaling)
    assert made["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "gpu", "operator": "Exists"} in made["spec"]["tolerations"]
    (term,) = made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchExpressions"][0] == expression
    assert term["matchExpressions"][1]["values"] == ["host-1", "n2"]
    assert made["spec"]["containers"][0]["resources"]["limits"][NAMES.memory_percent] == "200"


async def test_it_never_runs(scaling, clock):
    await waits(scaling)
    await sweep(scaling, clock, 31)
    scaling.put_node("n2", 64)
    await scaling.caught_up()
    (made,) = scale_pods(scaling)
    answer = await scaling.filter(made)
    assert answer["NodeNames"] == []
    assert set(answer["FailedAndUnresolvableNodes"].values()) == {"a scale pod asks for a new node, it runs on none"}
    assert scaling.waiting.get(made["metadata"]["uid"]) is None


@pytest.mark.parametrize("how", ["bound", "gone", "ended", "switched off", "bound itself"])
async def test_it_is_deleted_when_it_has_done_its_part(scaling, clock, how):
    cause = await waits(scaling)
    await sweep(scaling, clock, 31)
    assert len(scale_pods(scaling)) == 1
    if how == "bound":
        scaling.put_node("n2", 64)
        await scaling.caught_up()
        assert await scaling.schedule(cause) == "n2"
    elif how == "gone":
        scaling.server.remove("pods", "cause", "default")
    elif how == "ended":
        cause["status"]["phase"] = "Failed"
        scaling.server.put("pods", cause)
    elif how == "switched off":
        scaling.config = Config()
    else:
        (made,) = scale_pods(scaling)
        made["spec"]["nodeName"] = "n1"
        scaling.server.put("pods", made)
    await scaling.caught_up()
    await sweep(scaling)
    assert scale_pods(scaling) == []


async def test_a_restart_cleans_up(scaling, new_rig, clock):
    await waits(scaling)
    await sweep(scaling, clock, 31)
    scaling.server.remove("pods", "cause", "default")
    await scaling.caught_up()
    again = await new_rig(config=scaling.config)
    await sweep(again)
    assert scale_pods(scaling) == []


async def test_the_pace_and_the_number_are_bounded(scaling, clock):
    for number in range(4):
        await waits(scaling, f"cause-{number}", units=40)
    await sweep(scaling, clock, 31)
    await sweep(scaling)
    assert len(scale_pods(scaling)) == 1
    await sweep(scaling, clock, 10)
    assert len(scale_pods(scaling)) == 2
    await sweep(scaling, clock, 10)
    assert len(scale_pods(scaling)) == 2


async def test_who_leads_not_makes_and_deletes_none(scaling, clock):
    await waits(scaling)
    scaling.leads = False
    await sweep(scaling, clock, 31)
    assert scale_pods(scaling) == []


async def test_a_pod_for_whom_others_end_needs_no_node(scaling, clock):
    await waits(scaling, units=40, spec={"priority": 100})
    await scaling.preemptor.sweep()
    await clock.advance(31)
    await sweep(scaling)
    assert scale_pods(scaling) == []


@pytest.mark.parametrize("status", [403, 500])
async def test_what_can_not_be_made_is_tried_again_later(scaling, clock, status):
    scaling.server.faults.add(on("create", "pods", subresource=""), StatusError(status, "No", "no"))
    await waits(scaling)
    await sweep(scaling, clock, 31)
    await sweep(scaling)
    assert scale_pods(scaling) == []
    await sweep(scaling, clock, 31)
    assert len(scale_pods(scaling)) == 1


async def test_what_can_not_be_deleted_is_tried_again(scaling, clock):
    await waits(scaling)
    await sweep(scaling, clock, 31)
    scaling.server.remove("pods", "cause", "default")
    await scaling.caught_up()
    scaling.server.faults.add(on("delete", "pods"), StatusError(500, "No", "no"))
    await sweep(scaling)
    assert len(scale_pods(scaling)) == 1
    await sweep(scaling)
    assert scale_pods(scaling) == []


async def test_slices_and_instances_of_different_nodes_are_no_fragments(rig, clock):
    rig.config = Config(autoscaler=Autoscaler(enabled=True, after=0))
    rig.server.add_namespace(SPACE)
    rig.server.put("priorityclasses", {"metadata": {"name": "tessera-scale"}, "value": -10})
    rig.put_node("n1", 64, 64)
    rig.put_node("n2", 64, mig=("1g.10gb",))
    for number in range(2):
        await half(rig, f"half-{number}", "n1")
    containers = {"slice": {"units": 40}, "instance": {"mig": "1g.10gb"}}
    made = rig.put_pod("cause", containers=containers)
    await rig.caught_up()
    await rig.filter(made)
    await sweep(rig, clock, 1)
    assert scale_pods(rig) == [], "no node has both, not even in sum"


async def test_what_users_label_in_their_namespaces_is_none_of_ours(scaling, clock):
    """Neither deleted (such a pod may run), nor tried to be, nor counted among the few that there may be."""
    for number in range(3):
        scaling.put_pod(f"mine-{number}", labels={NAMES.scale_for: "uid-cause"}, phase="Running", node="n1")
    await waits(scaling)
    await sweep(scaling, clock, 31)
    assert sorted(each["metadata"]["namespace"] for each in scale_pods(scaling)) == ["default"] * 3 + [SPACE]
    assert not any(on("delete", "pods")(each.seen) for each in scaling.server.requests)
