"""The guarantee after the fact: NVML's accounting tells which container uses more than its slice."""

from __future__ import annotations

from deviceplugin.isolation.environment import Environment
from deviceplugin.nvml.facts import GpuFacts


def problem(gpu: GpuFacts, environment: Environment) -> str | None:
    """Why this guarantee can't be given for one GPU, None where it can."""
    if not gpu.accounting:
        return "NVML does not list this GPU's processes, or not what they use"
    return environment.process_problem
