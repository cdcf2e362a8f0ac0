"""Device IDs, what is withheld, and the message that says so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.devices import (
    LARGEST_MESSAGE,
    Announcement,
    DeviceId,
    Use,
    View,
    catalogue,
    device_id,
    healthy,
    largest_message,
    parse,
)
from deviceplugin.errors import AdvertiseError, DeviceIdError
from tessera.model.inventory import Gpu, MigInstance
from tessera.model.names import names
from tessera.placement.holding import NOTHING, Holding, free_percent, free_units, percent_units

NAMES = names()
UNITS, PERCENT, COMPUTE = NAMES.tickets
A = "9f2c1ab4d0e7"


@pytest.mark.parametrize(
    ("view", "index", "text"),
    [
        (View.UNITS, 0, f"{A}-m000"),
        (View.UNITS, 315, f"{A}-m315"),
        (View.UNITS, 1151, f"{A}-m1151"),
        (View.PERCENT, 0, f"{A}-p00"),
        (View.COMPUTE, 99, f"{A}-c99"),
        (View.MIG, 7, f"{A}-g7"),
        (View.MIG, 12, f"{A}-g12"),
    ],
)
def test_ids_are_written_and_read_back(view, index, text):
    assert text == device_id(A, view, index)
    assert DeviceId(A, view, index) == parse(text)


@given(st.sampled_from(list(View)), st.integers(0, 99))
def test_every_id_reads_back(view, index):
    assert DeviceId(A, view, index) == parse(device_id(A, view, index))


@pytest.mark.parametrize(
    "text",
    [
        "",
        A,
        f"{A}-m7",
        f"{A}-m0315",
        f"{A}-p100",
        f"{A}-p5",
        f"{A}-g07",
        f"{A}-x00",
        f"{A[:-1]}-m000",
        f"{A.upper()}-m000",
        f"{A}-m000\n",
        f"{A}-m\u0660\u0660\u0660",
        f"{A}-m000-m000",
        f" {A}-m000",
    ],
)
def test_strange_ids_are_refused(text):
    with pytest.raises(DeviceIdError):
        parse(text)


def test_a_node_offers_three_views_of_each_gpu(make_gpu):
    offers = catalogue([make_gpu(0, units=316), make_gpu(1, units=60)], NAMES)
    assert {UNITS, PERCENT, COMPUTE} == set(offers)
    assert [len(ids) for ids in offers[UNITS].ids.values()] == [316, 60]
    assert [len(ids) for ids in offers[PERCENT].ids.values()] == [100, 100]
    every = [device for offer in offers.values() for device in offer.all]
    assert len(set(every)) == len(every) == 376 + 200 + 200


def test_ids_do_not_depend_on_the_gpus_size(make_gpu):
    small, large = (catalogue([make_gpu(units=units)], NAMES)[UNITS] for units in (60, 1200))
    assert small.all <= large.all


def test_a_gpu_cut_by_mig_offers_its_instances_only(make_gpu):
    instances = tuple(MigInstance(id=f"g{n}", profile="1g.10gb" if n else "3g.40gb+me") for n in (0, 2, 10))
    offers = catalogue([make_gpu(0, units=0, mig=instances), make_gpu(1)], NAMES)
    gpu = make_gpu(0).id
    assert (f"{gpu}-g2", f"{gpu}-g10") == offers["tessera.dev/mig-1g.10gb"].ids[gpu]
    assert (f"{gpu}-g0",) == offers["tessera.dev/mig-3g.40gb.me"].ids[gpu]
    assert gpu not in offers[UNITS].ids


def test_no_gpus_no_offers():
    assert catalogue([], NAMES) == {}


def test_two_gpus_of_one_name_are_refused(make_gpu):
    twin = Gpu(id=make_gpu().id, uuid="GPU-other", index=1, model="A100", memory=1, units=1)
    with pytest.raises(AdvertiseError, match="GPU-aaaaaaaaaaaa and GPU-other both shorten to aaaaaaaaaaaa"):
        catalogue([make_gpu(), twin], NAMES)


def test_a_message_too_long_for_the_kubelet_is_refused_before_it_is_made():
    fine = names("tessera.dev", 1 << 20)
    gpus = [Gpu(id=f"{n:012x}", uuid=f"GPU-{n}", index=n, model="A", memory=1, units=81920) for n in range(8)]
    with pytest.raises(
        AdvertiseError, match=r"gpu-memory\.1Mi: 655360 device IDs make a message of .* MiB.*memoryUnit"
    ):
        catalogue(gpus, fine)


@given(st.integers(1, 1500), st.integers(1, 3))
def test_the_message_is_what_the_generated_code_reads_and_never_longer_than_said(units, count):
    gpus = [Gpu(id=f"{n:012x}", uuid=f"GPU-{n}", index=n, model="A", memory=1, units=units) for n in range(count)]
    offer = catalogue(gpus, NAMES)[UNITS]
    well = {gpu: frozenset(ids[::3]) for gpu, ids in offer.ids.items()}
    message = Announcement(offer).message(well)
    read = api.ListAndWatchResponse.FromString(message)
    assert [device for ids in offer.ids.values() for device in ids] == [device.ID for device in read.devices]
    assert {device.ID for device in read.devices if device.health == "Healthy"} == set().union(*well.values())
    assert len(message) <= largest_message(offer) == len(Announcement(offer).message({})) < LARGEST_MESSAGE


def test_the_default_unit_fits_eight_large_gpus():
    gpus = [Gpu(id=f"{n:012x}", uuid=f"GPU-{n}", index=n, model="A", memory=1, units=1152) for n in range(8)]
    assert largest_message(catalogue(gpus, NAMES)[UNITS]) < LARGEST_MESSAGE / 10


def test_held_ids_stay_and_of_the_free_ones_as_many_as_may_be_given(make_gpu):
    offers = catalogue([make_gpu(units=320)], NAMES)
    gpu = make_gpu().id
    taken = frozenset(offers[UNITS].ids[gpu][100:132])
    uses = {gpu: Use(capacity=320, held=Holding(units=32, compute=30), serving=True)}
    assert set(offers[UNITS].ids[gpu]) == healthy(offers[UNITS], uses, taken=taken)[gpu]
    assert len(healthy(offers[PERCENT], uses, taken=frozenset())[gpu]) == 90
    assert len(healthy(offers[COMPUTE], uses, taken=frozenset())[gpu]) == 70


@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_withholding_is_the_arithmetic_of_holding(capacity, units, percent, compute, serving):
    units = min(units, capacity)
    held = Holding(
        units=units, percent=percent, percent_units=percent_units(percent, capacity=capacity), compute=compute
    )
    offers = catalogue([Gpu(id=A, uuid="u", index=0, model="A", memory=1, units=capacity)], NAMES)
    uses = {A: Use(capacity=capacity, held=held, serving=serving)}
    counts = {
        resource: len(healthy(offer, uses, taken=frozenset(offer.ids[A][:mine]))[A])
        for (resource, offer), mine in zip(offers.items(), (units, percent, compute), strict=True)
    }
    if not serving:
        assert set(counts.values()) == {0}
        return
    assert counts[UNITS] == min(capacity, units + free_units(held, capacity=capacity))
    assert counts[PERCENT] == min(100, percent + free_percent(held, capacity=capacity))
    assert counts[COMPUTE] == 100


def test_what_lingering_pods_hold_is_never_healthy(make_gpu):
    offers = catalogue([make_gpu(units=10)], NAMES)
    gpu = make_gpu().id
    barred = frozenset(offers[UNITS].ids[gpu][:4])
    uses = {gpu: Use(capacity=10, held=Holding(units=4), serving=True)}
    assert set(offers[UNITS].ids[gpu][4:]) == healthy(offers[UNITS], uses, taken=frozenset(), barred=barred)[gpu]


def test_a_gpu_nobody_speaks_of_has_nothing_healthy(make_gpu):
    offers = catalogue([make_gpu()], NAMES)
    assert healthy(offers[UNITS], {}, taken=frozenset()) == {make_gpu().id: frozenset()}
    sick = {make_gpu().id: Use(capacity=320, held=NOTHING, serving=False)}
    assert healthy(offers[UNITS], sick, taken=offers[UNITS].all) == {make_gpu().id: frozenset()}
