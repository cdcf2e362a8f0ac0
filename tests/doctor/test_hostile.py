"""Objects that anybody may have written: no check fails on them, and nothing of them reaches a terminal as it is."""

import dataclasses
import json

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tessera.doctor import objects
from tessera.doctor.advice import Surroundings
from tessera.doctor.check import examine
from tessera.doctor.checks import CHECKS
from tessera.doctor.evidence import Look
from tessera.doctor.finding import Examination
from tessera.doctor.story import tell
from tessera.model.config import Config
from tessera.model.names import names
from tessera.report.plaintext import plain, plain_json

N = names()
LETTERS = st.characters(codec="utf-8")
TEXT = st.text(LETTERS, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NOTES = (N.inventory, N.drift, N.plan, N.request, N.gpu_models, N.gpu_uuids, N.gpu_topology, N.guarantee, "x/inventory")
ANNOTATIONS = st.dictionaries(st.sampled_from(NOTES) | TEXT, TEXT | JSON.map(json.dumps), max_size=4)
AMOUNT = st.integers(-5, 10**9) | st.sampled_from(["1", "-1", "8Gi", "1e9", "x", "", "1e99999", "0.5"])
RESOURCES = st.dictionaries(
    st.sampled_from((*N.tickets, *N.asks, N.mig("1g.5gb"), "tessera.dev/gpu-memory.1Gi", "nvidia.com/gpu", "cpu"))
    | TEXT,
    AMOUNT,
    max_size=4,
)
LABELS = st.dictionaries(TEXT, TEXT, max_size=2)
CONDITIONS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["Ready", "PodScheduled"]) | TEXT, "status": TEXT, "message": TEXT}),
    max_size=2,
)
META = {
    "name": TEXT,
    "namespace": TEXT,
    "uid": TEXT,
    "annotations": ANNOTATIONS,
    "labels": LABELS,
    "creationTimestamp": TEXT,
}
NODE = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(META),
        "status": st.fixed_dictionaries(
            {"allocatable": RESOURCES, "conditions": CONDITIONS,
             "nodeInfo": st.fixed_dictionaries({"containerRuntimeVersion": TEXT})}
        ),
    }
)  # fmt: skip
CONTAINER = st.fixed_dictionaries(
    {"name": TEXT, "image": TEXT, "command": st.lists(TEXT, max_size=2),
     "resources": st.fixed_dictionaries({"limits": RESOURCES, "requests": RESOURCES})}
)  # fmt: skip
POD = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(META | {"creationTimestamp": st.just("2020-01-01T00:00:00Z") | TEXT}),
        "spec": st.fixed_dictionaries(
            {"nodeName": st.sampled_from(["", "n1"]) | TEXT, "schedulerName": TEXT,
             "containers": st.lists(CONTAINER, max_size=2), "initContainers": st.lists(CONTAINER, max_size=1)}
        ),
        "status": st.fixed_dictionaries({"phase": TEXT, "reason": TEXT, "message": TEXT, "conditions": CONDITIONS}),
    }
)  # fmt: skip
EVENT = st.fixed_dictionaries(
    {"involvedObject": st.fixed_dictionaries({"kind": TEXT, "name": st.sampled_from(["n1"]) | TEXT}), "message": TEXT,
     "lastTimestamp": st.sampled_from(["2001-09-09T01:46:40Z", "9999-12-31T23:59:59Z", "2026-11-24T12:00:00Z"]) | TEXT}
)  # fmt: skip
OBJECT = st.fixed_dictionaries(
    {"metadata": st.fixed_dictionaries({"name": TEXT | st.just("tessera-x")}), "spec": st.dictionaries(
        st.sampled_from(["validations", "matchConstraints", "matchResources", "policyName", "validationActions"]), JSON)}
)  # fmt: skip
QUIET = settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=40, phases=(Phase.explicit, Phase.generate)
)


@QUIET
@given(nodes=st.lists(NODE, max_size=3), pods=st.lists(POD, max_size=3), policies=st.lists(OBJECT, max_size=2),
       scheduler=JSON.map(json.dumps) | TEXT, refusals=st.lists(EVENT, max_size=2))  # fmt: skip
def test_no_check_fails(healthy, *, nodes, pods, policies, scheduler, refusals):
    text = scheduler.replace("{", '{"kind": "KubeSchedulerConfiguration", ', 1)
    evidence = healthy(
        nodes=[*nodes, {"metadata": {"name": "n1", "annotations": {}}}],
        pods=pods,
        refusals=refusals,
        policies=lambda there: [*there, *policies],
        bindings=lambda there: [*there, *policies],
        config_maps=lambda there: [
            *there,
            {"metadata": {"name": "s", "namespace": "kube-system"}, "data": {"x": text}},
        ],
    )
    found = examine(CHECKS, evidence)
    assert [each.problem for each in found.checks if "a mistake of this check's" in each.problem] == []
    shown = plain_json(msgspec.json.encode(found).decode())
    assert plain_json(shown) == shown
    assert msgspec.json.decode(shown, type=Examination) == found


@QUIET
@given(
    pod=POD, nodes=st.lists(NODE, max_size=2), others=st.lists(POD, max_size=2), refusals=st.lists(EVENT, max_size=2)
)
def test_every_pod_has_a_story(pod, nodes, others, refusals):
    around = Surroundings(
        config=Config(),
        now=1e9,
        nodes=tuple(msgspec.convert(each, objects.LookedNode) for each in nodes),
        pods=tuple(msgspec.convert(each, objects.LookedPod) for each in others),
        events=(),
        refusals=tuple(msgspec.convert(each, objects.Event) for each in refusals),
        served=frozenset({"tessera-scheduler"}),
    )
    story = tell(msgspec.convert(pod, objects.LookedPod), around)
    assert story.next or story.node or story.state


@given(st.text(st.characters(), max_size=40))
def test_plain_text_holds_no_control(text):
    shown = plain(text)
    assert shown.isprintable()
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r", "\n", "\u202e", "\u2066"}
    assert plain(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n c", "a b c"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\x9b2J", "\\x9b2J"),
        ("日本 Ü", "日本 Ü"),
        ("x" * 3000, "x" * 339 + "…"),
        ("x " * 3000, "x " * 999 + "x…"),
    ],
)
def test_plain(text, shown):
    assert plain(text) == shown


def test_evidence_of_nothing_is_blind_and_no_more(healthy):
    evidence = healthy()
    nothing = {field: Look(problem="403") for field in ("nodes", "pods", "namespaces", "mutating", "validating", "policies",
               "bindings", "config_maps", "certificates", "endpoints", "runtime_classes", "quotas", "probe", "said")}  # fmt: skip
    found = examine(CHECKS, dataclasses.replace(evidence, **nothing))
    assert found.code() == 3
    assert found.errors == found.warnings == 0
