"""Wall clocks that jump by a day and by years, in every part at once, while pods come and go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from product import pods
from product.clocks import Clocks, settable
from product.installed import EXTENDER, NODE, WEBHOOK, Product


@pytest.fixture(scope="module")
def clocks(product: Product) -> Iterator[Clocks]:
    """Clocks that can be set; one roll-out of the parts for all tests here."""
    with settable(product) as clocks:
        yield clocks


def test_the_clocks_jump_while_pods_come_and_go(space, product, clocks):
    """Ahead, back behind the truth, and to the truth again; each time a freed slice wakes who waits for it."""
    space.run(*(pods.pod(f"whole{number}", {"gpu": 1}) for number in range(3)))
    restarts = product.restarts()
    for number, offset in enumerate(("+1d", "-1d", "+10y", "-10y", "+0")):
        clocks.set(offset)
        space.run(pods.pod(f"slice{number}", {"gpu-memory": "8Gi", "gpu-compute": 5}))
        with space.undisturbed():
            space.create(pods.pod(f"waits{number}", {"gpu": 1}))
            space.waiting(f"waits{number}")
            victim = "whole0" if number == 0 else f"waits{number - 1}"
            space.delete(victim)
            space.gone(victim)
            space.running(f"waits{number}", seconds=30)
        space.just(least=4)
    assert {name: count for name, count in product.restarts().items() if count != restarts.get(name, count)} == {}
    space.nobody_was_refused()


@pytest.mark.parametrize(("offset", "end"), [("+10y", Product.crash), ("-10y", Product.delete)])
def test_parts_that_start_with_a_wrong_clock_serve_as_ever(space, product, clocks, offset, end):
    """The agent finds its pods again, and the webhook, whose clock ends or precedes every certificate, is believed.

    Once their containers start again, once they are other pods: a kubelet makes who crashes a second time wait.
    """
    space.run(pods.pod("old", {"gpu-memory": "8Gi"}))
    clocks.set(offset)
    with space.undisturbed():
        for part in (NODE, WEBHOOK, EXTENDER):
            end(product, part)
            product.back(part)
        space.run(*(pods.pod(f"p{number}", {"gpu-memory": "8Gi"}) for number in range(4)))
        clocks.set("+0")
        space.run(pods.pod("later", {"gpu": 1}))
    space.just(least=6)
    space.nobody_was_refused()
