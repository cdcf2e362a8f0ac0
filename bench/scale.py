"""Speed and memory of decisions in process, at the trace's own 1,213 nodes and at 5,000 nodes of 8 GPUs.

    python -m bench.scale [PODS]

Times are of CPU, not of the wall: what one core can do, also on a machine that does other things.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Final

from bench.cluster import Cluster
from bench.trace import Host, arrivals, hosts, tasks

NODES: Final = 5000
GPUS: Final = 8
PODS: Final = 40_000
_CORES: Final = 128_000
_RAM: Final = 1 << 20


def run(*, pods: int = PODS) -> dict[str, dict[str, float]]:
    """Fill both clusters and time every decision.

    Returns:
        By cluster ``decisions_per_s``; ``p50_ms``, ``p99_ms`` and ``max_ms`` of a decision, learning and new tables
        included; ``placed`` pods; ``rss_mib`` of the whole process and ``ledger_mib``, what it grew by.
    """
    large = [Host(f"h{n}", _CORES, _RAM, GPUS, "G2" if n % 3 else "T4") for n in range(NODES)]
    return {"nodes_1213": _fill(hosts(), 1 << 30), "nodes_5000": _fill(large, pods)}


def _fill(nodes: list[Host], pods: int) -> dict[str, float]:
    listed = tasks("default")
    before = _rss()
    cluster = Cluster(nodes, "priced")
    coming = arrivals(listed, 42, cluster.capacity)
    times: list[float] = []
    placed = 0
    for number, task in enumerate(coming):
        start = time.thread_time()
        placed += cluster.put(str(number), task)
        times.append(time.thread_time() - start)
        if placed >= pods:
            break
    after = _rss()
    rate = len(times) / sum(times)
    times.sort()
    return {
        "decisions_per_s": round(rate),
        "p50_ms": _ms(times[len(times) // 2]),
        "p99_ms": _ms(times[int(0.99 * len(times))]),
        "max_ms": _ms(times[-1]),
        "placed": placed,
        "rss_mib": round(after, 1),
        "ledger_mib": round(after - before, 1),
    }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pods", nargs="?", type=int, default=PODS, help="placed on 5,000 nodes (%(default)s)")
    for cluster, figures in run(pods=parser.parse_args().pods).items():
        print(cluster, figures)
