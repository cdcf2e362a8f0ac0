"""MIG instances as a resource of their own: each profile is one, and nothing but a request for it can use it.

An instance is free or taken, so there are no rests to price. What is left of the measures is the same as for whole GPUs:

- idle instances of a node are worth something to a popular request only if there are as many as it wants, with its CPU
  beside them (`worth`, one look-up by profile, CPU and number);
- every free instance should keep the CPU that an average pod asks beside one (`cpu`), out of the same cores as the
  GPUs of the node that are not cut.

A profile weighs as the part of a GPU that its name says: the ``g`` of ``3g.40gb``, in sevenths. Cards that requests name
are not looked at: a profile's name carries its memory, so hardly two kinds of cards have the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from tessera.placement.columns import IntArray
from tessera.placement.workload import Demand

MOST_COUNTED: Final = 64
"""Free instances of one profile on a node that are told apart; more than any request may ask."""
_WHOLE: Final = 1000
_SLICES: Final = 7
_NAME: Final = re.compile(r"(?:\d{1,2}c\.)?([1-7])g\.", re.ASCII)


class Cut(msgspec.Struct, frozen=True):
    """The instances that there are in a cluster.

    Attributes:
        counts: by profile, in the order of `Columns.profiles`.
        cores: thousandths of a core beside the GPUs that are cut.
    """

    counts: Mapping[str, int] = {}
    cores: int = 0

    @property
    def beside(self) -> float:
        """Thousandths of a core beside a thousandth of a GPU that is cut, on average; 0 where unknown."""
        return self.cores / max(1, sum(count * size_of(profile) for profile, count in self.counts.items()))


NOTHING_CUT: Final = Cut()


class Instances:
    """What is known of instances at one state of the workload, by number of the profile.

    Attributes:
        sizes: thousandths of a GPU that one counts as.
        cpu: thousandths of a core that pods ask beside one.
    """

    def __init__(
        self,
        demands: Mapping[Demand, float],
        targets: Sequence[tuple[Demand, int]],
        cut: Cut,
        *,
        balance: float,
        places: Mapping[Demand, int],
        steps: int,
        one: int,
    ) -> None:
        """Make the tables.

        Args:
            demands: weight by request.
            targets: the popular ones with their shares.
            cut: the instances that there are.
            balance: CPU to keep beside a free one, in multiples of what pods ask.
            places: of the targets' CPU among the steps.
            steps: places that there are.
            one: the share of all pods together.
        """
        numbers = {profile: number for number, profile in enumerate(cut.counts)}
        self.sizes = np.array([size_of(profile) for profile in numbers], np.int64)
        self.cpu = _cpu(demands, numbers)
        if cut.cores and balance:
            # More CPU than there is beside an average instance can't be kept beside all of them.
            np.minimum(self.cpu, (self.sizes * (cut.beside / balance)).astype(np.int64), out=self.cpu)
        usable = np.zeros((len(numbers), steps, MOST_COUNTED + 1), np.int64)
        for demand, part in targets:
            for profile, count in demand.instances:
                if profile in numbers:
                    usable[numbers[profile], places[demand], min(count, MOST_COUNTED)] += part
        # As with GPUs, what cannot be used weighs against what can.
        self._worth = usable.cumsum(axis=1).cumsum(axis=2) - one
        self._profiles = np.arange(len(numbers))

    def worth(self, free: IntArray, cpu: IntArray) -> IntArray:
        """What the free instances of nodes are worth to pods, less what they weigh as idle GPU.

        Args:
            free: nodes x profiles.
            cpu: by node, the place of its CPU left among the steps.
        """
        each = self._worth[self._profiles, cpu[:, None], np.minimum(free, MOST_COUNTED)]
        return np.asarray((each * free) @ self.sizes, np.int64)


def size_of(profile: str) -> int:
    """Thousandths of a GPU that an instance of a profile counts as; that of the smallest where the name does not say."""
    found = _NAME.match(profile)
    return _WHOLE * (int(found[1]) if found else 1) // _SLICES


def supposed(cut: Cut, *, prior: float, balance: float) -> Iterable[tuple[Demand, float]]:
    """What is supposed of pods that ask for instances before any was seen: one each, with the CPU that there is for it."""
    cpu = cut.beside / balance if balance else 0.0
    for profile, count in cut.counts.items():
        if count and prior:
            yield Demand(cpu=int(cpu * size_of(profile)), instances=((profile, 1),)), prior * count


def _cpu(demands: Mapping[Demand, float], numbers: Mapping[str, int]) -> IntArray:
    cpu, weights = np.zeros(len(numbers)), np.zeros(len(numbers))
    for demand, weight in demands.items():
        if demand.gpus or not demand.instances:
            continue
        asked = [(profile, count, count * size_of(profile)) for profile, count in demand.instances]
        total = sum(size for _, _, size in asked)
        for profile, count, size in asked:
            if profile in numbers:
                cpu[numbers[profile]] += weight * demand.cpu * size / total
                weights[numbers[profile]] += weight * count
    return np.rint(cpu / np.where(weights > 0, weights, 1.0)).astype(np.int64)
