"""Reasons: distinct, short, with numbers, and each either passes or never does."""

from __future__ import annotations

import pytest

from tessera.placement.reasons import REASONS, Reason, Rejection, by_code
from tessera.placement.topology import Budget, groups, possible


def test_slugs_texts_and_codes_are_distinct():
    assert len({reason.slug for reason in Reason}) == len(Reason)
    assert len({reason.template for reason in Reason}) == len(Reason)
    assert [by_code(reason.code) for reason in Reason] == list(REASONS)
    assert min(reason.code for reason in Reason) == 1


def test_a_text_holds_its_numbers():
    assert Rejection(Reason.UNITS, 32, 20).text == "needs 32 units, best GPU has 20"
    assert Rejection(Reason.MIG_TAKEN, 2, 1, "1g.10gb").text == "needs 2 MIG instances of 1g.10gb, 1 are free"


def test_braces_in_a_users_text_are_just_text():
    assert Rejection(Reason.INVALID, what="{need} {0!r}").text == "{need} {0!r}"


@pytest.mark.parametrize(
    "reason", [Reason.NO_GPU, Reason.NO_MODEL, Reason.SMALL_GPUS, Reason.OTHER_UNIT, Reason.INVALID]
)
def test_what_never_changes_by_other_pods_going(reason):
    assert reason.never


@pytest.mark.parametrize("reason", [Reason.UNITS, Reason.SICK, Reason.NOT_READY, Reason.DRAINING, Reason.UNKNOWN_NODE])
def test_what_may_pass(reason):
    assert not reason.never


def test_groups_joined_best_come_first(gpu):
    gpus = [gpu(1, numa=0), gpu(2, numa=1, links={4: "nvlink"}), gpu(3, numa=0), gpu(4, numa=1)]
    found = list(groups(gpus, 2, ("nvlink", "numa", "any"), Budget(1000)))
    assert found[:3] == [(1, 3), (0, 2), (1, 3)]
    assert set(found) == {(a, b) for a in range(4) for b in range(a + 1, 4)}


def test_every_pair_of_a_group_is_joined(gpu):
    ring = [gpu(n, links={(n + 1) % 5: "nvlink"}) for n in range(5)]
    assert possible(ring, 2, ("nvlink",), Budget(1000))
    assert not possible(ring, 3, ("nvlink",), Budget(1000))


def test_a_search_for_groups_ends_with_its_budget(gpu):
    gpus = [gpu(n) for n in range(40)]
    budget = Budget(500)
    assert len(list(groups(gpus, 20, ("any",), budget))) < 500
    assert not budget.spend()
