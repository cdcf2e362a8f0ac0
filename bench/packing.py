"""How much of a cluster's GPU gets allocated: the ATC '23 protocol through the extender's own ledger (see `bench.cluster`).

    python -m bench.packing --lists all --seeds 42-51            every list, warm and cold: about half an hour on one core
    python -m bench.packing --policies priced,fragmentation,best-fit,pack --orders
    python -m bench.packing --cpu-pods ignore                    CPU-only tasks go where kube-scheduler puts them

Warm: the list's own requests are expected (`placement.shapes`); cold: nothing is known. Both learn on the way. Results go to
out/packing.json as they come, so a run can be cut short; the plot of the default list beside the published curves to
out/packing.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, get_args

from bench.cluster import Cluster, CpuPods
from bench.curves import Curve, draw
from bench.trace import LISTS, ORDERS, arrivals, hosts, ordered, published, tasks
from tessera.model.config import PolicyName

OUT: Final = Path("out")
MARKS: Final = (95, 100, 130)
SEEDS: Final = tuple(range(42, 52))
MOST_PROCESSES: Final = 2
_COLOURS: Final = ("#0b6e4f", "#d1495b", "#2e5eaa", "#8a5a00", "#666666", "#a23ec0", "#111111")


class Job(NamedTuple):
    """One run: a list shuffled by a seed, or (seed 0) bare in an order."""

    name: str
    policy: PolicyName
    warm: bool
    seed: int
    order: str = ""
    cpu_pods: CpuPods = "score"


class Outcome(NamedTuple):
    """What came of it: allocated % at each whole % arrived, at the end, and decisions per second of CPU time."""

    job: Job
    curve: tuple[float, ...]
    end: float
    per_second: int


def play(job: Job) -> Outcome:
    """Let the tasks of a run arrive."""
    listed = tasks(job.name)
    cluster = Cluster(hosts(), job.policy, expected=listed if job.warm else (), cpu_pods=job.cpu_pods)
    coming = ordered(listed, job.order) if job.order else arrivals(listed, job.seed, cluster.capacity)
    curve = [0.0]
    arrived = 0
    start = time.process_time()
    for number, task in enumerate(coming):
        cluster.put(str(number), task)
        arrived += task.gpu
        while len(curve) <= 100 * arrived / cluster.capacity + 1e-9:
            curve.append(round(100 * cluster.allocated / cluster.capacity, 3))
    taken = time.process_time() - start
    return Outcome(job, tuple(curve), round(100 * cluster.allocated / cluster.capacity, 3), round(len(coming) / taken))


def run() -> dict[str, object]:
    """Measure the default list once each way, for `make bench`.

    Returns:
        ``warm`` and ``cold``: allocated % when 95, 100 and 130 % of the capacity were asked; orders: of the bare list;
        ``decisions_per_s`` on one core.
    """
    found: dict[str, object] = {}
    for warm in (True, False):
        outcome = play(Job("default", "priced", warm, SEEDS[0]))
        found["warm" if warm else "cold"] = {f"at_{mark}": outcome.curve[mark] for mark in MARKS}
        if warm:
            found["decisions_per_s"] = outcome.per_second
    found["orders"] = {order: play(Job("default", "priced", True, 0, order)).end for order in ORDERS}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the flags ask and print means over seeds."""
    flags = argparse.ArgumentParser(prog="python -m bench.packing", description=__doc__)
    flags.add_argument("--lists", default="default", help="names by comma, or all")
    flags.add_argument("--seeds", default="42", help="such as 42-51 or 42,43")
    flags.add_argument("--policies", default="priced", help=f"of {', '.join(get_args(PolicyName))}")
    flags.add_argument("--start", default="warm,cold", help="warm, cold or both")
    flags.add_argument("--orders", action="store_true", help="also the bare list in its three orders")
    flags.add_argument("--cpu-pods", default="score", choices=get_args(CpuPods), help="who places tasks without a GPU")
    flags.add_argument("--processes", type=int, default=1, choices=range(1, MOST_PROCESSES + 1))
    flags.add_argument("--out", default=str(OUT / "packing.json"))
    options = flags.parse_args(arguments)
    names = LISTS if options.lists == "all" else tuple(options.lists.split(","))
    jobs = [
        job
        for name in names
        for policy in options.policies.split(",")
        for start in options.start.split(",")
        for job in (
            *(Job(name, policy, start == "warm", seed, "", options.cpu_pods) for seed in numbers(options.seeds)),
            *(Job(name, policy, start == "warm", 0, order, options.cpu_pods) for order in ORDERS if options.orders),
        )
    ]
    done: list[Outcome] = []
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        for outcome in pool.map(play, jobs):
            done.append(outcome)
            out.write_text(json.dumps(_plain(done), indent=1))
            print(
                f"{outcome.job} -> {_at(outcome)} end {outcome.end} {outcome.per_second}/s", file=sys.stderr, flush=True
            )
    print(table(done))
    if any(each.job.name == "default" and not each.job.order for each in done):
        out.with_suffix(".svg").write_text(plot(done))
    return 0


def table(done: Iterable[Outcome]) -> str:
    """Means over seeds beside the published means of FGD, in Markdown."""
    groups: dict[tuple[str, str, bool, str, str], list[Outcome]] = {}
    for each in done:
        job = each.job
        groups.setdefault((job.name, job.policy, job.warm, job.order, job.cpu_pods), []).append(each)
    theirs = published()
    lines = [
        "| list | policy | start | at 95 / 100 / 130 % | published FGD | runs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (name, policy, warm, order, cpu_pods), runs in groups.items():
        start = (
            ("warm" if warm else "cold")
            + (f", {order}" if order else "")
            + (", CPU pods apart" * (cpu_pods == "ignore"))
        )
        if order:
            text = f"end {statistics.mean(each.end for each in runs):.2f}"
            fgd = ""
        else:
            text = " / ".join(f"{statistics.mean(each.curve[mark] for each in runs):.2f}" for mark in MARKS)
            known = dict(theirs.get((name, "FGD"), []))
            fgd = " / ".join(f"{known[float(mark)]:.1f}" for mark in MARKS if float(mark) in known)
        lines.append(f"| {name} | {policy} | {start} | {text} | {fgd} | {len(runs)} |")
    return "\n".join(lines)


def plot(done: Sequence[Outcome]) -> str:
    """The default list: our means beside the published ones."""
    curves = []
    groups: dict[tuple[str, bool], list[Outcome]] = {}
    for each in done:
        if each.job.name == "default" and not each.job.order:
            groups.setdefault((each.job.policy, each.job.warm), []).append(each)
    colours = iter(_COLOURS * 4)
    for (policy, warm), runs in groups.items():
        points = [
            (float(n), statistics.mean(each.curve[n] for each in runs)) for n in range(min(len(r.curve) for r in runs))
        ]
        curves.append(Curve(f"{policy}, {'warm' if warm else 'cold'}", points, next(colours)))
    for (name, policy), points in sorted(published().items()):
        if name == "default":
            curves.append(Curve(f"{policy} (published)", points, next(colours), thin=True))
    return draw("Alibaba GPU trace 2023, default list", curves, across=(80, 130), up=(78, 98))


def _plain(done: Iterable[Outcome]) -> dict[str, object]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "runs": [
            each.job._asdict() | {"curve": each.curve, "end": each.end, "per_second": each.per_second} for each in done
        ],
    }


def _at(outcome: Outcome) -> str:
    return " ".join(f"{mark}: {outcome.curve[mark]}" for mark in MARKS if mark < len(outcome.curve))


def numbers(text: str) -> list[int]:
    """Numbers and spans of them, such as ``42-51`` or ``42,43``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


if __name__ == "__main__":
    sys.exit(main())
