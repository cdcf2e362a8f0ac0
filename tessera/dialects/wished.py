"""Wishes about the GPU in foreign annotations, as data: which annotation means what, and how it reads in our words.

HAMi, Volcano's vGPU and vgpu-manager have the same wishes under different names: substrings of product names to use or
to avoid, UUIDs, binpack or spread. What we have too is translated; what we don't is said in a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from tessera.dialects.dialect import Baggage, Context
from tessera.dialects.reader import PodReader
from tessera.model.errors import RequestError

LONGEST: Final = 4096
"""Characters of one wish; placement reads no more."""
_POLICIES: Final = MappingProxyType({"binpack": "pack", "spread": "spread"})
_TRUE: Final = frozenset({"1", "t", "true", "y", "yes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wished:
    """The annotations of one system, by what they wish.

    Attributes:
        models: comma lists of parts of product names, one of which has to fit.
        not_models: the same, none of which may fit.
        uuids: comma lists of UUIDs to use.
        not_uuids: comma lists of UUIDs to avoid.
        indexes: comma lists of a node's own numbers of GPUs; which GPU that is, is not known before the node is.
        policies: ``binpack`` or ``spread``; others (``topology-aware``, ``link``) are preferences that placement has anyway.
        numa: a boolean; true demands GPUs of one NUMA node.
        mig_modes: where the value ``mig`` asks for hardware isolation.
        separators: characters between the entries of a list.
        annotations: all of them together.
    """

    models: tuple[str, ...] = ()
    not_models: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    not_uuids: tuple[str, ...] = ()
    indexes: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    numa: tuple[str, ...] = ()
    mig_modes: tuple[str, ...] = ()
    separators: str = ","
    annotations: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Collect the names once."""
        every = (
            *self.models,
            *self.not_models,
            *self.uuids,
            *self.not_uuids,
            *self.indexes,
            *self.policies,
            *self.numa,
            *self.mig_modes,
        )
        object.__setattr__(self, "annotations", frozenset(every))

    def baggage(self, pod: PodReader, context: Context) -> Baggage:
        """Translate what a pod wishes.

        Raises:
            RequestError: a list that is longer than any of the kind.
        """
        found, names = pod.annotations, context.names
        if self.annotations.isdisjoint(found):
            return Baggage()
        ours: dict[str, str] = {}
        warnings = []
        models = [*self._parts(found, self.models), *(f"-{part}" for part in self._parts(found, self.not_models))]
        if models:
            ours[names.gpu_models] = ",".join(models)
        if uuids := self._parts(found, self.uuids):
            ours[names.gpu_uuids] = ",".join(uuids)
        warnings += [
            f"{name} is not honoured; {names.gpu_uuids} names the GPUs to use"
            for name in (*self.not_uuids, *self.indexes)
            if found.get(name, "").strip()
        ]
        for value in _values(found, self.policies):
            if value in _POLICIES:
                ours[names.gpu_placement] = _POLICIES[value]
        if any(value in _TRUE for value in _values(found, self.numa)):
            ours[names.gpu_topology] = "numa"
        if "mig" in _values(found, self.mig_modes):
            warnings.append(f"{self.mig_modes[0]}: mig asks for hardware isolation; a slice is none, a MIG instance is")
        return Baggage(annotations=ours, warnings=tuple(warnings))

    def _parts(self, found: Mapping[str, str], annotations: tuple[str, ...]) -> list[str]:
        text = ",".join(found[name] for name in annotations if name in found)
        if len(text) > LONGEST:
            raise RequestError(
                f"annotations {', '.join(annotations)} have {len(text)} characters", fix=f"write at most {LONGEST}"
            )
        for separator in self.separators:
            text = text.replace(separator, ",")
        return [part.strip() for part in text.split(",") if part.strip()]


def _values(found: Mapping[str, str], annotations: Iterable[str]) -> list[str]:
    return [found[name].strip().lower() for name in annotations if name in found]
