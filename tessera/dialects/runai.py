"""Run:ai: KAI's fractions under Run:ai's scheduler, with a burst limit in the container's environment.

Source: Run:ai's manual "Dynamic GPU fractions": ``RUNAI_GPU_MEMORY_LIMIT`` is a fraction beside ``gpu-fraction`` and a
quantity beside ``gpu-memory``; memory between request and limit is lent while nobody else needs it. Nothing is lent here.
A pod of Run:ai is one that names its scheduler or carries that variable; read otherwise as KAI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tessera.dialects.dialect import Baggage, Context, Dialect, Reading
from tessera.dialects.kai import ASKS, FRACTION, MEMORY, RUNAI, KaiOptions, burst_warning, is_runai, read
from tessera.dialects.reader import PodReader
from tessera.dialects.trigger import Trigger, all_of


def _pod(pod: PodReader, context: Context) -> Mapping[str, Reading]:
    return read(pod, reserve_limit=context.option(KaiOptions).reserve == "limit") if is_runai(pod) else {}


def _baggage(pod: PodReader, context: Context) -> Baggage:
    if not is_runai(pod):
        return Baggage()
    lent = context.option(KaiOptions).reserve == "limit"
    return Baggage(
        selectors=("run.ai/fake.gpu", "run.ai/simulated-gpu-node-pool"), warnings=() if lent else burst_warning(pod)
    )


def _trigger(_context: Context) -> Trigger:
    return all_of(ASKS, RUNAI)


DIALECT: Final = Dialect(
    name="runai",
    about="Run:ai fractions",
    options=KaiOptions,
    annotations=frozenset({FRACTION, MEMORY}),
    pod=_pod,
    baggage=_baggage,
    trigger=_trigger,
)
