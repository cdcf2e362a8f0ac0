"""The Alibaba GPU trace of 2023 as hosts and tasks, and the protocol by which tasks arrive.

Protocol (Weng et al., "Beware of Fragmentation", USENIX ATC '23): the list is shuffled, then tasks drawn with replacement
are appended until the GPU asked comes to 130 % of what there is; a list above that is thinned at random instead.
"""

from __future__ import annotations

import csv
import gzip
import io
import random
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

LISTS: Final = (
    "default",
    *(f"cpu{n}" for n in ("050", "100", "200", "250")),
    *(f"gpushare{n}" for n in (40, 60, 80, 100)),
    *(f"gpuspec{n}" for n in (10, 20, 25, 33)),
    *(f"multigpu{n}" for n in (20, 30, 40, 50)),
)
"""The lists for which results of other policies are published."""
ARRIVE: Final = 1.3
ORDERS: Final = ("submitted", "big", "small")


class Host(NamedTuple):
    """A node: thousandths of a core, MiB of RAM, GPUs and their product."""

    name: str
    cpu: int
    memory: int
    gpus: int
    model: str


class Task(NamedTuple):
    """A pod: thousandths of a core, MiB of RAM, GPUs, thousandths of each, products accepted (none: any), its life in
    seconds (both 0 where the list does not say).
    """

    cpu: int
    memory: int
    gpus: int
    share: int
    models: tuple[str, ...]
    created: int
    deleted: int

    @property
    def gpu(self) -> int:
        """Thousandths of GPUs in all."""
        return self.gpus * self.share


def hosts() -> list[Host]:
    """The 1,213 nodes with GPUs."""
    return [
        Host(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])
        for row in _rows("openb_node_list_gpu_node")
    ]


def tasks(name: str) -> list[Task]:
    """The tasks of a list, in the order in which they were submitted."""
    found = []
    for row in _rows(f"openb_pod_list_{name}"):
        models = tuple(sorted(filter(None, (row.get("gpu_spec") or "").split("|"))))
        life = [int(float(row.get(key) or 0)) for key in ("creation_time", "deletion_time")]
        share = int(row["gpu_milli"])
        found.append(
            Task(int(row["cpu_milli"]), int(row["memory_mib"]), int(row["num_gpu"]), share, models, life[0], life[1])
        )
    return found


def arrivals(listed: Sequence[Task], seed: int, capacity: int) -> list[Task]:
    """The tasks as they arrive, by the protocol; `capacity` in thousandths of a GPU."""
    rng = random.Random(seed)
    found = list(listed)
    rng.shuffle(found)
    asked = sum(task.gpu for task in found)
    while asked > ARRIVE * capacity:
        asked -= found.pop(rng.randrange(len(found))).gpu
    while asked < ARRIVE * capacity:
        found.append(rng.choice(listed))
        asked += found[-1].gpu
    return found


def ordered(listed: Sequence[Task], order: str) -> list[Task]:
    """The bare list once: as ``submitted``, the ``big`` ones first or the ``small`` ones first."""
    if order == "submitted":
        return list(listed)
    return sorted(listed, key=lambda task: task.gpu, reverse=order == "big")


def published() -> dict[tuple[str, str], list[tuple[float, float]]]:
    """By list and policy, the published curve: allocated % by arrived %, means of ten seeds."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in _rows("published_results"):
        if row["metric"] == "alloc_pct":
            found.setdefault((row["trace"], row["policy"]), []).append((float(row["arrived_pct"]), float(row["mean"])))
    return found


def _rows(name: str) -> csv.DictReader[str]:
    packed = (files("bench") / "traces" / f"{name}.csv.gz").read_bytes()
    return csv.DictReader(io.StringIO(gzip.decompress(packed).decode()))
