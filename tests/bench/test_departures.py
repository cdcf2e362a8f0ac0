"""The replay's own arithmetic: what comes is what was asked for, and fragmentation is what its definition says."""

from __future__ import annotations

import json

import pytest

from bench.cluster import Cluster
from bench.departures import MONTH, Month, main, month, sample, table, wanted
from bench.trace import Host, Task


def task(cpu=0, gpus=1, share=1000):
    return Task(cpu, 0, gpus, share, (), 0, 0)


@pytest.fixture
def cluster():
    """Two nodes of two GPUs; on the first half a GPU is taken, with half the CPU."""
    found = Cluster([Host("a", 8000, 0, 2, "T4"), Host("b", 2000, 0, 2, "T4")], "pack")
    assert found.put("p", task(cpu=4000, share=500))
    return found


@pytest.mark.parametrize(
    ("kinds", "unusable"),
    [
        ([task()], 500),
        ([task(share=500)], 0),
        ([task(gpus=2)], 1500),
        ([task(cpu=3000)], 500 + 2000),
        ([task(gpus=0)], 3500),
        ([task(), task(), task(), task(gpus=0)], (3 * 500 + 3500) / 4),
        ([task(gpus=4)], 3500),
    ],
)
def test_unusable_is_the_idle_gpu_that_an_average_task_cannot_use(cluster, kinds, unusable):
    found = sample(cluster, wanted(kinds))
    assert found.idle == 3500
    assert found.allocated == 500
    assert found.unusable == pytest.approx(unusable)


def test_a_month_asks_about_what_it_should_and_is_the_same_for_a_seed():
    capacity = 600_000
    coming = month(0.9, capacity, 7)
    asked = sum(each.gpu * (end - start) for start, end, each in coming) / MONTH / capacity
    assert asked == pytest.approx(0.9, abs=0.1)
    assert [start for start, _, _ in coming] == sorted(start for start, _, _ in coming)
    assert coming == month(0.9, capacity, 7)
    assert coming != month(0.9, capacity, 8)


def test_the_table_has_means_over_seeds_and_both_measures():
    one = Month("pack", 0.9, 42, 0.9, 100, 4.0, 80.0, 5.0, 25.0, 90.0)
    other = one._replace(seed=43, rejected=6.0, unusable=6.0, unusable_of_idle=27.0)
    assert table([one, other]).splitlines()[2] == "| 0.9 | `pack` | 5.00 (4.0 - 6.0) | 80.0 | 5.50 | 26.0 | 2 |"


def test_every_load_seed_and_policy_is_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("bench.departures.hosts", lambda: [Host("a", 64_000, 1 << 20, 8, "T4")])
    listed = [Task(1000, 0, 1, 500, (), n * MONTH // 40, n * MONTH // 40 + MONTH // 100) for n in range(40)]
    monkeypatch.setattr("bench.departures.tasks", lambda _: listed)
    out = tmp_path / "out.json"
    assert main(["--loads", "0.05,0.2", "--seeds", "1-2", "--policies", "pack,spread", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert len(found) == 8
    assert {(each["target"], each["seed"], each["policy"]) for each in found} == {
        (load, seed, policy) for load in (0.05, 0.2) for seed in (1, 2) for policy in ("pack", "spread")
    }
    assert all(each["rejected"] == 0 for each in found)
    assert capsys.readouterr().out.count("| 0.2 |") == 2
