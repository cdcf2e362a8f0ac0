"""Inventory, plan and drift are written as the contract shows them, read back, and refused when forged."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model import inventory, plan
from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantee, Guarantees
from tessera.model.inventory import Gpu, Inventory, MigInstance, gpu_id, usable_units
from tessera.model.plan import Plan, PlannedSlice

GPU = "9f2c1ab4d0e7"
OTHER = "1b00000000aa"


def _inventory(**changes):
    gpu = {
        "id": GPU, "uuid": "GPU-9f2c1ab4-d0e7-0000-0000-000000000000", "index": 0, "model": "NVIDIA A100-SXM4-80GB",
        "memory": 85899345920, "units": 316, "numa": 0, "health": "ok", "links": {OTHER: "nvlink"},
        "guarantee": Guarantees(memory=Guarantee.KERNEL),
    }  # fmt: skip
    return Inventory(v=1, unit=268435456, gpus=(Gpu(**(gpu | changes)),))


def test_the_inventory_is_as_the_contract_shows_it():
    assert json.loads(inventory.encode(_inventory())) == {
        "v": 1, "unit": 268435456, "state": "serving", "lingering": [],
        "gpus": [{"id": GPU, "uuid": "GPU-9f2c1ab4-d0e7-0000-0000-000000000000", "index": 0,
                  "model": "NVIDIA A100-SXM4-80GB", "memory": 85899345920, "units": 316, "numa": 0, "health": "ok",
                  "guarantee": {"memory": "kernel", "compute": "none"}, "links": {OTHER: "nvlink"}, "held": 0}],
    }  # fmt: skip


def test_annotations_read_back():
    mig = _inventory(mig=(MigInstance(id="g7", profile="1g.10gb"),))
    for found in (_inventory(), mig):
        assert inventory.decode(inventory.encode(found)) == found
    assert json.loads(inventory.encode(mig))["gpus"][0]["mig"] == [{"id": "g7", "profile": "1g.10gb"}]


def test_the_plan_is_as_the_contract_shows_it():
    made = Plan(
        v=1,
        node="n1",
        guarantee=Guarantees(memory=Guarantee.KERNEL, compute=Guarantee.PROCESS),
        containers={"main": (PlannedSlice(gpu=GPU, units=32, compute=30),)},
    )
    assert plan.encode(made) == (
        '{"containers":{"main":[{"compute":30,"gpu":"9f2c1ab4d0e7","units":32}]},'
        '"guarantee":{"compute":"process","memory":"kernel"},"node":"n1","v":1}'
    )
    assert plan.decode(plan.encode(made)) == made


def test_a_slice_without_compute_says_0_and_a_mig_instance_says_neither():
    made = Plan(
        v=1, node="n", guarantee=Guarantees(),
        containers={"a": (PlannedSlice(gpu=GPU, units=1, compute=0),),
                    "b": (PlannedSlice(gpu=GPU, mig="1g.10gb", instance="g7"),),
                    "c": (PlannedSlice(gpu=GPU, units=316, compute=100, whole=True),)},
    )  # fmt: skip
    shown = json.loads(plan.encode(made))["containers"]
    assert shown == {
        "a": [{"gpu": GPU, "units": 1, "compute": 0}],
        "b": [{"gpu": GPU, "mig": "1g.10gb", "instance": "g7"}],
        "c": [{"gpu": GPU, "units": 316, "compute": 100, "whole": True}],
    }
    assert plan.decode(plan.encode(made)) == made


@pytest.mark.parametrize(
    "piece",
    [
        {"gpu": "zz", "units": 1, "compute": 0},
        {"gpu": GPU, "units": 0, "compute": 0},
        {"gpu": GPU, "units": -5, "compute": 0},
        {"gpu": GPU, "units": 1, "compute": 101},
        {"gpu": GPU, "units": 1},
        {"gpu": GPU},
        {"gpu": GPU, "mig": "1g.10gb"},
        {"gpu": GPU, "units": 10**12, "compute": 0},
        {"units": 1, "compute": 0},
    ],
)
def test_forged_slices_are_refused(piece):
    text = json.dumps({"v": 1, "node": "n", "guarantee": {}, "containers": {"a": [piece]}})
    with pytest.raises(AnnotationError, match="plan annotation"):
        plan.decode(text)
    with pytest.raises(AnnotationError, match="drift annotation"):
        plan.decode_drift(json.dumps({"uid": {"a": [piece]}}))


def test_one_gpu_twice_in_a_container_is_refused():
    piece = {"gpu": GPU, "units": 1, "compute": 0}
    text = json.dumps({"v": 1, "node": "n", "guarantee": {}, "containers": {"a": [piece, piece]}})
    with pytest.raises(AnnotationError, match="names one GPU twice"):
        plan.decode(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda o: o | {"v": 2},
        lambda o: o | {"unit": 0},
        lambda o: o | {"gpus": o["gpus"] * 2},
        lambda o: o | {"gpus": [o["gpus"][0] | {"id": "XYZ"}]},
        lambda o: o | {"gpus": [o["gpus"][0] | {"units": -1}]},
        lambda o: o | {"gpus": [o["gpus"][0] | {"held": -1}]},
        lambda o: o | {"gpus": [o["gpus"][0] | {"health": "fine"}]},
        lambda o: o | {"state": "asleep"},
        lambda _: {"v": 1},
    ],
)
def test_forged_inventories_are_refused(change):
    with pytest.raises(AnnotationError, match="inventory annotation"):
        inventory.decode(json.dumps(change(json.loads(inventory.encode(_inventory())))))


def test_a_newer_writer_may_add_fields():
    grown = json.loads(inventory.encode(_inventory())) | {"later": 1}
    assert inventory.decode(json.dumps(grown)) == _inventory()


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text):
    for read in (inventory.decode, plan.decode, plan.decode_drift):
        try:
            read(text)
        except AnnotationError:
            continue


def test_gpu_ids():
    assert gpu_id("GPU-9f2c1ab4-d0e7-4a5b-8c6d-1e2f3a4b5c6d") == GPU
    for bad in ("", "GPU-", "GPU-xyz", "GPU-9f2c1ab4"):
        with pytest.raises(AnnotationError, match="12 hex digits"):
            gpu_id(bad)


def test_usable_units_round_down():
    unit = 256 * 1024**2
    assert usable_units(total=80 * 1024**3, reserved=0, headroom=0, unit=unit) == 320
    assert usable_units(total=80 * 1024**3, reserved=1, headroom=0, unit=unit) == 319
    assert usable_units(total=80 * 1024**3, reserved=0, headroom=unit + 1, unit=unit) == 318
    assert usable_units(total=1, reserved=2, headroom=3, unit=unit) == 0


def test_guarantees_are_ordered():
    order = list(Guarantee)
    for at, stronger in enumerate(order):
        for later, weaker in enumerate(order):
            assert stronger.satisfies(weaker) == (at <= later)
