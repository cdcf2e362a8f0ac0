"""What pods ask in this cluster, learned from the pods that are seen: the measures price nodes by it.

Every pod counts once, when it is first seen; with every pod the older ones count a little less, so that a workload that
drifts is followed. There is no clock and nothing is persisted: after a restart the pods of the cluster are seen again.
Until there are enough of them, what config expects (`placement.shapes`) fills in, and fades in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec

from tessera.model.cpu import cpu_of, milli
from tessera.model.errors import ConfigError, QuantityError, RequestError
from tessera.model.names import Names
from tessera.model.pod import Pod
from tessera.model.request import MOST_GPUS
from tessera.model.tickets import asks, units_of
from tessera.placement.shape import Part, Shape, profile_name, shape_of
from tessera.placement.wishes import Wishes, read_models

MOST_DEMANDS: Final = 4096
"""Different requests that are remembered; beyond, the rarer half is forgotten."""
LARGEST_FILE: Final = 1 << 22
_LONGEST_PROFILE: Final = 40
_TOP: Final = 1e12
"""Weights grow from pod to pod; here they are scaled back."""
_FIRST_NEWS: Final = 16
_DRIFT: Final = 0.03
"""Share of all pods that must ask something else than before."""


class Demand(msgspec.Struct, frozen=True):
    """What one pod asks, as far as the value of a node to it goes.

    Attributes:
        cpu: thousandths of a core.
        gpus: how many GPUs, 0 for a pod that asks for none (or for MIG instances only).
        instances: how many MIG instances by profile, in order.
        units, percent: of memory on each GPU, one of them. compute: percent on each GPU. A whole GPU is 100 of both.
        models, not_models: parts of product names, as in `Wishes`.
    """

    cpu: int = 0
    gpus: int = 0
    units: int = 0
    percent: int = 0
    compute: int = 0
    models: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()
    instances: tuple[tuple[str, int], ...] = ()

    @property
    def plain(self) -> bool:
        """It asks for CPU alone."""
        return not self.gpus and not self.instances

    @property
    def whole(self) -> bool:
        """It takes its GPUs whole."""
        return self.percent >= 100 and self.compute >= 100

    def takes_model(self, model: str) -> bool:
        """Whether a GPU of this product name will do."""
        return Wishes(models=self.models, not_models=self.not_models).takes_model(model)


def demand_of(shape: Shape) -> Demand:
    """What a shape asks; of several containers the largest speaks for the pod, with all its CPU."""
    slices = shape.slices
    instances = tuple(sorted(shape.instances.items()))
    if not slices:
        return Demand(cpu=shape.cpu, instances=instances)
    largest = max(slices, key=lambda part: _size(part, shape))
    request = largest.request
    return Demand(
        cpu=shape.cpu,
        gpus=request.gpus,
        units=shape.units(largest),
        percent=100 if request.whole else request.memory_percent or 0,
        compute=100 if request.whole else request.compute or 0,
        models=shape.wishes.models,
        not_models=shape.wishes.not_models,
        instances=instances,
    )


class Demands:
    """Reads what pods ask. Pods of one owner are alike, and there may be 40,000 at a start, so what was read is kept."""

    def __init__(self, names: Names) -> None:
        """Read by the names of this installation."""
        self._names = names
        self._known: dict[tuple[object, ...], Demand | None] = {}

    def of(self, pod: Pod) -> Demand | None:
        """What a pod asks; None where its tickets make no sense."""
        spec, models = pod.spec, pod.metadata.annotation(self._names.gpu_models)
        init = spec.init_containers
        if init is None and spec.containers is not None and len(spec.containers) == 1:
            resources = spec.containers[0].resources
            amounts = (_amounts(resources.limits), _amounts(resources.requests)) if resources is not None else None
            key = (spec.containers[0].name, amounts, models, pod.metadata.annotation(self._names.request))
            if key not in self._known:
                if len(self._known) >= MOST_DEMANDS:
                    self._known.clear()
                self._known[key] = self._read(pod, models or "")
            return self._known[key]
        return self._read(pod, models or "")

    def _read(self, pod: Pod, models: str) -> Demand | None:
        try:
            found = asks(pod, self._names)
            wanted, unwanted = read_models(models, self._names.gpu_models)
            wishes = Wishes(models=wanted, not_models=unwanted)
            return demand_of(shape_of(found, unit=self._names.memory_unit, wishes=wishes, cpu=cpu_of(pod)))
        except RequestError:
            return None


def _amounts(amounts: Mapping[str, object] | None) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(amounts.items())) if amounts else ()


class Workload:
    """How often each request comes, the late ones counting more.

    Attributes:
        counts: weight by request, in a unit that grows; see `current`.
        total: the sum of the weights.
        changes: counts everything that was seen or expected.
    """

    def __init__(self, *, half_life: int = 20_000) -> None:
        """Nothing was seen yet; `half_life` is the number of pods after which an old one counts half."""
        self.counts: dict[Demand, float] = {}
        self.total = 0.0
        self.changes = 0
        self._growth = 2.0 ** (1 / half_life)
        self._weight = 1.0
        self._news = 0.0
        self._made: dict[Demand, float] = {}
        self._made_of = 0.0

    def saw(self, demand: Demand) -> None:
        """A pod that asks this has come."""
        self._add(demand, self._weight)
        self._weight *= self._growth
        if self._weight > _TOP:
            self._scale_back()

    def expect(self, expected: Iterable[tuple[Demand, float]]) -> None:
        """Count as if these had been seen already, so many of each."""
        for demand, weight in expected:
            self._add(demand, weight * self._weight)

    def current(self) -> dict[Demand, float]:
        """The weights, such that the next pod will count 1."""
        return {demand: weight / self._weight for demand, weight in self.counts.items()}

    def news(self) -> bool:
        """Whether what was made of the counts when this was last true should be made anew: they have drifted, or doubled.

        Looked at whenever a tenth more was seen, so the work done for it stays a fixed share of all work.
        """
        if self._news < max(_FIRST_NEWS * self._weight, 0.1 * self.total):
            return False
        self._news = 0.0
        weight = self.total / self._weight
        parts = {demand: count / self.total for demand, count in self.counts.items()}
        changed = sum(abs(part - self._made.get(demand, 0.0)) for demand, part in parts.items())
        changed += sum(part for demand, part in self._made.items() if demand not in parts)
        if changed < 2 * _DRIFT and weight < 2 * self._made_of:
            return False
        self._made, self._made_of = parts, weight
        return True

    def _add(self, demand: Demand, weight: float) -> None:
        self.counts[demand] = self.counts.get(demand, 0.0) + weight
        self.total += weight
        self._news += weight
        self.changes += 1
        if len(self.counts) > MOST_DEMANDS:
            kept = sorted(self.counts.items(), key=lambda item: -item[1])[: MOST_DEMANDS // 2]
            self.counts = dict(kept)
            self.total = sum(self.counts.values())

    def _scale_back(self) -> None:
        self.counts = {demand: weight / self._weight for demand, weight in self.counts.items()}
        self.total /= self._weight
        self._news /= self._weight
        self._weight = 1.0


class _Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One entry of the file of expected requests."""

    weight: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    cpu: str | int | float = 0
    gpus: Annotated[int, msgspec.Meta(ge=0, le=MOST_GPUS)] = 1
    memory: Annotated[int, msgspec.Meta(ge=1, le=1 << 50)] | None = None
    memory_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    compute: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    mig: Annotated[str, msgspec.Meta(max_length=_LONGEST_PROFILE, pattern=r"^[0-9a-z][0-9a-z.+]*$")] | None = None
    models: str = ""


_DECODER: Final = msgspec.json.Decoder(tuple[_Expected, ...])


def read_expected(text: bytes, *, unit: int) -> tuple[tuple[Demand, float], ...]:
    """Read the file that config names as `placement.shapes`.

    Args:
        text: JSON, a list of objects with ``cpu`` (a quantity), ``gpus`` (0 for a pod that asks for none), ``memory`` in
            bytes or ``memoryPercent``, ``compute``, ``models`` and ``weight``. As in a pod, GPUs alone are whole ones and
            compute alone is that percent of both. With ``mig``, a profile, ``gpus`` are instances of it.
        unit: bytes of one memory unit.

    Raises:
        ConfigError: no such list, with the place in it.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"placement.shapes has {len(text)} bytes; at most {LARGEST_FILE} are read")
    try:
        entries = _DECODER.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"placement.shapes: {error}") from error
    if len(entries) > MOST_DEMANDS:
        raise ConfigError(f"placement.shapes has {len(entries)} entries; at most {MOST_DEMANDS} are read")
    return tuple((_expected(entry, f"placement.shapes[{n}]", unit), entry.weight) for n, entry in enumerate(entries))


def _expected(entry: _Expected, path: str, unit: int) -> Demand:
    try:
        cpu = milli(entry.cpu)
        models, not_models = read_models(entry.models, "models")
    except (QuantityError, RequestError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if entry.gpus == 0:
        return Demand(cpu=cpu)
    if entry.mig is not None:
        if (entry.memory, entry.memory_percent, entry.compute) != (None, None, None):
            raise ConfigError(f"{path}: mig beside memory or compute; an instance has its own")
        return Demand(cpu=cpu, instances=((profile_name(entry.mig), entry.gpus),))
    if entry.memory is not None and entry.memory_percent is not None:
        raise ConfigError(f"{path}: memory and memoryPercent together; write one of them")
    plain = entry.memory is None and entry.memory_percent is None
    compute = entry.compute if entry.compute is not None else 100 if plain else 0
    return Demand(
        cpu=cpu,
        gpus=entry.gpus,
        units=units_of(entry.memory, unit) if entry.memory is not None else 0,
        percent=compute if plain else entry.memory_percent or 0,
        compute=compute,
        models=models,
        not_models=not_models,
    )


def shares(counts: Mapping[Demand, float], coverage: float) -> list[tuple[Demand, float]]:
    """The most popular requests that make up `coverage` of all, with their shares of each other, the largest first."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    total = sum(counts.values())
    chosen: list[tuple[Demand, float]] = []
    covered = 0.0
    for demand, weight in ordered:
        chosen.append((demand, weight))
        covered += weight
        if covered >= coverage * total:
            break
    return [(demand, weight / covered) for demand, weight in chosen] if covered else []


def _size(part: Part, shape: Shape) -> tuple[bool, int, int, int]:
    request = part.request
    return (request.whole, request.gpus, max(request.memory_percent or 0, request.compute or 0), shape.units(part))
