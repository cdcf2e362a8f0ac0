"""Which unit a node is in, and which profile a pod has."""

import pytest

from tessera.model.config import Profile, Unit
from tessera.model.errors import RequestError
from tessera.model.profile import REGION, choose, requirements, unit_of

IDC = Unit(name="idc", node_selector={"site": "idc"})
EAST = Unit(name="east", node_selector={"cloud": "ecs"}, regions=("cn-hangzhou", "cn-shanghai"))
NORTH = Unit(name="north", regions=("cn-beijing",))
HYBRID = Profile(name="hybrid", units=(IDC, EAST, NORTH))


@pytest.mark.parametrize(
    ("labels", "unit"),
    [
        pytest.param({"site": "idc"}, IDC, id="a label is enough"),
        pytest.param({"site": "idc", REGION: "cn-beijing"}, IDC, id="the first of two in order"),
        pytest.param({"cloud": "ecs", REGION: "cn-shanghai"}, EAST, id="one of several regions"),
        pytest.param({"cloud": "ecs", REGION: "cn-beijing"}, NORTH, id="labels but not the region"),
        pytest.param({"cloud": "ecs"}, None, id="no region at all"),
        pytest.param({"site": ""}, None, id="an empty value is another value"),
        pytest.param({}, None, id="no labels"),
        pytest.param(None, None, id="a node without labels in its object"),
    ],
)
def test_unit_of_a_node(labels, unit):
    assert unit_of(labels, HYBRID) == unit


def test_a_unit_without_conditions_takes_every_node_that_no_earlier_one_took():
    rest = Unit(name="rest")
    profile = Profile(name="p", units=(IDC, rest))
    assert unit_of({"site": "idc"}, profile) == IDC
    assert unit_of({}, profile) == rest


@pytest.mark.parametrize("unit", [IDC, EAST, NORTH, Unit(name="rest")])
@pytest.mark.parametrize(
    "labels", [{"site": "idc"}, {"cloud": "ecs", REGION: "cn-hangzhou"}, {REGION: "cn-beijing"}, {}]
)
def test_requirements_say_the_same_as_unit_of(unit, labels):
    matches = all(r.operator == "In" and labels.get(r.key) in r.values for r in requirements(unit))
    assert matches == (unit_of(labels, Profile(name="p", units=(unit,))) is not None)


FIRST = Profile(name="training", namespaces=("ml",), selector={"kind": "train"}, units=(IDC,))
SECOND = Profile(name="ml", namespaces=("ml", "ml2"), units=(IDC,))
LAST = Profile(name="others", units=(IDC,))


@pytest.mark.parametrize(
    ("named", "namespace", "labels", "name"),
    [
        pytest.param(None, "ml", {"kind": "train"}, "training", id="namespace and labels"),
        pytest.param(None, "ml", {"kind": "serve"}, "ml", id="labels that differ"),
        pytest.param(None, "ml2", None, "ml", id="a pod without labels"),
        pytest.param(None, "web", {}, "others", id="a profile for all"),
        pytest.param("training", "web", {}, "training", id="a name counts whatever the namespace is"),
        pytest.param("", "web", {}, "others", id="an empty name is no name"),
    ],
)
def test_profile_of_a_pod(named, namespace, labels, name):
    chosen = choose((FIRST, SECOND, LAST), named=named, namespace=namespace, labels=labels)
    assert chosen.name == name


def test_no_profile_where_none_matches():
    assert choose((FIRST,), named=None, namespace="web", labels={}) is None
    assert choose((), named=None, namespace="web", labels={}) is None


def test_a_name_that_is_not_configured_is_refused_with_those_that_are():
    with pytest.raises(RequestError, match=r'"trainig".*training, ml'):
        choose((FIRST, SECOND), named="trainig", namespace="ml", labels={})


def test_a_name_is_refused_with_the_fix_where_no_profile_is_configured():
    with pytest.raises(RequestError, match="remove the annotation: the config has no profiles"):
        choose((), named="training", namespace="ml", labels={})
