"""Measuring from outside: /proc, the API server's audit log, the kubelet's and the agent's histograms."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import Cluster

Buckets = dict[str, dict[float, float]]
"""By label, the cumulated count at each bucket's upper bound."""
TICKS = os.sysconf("SC_CLK_TCK")
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def now() -> float:
    """The clock that `Watching` uses."""
    return time.monotonic()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 in seconds."""
    ordered = sorted(values)
    return {f"p{share}": ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)] for share in (50, 95, 99)}


@dataclass(frozen=True)
class Usage:
    """What processes have used.

    Attributes:
        cpu: seconds.
        memory: resident MiB, the largest of them.
        at: when.
    """

    cpu: float
    memory: float
    at: float

    @classmethod
    def of(cls, pids: Sequence[int]) -> Usage:
        """Look now."""
        ticks, largest = 0, 0.0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
            largest = max(largest, int(found.group(1)) / 1024 if found else 0.0)
        return cls(ticks / TICKS, largest, now())

    def since(self, before: Usage) -> dict[str, float]:
        """For the report: percent of one core since then, MiB now."""
        return {
            "cpu_percent": 100 * (self.cpu - before.cpu) / max(0.001, self.at - before.at),
            "rss_mib": self.memory,
        }


class Audit:
    """Requests of our accounts, by the API server's own log, from now on."""

    def __init__(self, path: Path) -> None:
        """Begin at the end of the log."""
        self._path = path
        self._from = path.stat().st_size if path.exists() else 0

    def counts(self) -> dict[str, float]:
        """Finished requests by program; watches are counted once, when they end."""
        found: Counter[str] = Counter()
        with self._path.open() as file:
            file.seek(self._from)
            for line in file:
                event = json.loads(line)
                if event["stage"] == "ResponseComplete":
                    found[event["userAgent"].partition("/")[0]] += 1
        return {name: float(count) for name, count in found.items()}


def histograms(texts: Sequence[str], name: str, label: str) -> Buckets:
    """Read a histogram from metrics in Prometheus' text form, summed over processes."""
    found: Buckets = {}
    for text in texts:
        for line in text.splitlines():
            match = _SAMPLE.match(line)
            if match is None or match.group(1) != f"{name}_bucket":
                continue
            labels = dict(_LABEL.findall(match.group(2)))
            counts = found.setdefault(labels[label], {})
            bound = float(labels["le"])
            counts[bound] = counts.get(bound, 0.0) + float(match.group(3))
    return found


def since(after: Buckets, before: Buckets) -> dict[str, dict[str, float]]:
    """Percentiles of what came between two looks: the upper bound of the bucket that each lies in."""
    return {
        label: at_most({bound: count - before.get(label, {}).get(bound, 0.0) for bound, count in counts.items()})
        for label, counts in after.items()
    }


def at_most(counts: Mapping[float, float]) -> dict[str, float]:
    """p50 and p99 of cumulated buckets, as the upper bound of the bucket that each lies in."""
    total = counts.get(math.inf, 0.0)
    found = {"count": total}
    for share in (50, 99) if total else ():
        found[f"p{share}"] = min(bound for bound, count in counts.items() if count >= share / 100 * total)
    return found


def keep(cluster: Cluster, **numbers: Any) -> None:
    """Add to the run's numbers."""
    path = cluster.settings.numbers
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **numbers}, indent=1))
