"""Placement profiles: the IDC first, the cloud in order, and the pod's own wishes above all of it."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.config import Profile, Unit
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.pod import Toleration
from tessera.model.profile import REGION, unit_of
from webhook.admission.profiles import place

NAMES = names()
VIRTUAL = Toleration(key="virtual-kubelet.io/provider", operator="Equal", value="alibabacloud", effect="NoSchedule")
IDC = Unit(name="idc", node_selector={"site": "idc"})
EAST = Unit(name="east", node_selector={"alibabacloud.com/external": "true"}, regions=("cn-hangzhou",))
NORTH = Unit(name="north", node_selector={"alibabacloud.com/external": "true"}, regions=("cn-beijing", "cn-wulanchabu"))
ECI = Unit(
    name="eci",
    node_selector={"type": "virtual-kubelet"},
    regions=("cn-hangzhou",),
    tolerations=(VIRTUAL,),
    labels={"alibabacloud.com/serverless-region-id": "cn-hangzhou", "alibabacloud.com/eci": "true"},
    serverless=True,
)
HYBRID = Profile(name="hybrid", namespaces=("ml",), units=(IDC, EAST, NORTH, ECI))


def pod(*, annotations=None, labels=None, **spec):
    metadata = {"name": "p"}
    if annotations is not None:
        metadata["annotations"] = annotations
    if labels is not None:
        metadata["labels"] = labels
    return {"metadata": metadata, "spec": {"containers": [{"name": "main"}], **spec}}


def expression(key, operator, *values):
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def requiring(*terms):
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}


def terms_of(found):
    affinity = found["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return affinity["nodeSelectorTerms"]


def preferred_of(found):
    return found["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]


def holds(expressions, node):
    """Node selector semantics, written down independently: NotIn also holds where the label is absent."""
    for e in expressions:
        value = node.get(e["key"])
        result = {
            "In": value in e.get("values", ()),
            "NotIn": value not in e.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[e["operator"]]
        if not result:
            return False
    return True


def qualifies(found, node):
    """Whether the scheduler would consider the node."""
    spec = found["spec"]
    if any(node.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is None:
        return True
    return any(term and holds(term.get("matchExpressions", ()), node) for term in required["nodeSelectorTerms"])


def score(found, node):
    return sum(p["weight"] for p in preferred_of(found) if holds(p["preference"]["matchExpressions"], node))


@pytest.fixture
def put_in(manifest, applied):
    def run(given_pod, *profiles, namespace="ml"):
        placed = place(manifest(given_pod), profiles=profiles or (HYBRID,), names=NAMES, namespace=namespace)
        return placed, applied(copy.deepcopy(given_pod), placed.edits if placed else ())

    return run


IDC_NODE = {"site": "idc"}
EAST_NODE = {"alibabacloud.com/external": "true", REGION: "cn-hangzhou"}
NORTH_NODE = {"alibabacloud.com/external": "true", REGION: "cn-wulanchabu"}
ECI_NODE = {"type": "virtual-kubelet", REGION: "cn-hangzhou"}
STRANGER = {"alibabacloud.com/external": "true", REGION: "cn-shenzhen"}
NODES = (IDC_NODE, EAST_NODE, NORTH_NODE, ECI_NODE, STRANGER, {})


def test_the_units_in_order_and_no_other_node(put_in):
    placed, found = put_in(pod())
    assert placed.profile == "hybrid"
    assert placed.units == ("idc", "east", "north", "eci")
    assert found["metadata"]["annotations"] == {NAMES.placement_profile: "hybrid"}
    assert [qualifies(found, node) for node in NODES] == [True, True, True, True, False, False]
    scores = [score(found, node) for node in (IDC_NODE, EAST_NODE, NORTH_NODE, ECI_NODE)]
    assert scores == [100, 66, 33, 0]
    assert found["spec"]["tolerations"] == [
        {"key": "virtual-kubelet.io/provider", "operator": "Equal", "value": "alibabacloud", "effect": "NoSchedule"}
    ]


def test_vendor_labels_are_not_added_while_the_place_is_open(put_in):
    placed, found = put_in(pod())
    assert not placed.serverless
    assert "labels" not in found["metadata"]


def test_vendor_labels_where_the_pod_can_go_to_a_serverless_unit_alone(put_in):
    placed, found = put_in(pod(nodeSelector={"type": "virtual-kubelet"}, labels={"alibabacloud.com/eci": "false"}))
    assert placed.serverless
    assert placed.units == ("eci",)
    # The pod's own value wins.
    assert found["metadata"]["labels"] == {
        "alibabacloud.com/eci": "false",
        "alibabacloud.com/serverless-region-id": "cn-hangzhou",
    }


def test_a_pod_that_selects_virtual_nodes_elsewhere_is_not_sent_here(put_in):
    placed, _ = put_in(pod(nodeSelector={"type": "virtual-kubelet", REGION: "cn-beijing"}))
    assert "eci" not in placed.units


def test_two_serverless_units_are_still_a_choice(put_in):
    other = Unit(name="eci2", node_selector={"type": "virtual-kubelet"}, regions=("cn-beijing",), serverless=True)
    placed, found = put_in(pod(), Profile(name="p", units=(ECI, other)))
    assert placed.serverless
    assert "labels" not in found["metadata"]


def test_a_node_selector_leaves_units_out(put_in):
    placed, found = put_in(pod(nodeSelector={REGION: "cn-beijing"}))
    # The IDC's nodes may carry that region too; nothing the pod wrote excludes them.
    assert placed.units == ("idc", "north")
    assert found["spec"]["nodeSelector"] == {REGION: "cn-beijing"}
    assert "tolerations" not in found["spec"]
    assert qualifies(found, NORTH_NODE | {REGION: "cn-beijing"})
    assert not qualifies(found, STRANGER | {REGION: "cn-beijing", "alibabacloud.com/external": "false"})


def test_what_the_pod_pins_already_is_not_required_again(put_in):
    _, found = put_in(pod(nodeSelector={"site": "idc"}), Profile(name="p", units=(IDC,)))
    assert "affinity" not in found["spec"]


def test_own_required_terms_are_narrowed_one_by_one(put_in):
    own = (
        {"matchExpressions": [expression("card", "In", "A100")]},
        {
            "matchExpressions": [expression("site", "In", "idc"), expression("rack", "Exists")],
            "matchFields": [expression("metadata.name", "In", "n1")],
        },
    )
    _, found = put_in(pod(affinity=requiring(*own)))
    terms = terms_of(found)
    # The second lies in the IDC already and stays as it was; the first is multiplied with the three kinds of units.
    assert own[1] in terms
    assert len(terms) == 4
    for node in NODES:
        card = node | {"card": "A100"}
        assert qualifies(found, card) == (unit_of(node, HYBRID) is not None)
        assert not qualifies(found, node)


def test_a_term_that_matches_nothing_does_not_come_to_match_something(put_in):
    _, found = put_in(pod(affinity=requiring({}, {"matchExpressions": [expression("site", "In", "idc")]})))
    assert not qualifies(found, EAST_NODE)
    placed, found = put_in(pod(affinity=requiring({})))
    assert placed.profile == ""
    assert found == pod(affinity=requiring({}))


def test_regions_of_one_kind_of_node_share_a_term(put_in):
    units = tuple(Unit(name=f"r{i}", node_selector={"cloud": "yes"}, regions=(f"region-{i}",)) for i in range(30))
    _, found = put_in(pod(), Profile(name="p", units=(IDC, *units)))
    assert len(terms_of(found)) == 2


def test_own_preferences_stay_in_front(put_in):
    own = {"weight": 7, "preference": {"matchExpressions": [expression("disk", "In", "ssd")]}}
    _, found = put_in(
        pod(affinity={"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [own]}, "podAffinity": {}})
    )
    assert preferred_of(found)[0] == own
    assert len(preferred_of(found)) == 4
    assert found["spec"]["affinity"]["podAffinity"] == {}


@pytest.mark.parametrize(
    ("own", "added"),
    [
        pytest.param({"operator": "Exists"}, False, id="tolerates all"),
        pytest.param({"key": VIRTUAL.key, "operator": "Exists"}, False, id="any value, any effect"),
        pytest.param({"key": VIRTUAL.key, "operator": "Exists", "effect": "NoExecute"}, True, id="another effect"),
        pytest.param({"key": VIRTUAL.key, "value": "alibabacloud"}, False, id="an absent operator is Equal"),
        pytest.param({"key": VIRTUAL.key, "value": "azure", "effect": "NoSchedule"}, True, id="another value"),
        pytest.param({"key": "other", "operator": "Exists"}, True, id="another key"),
    ],
)
def test_tolerations_are_added_where_the_pod_has_none_that_covers_them(put_in, own, added):
    _, found = put_in(pod(tolerations=[own]))
    assert found["spec"]["tolerations"][0] == own
    assert len(found["spec"]["tolerations"]) == 1 + added


@pytest.mark.parametrize(
    "spec",
    [
        {"nodeSelector": {"site": "elsewhere", "type": "none", "alibabacloud.com/external": "false"}},
        {
            "affinity": requiring(
                {
                    "matchExpressions": [
                        expression("site", "NotIn", "idc"),
                        expression("type", "DoesNotExist"),
                        expression("alibabacloud.com/external", "In", "false"),
                    ]
                }
            )
        },
    ],
)
def test_a_pod_that_excludes_every_unit(put_in, spec):
    placed, found = put_in(pod(**spec))
    assert found == pod(**spec)
    assert placed.profile == ""
    assert all(len(warning) <= 120 for warning in placed.warnings)
    assert "hybrid" in placed.warnings[0]
    with pytest.raises(RequestError, match=r"excludes every unit.*idc, east, north, eci"):
        put_in(pod(annotations={NAMES.placement_profile: "hybrid"}, **spec))


@pytest.mark.parametrize(
    ("given_pod", "namespace"),
    [
        pytest.param(pod(), "web", id="no profile for the namespace"),
        pytest.param(pod(nodeName="n1"), "ml", id="bound by hand"),
        pytest.param(
            {"metadata": {"ownerReferences": [{"kind": "DaemonSet", "name": "d"}]}, "spec": {}}, "ml", id="DaemonSet"
        ),
    ],
)
def test_pods_that_are_left_alone(put_in, given_pod, namespace):
    placed, found = put_in(given_pod, namespace=namespace)
    assert placed is None
    assert found == given_pod


def test_a_named_profile_counts_in_every_namespace(put_in):
    placed, _ = put_in(pod(annotations={NAMES.placement_profile: "hybrid"}), namespace="web")
    assert placed.profile == "hybrid"


def test_an_unknown_profile_is_refused(put_in):
    with pytest.raises(RequestError, match=r'"hybird".*hybrid'):
        put_in(pod(annotations={NAMES.placement_profile: "hybird"}))


def test_nulls_are_absences(put_in):
    given_pod = pod(affinity=None, tolerations=None, nodeSelector=None)
    given_pod["metadata"] |= {"annotations": None, "labels": None}
    _, found = put_in(given_pod)
    assert found["metadata"]["annotations"] == {NAMES.placement_profile: "hybrid"}
    assert len(found["spec"]["tolerations"]) == 1


def test_terms_are_bounded(put_in):
    units = tuple(Unit(name=f"u{i}", node_selector={f"k{i}": "v"}) for i in range(32))
    own = [{"matchExpressions": [expression("card", "In", f"c{i}")]} for i in range(5)]
    with pytest.raises(RequestError, match=r"5 required node affinity terms.*128.*fewer"):
        put_in(pod(affinity=requiring(*own)), Profile(name="p", units=units))


LABELS = {"site": ("idc", "lab"), REGION: ("r1", "r2"), "type": ("virtual-kubelet",)}
_pairs = st.sampled_from([(key, value) for key, values in LABELS.items() for value in values])
_expressions = st.one_of(
    st.tuples(st.sampled_from(["In", "NotIn"]), _pairs).map(lambda t: expression(t[1][0], t[0], t[1][1])),
    st.tuples(st.sampled_from(["Exists", "DoesNotExist"]), st.sampled_from(list(LABELS))).map(
        lambda t: expression(t[1], t[0])
    ),
)
_terms = st.lists(_expressions, max_size=3).map(lambda e: {"matchExpressions": e} if e else {})
_nodes = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in LABELS.items()})
_units = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["site", "type"]), st.sampled_from(["idc", "virtual-kubelet"]), max_size=2),
        st.lists(st.sampled_from(["r1", "r2"]), max_size=2, unique=True),
    ),
    min_size=1,
    max_size=4,
).map(
    lambda parts: tuple(Unit(name=f"u{i}", node_selector=sel, regions=tuple(rs)) for i, (sel, rs) in enumerate(parts))
)


@given(
    _units,
    st.none() | st.lists(_terms, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["site"]), st.sampled_from(["idc"])),
    st.lists(_nodes, min_size=1, max_size=12),
)
def test_a_node_qualifies_where_the_pod_and_some_unit_take_it(  # noqa: PLR0917
    manifest, applied, units, own, selector, nodes
):
    profile = Profile(name="p", units=units)
    before = pod(nodeSelector=selector, **({"affinity": requiring(*own)} if own is not None else {}))
    placed = place(manifest(before), profiles=(profile,), names=NAMES, namespace="ml")
    after = applied(copy.deepcopy(before), placed.edits)
    if placed.profile:
        for node in nodes:
            assert qualifies(after, node) == (qualifies(before, node) and unit_of(node, profile) is not None)
        again = place(manifest(after), profiles=(profile,), names=NAMES, namespace="ml")
        assert applied(copy.deepcopy(after), again.edits) == after
    else:
        assert not any(qualifies(before, node) and unit_of(node, profile) for node in nodes)
        assert after == before
