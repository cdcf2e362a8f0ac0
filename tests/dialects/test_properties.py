"""What holds in every dialect for itself: pods of its own names with likely amounts, most of which are understood.

`test_hostile` mixes all names and any value; here one dialect is spoken at a time, so that what comes out can be looked at.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.dialects.native import native, tickets
from tessera.dialects.registry import FOREIGN
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.tickets import asks
from tessera.model.tickets import tickets as tickets_of

NAMES = names()
SPOKEN = (native(NAMES), tickets(NAMES), *FOREIGN)
OPEN = {"nvidia": {"whole": True, "sharedPercent": 25, "mig": True}, "gke": {"partitions": True}}
"""Options that leave nothing to another system, so that every name is read."""
PREFIXED = {"nvidia.com/gpu-": "10gb", "nvidia.com/mig-": "1g.10gb", NAMES.mig_prefix: "1g.10gb"}
ANNOTATED = {
    "nvidia.com/container.": ("main.gpu-memory.request", "main.gpu-memory.limit", "other.gpu-memory.limit"),
    "nvidia.com/gpu-memory.container.": ("main.limit", "other.request"),
}
AMOUNTS = st.sampled_from([1, 2, 4, 10, 20, 25, 30, 50, 80, 100, 200, 1024, 8192]) | st.sampled_from(["1", "50", "8Gi"])
TEXTS = AMOUNTS.map(str) | st.sampled_from(["0.5", "0.25", "0", "4Gi", "2000"])
CARD = 100
FEW = settings(max_examples=40)
"""Of each dialect; all together are a thousand of each property."""


def resources_of(dialect):
    return sorted(dialect.resources | {prefix + PREFIXED[prefix] for prefix in dialect.prefixes})


def annotations_of(dialect):
    found = dialect.annotations - {name for name in dialect.annotations if "type" in name or "uuid" in name}
    for prefix in dialect.annotation_prefixes:
        found |= {prefix + rest for rest in ANNOTATED[prefix]}
    return sorted(found)


def some(keys, values, most=3):
    return st.dictionaries(st.sampled_from(keys), values, max_size=most) if keys else st.just({})


@st.composite
def pods(draw, dialect):
    """A pod of two containers that speaks one dialect."""
    built = []
    for name in ("main", "other"):
        limits = draw(some(resources_of(dialect), AMOUNTS))
        built.append({"name": name, "image": "x", "resources": {"limits": limits} if limits else {}})
    metadata = {
        "name": "p",
        "annotations": draw(some(annotations_of(dialect), TEXTS)),
        "labels": draw(some(sorted(dialect.labels), TEXTS)),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": built}}


@pytest.fixture(scope="module", params=SPOKEN, ids=lambda dialect: dialect.name)
def dialect(request):
    return request.param


@FEW
@given(data=st.data())
def test_what_is_understood_can_be_given(dialect, admit, manifest, data):
    """Amounts are in range, the tickets are whole numbers of at least one, and they read back as the request."""
    pod = data.draw(pods(dialect))
    if (found := understood(admit, pod)) is None:
        return
    after, outcome = found
    assert outcome.request.dialect in {each.name for each in SPOKEN}
    for asked in outcome.request.containers.values():
        assert (
            sum((asked.memory is not None, asked.memory_percent is not None, asked.whole, asked.mig is not None)) == 1
        )
        assert asked.memory is None or asked.memory > 0
        assert asked.gpus >= 1
        assert 1 <= (asked.memory_percent or 1) <= CARD
        assert 1 <= (asked.compute or 1) <= CARD
        assert all(count >= 1 for count in tickets_of(asked, NAMES).values())
    assert {ask.container: ask.request for ask in asks(manifest(after), NAMES)} == outcome.request.containers


@FEW
@given(data=st.data())
def test_the_order_of_names_means_nothing(dialect, admit, data):
    pod = data.draw(pods(dialect))
    turned = shuffled(pod, data.draw(st.randoms(use_true_random=False)))
    try:
        _, first = admit(pod, OPEN)
    except RequestError:
        with pytest.raises(RequestError):
            admit(turned, OPEN)
        return
    assert admit(turned, OPEN)[1].request == first.request


@FEW
@given(data=st.data())
def test_zero_is_not_asked(dialect, admit, data):
    """Names at zero beside others change nothing."""
    pod = data.draw(pods(dialect))
    if (found := understood(admit, pod)) is None:
        return
    zeros = data.draw(some(resources_of(dialect), st.sampled_from([0, "0", "0Gi"])))
    for container in pod["spec"]["containers"]:
        limits = container["resources"].get("limits", {})
        container["resources"] = {"limits": {**{key: 0 for key in zeros if not speaks_at_zero(key)}, **limits}}
    assert admit(pod, OPEN)[1].request == found[1].request


@FEW
@given(data=st.data())
def test_nothing_asked_is_nothing_changed(dialect, admit, data):
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "main", "image": "x"}]}}
    zeros = data.draw(some(resources_of(dialect), st.sampled_from([0, "0", "0Gi", "0m"])))
    pod["spec"]["containers"][0]["resources"] = {"limits": zeros, "requests": zeros}
    after, outcome = admit(pod, OPEN)
    assert (after, outcome.request, outcome.operations) == (pod, None, ())


def understood(admit, pod):
    """Admission's answer to a pod that is understood; None where it is left alone or refused."""
    try:
        after, outcome = admit(pod, OPEN)
    except RequestError:
        return None
    return None if outcome.request is None else (after, outcome)


def speaks_at_zero(name):
    """Names whose 0 says something: no GPU rather than one, and in HAMi the highest priority."""
    return name in {"nvidia.com/gpu", "nvidia.com/priority", "volcano.sh/vgpu-number", "nvidia.com/vgpu-number"}


def shuffled(value, random):
    """The same object with its keys in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return {key: shuffled(value[key], random) for key in keys}
    return [shuffled(item, random) for item in value] if isinstance(value, list) else value
