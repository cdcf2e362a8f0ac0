"""What pods ask is learned from them: late ones count more, nothing grows without bound, expectations are read strictly."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.cpu import cpu_of, milli
from tessera.model.errors import ConfigError, QuantityError
from tessera.model.names import names
from tessera.model.pod import Container, ObjectMeta, Pod, PodSpec, Resources
from tessera.placement.workload import MOST_DEMANDS, Demand, Demands, Workload, read_expected, shares

NAMES = names()


def container(name="main", *, cpu=None, restart=None, limits=None, **requests):
    amounts = requests | ({"cpu": cpu} if cpu is not None else {})
    return Container(name=name, restart_policy=restart, resources=Resources(requests=amounts, limits=limits))


def pod(*containers, init=None, annotations=None):
    return Pod(
        metadata=ObjectMeta(uid="u", annotations=annotations),
        spec=PodSpec(containers=containers, init_containers=init),
    )


def test_a_workload_that_changes_is_followed():
    workload = Workload(half_life=100)
    for _ in range(1000):
        workload.saw(Demand(gpus=1, percent=50))
    for _ in range(100):
        workload.saw(Demand(gpus=2, percent=100, compute=100))
    found = dict(shares(workload.current(), 1.0))
    assert found[Demand(gpus=1, percent=50)] == pytest.approx(0.5, abs=0.01)


def test_weights_are_scaled_back_before_they_overflow():
    workload = Workload(half_life=1)
    for _ in range(3000):
        workload.saw(Demand(gpus=1, percent=50))
    workload.saw(Demand(gpus=1, percent=70))
    assert workload.current()[Demand(gpus=1, percent=70)] == pytest.approx(0.5, abs=0.01)
    assert sum(workload.current().values()) == pytest.approx(1.0, abs=0.01)


def test_different_requests_that_are_remembered_are_bounded():
    workload = Workload()
    for number in range(2 * MOST_DEMANDS):
        workload.saw(Demand(cpu=number))
    assert len(workload.counts) <= MOST_DEMANDS
    assert workload.total == pytest.approx(sum(workload.counts.values()))


def test_tables_are_renewed_when_the_workload_drifts_and_not_when_it_goes_on():
    workload = Workload()
    renewed = 0
    for number in range(4000):
        workload.saw(Demand(gpus=1, percent=10 * (1 + number % 4)))
        renewed += workload.news()
    assert renewed <= 10
    again = 0
    for _ in range(4000):
        workload.saw(Demand(gpus=1, percent=90))
        again += workload.news()
    assert again >= 3


def test_the_most_popular_requests_cover_the_share_that_was_asked():
    counts = {Demand(cpu=1): 60.0, Demand(cpu=2): 30.0, Demand(cpu=3): 10.0}
    assert shares(counts, 0.9) == [(Demand(cpu=1), pytest.approx(2 / 3)), (Demand(cpu=2), pytest.approx(1 / 3))]
    assert shares({}, 0.9) == []


def test_what_is_expected_reads_as_a_pod_would():
    text = json.dumps(
        [
            {"cpu": "4", "gpus": 1, "memoryPercent": 50, "compute": 50, "models": "T4,A10", "weight": 123},
            {"cpu": "500m", "gpus": 0, "weight": 7},
            {"gpus": 2, "weight": 1},
            {"memory": 8 << 30, "weight": 1},
            {"compute": 30, "weight": 1},
        ]
    ).encode()
    assert read_expected(text, unit=256 << 20) == (
        (Demand(cpu=4000, gpus=1, percent=50, compute=50, models=("a10", "t4")), 123.0),
        (Demand(cpu=500), 7.0),
        (Demand(gpus=2, percent=100, compute=100), 1.0),
        (Demand(gpus=1, units=32), 1.0),
        (Demand(gpus=1, percent=30, compute=30), 1.0),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "placement.shapes"),
        (b"{}", "placement.shapes: Expected `array`"),
        (b'[{"gpus":1}]', "missing required field `weight`"),
        (b'[{"weight":0}]', r"\$\[0\]\.weight"),
        (b'[{"weight":1,"gpus":-1}]', "gpus"),
        (b'[{"weight":1,"colour":2}]', "colour"),
        (b'[{"weight":1},{"weight":1,"cpu":"lots"}]', r"placement\.shapes\[1\].*lots"),
        (b'[{"weight":1,"cpu":"-1"}]', "negative"),
        (b'[{"weight":1,"models":"-"}]', "without a model"),
        (b'[{"weight":1,"memory":1,"memoryPercent":1}]', "write one of them"),
        (b"[" + b",".join([b'{"weight":1}'] * (MOST_DEMANDS + 1)) + b"]", "at most 4096"),
        (b" " * (1 << 22) + b"[]", "at most 4194304"),
        (b"\xff\xfe", "placement.shapes"),
    ],
)
def test_expectations_that_make_no_sense_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_expected(text, unit=256 << 20)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(read_expected(text, unit=1 << 28), tuple)


def test_a_pods_demand_is_told_from_its_tickets_models_and_cpu():
    demands = Demands(NAMES)
    tickets = {NAMES.memory_units: 32, NAMES.compute_percent: 30}
    one = pod(container(cpu="2", limits=tickets), annotations={NAMES.gpu_models: "A100,-T4"})
    expected = Demand(cpu=2000, gpus=1, units=32, compute=30, models=("a100",), not_models=("t4",))
    assert demands.of(one) == expected
    assert demands.of(one) == expected
    assert demands.of(pod(container(cpu="2"))) == Demand(cpu=2000)
    assert demands.of(pod(container(limits={NAMES.memory_units: "x"}))) is None
    assert demands.of(pod(container(limits=tickets), annotations={NAMES.gpu_models: "-"})) is None


def test_cpu_is_counted_as_kubernetes_does():
    assert cpu_of(pod(container(cpu="250m"), container("b", cpu=1))) == 1250
    init = (container("first", cpu="3"), container("side", cpu="500m", restart="Always"), container("last", cpu="3"))
    assert cpu_of(pod(container(cpu="1"), init=init)) == 3500
    assert cpu_of(pod(container(limits={"cpu": "2"}))) == 2000
    assert cpu_of(pod(Container(name="bare"))) == 0
    assert cpu_of(pod(container(cpu="plenty"), container("b", cpu="1e-3"))) == 1


@pytest.mark.parametrize(
    ("raw", "expected"), [("100u", 1), ("1", 1000), (0.5, 500), ("1.0001", 1001), ("9e15", 1 << 32)]
)
def test_cpu_is_rounded_up(raw, expected):
    assert milli(raw) == expected


def test_negative_cpu_is_refused():
    with pytest.raises(QuantityError, match="negative"):
        milli("-1")
