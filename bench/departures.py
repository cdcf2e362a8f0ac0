"""What becomes of a full cluster in which pods end: rejected GPU-hours and fragmentation, policy by policy.

The trace's own cluster holds 1 % of its load at a time (the list is a sample), so the list is laid over itself: copies, each
shifted in time, keep its bursts and lives, on every tenth host, until what is offered comes to the load asked for. A task
that finds no room is lost. The first half of the month fills the cluster, the second is measured.

    python -m bench.departures [--load 1.1] [--policies priced,fragmentation,best-fit,pack]

Fragmentation is FGD's measure by the whole list's requests: the share of idle GPU that an average task could not use.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bench.cluster import Cluster
from bench.trace import Host, Task, hosts, tasks
from tessera.placement.columns import CALM, CAPACITY, MEMORY
from tessera.placement.workload import Demand

MONTH: Final = 30 * 86_400
EVERY: Final = 10
SAMPLES: Final = 60
LOAD: Final = 1.1
POLICIES: Final = ("priced", "fragmentation", "best-fit", "pack")


def run(*, load: float = LOAD, policies: Sequence[str] = POLICIES) -> dict[str, dict[str, float]]:
    """Replay the month under each policy, each starting cold.

    Returns:
        By policy ``rejected_gpu_hours``, ``rejected_percent`` of those offered, ``allocated_percent`` and
        ``fragmentation_percent``, means over the second half, and ``decisions``.
    """
    nodes = [
        host for n, host in enumerate(sorted(hosts(), key=lambda h: (h.model, h.gpus, h.cpu, h.name))) if n % EVERY == 0
    ]
    coming = _month(load, sum(host.gpus for host in nodes) * 1000)
    return {policy: _replay(policy, nodes, coming) for policy in policies}


def _month(load: float, capacity: int) -> list[tuple[int, int, Task]]:
    """Start, end and task of everything that comes, in order of time."""
    listed = [task for task in tasks("default") if task.deleted > task.created]
    offered = sum(task.gpu * min(MONTH, task.deleted - task.created) for task in listed) / MONTH / capacity
    rng = random.Random(42)
    found = []
    for _ in range(max(1, round(load / offered))):
        shift = rng.randrange(MONTH)
        for task in listed:
            start = (task.created + shift) % MONTH
            found.append((start, start + min(MONTH, task.deleted - task.created), task))
    found.sort(key=lambda each: each[:2])
    return found


def _replay(policy: str, nodes: list[Host], coming: list[tuple[int, int, Task]]) -> dict[str, float]:
    cluster = Cluster(nodes, policy)
    targets = _targets()
    ends: list[tuple[int, str]] = []
    offered = rejected = 0.0
    samples: list[tuple[float, float]] = []
    due = MONTH // 2
    for number, (start, end, task) in enumerate(coming):
        while ends and ends[0][0] <= start:
            cluster.end(heapq.heappop(ends)[1])
        while start >= due:
            samples.append((cluster.allocated / cluster.capacity, _fragmentation(cluster, targets)))
            due += MONTH // 2 // SAMPLES
        key = str(number)
        hours = task.gpu / 1000 * (end - start) / 3600
        measured = start >= MONTH // 2
        offered += hours * measured
        if cluster.put(key, task):
            heapq.heappush(ends, (end, key))
        else:
            rejected += hours * measured
    return {
        "rejected_gpu_hours": round(rejected),
        "rejected_percent": round(100 * rejected / offered, 2),
        "allocated_percent": round(100 * float(np.mean([held for held, _ in samples])), 2),
        "fragmentation_percent": round(100 * float(np.mean([lost for _, lost in samples])), 2),
        "decisions": len(coming),
    }


def _targets() -> list[tuple[Demand, float]]:
    listed = tasks("default")
    counts: dict[Demand, float] = {}
    for task in listed:
        demand = Demand(task.cpu, task.gpus, 0, task.share // 10, task.share // 10, task.models)
        counts[demand] = counts.get(demand, 0.0) + 1 / len(listed)
    return list(counts.items())


def _fragmentation(cluster: Cluster, targets: list[tuple[Demand, float]]) -> float:
    """FGD's measure of the whole cluster over its idle GPU, by the definition and with nothing from the product's tables."""
    columns = cluster.ledger.columns
    rows = columns.rows
    slots = columns.slots[:rows]
    rest = np.where(slots[:, CAPACITY] > 0, np.minimum(slots[:, MEMORY], slots[:, CALM]), 0)
    idle = rest.sum(axis=1)
    lost = 0.0
    for demand, part in targets:
        if not demand.gpus:
            lost += part * float(idle.sum())
            continue
        fits = rest >= 10 * demand.percent
        can = (fits.sum(axis=1) >= demand.gpus) & (columns.cpu[:rows] >= demand.cpu)
        lost += part * float(np.where(can, (rest * ~fits).sum(axis=1), idle).sum())
    return lost / max(1.0, float(idle.sum()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came of each policy, and write out/departures.json."""
    flags = argparse.ArgumentParser(prog="python -m bench.departures")
    flags.add_argument("--load", type=float, default=LOAD, help="GPU asked at a time, to the capacity")
    flags.add_argument("--policies", default=",".join(POLICIES))
    options = flags.parse_args(arguments)
    found = run(load=options.load, policies=options.policies.split(","))
    out = Path("out")
    out.mkdir(exist_ok=True)
    (out / "departures.json").write_text(json.dumps({"load": options.load} | found, indent=1))
    for policy, figures in found.items():
        print(policy, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
