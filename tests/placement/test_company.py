"""Pods of a class, and pods that avoid it, never share a GPU, whoever came first."""

from __future__ import annotations

import pytest

from tessera.model.config import Placement
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.placement.claims import Claim
from tessera.placement.claims import taken as counted
from tessera.placement.company import ANYBODY, Company, company
from tessera.placement.fit import judge, place, still_fits
from tessera.placement.gpustate import GpuState, Place
from tessera.placement.holding import Holding
from tessera.placement.keeping import Kept, beside, occupied
from tessera.placement.ledger import Ledger
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.scores import Scores
from tessera.placement.shape import shape_of
from tessera.placement.victims import Holder, choose
from tessera.placement.wishes import Wishes, wishes

NAMES = names()
BATCH = Company(classes=("batch",))
SHY = Company(classes=("live",), avoids=("batch", "train"))


@pytest.mark.parametrize("pair", [(BATCH, SHY), (SHY, BATCH)])
def test_each_keeps_away_from_the_other(gpu, inventory, ask, unit, pair):
    first, second = pair
    ledger = Ledger()
    ledger.set_node("n", inventory(gpu(1), gpu(2)))
    asks = (ask(units=8),)
    ledger.book("first", "n", Claim(asks, {"main": (Place(gpu(1).id),)}, first))
    shape = shape_of(asks, unit=unit, wishes=Wishes(company=second, policy="pack"))
    found = place(asks, shape, ledger.states("n"))
    assert found == {"main": (Place(gpu(2).id),)}
    assert still_fits(asks, shape, found, ledger.states("n"))
    assert not still_fits(asks, shape, {"main": (Place(gpu(1).id),)}, ledger.states("n"))
    friend = shape_of(asks, unit=unit, wishes=Wishes(company=first, policy="pack"))
    assert place(asks, friend, ledger.states("n")) == {"main": (Place(gpu(1).id),)}


def test_a_node_full_of_others_says_so_until_they_go(gpu, inventory, ask, unit):
    ledger = Ledger()
    ledger.set_node("n", inventory(gpu(1)))
    asks = (ask(units=8),)
    ledger.book("b", "n", Claim(asks, {"main": (Place(gpu(1).id),)}, BATCH))
    shape = shape_of(asks, unit=unit, wishes=Wishes(company=SHY))
    scores = Scores(ledger.columns)
    expected = Rejection(Reason.NEIGHBOURS, 1, 0)
    assert judge(shape, ledger.states("n")) == expected
    assert scores.row(shape).rejection(ledger.row("n")) == expected
    assert not isinstance(place(asks, shape, ledger.states("n", without=("b",))), Rejection)
    ledger.release("b")
    assert scores.row(shape).fits[ledger.row("n")]
    assert judge(shape, ledger.states("n")) is None


def test_annotations_are_read():
    text = {NAMES.gpu_class: " live , web", NAMES.gpu_avoid_class: "batch,,batch"}
    found = wishes(text, NAMES, Placement())
    assert found.company == Company(("live", "web"), ("batch",))
    assert company(None, NAMES) is ANYBODY
    assert not ANYBODY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Batch", "'Batch'"),
        ("a b", "'a b'"),
        ("-", "'-'"),
        ("x" * 64, "lower-case"),
        (",".join(map(str, range(17))), "17"),
    ],
)
def test_what_is_no_class_is_refused(text, message):
    with pytest.raises(RequestError, match=message):
        company({NAMES.gpu_avoid_class: text}, NAMES)


def test_what_is_kept_for_one_keeps_others_away_as_it_will_itself(gpu, ask, unit):
    """Beside promises the GPUs are described anew: who is on them must not be forgotten, and who will be counts too."""
    asks = (ask(units=8),)
    kept = Kept(asks, shape_of(asks, unit=unit, wishes=Wishes(company=SHY)))
    plain = Kept(asks, shape_of(asks, unit=unit, wishes=Wishes()))
    batch = shape_of(asks, unit=unit, wishes=Wishes(company=BATCH))
    free = [GpuState(gpu(1))]
    taken = [GpuState(gpu(1), Holding(units=8), (), (SHY,))]
    assert isinstance(place(asks, batch, beside(free, free, [kept])), Rejection), "who was promised will be there"
    assert isinstance(place(asks, batch, beside(taken, taken, [plain])), Rejection), "somebody is there"
    assert isinstance(place(asks, batch, beside(taken, free, [plain])), Rejection), "somebody is still there"
    assert isinstance(place(asks, batch, occupied(plain, {"main": (Place(gpu(1).id),)}, taken)), Rejection)


def through(steps):
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_who_keeps_a_pod_away_is_its_victim(gpu, ask, unit):
    asks = (ask(units=8),)
    high = Kept(asks, shape_of(asks, unit=unit, wishes=Wishes(company=SHY)))
    card = gpu(1)
    holders = [
        Holder(key, key, 0, "", counted(Claim(asks, {"main": (Place(card.id),)}, whose), {card.id: card}, unit=unit))
        for key, whose in (("batch", BATCH), ("web", ANYBODY))
    ]

    def without(keys):
        there = [each for each in holders if each.key not in keys]
        held = Holding(units=8 * len(there))
        return [GpuState(card, held, (), [each.taken.company for each in there])]

    assert [each.key for each in through(choose(high, without, holders))] == ["batch"]
