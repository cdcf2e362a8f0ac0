"""What ties a converted pod to another system's nodes goes, wherever it is written; a true wish stays."""

import pytest

from tessera.dialects.registry import OPTIONS
from tessera.model.config import Config, Profile, Unit, parse

T = "tessera.dev/"
MEMORY = "aliyun.com/gpu-mem"


def term(*expressions):
    return {"matchExpressions": [{"key": key, "operator": op, **values} for key, op, values in expressions]}


def is_(key, *values):
    return (key, "In", {"values": list(values)})


def pod(*terms, selector=None, limits=None, preferred=None):
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}} if terms else {}
    if preferred:
        required["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
    main = {"name": "main", "resources": {"limits": {MEMORY: 4} if limits is None else limits}}
    spec = {"containers": [main], "affinity": {"nodeAffinity": required, "podAffinity": {"x": 1}}}
    return {"metadata": {"name": "p"}, "spec": spec | ({"nodeSelector": selector} if selector else {})}


SHARE = is_("gpushare", "true")
SSD = is_("disk", "ssd")


def terms_of(found):
    node = found["spec"]["affinity"]["nodeAffinity"]
    required = node.get("requiredDuringSchedulingIgnoredDuringExecution")
    return None if required is None else required["nodeSelectorTerms"]


@pytest.mark.parametrize(
    ("terms", "left"),
    [
        ([term(SHARE, SSD)], [term(SSD)]),
        ([term(SHARE)], None),
        ([term(SHARE), term(SSD)], None),
        ([term(SSD), term(SHARE, SSD)], [term(SSD), term(SSD)]),
        ([term(("cgpu", "Exists", {}))], None),
        ([term(("cgpu", "DoesNotExist", {}), SHARE)], [term(("cgpu", "DoesNotExist", {}))]),
        ([term(("gpushare", "NotIn", {"values": ["true"]}))], [term(("gpushare", "NotIn", {"values": ["true"]}))]),
        ([{}, term(SHARE, SSD)], [{}, term(SSD)]),
        ([term(SSD)], [term(SSD)]),
        ([term(is_("nvidia.com/gpu.product", "A10"))], [term(is_("nvidia.com/gpu.product", "A10"))]),
    ],
)
def test_a_required_affinity_is_freed_of_labels_that_no_node_of_ours_has(admit, terms, left):
    given = pod(*terms)
    found, outcome = admit(given)
    assert terms_of(found) == left
    assert found["spec"]["affinity"]["podAffinity"] == {"x": 1}
    said = [warning for warning in outcome.warnings if warning.startswith("node affinity ")]
    assert bool(said) == (left != terms)
    again, second = admit(found)
    assert (again, second.operations) == (found, ())


def test_what_is_preferred_stays(admit):
    preferred = [{"weight": 1, "preference": term(SHARE)}]
    given = pod(preferred=preferred)
    found, outcome = admit(given)
    assert found["spec"]["affinity"] == given["spec"]["affinity"]
    assert outcome.warnings == ()


def test_a_pod_that_asks_for_no_gpu_keeps_its_affinity(admit):
    given = pod(term(SHARE), limits={"cpu": 1})
    assert admit(given)[0] == given


def test_config_keeps_them(admit):
    given = pod(term(SHARE), selector={"cgpu": "true"})
    config = parse("dialects: {aliyun: {dropNodeSelectors: false}}", dialects=OPTIONS)
    found, _ = admit(given, config)
    assert terms_of(found) == [term(SHARE)]
    assert found["spec"]["nodeSelector"] == {"cgpu": "true"}


def test_models_in_an_affinity_are_a_wish(admit):
    found, _ = admit(pod(term(is_("aliyun.accelerator/nvidia_name", "Tesla-T4", "Tesla-P4"))))
    assert found["metadata"]["annotations"][T + "gpu-models"] == "Tesla-T4,Tesla-P4"
    assert terms_of(found) is None


@pytest.mark.parametrize(("terms", "kept"), [([term(SHARE)], []), ([term(SHARE, SSD)], [SSD])])
def test_a_profile_narrows_what_is_left(admit, terms, kept):
    units = (Unit(name="idc", node_selector={"site": "idc"}), Unit(name="cloud", node_selector={"site": "cloud"}))
    config = Config(profiles=(Profile(name="p", units=units),))
    found, _ = admit(pod(*terms), config)
    assert terms_of(found) == [term(*kept, is_("site", site)) for site in ("idc", "cloud")]
    again, second = admit(found, config)
    assert (again, second.operations) == (found, ())
