"""Pods of a class, and pods that avoid it, never share a GPU, whoever came first."""

from __future__ import annotations

import pytest

from tessera.model.config import Placement
from tessera.model.errors import RequestError
from tessera.model.names import names
from tessera.placement.claims import Claim
from tessera.placement.company import ANYBODY, Company, company
from tessera.placement.fit import Place, judge, place, still_fits
from tessera.placement.ledger import Ledger
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.scores import Scores
from tessera.placement.shape import shape_of
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
