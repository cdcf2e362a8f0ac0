"""Every dialect's words mean what its system's documents say: manifests as their authors write them, one file a dialect."""

import json

import pytest

from tessera.dialects.registry import FOREIGN, OPTIONS
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.model.quantity import whole as bytes_of
from tessera.model.request import decode as decode_request
from tessera.model.tickets import asks, request_of, ticket_counts, tickets

NAMES = names()


def test_a_pod_means_what_its_author_meant(case, admit, fill):
    pod = fill(case.pod)
    if case.refused is not None:
        with pytest.raises(RequestError) as caught:
            admit(pod, case.config)
        for part in case.refused:
            assert part in str(caught.value)
        assert caught.value.fix, "a refusal says what to write instead"
        return
    after, outcome = admit(pod, case.config)
    if case.means is None:
        assert outcome.request is None
        assert after == pod, "a pod that asks nothing of ours is left as it is"
        return
    assert outcome.request is not None
    assert outcome.request.dialect == (case.spoken or case.dialect)
    found = {name: plain(asked) for name, asked in outcome.request.containers.items()}
    assert found == {name: expected(amounts) for name, amounts in case.means.items()}
    assert decode_request(after["metadata"]["annotations"][NAMES.request]) == outcome.request
    assert_annotations(case, pod, after)
    assert_selectors(case, pod, after)
    for text, part in zip(warnings_of(outcome), case.warnings, strict=True):
        assert part in text
    assert all(len(text) <= 120 for text in outcome.warnings)


def test_nothing_of_another_system_is_left_where_it_was_understood(case, admit, fill):
    """A name that no node advertises would keep the pod from ever running."""
    if case.means is None:
        return
    after, outcome = admit(fill(case.pod), case.config)
    spoken = {dialect for dialect in FOREIGN if dialect.name in speaks(outcome.request)}
    for container in containers(after):
        sides = container.get("resources", {})
        limits, requests = sides.get("limits", {}), sides.get("requests", {})
        left = [
            name for name in {**limits, **requests} if any(d.owns(name) for d in spoken) and name in understood(case)
        ]
        assert left == []
        asked = outcome.request.containers.get(container["name"])
        wanted = {} if asked is None else {name: str(count) for name, count in tickets(asked, NAMES).items()}
        for side in (limits, requests):
            assert {name: str(count) for name, count in side.items() if NAMES.is_ticket(name)} == wanted
    assert after["spec"]["schedulerName"] == "tessera-scheduler"


def test_tickets_read_back_as_the_request(case, admit, fill, manifest):
    """What the extender and the node read off the pod is what admission understood."""
    if case.means is None:
        return
    after, outcome = admit(fill(case.pod), case.config)
    found = {ask.container: ask.request for ask in asks(manifest(after), NAMES)}
    assert found == outcome.request.containers
    # Without the annotation the tickets alone give a request of the same size.
    for container in manifest(after).spec.containers:
        counts = ticket_counts(container, NAMES)
        alone = request_of(counts, NAMES, container=container.name, init=False) if counts else None
        assert (tickets(alone, NAMES) if alone else {}) == counts


def test_a_second_pass_changes_nothing(case, admit, fill):
    if case.refused is not None:
        return
    after, first = admit(fill(case.pod), case.config)
    again, second = admit(after, case.config)
    assert second.operations == ()
    assert again == after
    assert second.request == first.request


def test_the_order_of_keys_means_nothing(case, admit, fill):
    turned = json.loads(json.dumps(turn(fill(case.pod))))
    try:
        _, first = admit(fill(case.pod), case.config)
    except RequestError:
        with pytest.raises(RequestError):
            admit(turned, case.config)
        return
    _, second = admit(turned, case.config)
    assert second.request == first.request
    assert sorted(second.warnings) == sorted(first.warnings)


def test_amounts_in_requests_alone_mean_the_same(case, admit, fill):
    """The webhook runs before validation: many a manifest has its amounts in requests only."""
    if case.means is None:
        return
    pod = fill(case.pod)
    for container in containers(pod):
        sides = container.get("resources", {})
        if "limits" in sides and "requests" not in sides:
            container["resources"] = {"requests": sides["limits"]}
    _, first = admit(fill(case.pod), case.config)
    _, second = admit(pod, case.config)
    assert second.request == first.request


def test_numbers_and_texts_mean_the_same(case, admit, fill):
    """`2` and "2", and what the API server makes of them: `3000` arrives as "3k"."""
    if case.means is None:
        return
    pod = fill(case.pod)
    for container in containers(pod):
        for side in container.get("resources", {}).values():
            for name, amount in side.items():
                side[name] = canonical(amount)
    _, first = admit(fill(case.pod), case.config)
    _, second = admit(pod, case.config)
    assert second.request == first.request


def test_a_dialect_that_is_off_is_not_read(case, admit, fill):
    if case.means is None or case.spoken:
        return
    others = {"nvidia": False, **case.config, case.dialect: False}
    pod = fill(case.pod)
    try:
        _, outcome = admit(pod, others)
    except RequestError as error:
        pytest.fail(f"refused in a dialect that is off: {error}")
    assert outcome.request is None or case.dialect not in speaks(outcome.request)


def test_every_dialect_has_cases_and_one_of_them_is_shown(every_case):
    written = {case.dialect for case in every_case}
    assert written == set(OPTIONS)
    assert {case.dialect for case in every_case if case.document} == written


def test_cases_are_told_apart_and_say_one_thing(every_case):
    seen = [(case.dialect, case.name) for case in every_case]
    assert len(seen) == len(set(seen))
    assert not [case for case in every_case if case.means is not None and case.refused is not None]


# What a case says, in the code's own terms.


def expected(amounts):
    """Amounts as a case writes them: quantities of memory, 0 nowhere."""
    found = dict(amounts)
    if "memory" in found:
        found["memory"] = bytes_of(found["memory"])
    return found


def plain(asked):
    """A request as a case writes it; the role and the dialect of a container are checked elsewhere."""
    found = {"gpus": asked.gpus}
    for key in ("memory", "memory_percent", "compute", "mig"):
        if (value := getattr(asked, key)) is not None:
            found["percent" if key == "memory_percent" else key] = value
    return found | ({"whole": True} if asked.whole else {})


def speaks(request):
    return {request.dialect} | {asked.dialect for asked in request.containers.values() if asked.dialect}


def understood(case):
    """Names in the case's resources."""
    return {name for c in containers(case.pod) for side in c.get("resources", {}).values() for name in side}


def containers(pod):
    spec = pod.get("spec", {})
    return (spec.get("initContainers") or []) + (spec.get("containers") or [])


def assert_annotations(case, pod, after):
    before = pod["metadata"].get("annotations") or {}
    added = {
        key: value
        for key, value in after["metadata"]["annotations"].items()
        if key != NAMES.request and before.get(key) != value
    }
    assert added == case.annotations
    kept = {key: value for key, value in before.items() if key != NAMES.request}
    assert kept.items() <= after["metadata"]["annotations"].items(), "foreign annotations are inert; they stay"


def assert_selectors(case, pod, after):
    before, left = pod["spec"].get("nodeSelector", {}), after["spec"].get("nodeSelector", {})
    assert sorted(before.keys() - left.keys()) == sorted(case.dropped)


def warnings_of(outcome):
    """Those of the dialects; what admission says of schedulers and selectors has tests of its own."""
    return [
        w
        for w in outcome.warnings
        if not w.startswith(("schedulerName ", "nodeSelector ", "node affinity ", "spec.nodeName "))
    ]


def turn(value):
    """The same object with every key in the opposite order."""
    if isinstance(value, dict):
        return {key: turn(below) for key, below in reversed(value.items())}
    return [turn(below) for below in value] if isinstance(value, list) else value


def canonical(amount):
    """As the API server writes a quantity that is a whole number or a text."""
    if isinstance(amount, int):
        return f"{amount // 1000}k" if amount and amount % 1000 == 0 else str(amount)
    return f"{round(amount * 1000)}m" if isinstance(amount, float) else amount
