"""When a slice is free, and what a restarted agent knows."""

from __future__ import annotations

import itertools

import pytest

from deviceplugin.allocator import Allocator
from deviceplugin.checkpoint import Entry, read
from deviceplugin.devices import View, device_id
from deviceplugin.errors import KubeletError
from deviceplugin.ledger import Grant
from deviceplugin.metrics import NodeMetrics
from deviceplugin.podresources import Listing
from deviceplugin.prestart import PreStart
from deviceplugin.processes import ProcessMap
from deviceplugin.rebuild import Rebuild, Witnesses
from deviceplugin.settle import SURE_AFTER, UNKNOWN_AFTER, Settler, judge
from deviceplugin.sightings import Sightings
from tessera.model.names import names
from tessera.testing.kubelet import checkpoint as fake_checkpoint

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
POD = "01234567-89ab-cdef-0123-456789abcdef"


def ids(numbers, gpu=A, view=View.UNITS):
    return tuple(device_id(gpu, view, number) for number in numbers)


OLD = {"unknown": False, "listed": False, "seen": False, "blind": False, "age": 60.0}


@pytest.mark.parametrize(
    ("case", "state", "changes", "verdict"),
    [
        ("it has ended", "ended", {"listed": True, "seen": True}, "free"),
        ("it is there", "live", {}, "keep"),
        ("vanished, nothing of it is left", "gone", {}, "free"),
        ("vanished, its processes run", "gone", {"seen": True}, "linger"),
        ("vanished, the kubelet counts it active", "gone", {"listed": True}, "linger"),
        ("vanished a moment ago", "gone", {"age": SURE_AFTER / 2}, "keep"),
        ("vanished, the kubelet does not answer", "gone", {"listed": None}, "keep"),
        ("no API, nothing of it is left", "unknown", {}, "free"),
        ("no API, the kubelet counts it active", "unknown", {"listed": True}, "keep"),
        ("no API, its processes run", "unknown", {"seen": True}, "keep"),
        ("no API, processes can't be seen here", "unknown", {"blind": True}, "keep"),
        ("could never be told, nobody has its IDs", "unknown", {"unknown": True}, "free"),
        ("could never be told, just now", "unknown", {"unknown": True, "age": UNKNOWN_AFTER / 2}, "keep"),
        ("could never be told, the kubelet has its IDs", "unknown", {"unknown": True, "listed": True}, "keep"),
    ],
)
def test_what_becomes_of_a_slice(case, state, changes, verdict):
    assert verdict == judge(state, **{**OLD, **changes}), case


def test_what_is_seen_is_never_freed():
    for state, unknown, blind, age in itertools.product(("gone", "unknown"), (False,), (True, False), (0.0, 99.0)):
        for listed in (True, False, None):
            assert judge(state, unknown=unknown, listed=listed, seen=True, blind=blind, age=age) != "free"


@pytest.fixture
def seen():
    return set()


@pytest.fixture
def settler(board, pods, lister, clock, seen):
    async def look():
        return frozenset(seen)

    async def told(resource, ids, listing):
        assert listing.pods.keys() == lister.pods.keys()
        settler.asked.append((resource, ids))

    settler = Settler(
        board.ledger,
        pods=pods,
        lister=lister,
        quiet_in=lambda: 0.0,
        look=look,
        trustworthy=lambda: True,
        adopt=told,
        clock=clock,
        metrics=NodeMetrics(),
    )
    settler.asked = []
    return settler


async def test_a_pod_that_could_not_be_told_is_asked_for_while_the_kubelet_has_it(settler, board, lister, clock):
    board.ledger.give_unknown(UNITS, ids(range(4)))
    lister.error = KubeletError("busy")
    await settler.step()
    assert settler.asked == []
    lister.error = None
    lister.pods = {("default", "x"): {"main": {UNITS: ids(range(4))}}}
    clock.now += 3600
    await settler.step()
    assert settler.asked == [(UNITS, frozenset(ids(range(4))))]
    lister.pods = {}
    await settler.step()
    assert len(settler.asked) == 1
    assert len(board.ledger) == 0


async def test_many_pods_that_could_not_be_told_are_told_by_one_list(  # noqa: PLR0917 - fixtures
    board, pods, identity, placing, lister, clock, make_pod
):
    prestart = PreStart(
        board,
        allocator=Allocator(board, identity=identity, placing=placing, pods=pods, clock=clock, seen=frozenset),
        identity=identity,
        placing=placing,
        pods=pods,
        lister=lister,
        checkpoint=tuple,
        clock=clock,
        started=lambda _: None,
        failed=lambda *_: None,
    )

    async def look():
        return frozenset()

    settler = Settler(
        board.ledger,
        pods=pods,
        lister=lister,
        quiet_in=lambda: 0.0,
        look=look,
        trustworthy=lambda: True,
        adopt=prestart.adopt,
        clock=clock,
        metrics=NodeMetrics(),
    )
    for number in range(5):
        pods.put(make_pod(f"p{number}", {"main": {UNITS: 4}}))
        taken = ids(range(4 * number, 4 * number + 4))
        board.ledger.give_unknown(UNITS, taken)
        lister.pods["default", f"p{number}"] = {"main": {UNITS: taken}}
    await settler.step()
    assert lister.calls == ["List"]
    assert sorted(board.ledger.pods) == [f"uid-p{number}" for number in range(5)]


def give(board, name, numbers):
    board.ledger.give(
        Grant(uid=f"uid-{name}", namespace="default", name=name, container="main", devices={UNITS: ids(numbers)})
    )


async def test_a_vanished_pod_lingers_until_it_is_seen_no_more(settler, board, lister, clock, seen):
    give(board, "p", range(8))
    seen.add("uid-p")
    await settler.step()
    assert board.ledger.lingering == {"uid-p"}
    lister.error = KubeletError("away")
    seen.clear()
    clock.now += 10
    await settler.step()
    assert board.ledger.lingering == {"uid-p"}, "no answer is no proof"
    lister.error = None
    await settler.step()
    assert (len(board.ledger), board.ledger.lingering) == (0, frozenset())


async def test_nothing_is_asked_while_nothing_is_in_doubt(settler, board, pods, lister, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    give(board, "p", range(8))
    assert await settler.step() > 10
    assert lister.calls == []


async def test_a_list_waits_for_a_quiet_moment(board, pods, lister, clock):
    async def look():
        return frozenset()

    async def told(*_):
        raise AssertionError("nobody is to be asked")

    settler = Settler(
        board.ledger,
        pods=pods,
        lister=lister,
        quiet_in=lambda: 0.1,
        look=look,
        trustworthy=lambda: True,
        adopt=told,
        clock=clock,
        metrics=NodeMetrics(),
    )
    give(board, "p", range(8))
    clock.now += 100
    await settler.step()
    clock.now += 100
    await settler.step()
    assert (lister.calls, len(board.ledger)) == ([], 1)


async def test_ids_of_a_pod_that_was_never_told_are_freed_when_nobody_has_them(settler, board, lister, clock):
    grant = board.ledger.give_unknown(UNITS, ids(range(8)))
    lister.pods = {("default", "x"): {"main": {UNITS: grant.devices[UNITS]}}}
    await settler.step()
    clock.now += 60
    await settler.step()
    assert len(board.ledger) == 1
    lister.pods = {}
    await settler.step()
    assert len(board.ledger) == 0


# Sightings.


def test_pods_are_seen_by_their_cgroups(tmp_path):
    for pid, cgroup in (("1", "/init.scope"), ("77", f"/kubepods/burstable/pod{POD}/{'a' * 64}"), ("x", "")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cgroup").write_text(f"0::{cgroup}\n")
    sightings = Sightings(ProcessMap(str(tmp_path)), on_gpus=lambda: frozenset({"g"}))
    assert sightings.now() == {POD, "g"}


def test_a_proc_that_is_not_there_shows_nothing_and_is_not_trusted(tmp_path):
    sightings = Sightings(ProcessMap(str(tmp_path / "none")))
    assert (sightings.now(), sightings.trustworthy) == (frozenset(), False)


# The kubelet's checkpoint.


def test_the_checkpoint_is_read_as_the_kubelet_writes_it(tmp_path):
    entries = (
        fake_checkpoint.Entry("u", "c", UNITS, {-1: ids(range(2)), 0: ids(range(1))}, b"x"),
        fake_checkpoint.Entry("u", "c", "nvidia.com/gpu", {0: ("GPU-1",)}, b""),
    )
    content = fake_checkpoint.encode(fake_checkpoint.Checkpoint(entries, {UNITS: ids(range(9))}))
    (tmp_path / "kubelet_internal_checkpoint").write_bytes(content)
    assert (Entry("u", "c", UNITS, ids(range(2))),) == read(str(tmp_path), ours=NAMES.is_ticket)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"Data":{"PodDeviceEntries":[{}]}}', b"\xff", b"[" * 100_000])
def test_a_checkpoint_that_is_none_is_left_out(tmp_path, content):
    (tmp_path / "kubelet_internal_checkpoint").write_bytes(content)
    assert read(str(tmp_path), ours=NAMES.is_ticket) == ()
    assert read(str(tmp_path / "none"), ours=NAMES.is_ticket) == ()


# Rebuilding.


@pytest.fixture
def rebuild(pods, identity, placing):
    return Rebuild(pods, identity, placing, NAMES)


def witnesses(lister=None, *, stored=None, entries=(), seen=(), blind=False):
    listing = Listing(lister.message()) if lister is not None else None
    return Witnesses(stored=stored, entries=entries, listing=listing, seen=frozenset(seen), blind=blind)


def said(grants):
    return {(grant.uid, grant.container): (grant.init, grant.planned, dict(grant.devices)) for grant in grants}


def test_the_kubelet_alone_is_enough_where_the_api_knows_the_pods(rebuild, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}, init={"warm": {UNITS: 10}}, plan={"main": [(A, 8, 0)]}))
    lister.pods = {("default", "p"): {"main": {UNITS: ids(range(8))}}}
    entries = [Entry("uid-p", "warm", UNITS, ids(range(10))), Entry("uid-p", "main", UNITS, ids(range(8)))]
    found = rebuild.grants(witnesses(lister, entries=entries))
    assert [grant.container for grant in found] == ["warm", "main"]
    assert said(found) == {
        ("uid-p", "warm"): (True, False, {UNITS: ids(range(10))}),
        ("uid-p", "main"): (False, True, {UNITS: ids(range(8))}),
    }


def test_without_the_api_names_come_from_the_list_and_uids_from_the_checkpoint(rebuild, lister, pods):
    pods.in_sync = False
    lister.pods = {("default", "p"): {"main": {UNITS: ids(range(8))}}}
    entries = [Entry("u", "warm", UNITS, ids(range(10))), Entry("u", "main", UNITS, ids(range(8)))]
    found = rebuild.grants(witnesses(lister, entries=entries))
    # What isn't listed of a listed pod is a plain init container.
    assert [(grant.uid, grant.namespace, grant.name, grant.container, grant.init) for grant in found] == [
        ("u", "default", "p", "warm", True),
        ("u", "default", "p", "main", False),
    ]


def test_without_api_and_checkpoint_the_pod_is_named_and_not_yet_told(rebuild, lister, pods):
    pods.in_sync = False
    lister.pods = {("default", name): {"main": {UNITS: ids(range(8 * n, 8 * n + 8))}} for n, name in enumerate("pq")}
    found = rebuild.grants(witnesses(lister))
    assert [grant.name for grant in found] == ["p", "q"]
    assert all(grant.uid.startswith("?") for grant in found)


def test_of_a_pod_that_ended_while_we_were_away_nothing_is_kept(rebuild, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}, phase="Failed"))
    grant = Grant(uid="uid-p", container="main", namespace="default", name="p", devices={UNITS: ids(range(8))})
    entries = [Entry("uid-p", "main", UNITS, ids(range(8))), Entry("uid-gone", "main", UNITS, ids(range(8, 16)))]
    assert rebuild.grants(witnesses(lister, stored=[grant], entries=entries)) == []


def test_what_is_gone_as_an_object_and_still_runs_is_kept(rebuild, lister):
    grant = Grant(uid="u", container="main", namespace="default", name="p", devices={UNITS: ids(range(8))})
    assert [grant] == rebuild.grants(witnesses(lister, stored=[grant], seen=["u"]))
    assert rebuild.grants(witnesses(lister, stored=[grant])) == []


def test_the_kubelets_word_on_ids_counts(rebuild, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    lister.pods = {("default", "p"): {"main": {UNITS: ids(range(8))}}}
    stored = Grant(
        uid="uid-p", container="main", namespace="default", name="p", planned=True, devices={UNITS: ids(range(50, 58))}
    )
    assert {("uid-p", "main"): (False, True, {UNITS: ids(range(8))})} == said(
        rebuild.grants(witnesses(lister, stored=[stored]))
    )


def test_a_kubelet_cut_off_from_the_api_lists_nothing_and_what_it_runs_is_kept(rebuild, lister, pods):
    pods.in_sync = False
    grant = Grant(uid="u", container="main", namespace="default", name="p", devices={UNITS: ids(range(8))})
    entries = [Entry("u", "main", UNITS, ids(range(8)))]
    assert [grant] == rebuild.grants(witnesses(lister, stored=[grant], entries=entries, seen=["u"]))
    assert [grant] == rebuild.grants(witnesses(lister, stored=[grant], entries=entries, blind=True))
    assert [grant] == rebuild.grants(witnesses(None, stored=[grant], entries=entries))


def test_without_any_answer_the_checkpoint_is_all_there_is(rebuild, pods):
    pods.in_sync = False
    (grant,) = rebuild.grants(witnesses(None, entries=[Entry("u", "main", UNITS, ids(range(8)))]))
    assert (grant.uid, dict(grant.devices)) == ("u", {UNITS: ids(range(8))})


def test_ids_of_our_resources_that_are_not_ours_are_passed_over(rebuild, lister, pods, make_pod):
    pods.put(make_pod("p", {"main": {UNITS: 8}}))
    lister.pods = {("default", "p"): {"main": {UNITS: ("weird",)}}}
    assert rebuild.grants(witnesses(lister, entries=[Entry("uid-p", "main", UNITS, ("weird",))])) == []


def test_one_id_recorded_for_two_pods_stays_with_both(rebuild, lister, pods, board, make_pod):
    for name in "pq":
        pods.put(make_pod(name, {"main": {UNITS: 8}}))
    lister.pods = {("default", name): {"main": {UNITS: ids(range(8))}} for name in "pq"}
    board.ledger.load(rebuild.grants(witnesses(lister)))
    assert board.ledger.held(A).units == 16
