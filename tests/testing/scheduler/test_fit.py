"""The fake scheduler's filters say yes and no where kube-scheduler's would."""

from fractions import Fraction

import msgspec
import pytest

from tessera.model.node import Node
from tessera.model.pod import Manifest
from tessera.testing.scheduler.fit import preference, requests, why_not

NONE = frozenset()


def _node(labels=None, taints=None, allocatable=None, **spec):
    return msgspec.convert(
        {
            "metadata": {"name": "n1", "labels": labels or {}},
            "spec": {"taints": taints or []} | spec,
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"} | (allocatable or {})},
        },
        Node,
    )


def _pod(*, cpu="1", init=(), **spec):
    main = {"name": "main", "resources": {"requests": {"cpu": cpu}}}
    return msgspec.convert({"spec": {"containers": [main], "initContainers": list(init)} | spec}, Manifest)


def _affinity(operator, values=None, kind="required"):
    term = {"matchExpressions": [{"key": "zone", "operator": operator} | ({"values": values} if values else {})]}
    if kind == "required":
        inner = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    else:
        inner = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "preference": term}]}
    return {"nodeAffinity": inner}


def test_room_is_counted_with_what_is_used():
    assert why_not(_pod(cpu="1500m"), _node(), {"cpu": Fraction(5, 2)}, ignored=NONE) is None
    assert why_not(_pod(cpu="1501m"), _node(), {"cpu": Fraction(5, 2)}, ignored=NONE) == "Insufficient cpu"
    assert why_not(_pod(), _node(), {"pods": Fraction(10)}, ignored=NONE) == "Too many pods"


def test_an_ignored_resource_is_left_to_the_extender():
    pod = msgspec.convert(
        {"spec": {"containers": [{"name": "m", "resources": {"requests": {"tessera.dev/gpu-memory.256Mi": "5"}}}]}},
        Manifest,
    )
    assert "Insufficient" in (why_not(pod, _node(), {}, ignored=NONE) or "")
    assert why_not(pod, _node(), {}, ignored=frozenset({"tessera.dev/gpu-memory.256Mi"})) is None


def test_init_containers_and_sidecars_count_as_kubernetes_counts():
    init = [
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"name": "init", "resources": {"requests": {"cpu": "3"}}},
    ]
    assert requests(_pod(cpu="2", init=init))["cpu"] == 4
    assert requests(_pod(cpu="5", init=init))["cpu"] == 6


@pytest.mark.parametrize(
    ("labels", "operator", "values", "fits"),
    [
        ({"zone": "a"}, "In", ["a", "b"], True),
        ({"zone": "c"}, "In", ["a", "b"], False),
        ({}, "NotIn", ["a"], True),
        ({"zone": "a"}, "NotIn", ["a"], False),
        ({"zone": "a"}, "Exists", None, True),
        ({}, "Exists", None, False),
        ({}, "DoesNotExist", None, True),
        ({"zone": "5"}, "Gt", ["4"], True),
        ({"zone": "x"}, "Gt", ["4"], False),
        ({"zone": "3"}, "Lt", ["4"], True),
        ({"zone": "a"}, "Near", ["a"], False),
    ],
)
def test_required_affinity(labels, operator, values, fits):
    pod = _pod(affinity=_affinity(operator, values))
    assert (why_not(pod, _node(labels), {}, ignored=NONE) is None) == fits


def test_preferred_affinity_adds_up():
    pod = _pod(affinity=_affinity("In", ["a"], kind="preferred"))
    assert preference(pod, _node({"zone": "a"})) == 7
    assert preference(pod, _node()) == 0


def test_node_selector():
    assert why_not(_pod(nodeSelector={"a": "b"}), _node({"a": "b"}), {}, ignored=NONE) is None
    assert why_not(_pod(nodeSelector={"a": "b"}), _node(), {}, ignored=NONE) is not None


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (None, False),
        ({"key": "cloud", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "cloud", "value": "x"}, True),
        ({"key": "cloud", "value": "y"}, False),
        ({"key": "cloud", "operator": "Exists", "effect": "NoExecute"}, False),
    ],
)
def test_taints(toleration, tolerated):
    pod = _pod(tolerations=[toleration] if toleration else [])
    node = _node(taints=[{"key": "cloud", "value": "x", "effect": "NoSchedule"}])
    assert (why_not(pod, node, {}, ignored=NONE) is None) == tolerated


def test_a_soft_taint_and_a_cordon():
    assert why_not(_pod(), _node(taints=[{"key": "a", "effect": "PreferNoSchedule"}]), {}, ignored=NONE) is None
    assert why_not(_pod(), _node(unschedulable=True), {}, ignored=NONE) == "node(s) were unschedulable"
