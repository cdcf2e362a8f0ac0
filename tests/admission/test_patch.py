"""Patches built by hand do what was meant: applied by jsonpatch they give what a slow rewriting of the whole object gives."""

import copy
import json

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.admission.patch import WIRE, append, operations, pointer, prepend, put, remove

NAMES = st.sampled_from(["a", "a/b", "~", "~1", "x~0/y", "/", "ü", "tessera.dev/gpu", "0", "-", " ", "a.b"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(NAMES, below, max_size=2),
    max_leaves=4,
)


# What Manifest reads, each part perhaps absent, null or empty, and always among fields that it doesn't know.


def _object(**fields):
    """An object that has some of its fields, some of them null, and others that nobody knows."""

    def build(draw):
        found = {"unknownField": draw(PLAIN)} if draw(st.booleans()) else {}
        for name, strategy in fields.items():
            how = draw(st.sampled_from(["there", "there", "there", "absent", "null"]))
            if how != "absent":
                found[name] = draw(strategy) if how == "there" else None
        return found

    return st.composite(build)()


AMOUNTS = st.dictionaries(NAMES, st.integers(0, 9) | st.sampled_from(["8Gi", "1"]), max_size=3)
TEXTS = st.dictionaries(NAMES, st.text(max_size=4), max_size=3)
# Manifest reads no null where a name belongs; an amount of nothing is absent from an object as the API server holds it.
CONTAINER = _object(resources=_object(limits=AMOUNTS, requests=AMOUNTS)).map(lambda c: {"name": "c", **c})
PODS = st.builds(
    lambda metadata, spec: {"kind": "Pod", "metadata": metadata, "spec": spec},
    _object(annotations=TEXTS, labels=TEXTS),
    _object(
        containers=st.lists(CONTAINER, min_size=1, max_size=2),
        initContainers=st.lists(CONTAINER, max_size=2),
        nodeSelector=TEXTS,
        tolerations=st.lists(st.fixed_dictionaries({"key": NAMES}), max_size=2),
        affinity=_object(
            nodeAffinity=_object(
                preferredDuringSchedulingIgnoredDuringExecution=st.lists(
                    st.fixed_dictionaries({"weight": st.integers(1, 100)}), max_size=2
                )
            )
        ),
    ),
)

PREFERRED = ("spec", "affinity", "nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution")
LISTS = [("spec", "tolerations"), ("spec", "initContainers"), PREFERRED]


@st.composite
def changes(draw):
    """A pod, and edits that lead through what it has and what it has not."""
    pod = draw(PODS)
    maps = [("metadata", "annotations"), ("metadata", "labels"), ("spec", "nodeSelector")]
    for which in ("containers", "initContainers"):
        for index in range(len(pod["spec"].get(which) or ())):
            maps += [("spec", which, index, "resources", side) for side in ("limits", "requests")]
    edits = []
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.sampled_from(maps))
        name = draw(NAMES)
        edits.append(draw(st.sampled_from([put((*at, name), draw(st.sampled_from(["1", "v"]))), remove((*at, name))])))
    if draw(st.booleans()):
        edits.append(put(("spec", "schedulerName"), draw(st.sampled_from(["ours", "default-scheduler"]))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.sampled_from(LISTS))
        there = pod["spec"].get(at[-1]) if len(at) == 2 else None
        value = {"name": draw(st.sampled_from("xyz"))}
        kinds = [append(at, value), prepend(at, value)]
        if there and at[-1] == "tolerations":
            kinds.append(remove((*at, draw(st.integers(0, len(there) - 1)))))
        edits.append(draw(st.sampled_from(kinds)))
    return pod, edits


# The oracle: the same meaning, written as a rewriting of plain dicts.


def _reach(tree, path, *, make):
    for step in path:
        below = tree[step] if isinstance(tree, list) else tree.get(step)
        if below is None:
            if not make:
                return None
            below = tree[step] = {}
        tree = below
    return tree


def _rewritten(pod, edits):
    found = copy.deepcopy(pod)
    members = {edit.path: edit for edit in edits if edit.kind in ("put", "remove") and isinstance(edit.path[-1], str)}
    for edit in members.values():
        parent = _reach(found, edit.path[:-1], make=edit.kind == "put")
        if edit.kind == "put":
            parent[edit.path[-1]] = edit.value
        elif parent is not None and parent.get(edit.path[-1]) is not None:
            del parent[edit.path[-1]]
    gone = {edit.path for edit in edits if edit.kind == "remove" and isinstance(edit.path[-1], int)}
    for path in sorted(gone, key=lambda path: -path[-1]):
        del _reach(found, path[:-1], make=False)[path[-1]]
    for path in dict.fromkeys(edit.path for edit in edits if edit.kind in ("append", "prepend")):
        parent = _reach(found, path[:-1], make=True)
        front = [edit.value for edit in edits if edit.kind == "prepend" and edit.path == path]
        back = [edit.value for edit in edits if edit.kind == "append" and edit.path == path]
        parent[path[-1]] = front + list(parent.get(path[-1]) or []) + back
    return found


@given(changes())
def test_applied_it_gives_the_object_that_was_meant(manifest, change):
    pod, edits = change
    patch = json.loads(WIRE.encode(operations(manifest(pod), edits)))
    assert jsonpatch.apply_patch(pod, patch) == _rewritten(pod, edits)


@given(changes())
def test_what_has_its_value_already_is_not_written_again(manifest, change):
    pod, edits = change
    members = [edit for edit in edits if edit.kind in ("put", "remove") and isinstance(edit.path[-1], str)]
    once = jsonpatch.apply_patch(pod, json.loads(WIRE.encode(operations(manifest(pod), members))))
    again = operations(manifest(once), members)
    assert jsonpatch.apply_patch(once, json.loads(WIRE.encode(again))) == once
    assert not [operation for operation in again if operation.op != "remove" and not isinstance(operation.value, dict)]


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_pointers_lead_where_the_path_does(path):
    tree = "found"
    for step in reversed(path):
        tree = {step: tree, "elsewhere": 1}
    assert jsonpatch.JsonPatch([{"op": "test", "path": pointer(tuple(path)), "value": "found"}]).apply(tree) == tree


def _patch(manifest, pod, edits):
    return json.loads(WIRE.encode(operations(manifest(pod), edits)))


BARE = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}


def test_absent_parents_are_made_by_one_operation(manifest):
    at = ("spec", "containers", 0, "resources", "limits", "a/b")
    assert _patch(manifest, BARE, [put(at, "1"), put((*at[:-1], "c"), "2")]) == [
        {"op": "add", "path": "/spec/containers/0/resources", "value": {"limits": {"a/b": "1", "c": "2"}}}
    ]


def test_null_parents_are_replaced_not_led_through(manifest):
    pod = {"metadata": {"name": "p", "annotations": None}, "spec": {"containers": [{"name": "c", "resources": None}]}}
    found = jsonpatch.apply_patch(
        pod,
        _patch(
            manifest,
            pod,
            [
                put(("metadata", "annotations", "k"), "v"),
                put(("spec", "containers", 0, "resources", "limits", "x"), "1"),
            ],
        ),
    )
    assert found["metadata"]["annotations"] == {"k": "v"}
    assert found["spec"]["containers"][0]["resources"] == {"limits": {"x": "1"}}


def test_nothing_is_written_where_nothing_changes(manifest):
    pod = {"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"containers": [], "schedulerName": "s"}}
    same = [put(("metadata", "labels", "a"), "b"), put(("spec", "schedulerName"), "s")]
    absent = [remove(("metadata", "labels", "z")), remove(("metadata", "annotations", "z"))]
    assert operations(manifest(pod), [*same, *absent]) == ()


def test_a_number_is_not_its_text(manifest):
    pod = {
        "metadata": {},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {"x": 1}}}]},
    }
    at = ("spec", "containers", 0, "resources", "limits", "x")
    assert _patch(manifest, pod, [put(at, "1")]) == [
        {"op": "replace", "path": "/spec/containers/0/resources/limits/x", "value": "1"}
    ]


def test_of_two_edits_of_a_member_the_later_wins(manifest):
    at = ("metadata", "labels", "a")
    assert jsonpatch.apply_patch(BARE, _patch(manifest, BARE, [remove(at), put(at, "1")]))["metadata"]["labels"] == {
        "a": "1"
    }
    assert _patch(manifest, BARE, [put(at, "1"), remove(at)]) == []


def test_items_are_removed_before_others_are_added_and_indices_stay_those_of_the_object(manifest):
    pod = {"metadata": {}, "spec": {"containers": [], "tolerations": [{"key": key} for key in "abc"]}}
    at = ("spec", "tolerations")
    edits = [append(at, {"key": "y"}), remove((*at, 0)), prepend(at, {"key": "1"}), remove((*at, 2))]
    edits += [prepend(at, {"key": "2"}), append(at, {"key": "z"})]
    found = jsonpatch.apply_patch(pod, _patch(manifest, pod, edits))
    assert [each["key"] for each in found["spec"]["tolerations"]] == ["1", "2", "b", "y", "z"]


def test_a_value_of_the_callers_stays_the_callers(manifest):
    value = {"x": {"y": "1"}}
    at = ("spec", "containers", 0, "resources")
    operations(manifest(BARE), [put(at, value), put((*at, "x", "z"), "2")])
    assert value == {"x": {"y": "1"}}


def test_a_path_that_nobody_can_follow_is_an_error_of_the_program(manifest):
    for path in [("spec", "unknown", "x"), ("data", "x")]:
        with pytest.raises(LookupError):
            operations(manifest(BARE), [put(path, "1")])
    with pytest.raises(LookupError):
        operations(manifest(BARE), [put(("spec", "containers", 7, "resources", "limits", "x"), "1")])
