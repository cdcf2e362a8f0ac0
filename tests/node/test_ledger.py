"""The node's own ledger, in memory and on disk."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin import ledgerfile
from deviceplugin.devices import View, device_id
from deviceplugin.errors import LedgerFileError
from deviceplugin.ledger import Grant, Ledger, Owner
from deviceplugin.ledgerfile import LedgerFile
from tessera.model.names import names
from tessera.placement.holding import NOTHING, Holding

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A, B = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


def ids(view, numbers, gpu=A):
    return tuple(device_id(gpu, view, number) for number in numbers)


@pytest.fixture
def ledger():
    return Ledger(NAMES, {A: 320, B: 60})


def test_amounts_are_counted_from_ids(ledger):
    ledger.give(Grant(uid="u", container="c", devices={UNITS: ids(View.UNITS, range(32))}))
    ledger.give(Grant(uid="u", container="c", devices={COMPUTE: ids(View.COMPUTE, range(30))}))
    ledger.give(Grant(uid="v", container="c", devices={PERCENT: ids(View.PERCENT, range(50), B)}))
    assert Holding(units=32, compute=30) == ledger.held(A)
    assert Holding(percent=50, percent_units=30) == ledger.held(B)
    assert ledger.held(A, without="u") == NOTHING
    assert set(ledger.get(Owner("u", "c")).devices) == {UNITS, COMPUTE}
    assert ledger.owners(UNITS, f"{A}-m007") == (Owner("u", "c"),)


def test_an_init_container_and_what_follows_hold_the_larger(ledger):
    ledger.give(Grant(uid="u", container="i", init=True, devices={UNITS: ids(View.UNITS, range(40))}))
    ledger.give(Grant(uid="u", container="a", devices={UNITS: ids(View.UNITS, range(30))}))
    assert ledger.held(A).units == 40
    ledger.give(Grant(uid="u", container="b", devices={UNITS: ids(View.UNITS, range(30, 50))}))
    assert ledger.held(A).units == 50
    assert ledger.held_with(A, Owner("u", "d"), Holding(units=10), init=False).units == 60
    assert ledger.held_with(A, Owner("u", "d"), Holding(units=10), init=True).units == 60


def test_percents_of_several_containers_round_one_by_one(ledger):
    for container in "ab":
        numbers = range(25) if container == "a" else range(25, 50)
        ledger.give(Grant(uid="u", container=container, devices={PERCENT: ids(View.PERCENT, numbers, B)}))
    # floor(25 % of 60) twice is 30; one slice of 50 % would be 30 too, 33 + 33 + 34 would not.
    assert Holding(percent=50, percent_units=30) == ledger.held(B)


def test_an_id_that_two_pods_have_counts_twice(ledger):
    for uid in "uv":
        ledger.give(Grant(uid=uid, container="c", devices={UNITS: ids(View.UNITS, range(8))}))
    assert ledger.held(A).units == 16
    assert ledger.owners(UNITS, f"{A}-m000") == (Owner("u", "c"), Owner("v", "c"))
    ledger.free(["u"])
    assert ledger.owners(UNITS, f"{A}-m000") == (Owner("v", "c"),)


def test_a_pod_that_could_not_be_told_is_told_later(ledger):
    first = ledger.give_unknown(UNITS, ids(View.UNITS, range(8)))
    second = ledger.give_unknown(COMPUTE, ids(View.COMPUTE, range(10)))
    assert first.uid != second.uid
    grant = Grant(uid="u", container="c", namespace="default", name="p", devices={})
    ledger.claim(first.owner, grant)
    ledger.claim(second.owner, grant)
    assert Holding(units=8, compute=10) == ledger.held(A)
    assert [grant.uid for grant in ledger] == ["u"]
    ledger.claim(first.owner, grant)
    assert len(ledger) == 1


def test_tickets_of_another_unit_count_by_their_size(ledger):
    ledger.give(Grant(uid="u", container="c", devices={"tessera.dev/gpu-memory.128Mi": ids(View.UNITS, range(5))}))
    assert ledger.held(A).units == 3
    assert ledger.taken(UNITS) == frozenset()


def test_lingering_ids_are_barred_and_still_held(ledger):
    ledger.give(Grant(uid="u", container="c", devices={UNITS: ids(View.UNITS, range(8))}))
    ledger.linger(["u", "nobody"])
    assert ledger.lingering == {"u"}
    assert ledger.taken(UNITS) == frozenset()
    assert ledger.barred(UNITS) == set(ids(View.UNITS, range(8)))
    assert ledger.held(A).units == 8
    ledger.free(["u"])
    assert (ledger.lingering, ledger.barred(UNITS)) == (frozenset(), frozenset())


def test_everybody_is_told_of_every_change(ledger):
    seen = []
    ledger.subscribe(lambda: seen.append(ledger.version))
    ledger.give(Grant(uid="u", container="c", devices={UNITS: ids(View.UNITS, range(8))}))
    ledger.linger(["u"])
    ledger.linger(["u"])
    ledger.free(["u"])
    ledger.free(["u"])
    assert seen == [1, 2, 3]


steps = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.sampled_from("abc"),
        st.booleans(),
        st.sampled_from([UNITS, PERCENT, COMPUTE]),
        st.sets(st.integers(0, 20), min_size=1, max_size=6),
        st.sampled_from([A, B]),
        st.sampled_from(["give", "give", "free", "resize"]),
    ),
    max_size=30,
)


@given(steps)
def test_running_sums_are_what_counting_anew_gives(script):
    views = {UNITS: View.UNITS, PERCENT: View.PERCENT, COMPUTE: View.COMPUTE}
    ledger = Ledger(NAMES, {A: 320, B: 60})
    capacity = {A: 320, B: 60}
    for uid, container, init, resource, numbers, gpu, what in script:
        match what:
            case "give":
                devices = {resource: ids(views[resource], sorted(numbers), gpu)}
                ledger.give(Grant(uid=uid, container=container, init=init, devices=devices))
            case "free":
                ledger.free([uid])
            case "resize":
                capacity = {**capacity, gpu: 10 * max(numbers) + 1}
                ledger.resize(capacity)
    fresh = Ledger(NAMES, capacity)
    fresh.load(ledger)
    for gpu in (A, B):
        assert fresh.held(gpu) == ledger.held(gpu)
    for resource in views:
        assert fresh.taken(resource) == ledger.taken(resource)
    ledger.free(["u", "v", "w"])
    assert ledger.held(A) == ledger.held(B) == NOTHING


# The file.


def test_what_is_written_is_read(tmp_path):
    path = str(tmp_path / "ledger.json")
    grants = (
        Grant(uid="u", container="i", init=True, namespace="n", name="p", devices={UNITS: ids(View.UNITS, range(3))}),
        Grant(uid="u", container="c", planned=True, devices={COMPUTE: ids(View.COMPUTE, range(3))}),
    )
    ledgerfile.write(path, ledgerfile.encode(grants))
    assert grants == ledgerfile.read(path)
    assert os.listdir(tmp_path) == ["ledger.json"]


def test_no_file_is_no_error(tmp_path):
    assert ledgerfile.read(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b'{"v":1}',
        b'{"v":3,"grants":[]}',
        b'{"v":1,"grants":[{"uid":"u"}]}',
        b'{"v":1,"grants":[{"uid":"u","container":"c","devices":{"r":["x"]}}]}',
        b'{"v":1,"grants":[{"uid":"u","container":"c","devices":{}},{"uid":"u","container":"c","devices":{}}]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_not_ours_is_refused(tmp_path, content):
    path = tmp_path / "ledger.json"
    path.write_bytes(content)
    with pytest.raises(LedgerFileError, match=r"ledger\.json"):
        ledgerfile.read(str(path))


async def test_changes_follow_to_the_disk_in_the_background(tmp_path, ledger, clock):
    path = str(tmp_path / "ledger.json")
    file = LedgerFile(path, ledger, clock=clock)
    running = asyncio.create_task(file.run())
    ledger.give(Grant(uid="u", container="c", devices={UNITS: ids(View.UNITS, range(3))}))
    async with asyncio.timeout(5):
        while ledgerfile.read(path) is None:  # noqa: ASYNC110 - a file calls nobody
            await asyncio.sleep(0.005)
    assert tuple(ledger) == ledgerfile.read(path)
    ledger.free(["u"])
    assert await file.flush()
    assert ledgerfile.read(path) == ()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_disk_that_fails_is_reported_and_tried_again(tmp_path, ledger, clock):
    folder = tmp_path / "gone"
    file = LedgerFile(str(folder / "ledger.json"), ledger, clock=clock)
    ledger.give(Grant(uid="u", container="c", devices={UNITS: ids(View.UNITS, range(3))}))
    assert not await file.flush()
    assert "can't be written: No such file or directory" in file.problem
    assert not await file.flush()
    folder.mkdir()
    assert await file.flush()
    assert file.problem is None
    assert tuple(ledger) == ledgerfile.read(str(folder / "ledger.json"))
