"""What becomes of a full cluster in which pods end: rejected GPU-hours and fragmentation, policy by policy.

The trace's own cluster holds 1 % of its load at a time (the list is a sample), so the list is laid over itself: copies, each
shifted in time, keep its bursts and lives, on every tenth host, until what is offered comes to the load asked for. A task
that finds no room is lost. The first half of the month fills the cluster, the second is measured.

    python -m bench.departures [--loads 0.9,1.0,1.1] [--seeds 42-44] [--policies priced,fragmentation,best-fit,pack]

Fragmentation is FGD's measure by the whole list's requests: the idle GPU that an average task could not use. It is printed
both ways in which its authors do (Weng et al., "Beware of Fragmentation", USENIX ATC '23): as a part of all GPUs, and as a
part of the idle ones. The second alone misleads: who rejects more has more idle GPU, and more of it is usable.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from bench.cluster import Cluster
from bench.packing import numbers
from bench.trace import Host, Task, hosts, tasks
from tessera.model.config import Measure, PolicyName
from tessera.placement.columns import CALM, CAPACITY, MEMORY
from tessera.placement.workload import Demand

MONTH: Final = 30 * 86_400
EVERY: Final = 10
SAMPLES: Final = 60
LOADS: Final = (1.1,)
SEEDS: Final = (42,)
POLICIES: Final[tuple[PolicyName, ...]] = ("priced", "fragmentation", "best-fit", "pack")


class Month(NamedTuple):
    """What came of one month under one policy; means over the samples of its second half, in percent.

    Attributes:
        load: GPU asked at a time, to the capacity, as it really came. rejected_gpu_hours: of what came in the second half.
        rejected: the same, of what was asked. allocated: of all GPU. unusable: idle GPU that an average task could not
            use, of all GPU. unusable_of_idle: of the idle GPU, sample by sample. refused_whole: what the rejected tasks
            that want every GPU of a node asked, of all that was rejected.
    """

    policy: PolicyName
    target: float
    seed: int
    load: float
    rejected_gpu_hours: float
    rejected: float
    allocated: float
    unusable: float
    unusable_of_idle: float
    refused_whole: float


class Sample(NamedTuple):
    """Thousandths of GPUs at one moment."""

    allocated: float
    idle: float
    unusable: float


def run(
    *,
    loads: Sequence[float] = LOADS,
    seeds: Sequence[int] = SEEDS,
    policies: Sequence[PolicyName] = POLICIES,
    measure: Measure | None = None,
) -> list[Month]:
    """Replay months, each policy starting cold; the same months for every policy.

    Args:
        loads: GPU asked at a time, to the capacity.
        seeds: of the shifts in time.
        policies: under test.
        measure: constants other than the defaults.
    """
    nodes = [
        host for n, host in enumerate(sorted(hosts(), key=lambda h: (h.model, h.gpus, h.cpu, h.name))) if n % EVERY == 0
    ]
    found = []
    for load in loads:
        for seed in seeds:
            coming = month(load, sum(host.gpus for host in nodes) * 1000, seed)
            for policy in policies:
                found.append(_replay(policy, nodes, coming, target=load, seed=seed, measure=measure))
                print(found[-1], file=sys.stderr, flush=True)
    return found


def month(load: float, capacity: int, seed: int) -> list[tuple[int, int, Task]]:
    """Start, end and task of everything that comes, in order of time; `capacity` in thousandths of a GPU."""
    listed = [task for task in tasks("default") if task.deleted > task.created]
    offered = sum(task.gpu * min(MONTH, task.deleted - task.created) for task in listed) / MONTH / capacity
    rng = random.Random(seed)
    found = []
    for _ in range(max(1, round(load / offered))):
        shift = rng.randrange(MONTH)
        for task in listed:
            start = (task.created + shift) % MONTH
            found.append((start, start + min(MONTH, task.deleted - task.created), task))
    found.sort(key=lambda each: each[:2])
    return found


def _replay(
    policy: PolicyName,
    nodes: list[Host],
    coming: list[tuple[int, int, Task]],
    *,
    target: float,
    seed: int,
    measure: Measure | None,
) -> Month:
    cluster = Cluster(nodes, policy, measure=measure)
    targets = wanted(tasks("default"))
    ends: list[tuple[int, str]] = []
    offered = rejected = whole = 0.0
    samples: list[Sample] = []
    due = MONTH // 2
    for number, (start, end, task) in enumerate(coming):
        while ends and ends[0][0] <= start:
            cluster.end(heapq.heappop(ends)[1])
        while start >= due:
            samples.append(sample(cluster, targets))
            due += MONTH // 2 // SAMPLES
        key = str(number)
        hours = task.gpu / 1000 * (end - start) / 3600 * (start >= MONTH // 2)
        offered += hours
        if cluster.put(key, task):
            heapq.heappush(ends, (end, key))
        else:
            rejected += hours
            whole += hours * (task.gpus >= max(host.gpus for host in nodes))
    asked = sum(task.gpu * (end - start) for start, end, task in coming) / MONTH
    return Month(
        policy,
        target,
        seed,
        round(asked / cluster.capacity, 3),
        round(rejected),
        _percent(rejected, offered),
        _percent(statistics.mean(each.allocated for each in samples), cluster.capacity),
        _percent(statistics.mean(each.unusable for each in samples), cluster.capacity),
        _percent(statistics.mean(each.unusable / max(1.0, each.idle) for each in samples), 1),
        _percent(whole, rejected),
    )


def wanted(listed: Sequence[Task]) -> list[tuple[Demand, float]]:
    """The requests of a list with their shares of it."""
    counts: dict[Demand, float] = {}
    for task in listed:
        demand = Demand(task.cpu, task.gpus, 0, task.share // 10, task.share // 10, task.models)
        counts[demand] = counts.get(demand, 0.0) + 1 / len(listed)
    return list(counts.items())


def sample(cluster: Cluster, targets: Sequence[tuple[Demand, float]]) -> Sample:
    """FGD's measure of the whole cluster, by the definition and with nothing from the product's tables.

    Cards that tasks name are left out: the default list names none.
    """
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
    return Sample(cluster.allocated, float(idle.sum()), lost)


def table(months: Sequence[Month]) -> str:
    """Means over seeds, in Markdown, with the span of what was rejected."""
    groups: dict[tuple[float, str], list[Month]] = {}
    for each in months:
        groups.setdefault((each.target, each.policy), []).append(each)
    lines = [
        "| load | policy | rejected, % of GPU-hours (seeds from - to) | allocated, % | unusable, % of all GPU | of idle GPU | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (load, policy), found in groups.items():
        lost = [each.rejected for each in found]
        allocated, unusable, of_idle = (
            statistics.mean(amounts)
            for amounts in zip(*((e.allocated, e.unusable, e.unusable_of_idle) for e in found), strict=True)
        )
        lines.append(
            f"| {load} | `{policy}` | {statistics.mean(lost):.2f} ({min(lost):.1f} - {max(lost):.1f}) | {allocated:.1f} | "
            f"{unusable:.2f} | {of_idle:.1f} | {len(found)} |"
        )
    return "\n".join(lines)


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what came of each policy, and write out/departures.json."""
    flags = argparse.ArgumentParser(prog="python -m bench.departures", description=__doc__)
    flags.add_argument("--loads", default=",".join(map(str, LOADS)), help="GPU asked at a time, to the capacity")
    flags.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of the shifts in time, such as 42-44")
    flags.add_argument("--policies", default=",".join(POLICIES))
    flags.add_argument("--out", default="out/departures.json")
    options = flags.parse_args(arguments)
    loads = [float(load) for load in options.loads.split(",")]
    found = run(loads=loads, seeds=numbers(options.seeds), policies=options.policies.split(","))
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps([each._asdict() for each in found], indent=1))
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
