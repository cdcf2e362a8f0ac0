"""Which MIG instances of a node a pod gets, or why there are none for it.

An instance is free or taken and serves one profile, so nothing of the arithmetic of slices applies and no search is
needed: counting decides. What there is to choose is the GPU, as the pod's policy wants: the one that has the fewest free
first, so that others keep theirs for pods that want many, or the one that has the most. What free instances are worth
to the pods of a cluster is priced elsewhere (`tessera.placement.instances`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tessera.placement.gpustate import GpuState, Place, matches
from tessera.placement.reasons import Reason, Rejection
from tessera.placement.shape import Part, Shape, profile_name


def judge_instances(shape: Shape, gpus: Sequence[GpuState]) -> Rejection | None:
    """The first profile of which a node with these GPUs has too few instances, or too few free ones; None has enough.

    What it allows, `choose_instances` finds.
    """
    for profile, need in sorted(shape.instances.items()):
        pool = [state for state in gpus if matches(shape, state)]
        there = sum(profile_name(i.profile) == profile for state in pool for i in state.gpu.mig)
        if there < need:
            return Rejection(Reason.NO_MIG, need, there, profile)
        free = sum(len(free_instances(state, profile)) for state in pool if state.gpu.health == "ok")
        if free < need:
            return Rejection(Reason.MIG_TAKEN, need, free, profile)
    return None


def free_instances(state: GpuState, profile: str) -> list[str]:
    """IDs of the GPU's free MIG instances of a profile (as ticket names write it), in the inventory's order."""
    return [i.id for i in state.gpu.mig if profile_name(i.profile) == profile and i.id not in state.taken]


def choose_instances(
    named: Sequence[tuple[str, Part]], pool: Sequence[GpuState], *, apart: bool
) -> dict[str, tuple[Place, ...]]:
    """Instances for every container that asks for some; a plain init container takes what later containers will have.

    Args:
        named: the pod's containers in order; those without a MIG request are passed over.
        pool: the healthy GPUs that the pod's wishes allow, on which `judge_instances` saw enough.
        apart: the GPU with the most free first, not the one with the fewest.
    """
    free: dict[str, list[Place]] = {}
    places: dict[str, tuple[Place, ...]] = {}
    # Containers that stay come first, so that the init containers can borrow theirs.
    for name, part in sorted(named, key=lambda item: item[1].role == "init"):
        if part.request.mig is None:
            continue
        profile, count = profile_name(part.request.mig), part.request.gpus
        if profile not in free:
            free[profile] = _in_turn(pool, profile) if apart else _fullest_first(pool, profile)
        reused = _borrowed(name, named, places, profile)[:count] if part.role == "init" else []
        fresh = free[profile][: count - len(reused)]
        if part.role == "init":
            # The next init container may have the same ones again.
            places[name] = (*reused, *fresh)
        else:
            del free[profile][: len(fresh)]
            places[name] = tuple(fresh)
    return places


def _fullest_first(pool: Sequence[GpuState], profile: str) -> list[Place]:
    """The free instances of the GPU that has the fewest, and of equals the fewest of all profiles, then of the next."""

    def key(state: GpuState) -> tuple[int, int]:
        return len(free_instances(state, profile)), sum(i.id not in state.taken for i in state.gpu.mig)

    return [Place(state.gpu.id, i) for state in sorted(pool, key=key) for i in free_instances(state, profile)]


def _in_turn(pool: Sequence[GpuState], profile: str) -> list[Place]:
    """The free instances such that each is on the GPU that has the most free once those before are taken."""
    found = []
    for state in pool:
        free = free_instances(state, profile)
        rest = sum(i.id not in state.taken for i in state.gpu.mig)
        found += [(rest - n, Place(state.gpu.id, i)) for n, i in enumerate(free)]
    return [place for _, place in sorted(found, key=lambda each: -each[0])]


def _borrowed(
    init: str, named: Sequence[tuple[str, Part]], places: Mapping[str, tuple[Place, ...]], profile: str
) -> list[Place]:
    """Instances of containers that start after this init container."""
    order = [name for name, _ in named]
    return [
        each
        for name, part in named[order.index(init) + 1 :]
        if part.role != "init" and part.request.mig is not None and profile_name(part.request.mig) == profile
        for each in places[name]
    ]
