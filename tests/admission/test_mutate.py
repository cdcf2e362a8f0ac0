"""What admission makes of a pod: the contract's tables line by line, what it refuses and with which words, what it adds."""

import copy
import json

import pytest

from tessera.model.config import Config, parse
from tessera.model.errors import RequestError
from webhook.admission.mutate import LONGEST_AUDIT, LONGEST_WARNING

T = "tessera.dev/"
UNITS, PERCENT, COMPUTE = T + "gpu-memory.256Mi", T + "gpu-memory.percent", T + "gpu-compute.percent"
GI = 1 << 30


def pod(*containers, annotations=None, init=(), **spec):
    """A pod; containers are (name, limits) or whole objects."""
    metadata = {"name": "p"} | ({} if annotations is None else {"annotations": annotations})
    built = [each if isinstance(each, dict) else _container(*each) for each in containers]
    inits = [each if isinstance(each, dict) else _container(*each) for each in init]
    return {"metadata": metadata, "spec": {"containers": built, **({"initContainers": inits} if inits else {}), **spec}}


def _container(name, limits, **more):
    return {"name": name, "image": "x", "resources": {"limits": limits}, **more}


def limits(found, at=0, which="containers"):
    return found["spec"][which][at]["resources"]["limits"]


def request(found):
    return json.loads(found["metadata"]["annotations"][T + "request"])


# Contract, section 2: what the user asks, and the tickets it becomes.

TABLE = [
    ({"gpu-memory": "8Gi"}, {UNITS: "32"}, {"gpus": 1, "memory": 8 * GI}),
    (
        {"gpu-memory": "8Gi", "gpu-compute": 30},
        {UNITS: "32", COMPUTE: "30"},
        {"gpus": 1, "memory": 8 * GI, "compute": 30},
    ),
    (
        {"gpu": 2, "gpu-memory": "8Gi", "gpu-compute": 30},
        {UNITS: "64", COMPUTE: "60"},
        {"gpus": 2, "memory": 8 * GI, "compute": 30},
    ),
    ({"gpu-memory-percent": 50}, {PERCENT: "50"}, {"gpus": 1, "memoryPercent": 50}),
    (
        {"gpu-memory-percent": 50, "gpu-compute": 30},
        {PERCENT: "50", COMPUTE: "30"},
        {"gpus": 1, "memoryPercent": 50, "compute": 30},
    ),
    ({"gpu-compute": 50}, {PERCENT: "50", COMPUTE: "50"}, {"gpus": 1, "memoryPercent": 50, "compute": 50}),
    ({"gpu": 2}, {PERCENT: "200", COMPUTE: "200"}, {"gpus": 2, "whole": True}),
    # Section 1: the rules beside the table.
    ({"gpu": 2, "gpu-compute": 50}, {PERCENT: "100", COMPUTE: "100"}, {"gpus": 2, "memoryPercent": 50, "compute": 50}),
    ({"gpu-compute": 100}, {PERCENT: "100", COMPUTE: "100"}, {"gpus": 1, "whole": True}),
    ({"gpu": 1}, {PERCENT: "100", COMPUTE: "100"}, {"gpus": 1, "whole": True}),
    (
        {"gpu-memory-percent": 100, "gpu-compute": 100},
        {PERCENT: "100", COMPUTE: "100"},
        {"gpus": 1, "whole": True},
    ),
    ({"gpu-memory-percent": 100}, {PERCENT: "100"}, {"gpus": 1, "memoryPercent": 100}),
    ({"gpu": 3, "gpu-memory-percent": 20}, {PERCENT: "60"}, {"gpus": 3, "memoryPercent": 20}),
    # A quantity is what the API server takes; bytes are rounded up to units.
    ({"gpu-memory": "8192Mi"}, {UNITS: "32"}, {"gpus": 1, "memory": 8 * GI}),
    ({"gpu-memory": str(8 * GI)}, {UNITS: "32"}, {"gpus": 1, "memory": 8 * GI}),
    ({"gpu-memory": 8 * GI}, {UNITS: "32"}, {"gpus": 1, "memory": 8 * GI}),
    ({"gpu-memory": "8G"}, {UNITS: "30"}, {"gpus": 1, "memory": 8 * 10**9}),
    ({"gpu-memory": "1e3"}, {UNITS: "1"}, {"gpus": 1, "memory": 1000}),
    ({"gpu-memory": "0.5Gi"}, {UNITS: "2"}, {"gpus": 1, "memory": GI // 2}),
    ({"gpu-memory": "257Mi"}, {UNITS: "2"}, {"gpus": 1, "memory": 257 << 20}),
    (
        {"gpu": "2", "gpu-compute": "50"},
        {PERCENT: "100", COMPUTE: "100"},
        {"gpus": 2, "memoryPercent": 50, "compute": 50},
    ),
    ({"gpu": "1e0"}, {PERCENT: "100", COMPUTE: "100"}, {"gpus": 1, "whole": True}),
    # 0 is not asked.
    ({"gpu": 0, "gpu-memory": "1Gi", "gpu-compute": "0"}, {UNITS: "4"}, {"gpus": 1, "memory": GI}),
]


@pytest.mark.parametrize(("asked", "tickets", "meant"), TABLE)
def test_limits_become_tickets(admit, asked, tickets, meant):
    found, outcome = admit(pod(("main", {T + key: value for key, value in asked.items()} | {"cpu": "2"})))
    assert limits(found) == tickets | {"cpu": "2"}
    assert found["spec"]["containers"][0]["resources"]["requests"] == tickets
    assert request(found) == {"v": 1, "dialect": "tessera", "containers": {"main": meant}}
    assert outcome.warnings == ()


@pytest.mark.parametrize(("asked", "tickets", "meant"), TABLE)
def test_annotations_of_the_same_names_ask_the_same(admit, asked, tickets, meant):
    annotations = {T + key: str(value) for key, value in asked.items()}
    found, _ = admit(pod(("main", {"cpu": "2"}), ("other", {}), annotations=annotations))
    assert limits(found) == tickets | {"cpu": "2"}
    assert limits(found, 1) == {}
    assert request(found)["containers"] == {"main": meant}
    assert annotations.items() <= found["metadata"]["annotations"].items()


@pytest.mark.parametrize(("asked", "tickets", "meant"), TABLE)
def test_requests_alone_ask_too(admit, asked, tickets, meant):
    container = {"name": "main", "resources": {"requests": {T + key: value for key, value in asked.items()}}}
    found, _ = admit(pod(container))
    assert found["spec"]["containers"][0]["resources"] == {"requests": tickets, "limits": tickets}
    assert request(found)["containers"] == {"main": meant}


def test_the_request_annotation_is_compact_sorted_json(admit):
    found, _ = admit(pod(("main", {T + "gpu-memory": "8Gi", T + "gpu-compute": 30})))
    assert found["metadata"]["annotations"][T + "request"] == (
        '{"containers":{"main":{"compute":30,"gpus":1,"memory":8589934592}},"dialect":"tessera","v":1}'
    )


def test_limits_win_over_requests_and_over_annotations(admit):
    container = {
        "name": "main",
        "resources": {"limits": {T + "gpu-memory": "8Gi"}, "requests": {T + "gpu-memory": "1Gi", T + "gpu": "0"}},
    }
    found, _ = admit(pod(container, annotations={T + "gpu-memory-percent": "50"}))
    assert found["spec"]["containers"][0]["resources"] == {"limits": {UNITS: "32"}, "requests": {UNITS: "32"}}


def test_an_annotation_names_its_container(admit):
    annotations = {T + "container": "b", T + "gpu-memory": "1Gi"}
    found, _ = admit(pod(("a", {}), ("b", {}), annotations=annotations))
    assert (limits(found, 0), limits(found, 1)) == ({}, {UNITS: "4"})
    found, _ = admit(pod(("a", {}), init=[("b", {})], annotations=annotations))
    assert limits(found, 0, "initContainers") == {UNITS: "4"}
    assert request(found)["containers"] == {"b": {"gpus": 1, "memory": GI, "init": True}}
    found, _ = admit(pod(("a", {}), init=[("i", {})], annotations={T + "gpu": "1"}))
    assert list(request(found)["containers"]) == ["a"], "the first that is no init container"


def test_several_containers_sidecars_and_init_containers(admit):
    sidecar = _container("sidecar", {T + "gpu-memory": "1Gi"}, restartPolicy="Always")
    found, _ = admit(
        pod(
            ("a", {T + "gpu-compute": 20}),
            ("b", {T + "gpu-memory": "2Gi"}),
            init=[("i", {T + "gpu-memory": "3Gi"}), sidecar],
        )
    )
    assert request(found)["containers"] == {
        "i": {"gpus": 1, "memory": 3 * GI, "init": True},
        "sidecar": {"gpus": 1, "memory": GI},
        "a": {"gpus": 1, "memoryPercent": 20, "compute": 20},
        "b": {"gpus": 1, "memory": 2 * GI},
    }


@pytest.mark.parametrize(
    "given",
    [
        pod(("main", {"cpu": "1"})),
        pod(("main", {T + "gpu": 0, T + "gpu-memory": "0Gi"})),
        pod(("main", {}), annotations={T + "gpu-memory": "0"}),
        pod({"name": "main"}),
        pod({"name": "main", "resources": None}, annotations=None),
        pod(("main", {"nvidia.com/gpu": 1})),
        pod(("main", {"nvidia.com/mig-1g.10gb": 1})),
        pod(("main", {T + "gpu": 1}), annotations={"kubernetes.io/config.mirror": "abc"}),
        {"metadata": {}, "spec": {"containers": []}},
        {"metadata": {"annotations": None, "labels": None}, "spec": {"containers": None}},
    ],
    ids=str,
)
def test_what_asks_nothing_of_ours_is_left_untouched(admit, given):
    found, outcome = admit(given)
    assert (found, outcome.operations, outcome.warnings, outcome.request) == (given, (), (), None)


# Contract, section 1: what is refused, with the container, the value and the fix.

BOTH = {T + "gpu-memory": "8Gi", T + "gpu-memory-percent": 50}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pod(("a", {}), ("b", BOTH)), ['container "b"', "8Gi", "50", "keep one"]),
        (pod(("a", {T + "gpu": "-1"})), ['container "a"', "gpu: -1", "positive"]),
        (pod(("a", {T + "gpu-memory": "-8Gi"})), ['container "a"', "-8Gi", "positive"]),
        (pod(("a", {T + "gpu": "0.5"})), ['container "a"', "gpu: 0.5", "whole GPUs", T + "gpu-compute"]),
        (pod(("a", {T + "gpu": "500m"})), ['container "a"', "0.5", "whole GPUs"]),
        (pod(("a", {T + "gpu-compute": "12.5"})), ['container "a"', "12.5", "whole percent"]),
        (pod(("a", {T + "gpu-compute": 101})), ['container "a"', "101", "1 to 100"]),
        (pod(("a", {T + "gpu-memory-percent": 150})), ['container "a"', "150", "1 to 100"]),
        (pod(("a", {T + "gpu-memory": "0.3"})), ['container "a"', "0.3 bytes", "fraction"]),
        (pod(("a", {T + "gpu-memory": "8gb"})), ['container "a"', "'8gb'", "8Gi"]),
        (pod(("a", {T + "gpu-memory": "8 Gi"})), ['container "a"', "'8 Gi'", "8Gi"]),
        (pod(("a", {T + "gpu-memory": "NaN"})), ['container "a"', "'NaN'"]),
        (pod(("a", {T + "gpu-memory": "9" * 30})), ['container "a"', "larger"]),
        (pod(("a", {T + "gpu": 65})), ['container "a"', "65", "at most 64"]),
        (
            pod(("a", {}), annotations={T + "container": "z", T + "gpu": "1"}),
            [T + "container", '"z"', "name one that is there (a)"],
        ),
        (pod(("a", {}), annotations={T + "container": "z"}), ['"z"', "(a)"]),
        (pod(("a", {}), annotations={T + "gpu-compute": "101"}), ['container "a"', "101", "1 to 100"]),
        (pod(("a", {}), annotations={T + "gpu": "many"}), [T + "gpu", "'many'"]),
        (
            pod(("a", {T + "gpu-memory": "8Gi", "aliyun.com/gpu-mem": 4})),
            ['container "a"', "8Gi", "4Gi", "tessera", "aliyun", "keep one"],
        ),
        (
            pod(("a", {T + "gpu-compute": 50, "nvidia.com/gpu": 1, "nvidia.com/gpucores": 30})),
            ['container "a"', "50 %", "30 %", "hami", "keep one"],
        ),
        (pod(("a", {T + "gpu": 2}), init=[("i", {T + "gpu": 1})]), ['container "a"', "2 GPUs", '"i"', "sidecar"]),
        (pod(("a", {UNITS: 1, PERCENT: 1})), ['container "a"', "keep one"]),
        (pod(("a", {UNITS: "1.5"})), ['container "a"', UNITS, "whole numbers"]),
        (pod(("a", {UNITS: "-1"})), ['container "a"', UNITS, "negative"]),
        (pod(("a", {T + "gpu": 1}), annotations={T + "gpu-topology": "ring"}), [T + "gpu-topology", "'ring'", "nvlink, numa, any"]),
        (pod(("a", {T + "gpu": 1}), annotations={T + "gpu-placement": "far"}), [T + "gpu-placement", "'far'", "pack, spread"]),
        (pod(("a", {T + "gpu": 1}), annotations={T + "guarantee": "iron"}), [T + "guarantee", "'iron'", "kernel"]),
        (pod(("a", {T + "gpu": 1}), annotations={T + "placement-profile": "far"}), ["profile", '"far"', "remove the annotation"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_is_refused_with_container_value_and_fix(admit, given, words):
    with pytest.raises(RequestError) as refused:
        admit(given)
    assert not [word for word in words if word not in str(refused.value)], str(refused.value)


def test_two_dialects_that_agree_are_one_request(admit):
    found, _ = admit(pod(("a", {T + "gpu-memory": "4Gi", "aliyun.com/gpu-mem": 4, "cpu": 1})))
    assert limits(found) == {UNITS: "16", "cpu": 1}
    assert request(found) == {"v": 1, "dialect": "tessera", "containers": {"a": {"gpus": 1, "memory": 4 * GI}}}


def test_containers_may_speak_different_dialects(admit):
    found, _ = admit(pod(("a", {"aliyun.com/gpu-mem": 4}), ("b", {"nvidia.com/gpu": 1, "nvidia.com/gpumem": 100})))
    assert request(found) == {
        "v": 1,
        "dialect": "aliyun",
        "containers": {"a": {"gpus": 1, "memory": 4 * GI}, "b": {"gpus": 1, "memory": 100 << 20, "dialect": "hami"}},
    }


# What else is done to a pod that asks.


@pytest.mark.parametrize(
    ("there", "asked", "wanted"),
    [
        (None, {T + "gpu": 1}, "tessera-scheduler"),
        ("", {T + "gpu": 1}, "tessera-scheduler"),
        ("default-scheduler", {T + "gpu": 1}, "tessera-scheduler"),
        ("tessera-scheduler", {T + "gpu": 1}, "tessera-scheduler"),
        ("mine", {T + "gpu": 1}, "mine"),
        ("gpushare-scheduler", {"aliyun.com/gpu-mem": 1}, "tessera-scheduler"),
        ("hami-scheduler", {"nvidia.com/gpu": 1}, "tessera-scheduler"),
        ("hami-scheduler", {"cpu": 1}, "hami-scheduler"),
    ],
)
def test_the_scheduler(admit, there, asked, wanted):
    given = pod(("a", asked)) if there is None else pod(("a", asked), schedulerName=there)
    found, outcome = admit(given)
    assert found["spec"]["schedulerName"] == wanted
    replaced = there not in (None, "", "default-scheduler", wanted)
    assert any(there in warning for warning in outcome.warnings) if replaced else outcome.warnings == ()


def test_the_scheduler_may_be_left_alone_by_config(admit):
    config = parse('schedulerName: ""\nreplaceSchedulers: [hami-scheduler]')
    found, _ = admit(pod(("a", {T + "gpu": 1})), config)
    assert "schedulerName" not in found["spec"]
    found, _ = admit(pod(("a", {"nvidia.com/gpu": 1}), schedulerName="hami-scheduler"), config)
    assert found["spec"]["schedulerName"] == "default-scheduler"
    found, _ = admit(pod(("a", {"aliyun.com/gpu-mem": 1}), schedulerName="other"), config)
    assert found["spec"]["schedulerName"] == "other"


def test_the_runtime_class(admit):
    config = parse("runtimeClassName: nvidia")
    found, _ = admit(pod(("a", {T + "gpu": 1})), config)
    assert found["spec"]["runtimeClassName"] == "nvidia"
    found, _ = admit(pod(("a", {T + "gpu": 1}), runtimeClassName="mine"), config)
    assert found["spec"]["runtimeClassName"] == "mine"
    found, _ = admit(pod(("a", {"cpu": 1})), config)
    assert "runtimeClassName" not in found["spec"]


def test_selectors_of_the_other_system_are_taken_away_with_a_warning(admit):
    selector = {"gpushare": "true", "disk": "ssd"}
    found, outcome = admit(pod(("a", {"aliyun.com/gpu-mem": 1}), nodeSelector=selector))
    assert found["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert any("gpushare" in warning for warning in outcome.warnings)
    found, _ = admit(pod(("a", {T + "gpu": 1}), nodeSelector=selector))
    assert found["spec"]["nodeSelector"] == selector


def test_translated_wishes_do_not_override_the_pods_own(admit):
    foreign = {"nvidia.com/use-gputype": "A100,V100", "nvidia.com/nouse-gputype": "T4"}
    found, _ = admit(pod(("a", {"nvidia.com/gpu": 1}), annotations=foreign))
    assert found["metadata"]["annotations"][T + "gpu-models"] == "A100,V100,-T4"
    found, _ = admit(pod(("a", {"nvidia.com/gpu": 1}), annotations=foreign | {T + "gpu-models": "H100"}))
    assert found["metadata"]["annotations"][T + "gpu-models"] == "H100"
    with pytest.raises(RequestError, match="gpu-models"):
        admit(pod(("a", {"nvidia.com/gpu": 1}), annotations={"nvidia.com/use-gputype": ",".join("a" * 100)}))


def test_a_pod_that_names_its_node_is_told_what_that_means(admit):
    _, outcome = admit(pod(("a", {T + "gpu": 1}), nodeName="n1"))
    assert any("nodeName" in warning for warning in outcome.warnings)


def test_virtual_nodes_keep_their_whole_cards_and_can_not_have_slices(admit):
    virtual = pod(("a", {"nvidia.com/gpu": 1, "nvidia.com/gpucores": 30}))
    virtual["metadata"]["labels"] = {"alibabacloud.com/eci": "true"}
    assert admit(virtual)[0] == virtual
    virtual["spec"]["containers"][0] = _container("a", {T + "gpu": 1})
    with pytest.raises(RequestError, match="virtual node") as refused:
        admit(virtual)
    assert refused.value.container == "a"


def test_a_profile_is_applied_to_pods_that_ask_and_to_those_that_name_it(admit):
    config = parse("profiles: [{name: hybrid, units: [{name: idc, nodeSelector: {site: idc}}, {name: cloud}]}]")
    found, outcome = admit(pod(("a", {T + "gpu": 1})), config)
    assert found["metadata"]["annotations"][T + "placement-profile"] == "hybrid"
    assert outcome.audit["profile"] == "hybrid"
    found, _ = admit(pod(("a", {"cpu": 1})), config)
    assert found == pod(("a", {"cpu": 1}))
    found, outcome = admit(pod(("a", {"cpu": 1}), annotations={T + "placement-profile": "hybrid"}), config)
    assert "affinity" in found["spec"]
    assert outcome.request is None
    assert "schedulerName" not in found["spec"]


def test_dialects_may_be_off(admit):
    config = parse("dialects: {hami: false, tessera: false}", dialects=_options())
    for asked in ({T + "gpu": 1}, {"nvidia.com/gpucores": 10}):
        found, outcome = admit(pod(("a", asked)), config)
        assert (limits(found), outcome.request) == (asked, None)


def _options():
    from tessera.dialects.registry import OPTIONS

    return OPTIONS


def test_the_domain_and_the_unit_are_the_configs(admit):
    config = parse("domain: gpu.example.com\nmemoryUnit: 1Gi")
    found, _ = admit(pod(("a", {"gpu.example.com/gpu-memory": "1500Mi", T + "gpu": 1})), config)
    assert limits(found) == {"gpu.example.com/gpu-memory.1Gi": "2", T + "gpu": 1}
    assert list(found["metadata"]["annotations"]) == ["gpu.example.com/request"]


def test_the_audit_says_what_was_understood(admit):
    _, outcome = admit(pod(("a", {T + "gpu-memory": "8Gi"}), ("b", {"nvidia.com/gpu": 2, "nvidia.com/gpucores": 30})))
    assert outcome.audit == {
        "request": "a: 1 GPU, 8Gi of memory (tessera); b: 2 GPUs, each 100 % of memory and 30 % of compute (hami)"
    }


def test_warnings_are_as_short_as_clients_show_them(admit):
    labels = {T + "unit": "x", T + "region": "y"}
    given = pod(("a", {"aliyun.com/gpu-mem": 1}), schedulerName="s" * 200, annotations={T + "plan": "{}"})
    given["metadata"]["labels"] = labels
    _, outcome = admit(given)
    assert len(outcome.warnings) >= 2
    assert max(map(len, outcome.warnings)) <= LONGEST_WARNING


def test_the_pod_is_not_written_to(admit):
    given = pod(("a", {T + "gpu": 1}), annotations={T + "plan": "{}"})
    before = copy.deepcopy(given)
    admit(given, Config())
    assert given == before


def test_every_change_is_in_the_audit_log(admit):
    given = pod(
        {"name": "main", "resources": {"limits": {"aliyun.com/gpu-mem": 4}}},
        annotations={T + "plan": "{}"},
        schedulerName="volcano",
        nodeSelector={"gpushare": "true"},
    )
    _, outcome = admit(given)
    assert outcome.audit["request"] == "main: 1 GPU, 4Gi of memory (aliyun)"
    assert outcome.audit["stripped"] == T + "plan"
    assert all(word in outcome.audit["replaced"] for word in ("schedulerName volcano", "nodeSelector gpushare"))
    _, outcome = admit(pod({"name": "main", "resources": {"limits": {"nvidia.com/gpu": 0, "nvidia.com/gpumem": 3}}}))
    assert outcome.audit == {"removed": "main: nvidia.com/gpu, nvidia.com/gpumem"}


def test_the_audit_log_is_not_filled_by_one_pod(admit):
    many = [{"name": f"c{at}", "resources": {"limits": {T + "gpu-memory": "1Gi"}}} for at in range(500)]
    _, outcome = admit(pod(*many))
    assert all(len(text) <= LONGEST_AUDIT for text in outcome.audit.values())
