"""The plan: which GPU each container of a pod gets, and how much of it.

The extender writes it inside the Binding, so it becomes visible in the same write as nodeName; the node agent hands out
exactly what it says. Drift is the node's answer where it had to do otherwise.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tessera.model.errors import AnnotationError
from tessera.model.guarantee import Guarantees
from tessera.model.inventory import GPU_ID, MOST_UNITS
from tessera.model.request import read_annotation

VERSION: Final = 1


class PlannedSlice(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one container holds on one GPU.

    Attributes:
        gpu: the GPU's id (12 hex digits).
        units: memory units held; None for a MIG instance.
        compute: percent of the SMs reserved, 0 where none was asked; None for a MIG instance.
        whole: the GPU is exclusive; `units` are all it has and `compute` is 100.
        mig: profile, and instance: its ID on the GPU, for a MIG instance.
    """

    gpu: str
    units: int | None = None
    compute: int | None = None
    whole: bool = False
    mig: str | None = None
    instance: str | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan annotation of one pod.

    Attributes:
        v: version. node: the node it was made for (a copied plan is known by this).
        guarantee: what the extender chose and the node verifies.
        containers: by container name, init containers included; one slice per GPU.
    """

    v: int
    node: str
    guarantee: Guarantees
    containers: dict[str, tuple[PlannedSlice, ...]]


Drift = dict[str, dict[str, tuple[PlannedSlice, ...]]]
"""The drift annotation of a node: by pod UID, by container, what the node really gave."""


def encode(plan: Plan) -> str:
    """Write the plan annotation: compact JSON, sorted keys."""
    return msgspec.json.encode(plan, order="sorted").decode()


def decode(text: str) -> Plan:
    """Read a plan annotation.

    Raises:
        AnnotationError: not such JSON, another version, or slices that no GPU has.
    """
    plan = read_annotation(text, _PLAN, "plan")
    if plan.v != VERSION:
        raise AnnotationError(f"plan annotation has version {plan.v}; this program knows {VERSION}")
    for container, slices in plan.containers.items():
        _check(slices, f'plan annotation: container "{container}"')
    return plan


def encode_drift(drift: Drift) -> str:
    """Write the drift annotation: compact JSON, sorted keys."""
    return msgspec.json.encode(drift, order="sorted").decode()


def decode_drift(text: str) -> Drift:
    """Read a drift annotation.

    Raises:
        AnnotationError: not such JSON, or slices that no GPU has.
    """
    drift = read_annotation(text, _DRIFT, "drift")
    for uid, containers in drift.items():
        for container, slices in containers.items():
            _check(slices, f'drift annotation: pod {uid}, container "{container}"')
    return drift


def _check(slices: tuple[PlannedSlice, ...], where: str) -> None:
    if len({(piece.gpu, piece.instance) for piece in slices}) != len(slices):
        raise AnnotationError(f"{where} names one GPU twice")
    for piece in slices:
        if not GPU_ID.fullmatch(piece.gpu):
            raise AnnotationError(f"{where} names GPU {piece.gpu!r}, which is not 12 hex digits")
        if piece.instance is not None or piece.mig is not None:
            fits = piece.instance is not None and piece.mig is not None and piece.units is None
        else:
            fits = (
                piece.units is not None
                and piece.compute is not None
                and 1 <= piece.units <= MOST_UNITS
                and 0 <= piece.compute <= 100
            )
        if not fits:
            raise AnnotationError(f"{where} holds a slice of GPU {piece.gpu} with amounts that no slice has")


_PLAN: Final = msgspec.json.Decoder(Plan)
_DRIFT: Final = msgspec.json.Decoder(Drift)
