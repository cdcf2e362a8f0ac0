"""Which pod the kubelet asks for."""

from __future__ import annotations

import asyncio

import pytest

from deviceplugin.devices import View, device_id
from deviceplugin.errors import KubeletError
from deviceplugin.ledger import Grant
from deviceplugin.pods import NodePods, uid_of
from tessera.kube.changes import Added
from tessera.model.names import names
from tessera.model.pod import ContainerStatus, ObjectMeta, Pod, PodStatus

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A = "aaaaaaaaaaaa"


def held(count, first=0):
    return [device_id(A, View.UNITS, number) for number in range(first, first + count)]


async def test_the_one_pod_that_asks_and_has_none(identity, lister, pods, make_pod):
    for name in ("old", "new", "plain"):
        pods.put(make_pod(name, {"main": {UNITS: 8} if name != "plain" else {}}))
    lister.pods = {
        ("default", "old"): {"main": {UNITS: held(8)}},
        ("default", "new"): {"main": {}},
        ("default", "plain"): {"main": {}},
    }
    look = await identity.look(UNITS, 8)
    assert (look.caller.uid, look.caller.container) == ("uid-new", "main")
    assert pods.asked == []


async def test_of_one_pod_the_first_container_that_has_none_in_spec_order(identity, lister, pods, make_pod):
    pods.put(make_pod("p", {"a": {UNITS: 8}, "b": {UNITS: 8}, "c": {UNITS: 8}}))
    lister.pods = {("default", "p"): {"a": {UNITS: held(8)}, "b": {}, "c": {}}}
    assert (await identity.look(UNITS, 8)).caller.container == "b"


async def test_plain_init_containers_are_told_by_the_ledger(identity, lister, pods, board, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}, init={"warm": {UNITS: 8}}))
    lister.pods = {("default", "p"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.container == "warm"
    board.ledger.give(Grant(uid="uid-p", container="warm", init=True, devices={UNITS: tuple(held(8))}))
    assert (await identity.look(UNITS, 8)).caller.container == "main"


async def test_an_init_container_of_a_pod_that_runs_asks_for_nothing(identity, lister, pods, make_pod):
    pods.put(make_pod("ran", {"main": {}}, init={"warm": {UNITS: 8}}, phase="Running"))
    started = make_pod("started", {"main": {}}, init={"warm": {UNITS: 8}})
    status = PodStatus(
        phase="Pending", init_container_statuses=(ContainerStatus(name="warm", container_id="containerd://x"),)
    )
    pods.put(Pod(metadata=started.metadata, spec=started.spec, status=status))
    pods.put(make_pod("new", {"main": {UNITS: 8}}))
    lister.pods = {("default", name): {"main": {}} for name in ("ran", "started", "new")}
    assert (await identity.look(UNITS, 8)).caller.uid == "uid-new"


async def test_two_candidates_of_different_sizes_are_told_by_the_size(identity, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    pods.put(make_pod("q", {"main": {UNITS: 9}}))
    lister.pods = {("default", "p"): {"main": {}}, ("default", "q"): {"main": {}}}
    assert (await identity.look(UNITS, 9)).caller.uid == "uid-q"


async def test_two_equal_candidates_are_not_guessed_between(identity, lister, pods, make_pod):
    for name in "pq":
        pods.put(make_pod(name, {"main": {UNITS: 8}}))
    lister.pods = {("default", "p"): {"main": {}}, ("default", "q"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller is None


async def test_a_pod_that_the_watch_does_not_have_yet_is_asked_for(identity, lister, pods, make_pod):
    pods.hidden[("default", "new")] = make_pod("new", {"main": {UNITS: 8}})
    lister.pods = {("default", "new"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.uid == "uid-new"
    assert pods.asked == [{("default", "new")}]


async def test_a_pod_of_the_same_name_as_one_that_ended_is_another_pod(identity, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}, uid="first", phase="Succeeded"))
    pods.hidden[("default", "p")] = make_pod("p", {"main": {UNITS: 8}}, uid="second")
    lister.pods = {("default", "p"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.uid == "second"


async def test_a_pod_recreated_under_our_eyes_is_asked_for(identity, lister, pods, board, make_pod):
    """The watch still has the old object, whose slice is given; List shows the new one without any."""
    pods.put(make_pod("p", {"main": {UNITS: 8}}, uid="first"))
    board.ledger.give(Grant(uid="first", container="main", devices={UNITS: tuple(held(8))}))
    pods.hidden[("default", "p")] = make_pod("p", {"main": {UNITS: 8}}, uid="second")
    lister.pods = {("default", "p"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.uid == "second"


async def test_a_kubelet_that_asks_again_for_what_it_lost_is_believed(identity, lister, pods, board, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    board.ledger.give(Grant(uid="uid-p", container="main", devices={UNITS: tuple(held(8))}))
    lister.pods = {("default", "p"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.uid == "uid-p"


async def test_what_nobody_knows_is_not_asked_for_again_at_once(identity, lister, pods, clock):
    lister.pods = {("default", "ghost"): {"main": {}}}
    for _ in range(3):
        assert (await identity.look(UNITS, 8)).caller is None
    assert [keys for keys in pods.asked if keys] == [{("default", "ghost")}]
    clock.now += 6
    await identity.look(UNITS, 8)
    assert len([keys for keys in pods.asked if keys]) == 2


async def test_a_kubelet_that_does_not_answer_leaves_the_caller_unknown(identity, lister):
    lister.error = KubeletError("away")
    look = await identity.look(UNITS, 8)
    assert (look.caller, look.listing) == (None, None)


async def test_tickets_that_are_no_numbers_belong_to_nobody(identity, lister, pods, make_pod):
    pods.put(make_pod("bad", {"main": {UNITS: "1.5"}}))
    pods.put(make_pod("good", {"main": {UNITS: 8}}))
    lister.pods = {("default", "bad"): {"main": {}}, ("default", "good"): {"main": {}}}
    assert (await identity.look(UNITS, 8)).caller.uid == "uid-good"


def test_a_mirror_pod_has_the_static_pods_uid():
    mirror = Pod(metadata=ObjectMeta(uid="api", annotations={"kubernetes.io/config.mirror": "static"}))
    assert (uid_of(mirror), uid_of(Pod(metadata=ObjectMeta(uid="u")))) == ("static", "u")


@pytest.mark.parametrize(("synced", "state"), [(True, "gone"), (False, "unknown")])
def test_absence_proves_something_only_while_the_watch_works(pods, make_pod, synced, state):
    pods.in_sync = synced
    pods.put(make_pod("p", {}, phase="Running"))
    pods.put(make_pod("q", {}, phase="Failed"))
    assert [pods.state("uid-p"), pods.state("uid-q"), pods.state("x")] == ["live", "ended", state]


async def test_with_nothing_to_ask_fetching_finds_nothing():
    found = NodePods("n1")
    await found.fetch([("default", "p")])
    assert (found.get(("default", "p")), found.state("u"), found.all()) == (None, "unknown", [])


class Watched:
    """The watch, as far as pods are looked up in it."""

    def __init__(self, *pods):
        self.pods, self.callbacks = pods, []
        self.synced, self.last_error = asyncio.Event(), None
        self.synced.set()

    def __iter__(self):
        return iter(self.pods)

    def by_uid(self, uid):
        return next((pod for pod in self.pods if pod.metadata.uid == uid), None)

    def subscribe(self, callback, **_):
        self.callbacks.append(callback)
        for pod in self.pods:
            callback(Added(pod))


def test_a_pod_that_calls_itself_the_mirror_of_another_takes_nothing_from_it(make_pod):
    """Anybody may write the annotation at creation, and name a node; the UIDs of static pods are no pod's in the API."""
    victim = make_pod("victim", {"main": {UNITS: 8}}, uid="v")
    thief = make_pod("thief", {"main": {UNITS: 8}}, uid="t", notes={"kubernetes.io/config.mirror": "v"}, phase="Failed")
    static = make_pod("static", {"main": {UNITS: 8}}, uid="api", notes={"kubernetes.io/config.mirror": "hash"})
    found = NodePods("n1", cache=Watched(victim, thief, static))
    assert (found.by_uid("v"), found.state("v"), found.by_uid("hash")) == (victim, "live", static)
    assert [found.stands_for(pod) for pod in (victim, thief, static)] == [True, False, True]
