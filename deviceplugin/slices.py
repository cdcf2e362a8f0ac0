"""What a container was given, in amounts: the bridge from device IDs to environment, plan, drift and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deviceplugin.board import Board
from deviceplugin.devices import FULL, View, gpu_of, parse
from deviceplugin.ledger import Grant
from tessera.model.inventory import Gpu
from tessera.model.plan import PlannedSlice
from tessera.model.pod import Pod
from tessera.model.request import ContainerRequest
from tessera.placement.gpustate import Place
from tessera.placement.holding import Holding


@dataclass(frozen=True, slots=True)
class Slice:
    """One GPU's part of what a container has.

    Attributes:
        gpu: the GPU.
        units: memory units, 0 where only compute is known so far, None for a MIG instance.
        compute: percent reserved, 0 where none was asked, None for a MIG instance.
        whole: the GPU is exclusive.
        instance: ID of the MIG instance (``g7``).
    """

    gpu: Gpu
    units: int | None
    compute: int | None
    whole: bool = False
    instance: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """What one container was given.

    Attributes:
        pod: None while it can't be told.
        container: its name, "" while it can't be told.
        request: what it asked for, None while it can't be told.
        slices: in the plan's order.
    """

    pod: Pod | None
    container: str
    request: ContainerRequest | None
    slices: tuple[Slice, ...]


def slices_of(
    grant: Grant, board: Board, *, request: ContainerRequest | None, order: Sequence[Place] | None
) -> tuple[Slice, ...]:
    """Say a grant in amounts.

    Args:
        grant: what the container holds.
        board: the GPUs; of GPUs that the node doesn't have any more nothing is said.
        request: whether the GPUs are whole; None reads that from the amounts.
        order: places in the plan's order; None sorts.
    """
    found: list[Slice] = []
    for gpu, held in board.ledger.pieces(grant).items():
        known = board.gpus.get(gpu)
        if known is None:
            continue
        found += [Slice(known, None, None, instance=instance) for instance in _instances(grant, gpu)]
        if held:
            whole = request.whole if request is not None else is_whole(held)
            found.append(Slice(known, known.units if whole else held.all_units, held.compute, whole))
    if order is not None:
        rank = {place: number for number, place in enumerate(order)}
        found.sort(key=lambda piece: rank.get(Place(piece.gpu.id, piece.instance), len(rank)))
    return tuple(found)


def is_whole(held: Holding) -> bool:
    """Whether one container's amounts on a GPU are the whole of it."""
    return held.percent == FULL and held.compute == FULL


def planned_slices(grant: Grant, board: Board) -> tuple[PlannedSlice, ...]:
    """Say a grant as plan and drift do."""
    slices = []
    for piece in slices_of(grant, board, request=None, order=None):
        if piece.instance is not None:
            profile = next((each.profile for each in piece.gpu.mig if each.id == piece.instance), "")
            slices.append(PlannedSlice(gpu=piece.gpu.id, mig=profile, instance=piece.instance))
        elif piece.units:
            slices.append(
                PlannedSlice(gpu=piece.gpu.id, units=piece.units, compute=piece.compute or 0, whole=piece.whole)
            )
    return tuple(slices)


def _instances(grant: Grant, gpu: str) -> list[str]:
    return [
        f"g{parse(device).index}"
        for ids in grant.devices.values()
        # IDs of one resource are of one view, and there may be hundreds.
        if ids and parse(ids[0]).view is View.MIG
        for device in ids
        if gpu_of(device) == gpu
    ]
