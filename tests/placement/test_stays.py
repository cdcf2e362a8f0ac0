"""How long pods stay is told apart by kind, counts those that still run, and is nothing while none has ended."""

from __future__ import annotations

import pytest

from tessera.placement.claims import Claim
from tessera.placement.ledger import Ledger
from tessera.placement.stays import Stays


def test_while_no_pod_has_ended_all_stay_equally_long():
    stays = Stays()
    for gpus in (0, 0, 8, 1):
        stays.came(gpus)
    assert [stays.factor(gpus) for gpus in (0, 1, 8, 4)] == [1.0] * 4


def test_who_stays_longer_has_a_larger_factor():
    stays = Stays()
    running = []
    for n in range(4000):
        gpus = 8 if n % 10 == 0 else 0
        stays.came(gpus)
        running.append((n + (100 if gpus else 10), gpus))
        for end in [each for each in running if each[0] <= n]:
            running.remove(end)
            stays.went(end[1])
    assert stays.factor(8) / stays.factor(0) == pytest.approx(10, rel=0.1)


def test_those_that_run_count_for_as_long_as_they_have():
    stays = Stays()
    stays.came(8)
    for _ in range(500):
        stays.came(0)
        stays.went(0)
    assert stays.factor(8) > 100


def test_one_end_tells_little():
    stays = Stays()
    for _ in range(100):
        stays.came(0)
        stays.went(0)
    stays.came(8)
    stays.went(8)
    assert 0.4 < stays.factor(8) < 1.5


def test_what_was_long_ago_fades():
    stays = Stays(half_life=100)
    stays.came(8)
    for n in range(90):
        stays.came(n % 2)
        stays.went(n % 2)
    stays.went(8)
    assert stays.factor(8) > 10
    before = 0
    stays.came(before)
    for n in range(1000):
        gpus = 8 * (n % 2)
        stays.came(gpus)
        stays.went(before)
        before = gpus
    assert stays.factor(8) == pytest.approx(1, abs=0.1)


def test_the_ledger_counts_bookings_once(gpu, inventory, ask):
    ledger = Ledger()
    ledger.set_node("n0", inventory(*(gpu(g) for g in range(4))), cpu=16_000)
    gang = Claim((ask(gpus=4, whole=True),))
    ledger.book("gang", "n0", gang)
    for n in range(50):
        ledger.book("gang", "n0", gang)
        ledger.book(f"p{n}", "n0", Claim((ask(units=1),)))
        ledger.release(f"p{n}")
        ledger.release("nobody")
    assert ledger.stays.factor(4) > 10
    ledger.release("gang")
    before = ledger.stays.factor(4)
    ledger.release("gang")
    assert ledger.stays.factor(4) == before < 50
