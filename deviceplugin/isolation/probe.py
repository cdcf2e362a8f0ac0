"""Which guarantee each GPU gets: the first of the configured order that was proved possible."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

from deviceplugin.isolation import kernel, mps, watched
from deviceplugin.isolation.environment import Environment, Mode
from deviceplugin.nvml.facts import GpuFacts, NodeFacts
from tessera.model.guarantee import Guarantee, Guarantees


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one GPU's slices are promised, and why not more: by guarantee, the reason against it."""

    guarantees: Guarantees
    against: dict[Guarantee, str] = {}


def choose_mode(
    wanted: Literal["auto", "cdi", "envvar", "volume-mounts"], gpus: Sequence[GpuFacts], environment: Environment
) -> Mode:
    """How containers get their GPUs on this node.

    ``auto`` takes CDI where the runtime is known to inject it and every GPU and MIG instance has an entry by its UUID, else
    the environment variable, which needs the NVIDIA runtime.
    """
    if wanted != "auto":
        return wanted
    needed = {uuid for gpu in gpus for uuid in ([part.uuid for part in gpu.mig] if gpu.mig_mode else [gpu.uuid])}
    return "cdi" if environment.runtime_cdi and needed and needed <= environment.cdi.names else "envvar"


def probe(
    node: NodeFacts,
    environment: Environment,
    *,
    order: Sequence[Guarantee],
    mode: Mode,
    blind: Collection[str] = (),
) -> dict[str, Verdict]:
    """Judge every GPU of a node.

    Args:
        node: what NVML says.
        environment: what the machine brings.
        order: the config's `isolation`; what is not in it is not claimed.
        mode: how containers get their GPUs.
        blind: ids of GPUs of which accounting has turned out to say nothing (`Report.blind` of the monitor).

    Returns:
        By GPU id. Compute is capped by MPS or not at all.
    """
    seeing = [msgspec.structs.replace(gpu, accounting=False) if gpu.id in blind else gpu for gpu in node.gpus]
    return {gpu.id: _judge(node, gpu, environment, order, mode) for gpu in seeing}


def _judge(node: NodeFacts, gpu: GpuFacts, environment: Environment, order: Sequence[Guarantee], mode: Mode) -> Verdict:
    capped = Guarantee.PROCESS in order and mps.problem(gpu, environment.mps) is None
    compute = Guarantee.PROCESS if capped else Guarantee.NONE
    against: dict[Guarantee, str] = {}
    for guarantee in order:
        problem = _problem(guarantee, node, gpu, environment, mode)
        if problem is None:
            return Verdict(guarantees=Guarantees(memory=guarantee, compute=compute), against=against)
        against[guarantee] = problem
    return Verdict(guarantees=Guarantees(compute=compute), against=against)


def _problem(guarantee: Guarantee, node: NodeFacts, gpu: GpuFacts, environment: Environment, mode: Mode) -> str | None:
    match guarantee:
        case Guarantee.KERNEL:
            return kernel.problem(node, gpu, environment, mode)
        case Guarantee.PROCESS:
            return mps.problem(gpu, environment.mps)
        case Guarantee.WATCHED:
            return watched.problem(gpu, environment)
        case Guarantee.NONE:
            return None
