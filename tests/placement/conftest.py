"""Builders of what placement works on; kept short, so that a test reads as its case."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory, MigInstance
from tessera.model.quantity import MIB
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask

UNIT = 256 * MIB


def make_gpu(
    number: int,
    *,
    units: int = 64,
    model: str = "NVIDIA A100",
    health: str = "ok",
    memory: Guarantee = Guarantee.WATCHED,
    numa: int = -1,
    links: dict[int, str] | None = None,
    held: int = 0,
    mig: tuple[str, ...] = (),
) -> Gpu:
    """GPU number n has the id ``00000000000n``."""
    return Gpu(
        id=f"{number:012x}",
        uuid=f"GPU-{number:012x}"[:12] + f"-{f'{number:012x}'[8:]}-0000-0000-000000000000",
        index=number,
        model=model,
        memory=units * UNIT,
        units=units,
        numa=numa,
        health=health,
        guarantee=Guarantees(memory=memory),
        links={f"{other:012x}": link for other, link in (links or {}).items()},
        held=held,
        mig=tuple(MigInstance(id=f"g{place}", profile=profile) for place, profile in enumerate(mig)),
    )


def make_inventory(*gpus: Gpu, unit: int = UNIT, state: str = "serving", lingering: tuple[str, ...] = ()) -> Inventory:
    return Inventory(v=1, unit=unit, gpus=gpus, state=state, lingering=lingering)


def make_ask(
    container: str = "main",
    *,
    gpus: int = 1,
    units: int | None = None,
    percent: int | None = None,
    compute: int | None = None,
    whole: bool = False,
    mig: str | None = None,
    role: str = "main",
) -> Ask:
    request = ContainerRequest(
        gpus=gpus,
        memory=None if units is None else units * UNIT,
        memory_percent=percent,
        compute=compute,
        whole=whole,
        mig=mig,
        init=role == "init",
    )
    return Ask(container=container, role=role, request=request)


@pytest.fixture(scope="session")
def unit() -> int:
    return UNIT


@pytest.fixture(scope="session")
def gpu() -> Callable[..., Gpu]:
    return make_gpu


@pytest.fixture(scope="session")
def inventory() -> Callable[..., Inventory]:
    return make_inventory


@pytest.fixture(scope="session")
def ask() -> Callable[..., Ask]:
    return make_ask
