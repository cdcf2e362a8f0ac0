"""Reasons: distinct, short, with numbers, and each either passes or never does."""

from __future__ import annotations

import re

import pytest

from tessera.model.names import MEMORY_UNIT
from tessera.placement.reasons import MOST_AMOUNTS, REASONS, Reason, Rejection, by_code, texts
from tessera.placement.topology import Budget, groups, possible


def test_slugs_texts_and_codes_are_distinct():
    assert len({reason.slug for reason in Reason}) == len(Reason)
    assert len({reason.template for reason in Reason}) == len(Reason)
    assert [by_code(reason.code) for reason in Reason] == list(REASONS)
    assert min(reason.code for reason in Reason) == 1


def test_a_text_holds_its_numbers():
    assert Rejection(Reason.UNITS, 32, 20).text == "needs 32 units, best GPU has 20"
    assert Rejection(Reason.MIG_TAKEN, 2, 1, "1g.10gb").text == "needs 2 MIG instances of 1g.10gb, 1 is free"


@pytest.mark.parametrize(
    ("rejection", "expected"),
    [
        (Rejection(Reason.UNITS, 32, 20, unit=MEMORY_UNIT), "needs 32 units (8 GiB), best GPU has 20 (5 GiB)"),
        (Rejection(Reason.UNITS, 1, 0, unit=MEMORY_UNIT), "needs 1 unit (256 MiB), best GPU has 0"),
        (
            Rejection(Reason.SMALL_GPUS, 91, 3, unit=MEMORY_UNIT),
            "needs 91 units (22.75 GiB), largest GPU has 3 (768 MiB)",
        ),
        (Rejection(Reason.SMALL_GPUS, 7, 5, unit=100 << 20), "needs 7 units (700 MiB), largest GPU has 5 (500 MiB)"),
    ],
)
def test_units_are_told_as_a_size_too(rejection, expected):
    assert rejection.text == expected


@pytest.mark.parametrize("reason", [reason for reason in Reason if "{need}" in reason.template])
def test_one_of_a_thing_is_said_in_the_singular(reason):
    one, none = Rejection(reason, 1, 0, "x").text, Rejection(reason, 1, 1, "x").text
    assert not re.search(r"\b1 (\w+ )?(GPUs|units|instances)\b|\b1 (are|have)\b", f"{one}; {none}")
    two = Rejection(reason, 2, 0, "x").text
    assert not re.search(r"\b2 (\w+ )?(GPU|unit|instance)\b|\b0 (is|has)\b", two)


def test_from_some_amounts_on_the_largest_speaks_for_all():
    def some(*amounts):
        return [Rejection(Reason.UNITS, 32, have, unit=MEMORY_UNIT) for have in amounts]

    few, many = some(*range(MOST_AMOUNTS)), some(*range(MOST_AMOUNTS + 1))
    assert texts(few) == {each: each.text for each in few}
    assert set(texts(many).values()) == {f"{many[-1].text} or less"}
    others = [Rejection(Reason.UNITS, 33, 20, unit=MEMORY_UNIT), Rejection(Reason.PERCENT, 50, 20)]
    others += [Rejection(Reason.WHOLE_GPUS, 9, have) for have in range(9)]
    assert {each: text for each, text in texts([*many, *others]).items() if each in others} == {
        each: each.text for each in others
    }


def test_texts_are_short_enough_for_an_event_of_many():
    longest = max(len(Rejection(reason, 1000, 999, "x" * 20, MEMORY_UNIT).text) for reason in Reason)
    assert longest <= 90


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
