"""A cluster of the trace's hosts in the extender's real ledger, and one task after the other placed there.

Everything that decides is the product's: `Ledger`, `Scores`, the learned `Workload`, `choose.best` and `fit.place`, called
in the order in which filter and bind call them. What kube-scheduler does before it asks an extender (CPU and RAM) is done
here on two arrays. A task's share of a GPU is a slice of that percentage of memory and compute alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from bench.trace import Host, Task
from tessera.model.config import Measure, PolicyName
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import Gpu, Inventory
from tessera.model.quantity import MIB
from tessera.model.request import ContainerRequest
from tessera.model.tickets import Ask
from tessera.placement.choose import best
from tessera.placement.claims import Claim
from tessera.placement.fit import place
from tessera.placement.ledger import Ledger
from tessera.placement.pricing import Pricing
from tessera.placement.reasons import Rejection
from tessera.placement.scores import Scores
from tessera.placement.shape import Shape, shape_of
from tessera.placement.wishes import Wishes
from tessera.placement.workload import Demand, Workload, demand_of

UNIT: Final = 16 * MIB
UNITS: Final = 1000
"""Units of every GPU: the trace does not tell how much memory a device has."""
CpuPods = Literal["score", "ignore"]
"""CPU-only tasks placed by the same policy, or as kube-scheduler does by itself (LeastAllocated on CPU and RAM)."""


class Cluster:
    """The hosts with what runs there.

    Attributes:
        capacity: thousandths of GPUs in all. allocated: of them. placed: tasks that have a place.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        policy: PolicyName,
        *,
        expected: Sequence[Task] = (),
        measure: Measure | None = None,
        cpu_pods: CpuPods = "score",
    ) -> None:
        """Start empty.

        Args:
            hosts: by their order, names follow.
            policy: under test.
            expected: tasks of which each counts as one expected pod (`placement.shapes`); none starts cold.
            measure: constants other than the defaults.
            cpu_pods: who places tasks without a GPU.
        """
        self.ledger = Ledger()
        options = measure or Measure()
        self.workload = Workload(half_life=options.half_life)
        self.scores = Scores(self.ledger.columns, Pricing(self.ledger.columns, self.workload, options))
        self.capacity = UNITS * sum(host.gpus for host in hosts)
        self.allocated = 0
        self._policy = policy
        self._cpu_pods = cpu_pods
        self._shapes: dict[Task, tuple[tuple[Ask, ...], Shape, Demand]] = {}
        self._names: list[str] = []
        self._where: dict[str, tuple[int, Task]] = {}
        for number, host in enumerate(hosts):
            name = f"n{number:05}"
            self.ledger.set_node(name, _inventory(number, host), cpu=host.cpu)
            self._names.append(name)
        # Rows are handed out in order, so what kube-scheduler knows of nodes stands in the same places.
        self._cpu = np.array([host.cpu for host in hosts], np.int64)
        self._memory = np.array([host.memory for host in hosts], np.int64)
        self._total = np.array([(host.cpu, host.memory) for host in hosts], np.float64)
        self.workload.expect((self._read(task)[2], 1.0) for task in expected)

    def put(self, key: str, task: Task) -> bool:
        """Place a task under a key; False where it fits nowhere."""
        asks, shape, demand = self._read(task)
        self.workload.saw(demand)
        feasible = (self._cpu >= task.cpu) & (self._memory >= task.memory)
        if not task.gpus and self._cpu_pods == "ignore":
            return self._least_allocated(key, task, feasible)
        row = self.scores.row(shape)
        rows = (row.fits[: len(feasible)] & feasible).nonzero()[0]
        while len(rows):
            at = best(self.ledger, self.scores, row, rows)
            name = self._names[at]
            found = place(asks, shape, self.ledger.states(name), by=self.scores.chooser(shape, at, soft=False))
            if not isinstance(found, Rejection):
                if asks:
                    self.ledger.book(key, name, Claim(asks, found))
                self._take(key, at, task)
                return True
            row.refuse(at, found)
            rows = rows[rows != at]
        self.scores.pricing.refused(key, shape)
        return False

    def end(self, key: str) -> None:
        """A placed task ends; nothing where it has no place."""
        found = self._where.pop(key, None)
        if found is None:
            return
        at, task = found
        self.ledger.release(key)
        self.ledger.free_cpu(key)
        self._cpu[at] += task.cpu
        self._memory[at] += task.memory
        self.allocated -= task.gpu

    def _take(self, key: str, at: int, task: Task) -> None:
        self.ledger.use_cpu(key, self._names[at], task.cpu)
        self._where[key] = (at, task)
        self._cpu[at] -= task.cpu
        self._memory[at] -= task.memory
        self.allocated += task.gpu

    def _least_allocated(self, key: str, task: Task, feasible: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> bool:
        rows = np.flatnonzero(feasible)
        if not len(rows):
            return False
        left = (self._cpu[rows] - task.cpu) / self._total[rows, 0] + (self._memory[rows] - task.memory) / self._total[
            rows, 1
        ]
        self._take(key, int(rows[left.argmax()]), task)
        return True

    def _read(self, task: Task) -> tuple[tuple[Ask, ...], Shape, Demand]:
        """What admission and the filter make of such a pod."""
        kind = task._replace(memory=0, created=0, deleted=0)
        found = self._shapes.get(kind)
        if found is None:
            asks: tuple[Ask, ...] = ()
            if task.gpus:
                percent = task.share // 10
                request = (
                    ContainerRequest(gpus=task.gpus, whole=True)
                    if percent == 100
                    else ContainerRequest(gpus=task.gpus, memory_percent=percent, compute=percent)
                )
                asks = (Ask(container="main", role="main", request=request),)
            wishes = Wishes(models=tuple(model.lower() for model in task.models), policy=self._policy)
            shape = shape_of(asks, unit=UNIT, wishes=wishes, cpu=task.cpu)
            found = self._shapes[kind] = (asks, shape, demand_of(shape))
        return found


def _inventory(number: int, host: Host) -> Inventory:
    gpus = tuple(
        Gpu(
            id=f"{16 * number + index:012x}",
            uuid=f"GPU-{16 * number + index:012x}"[:12] + "-0000-0000-0000-000000000000",
            index=index,
            model=host.model,
            memory=UNITS * UNIT,
            units=UNITS,
            guarantee=Guarantees(),
        )
        for index in range(host.gpus)
    )
    return Inventory(v=1, unit=UNIT, gpus=gpus)
