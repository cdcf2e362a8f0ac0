"""Filter: one node, by preferences first and placement then, or a reason for every name."""

from __future__ import annotations

import pytest

from tessera.model.config import Config, Placement
from tessera.model.names import names

NAMES = names()


async def test_one_node_is_named(rig, pod):
    rig.put_node("n1", 64, 64)
    rig.put_node("n2", 64, 64)
    await rig.caught_up()
    answer = await rig.filter(pod("p", units=32))
    assert answer == {
        "NodeNames": ["n1"],
        "Nodes": None,
        "FailedNodes": {},
        "FailedAndUnresolvableNodes": {},
        "Error": "",
    }


async def test_a_node_whose_kubelet_has_not_written_its_status_yet_is_offered(rig, pod, inventory):
    rig.put_node("new", inventory=inventory(64, first=1), allocatable={})
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=32), "new"))["NodeNames"] == ["new"]


async def test_every_name_has_its_reason_where_none_fits(rig, pod, inventory):
    rig.put_node("small", 16)
    rig.put_node("none")
    rig.put_node("away", inventory=inventory(64, first=1), allocatable=dict.fromkeys(NAMES.tickets, "0"))
    rig.put_node("unready", 64, ready=False)
    rig.put_node("draining", inventory=inventory(64, first=2, state="draining"), allocatable={NAMES.memory_units: "64"})
    rig.put_node("cordoned", 64, spec={"unschedulable": True})
    rig.put_node("broken", inventory="{", allocatable={NAMES.memory_units: "64"})
    rig.put_node("other-unit", inventory=inventory(64, first=3, unit=512 << 20), allocatable={NAMES.memory_units: "64"})
    rig.put_node("silent", allocatable={NAMES.compute_percent: "100"})
    rig.put_node("full", 64, held=44)
    rig.put_node("sick", 64, health="sick")
    await rig.caught_up()
    answer = await rig.filter(
        pod("p", units=32),
        *("small", "none", "away", "unready", "draining", "cordoned", "broken", "other-unit", "silent", "full", "sick"),
        *("nowhere", "full"),
    )
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"] == {
        "away": "node's agent does not serve GPUs now",
        "unready": "node is not ready",
        "draining": "node's agent is draining",
        "cordoned": "node is cordoned",
        "broken": "node's GPU inventory can't be read",
        "silent": "node's GPU inventory can't be read",
        "full": "needs 32 units (8 GiB), best GPU has 20 (5 GiB)",
        "sick": "needs 1 healthy GPU, node has 0",
        "nowhere": "node is not known to the extender yet",
    }
    assert answer["FailedAndUnresolvableNodes"] == {
        "small": "needs 32 units (8 GiB), largest GPU has 16 (4 GiB)",
        "none": "no GPU",
        "other-unit": "node counts GPU memory in units of another size",
    }


async def test_many_amounts_are_one_reason_so_that_the_event_holds_them_all(rig, pod):
    """kube-scheduler adds equal texts up and cuts the sum at 1024 characters."""
    for number in range(40):
        rig.put_node(f"n{number}", 64, held=20 + number)
    rig.put_node("small", 16)
    await rig.caught_up()
    answer = await rig.filter(pod("p", units=50), "small", *(f"n{number}" for number in range(40)))
    assert set(answer["FailedNodes"].values()) == {"needs 50 units (12.5 GiB), best GPU has 44 (11 GiB) or less"}
    assert answer["FailedAndUnresolvableNodes"] == {"small": "needs 50 units (12.5 GiB), largest GPU has 16 (4 GiB)"}
    answer = await rig.filter(pod("q", units=50), "n0", "n1", "n2")
    assert set(answer["FailedNodes"].values()) == {
        f"needs 50 units (12.5 GiB), best GPU has {units} ({size} GiB)"
        for units, size in ((44, "11"), (43, "10.75"), (42, "10.5"))
    }


async def test_a_pod_that_asks_nothing_passes_all_nodes_unchanged(rig, pod):
    rig.put_node("n1")
    await rig.caught_up()
    answer = await rig.filter(pod("p"), "n1", "anything", "n1")
    assert answer["NodeNames"] == ["n1", "anything", "n1"]


async def test_no_names_give_no_name(rig, pod):
    answer = await rig.post("/filter", {"Pod": pod("p", units=1), "NodeNames": []})
    assert answer["NodeNames"] == []


async def test_whole_nodes_are_answered_by_whole_nodes(rig, pod, node):
    rig.put_node("n1", 64)
    rig.put_node("n2", 8)
    await rig.caught_up()
    items = [node("n1", 64, labels={"kept": "as it came"}), node("n2", 8)]
    answer = await rig.post("/filter", {"Pod": pod("p", units=16), "Nodes": {"items": items}})
    assert answer["Nodes"] == {"items": [items[0]]}
    assert answer.get("NodeNames") is None
    answer = await rig.post("/filter", {"Pod": pod("p", units=99), "Nodes": {"items": items}})
    assert answer["Nodes"] == {"items": []}
    assert set(answer["FailedAndUnresolvableNodes"]) == {"n1", "n2"}
    answer = await rig.post("/filter", {"Pod": pod("p"), "Nodes": {"items": items}})
    assert answer["Nodes"] == {"items": items}


@pytest.mark.parametrize(("policy", "expected"), [("pack", "n2"), ("spread", "n3")])
async def test_the_policy_chooses(rig, pod, policy, expected):
    for name, held in (("n1", 10), ("n2", 30), ("n3", 0)):
        rig.put_node(name, 64, held=held)
    await rig.caught_up()
    wish = {NAMES.gpu_placement: policy}
    assert (await rig.filter(pod("p", units=16, annotations=wish)))["NodeNames"] == [expected]


async def test_the_config_gives_the_policy_of_pods_that_wish_none(new_rig, pod):
    rig = await new_rig(config=Config(placement=Placement(policy="spread")))
    rig.put_node("n1", 64, held=10)
    rig.put_node("n2", 64)
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=16)))["NodeNames"] == ["n2"]


def preferring(*terms):
    return {
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": weight, "preference": {"matchExpressions": [expression]}} for weight, expression in terms
                ]
            }
        }
    }


async def test_preferred_affinity_comes_before_placement(rig, pod):
    rig.put_node("n1", 64, held=60, labels={"site": "cloud"})
    rig.put_node("n2", 64, labels={"site": "idc"})
    rig.put_node("n3", 64, labels={"site": "idc", "disk": "ssd", "gen": "3"})
    await rig.caught_up()
    idc = (100, {"key": "site", "operator": "In", "values": ["idc"]})
    assert (await rig.filter(pod("p", units=4)))["NodeNames"] == ["n1"]
    assert (await rig.filter(pod("p", units=4, spec=preferring(idc))))["NodeNames"] == ["n2"]
    both = preferring(idc, (10, {"key": "gen", "operator": "Gt", "values": ["2"]}))
    assert (await rig.filter(pod("p", units=4, spec=both)))["NodeNames"] == ["n3"]
    large = preferring((1, {"key": "site", "operator": "NotIn", "values": ["idc"]}), idc)
    assert (await rig.filter(pod("p", units=40, spec=large)))["NodeNames"] == ["n2"]


async def test_what_does_not_fit_is_no_preference(rig, pod):
    rig.put_node("n1", 8, labels={"site": "idc"})
    rig.put_node("n2", 64, labels={"site": "cloud"})
    await rig.caught_up()
    spec = preferring((100, {"key": "site", "operator": "In", "values": ["idc"]}))
    assert (await rig.filter(pod("p", units=32, spec=spec)))["NodeNames"] == ["n2"]


async def test_prefer_no_schedule_comes_before_placement(rig, pod):
    taint = {"key": "spot", "value": "true", "effect": "PreferNoSchedule"}
    rig.put_node("n1", 64, held=30, spec={"taints": [taint]})
    rig.put_node("n2", 64)
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=4)))["NodeNames"] == ["n2"]
    tolerating = {"tolerations": [{"key": "spot", "operator": "Exists"}]}
    assert (await rig.filter(pod("p", units=4, spec=tolerating)))["NodeNames"] == ["n1"]


async def test_labels_that_change_count_at_once(rig, pod):
    spec = preferring((100, {"key": "site", "operator": "In", "values": ["idc"]}))
    rig.put_node("n1", 64, first=1)
    rig.put_node("n2", 64, first=9, labels={"site": "idc"})
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=4, spec=spec)))["NodeNames"] == ["n2"]
    rig.put_node("n2", 64, first=9)
    rig.put_node("n1", 64, first=1, labels={"site": "idc"})
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=4, spec=spec)))["NodeNames"] == ["n1"]


async def test_a_cordoned_node_takes_who_tolerates_it(rig, pod):
    rig.put_node("n1", 64, spec={"unschedulable": True})
    await rig.caught_up()
    tolerating = {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}
    assert (await rig.filter(pod("p", units=4, spec=tolerating)))["NodeNames"] == ["n1"]


async def test_what_was_just_named_is_avoided_but_refused_to_nobody(rig, pod, clock):
    rig.put_node("n1", 64)
    rig.put_node("n2", 64)
    await rig.caught_up()
    named = [(await rig.filter(pod(f"p{n}", units=40)))["NodeNames"] for n in range(3)]
    assert named == [["n1"], ["n2"], ["n1"]]
    assert (await rig.filter(pod("p0", units=40)))["NodeNames"] == ["n1"], "its own name is no obstacle"
    await clock.advance(10)
    assert (await rig.filter(pod("p4", units=40)))["NodeNames"] == ["n1"]


async def test_several_containers_go_where_all_fit(rig, pod):
    rig.put_node("n1", 40, 20)
    rig.put_node("n2", 64, 64)
    await rig.caught_up()
    both = {"a": {"units": 30}, "b": {"units": 25}}
    assert (await rig.filter(pod("p", containers=both)))["NodeNames"] == ["n2"]
    answer = await rig.filter(pod("q", containers=both), "n1")
    assert answer["FailedNodes"] == {"n1": "its slices fit one by one, but not all at once"}


async def test_a_hard_pod_on_many_nodes_is_refused_on_all(rig, pod):
    for n in range(20):
        rig.put_node(f"n{n:02}", 40, 20)
    await rig.caught_up()
    answer = await rig.filter(pod("p", containers={"a": {"units": 30}, "b": {"units": 25}}))
    assert len(answer["FailedNodes"]) == 20


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"annotations": {NAMES.gpu_topology: "ring"}, "units": 1}, "write one of nvlink, numa, any"),
        (
            {"containers": {"i": {"units": 1}, "m": {"units": 1, "gpus": 2}}, "init": ("i",)},
            "make the init container a sidecar",
        ),
    ],
)
async def test_a_pod_that_can_not_be_meant_is_refused_everywhere_with_the_fix(rig, pod, asked, text):
    rig.put_node("n1", 64, 64)
    await rig.caught_up()
    answer = await rig.filter(pod("p", **asked), "n1", "n2")
    assert answer["NodeNames"] == []
    assert all(text in reason for reason in answer["FailedAndUnresolvableNodes"].values())
    assert set(answer["FailedAndUnresolvableNodes"]) == {"n1", "n2"}


async def test_all_nodes_and_their_scores_for_who_wants_them(new_rig, pod):
    rig = await new_rig(config=Config(placement=Placement(answer="all", policy="pack")))
    for name, held in (("n1", 10), ("n2", 30), ("n3", 60)):
        rig.put_node(name, 64, held=held)
    rig.put_node("n4", 40, 20)
    await rig.caught_up()
    answer = await rig.filter(pod("p", units=16))
    assert answer["NodeNames"] == ["n1", "n2", "n4"]
    assert set(answer["FailedNodes"]) == {"n3"}
    scores = await rig.post("/prioritize", {"Pod": pod("p", units=16), "NodeNames": ["n1", "n2", "n3", "x", "n4"]})
    scored = {each["Host"]: each["Score"] for each in scores}
    assert scored == {"n1": 0, "n2": 5, "n3": 0, "x": 0, "n4": 10}
    answer = await rig.filter(pod("q", containers={"a": {"units": 30}, "b": {"units": 25}}))
    assert answer["NodeNames"] == []
    assert answer["FailedNodes"]["n4"] == "its slices fit one by one, but not all at once"


async def test_nodes_that_come_later_are_looked_up_again(rig, pod):
    assert (await rig.filter(pod("p", units=4), "n1"))["FailedNodes"] == {"n1": "node is not known to the extender yet"}
    rig.put_node("n1", 64)
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=4), "n1"))["NodeNames"] == ["n1"]
    rig.server.remove("nodes", "n1")
    await rig.caught_up()
    assert (await rig.filter(pod("p", units=4), "n1"))["FailedNodes"] == {"n1": "node is not known to the extender yet"}


async def test_a_mig_instance_is_named_once_while_there_are_others(rig, pod):
    rig.put_node("n1", 64, mig=("1g.10gb",), allocatable={NAMES.mig("1g.10gb"): "1"})
    rig.put_node("n2", 64, mig=("1g.10gb",), allocatable={NAMES.mig("1g.10gb"): "1"})
    await rig.caught_up()
    named = [(await rig.filter(pod(f"p{n}", mig="1g.10gb")))["NodeNames"] for n in range(3)]
    assert named == [["n1"], ["n2"], ["n1"]]


async def test_results_and_reasons_are_counted(rig, pod):
    rig.put_node("n1", 8)
    await rig.caught_up()
    await rig.filter(pod("p", units=4))
    await rig.filter(pod("q", units=9))
    await rig.filter(pod("r"))
    value = rig.registry.get_sample_value
    for result in ("named", "refused", "passed"):
        assert value("tessera_extender_filters_total", {"result": result}) == 1
    assert value("tessera_extender_node_rejections_total", {"reason": "gpus_too_small"}) == 1
