"""``python -m deviceplugin.gpucheck``: the real NVML on this machine against everything that the node agent assumes.

Fakes answer as NVIDIA's documents say; this is the check that the real thing does. It changes nothing on the machine.

Exit codes: 0 all as assumed, 1 something is not (or there is a GPU that can't be used), 2 no GPU to look at.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final

from deviceplugin.isolation.environment import HostPaths, survey
from deviceplugin.isolation.probe import choose_mode, probe
from deviceplugin.nvml.binding import Binding
from deviceplugin.nvml.driver import NvmlDriver
from deviceplugin.nvml.errors import NvmlCallError, NvmlError, NvmlUnavailableError
from deviceplugin.nvml.facts import GpuFacts, Look, NodeFacts, RecoveryAction, inventory_gpus
from deviceplugin.nvml.pci import PciBus
from deviceplugin.processes import ProcessMap
from tessera.daemon.flags import Flags
from tessera.model.guarantee import Guarantee
from tessera.model.inventory import VERSION, Inventory, decode, encode
from tessera.model.names import MEMORY_UNIT
from tessera.model.quantity import gib

GOOD: Final = 0
BAD: Final = 1
NO_GPU: Final = 2

Say = Callable[[str], object]


class Findings:
    """Counts what is not as assumed, and says each line as it comes."""

    def __init__(self, say: Say) -> None:
        """Take where lines go."""
        self._say = say
        self.bad = 0

    def note(self, line: str) -> None:
        """Say a fact."""
        self._say(line)

    def expect(self, what: str, *, holds: bool) -> None:
        """Say whether an assumption holds."""
        self.bad += not holds
        self._say(f"  {'ok ' if holds else 'BAD'} {what}")


def check(driver: NvmlDriver, paths: HostPaths, *, say: Say) -> int:
    """Look at the machine and judge it.

    Args:
        driver: closed; it is closed again at the end.
        paths: where the host's files are.
        say: takes each line of the report.

    Returns:
        The exit code.
    """
    cards = PciBus(paths.sysfs).nvidia_gpus()
    say(f"PCI bus: {', '.join(cards) or 'no NVIDIA display controller'}")
    try:
        driver.open()
    except NvmlUnavailableError as error:
        say(f"{error}")
        say("there is a GPU and it can't be used" if cards else "no GPU on this machine: nothing was checked")
        return BAD if cards else NO_GPU
    findings = Findings(say)
    try:
        facts = driver.read()
        if not facts.gpus and not facts.unreadable:
            say("NVML runs and counts no GPU: nothing was checked")
            return NO_GPU
        _node(facts, cards, findings)
        _same_again(driver, facts, findings)
        _look(driver.look(), facts, ProcessMap(paths.proc), findings)
        _guarantees(facts, paths, findings)
    except NvmlError as error:
        findings.expect(f"every call is answered: {error}", holds=False)
    finally:
        driver.close()
    say("everything is as assumed" if not findings.bad else f"{findings.bad} assumptions don't hold")
    return BAD if findings.bad else GOOD


def _node(facts: NodeFacts, cards: tuple[str, ...], findings: Findings) -> None:
    findings.note(f"driver {facts.driver}, NVML {facts.nvml}, CUDA {facts.cuda / 1000:g}")
    findings.expect("the driver's version begins with its branch", holds=facts.branch > 0)
    for unreadable in facts.unreadable:
        findings.expect(f"GPU {unreadable.index} can be read: {unreadable.reason}", holds=False)
    ids = {gpu.id for gpu in facts.gpus}
    findings.expect("GPU ids (first 12 digits of the UUID) are unique", holds=len(ids) == len(facts.gpus))
    for gpu in facts.gpus:
        _gpu(gpu, ids, cards, findings)
    by_id = {gpu.id: gpu for gpu in facts.gpus}
    findings.expect(
        "links are the same from both ends",
        holds=all(
            by_id[other].links.get(gpu.id) == link
            for gpu in facts.gpus
            for other, link in gpu.links.items()
            if other in by_id
        ),
    )
    listed = inventory_gpus(facts.gpus, unit=MEMORY_UNIT, headroom=0, health={}, guarantees={}, held={})
    text = encode(Inventory(v=VERSION, unit=MEMORY_UNIT, gpus=listed))
    findings.expect(f"the inventory annotation ({len(text)} bytes) reads back", holds=decode(text).gpus == listed)


def _gpu(gpu: GpuFacts, ids: set[str], cards: tuple[str, ...], findings: Findings) -> None:
    units = inventory_gpus((gpu,), unit=MEMORY_UNIT, headroom=0, health={}, guarantees={}, held={})[0].units
    capability = ".".join(map(str, gpu.capability)) if gpu.capability else "unknown"
    findings.note(
        f"GPU {gpu.index} {gpu.id} {gpu.name} ({gpu.uuid}, {gpu.pci or 'no PCI address'}): {gib(gpu.memory)}, driver keeps "
        f"{gib(gpu.reserved)}, {units} units of 256 MiB, NUMA {gpu.numa}, compute capability {capability}"
    )
    findings.expect("the UUID is GPU- and hex digits", holds=gpu.uuid.startswith("GPU-"))
    findings.expect("memory is more than the driver's reserve", holds=0 <= gpu.reserved < gpu.memory)
    findings.expect("a GPU has units, unless MIG is on", holds=(units > 0) != gpu.mig_mode)
    findings.expect("the PCI address is one that sysfs shows", holds=not cards or gpu.pci in cards)
    findings.expect("there is a path to every other GPU", holds=gpu.links.keys() == ids - {gpu.id})
    for other, link in sorted(gpu.links.items()):
        findings.note(f"    {link} to {other}")
    for part in gpu.mig:
        findings.note(f"    MIG {part.id} {part.profile}: {gib(part.memory)} ({part.uuid})")
        findings.expect(
            "an instance is a part of its GPU", holds=part.uuid.startswith("MIG-") and 0 < part.memory <= gpu.memory
        )


def _same_again(driver: NvmlDriver, facts: NodeFacts, findings: Findings) -> None:
    """Close and open again, as after a driver reload: the library is unloaded in between."""
    driver.close()
    driver.open()
    again = driver.read()
    same = [(gpu.uuid, gpu.memory, gpu.pci) for gpu in again.gpus] == [
        (gpu.uuid, gpu.memory, gpu.pci) for gpu in facts.gpus
    ]
    findings.expect("NVML can be closed, unloaded and opened again, and says the same", holds=same)


def _look(look: Look, facts: NodeFacts, processes: ProcessMap, findings: Findings) -> None:
    for gpu in facts.gpus:
        sample = look.samples.get(gpu.id)
        if sample is None or isinstance(sample, NvmlCallError):
            findings.expect(f"GPU {gpu.id} can be looked at: {sample}", holds=False)
            continue
        action = "unknown" if sample.recovery is None else sample.recovery.name
        findings.note(f"GPU {gpu.id}: {gib(sample.used)} in use, the driver's recovery action is {action}")
        findings.expect("memory in use is at most the memory there is", holds=0 <= sample.used <= gpu.memory)
        findings.expect(
            "recovery actions are known from driver 565 on",
            holds=sample.recovery is not RecoveryAction.UNKNOWN and (sample.recovery is not None or facts.branch < 565),
        )
        findings.expect("processes are listed", holds=sample.processes is not None)
        for process in sample.processes or ():
            amount = "unknown memory" if process.memory is None else gib(process.memory)
            findings.note(f"    process {process.pid}: {amount}, {processes.locate(process.pid)}")
            findings.expect("its number is one of this /proc", holds=processes.locate(process.pid) != "gone")


def _guarantees(facts: NodeFacts, paths: HostPaths, findings: Findings) -> None:
    environment = asyncio.run(survey(paths))
    mode = choose_mode("auto", facts.gpus, environment)
    cdi = {True: "on", False: "off", None: "not known"}[environment.runtime_cdi]
    findings.note(
        f"devices by {mode}; the runtime's CDI is {cdi}, CDI names {len(environment.cdi.names)}, cgroup v2 "
        f"{'yes' if environment.cgroup_v2 else 'no'}, container toolkit {environment.toolkit.version or 'not known'}"
    )
    for gpu, verdict in probe(facts, environment, order=tuple(Guarantee), mode=mode).items():
        findings.note(f"GPU {gpu}: memory guarantee {verdict.guarantees.memory}")
        for guarantee, reason in verdict.against.items():
            findings.note(f"    not {guarantee}: {reason}")


def main(arguments: list[str] | None = None) -> int:
    """Read the flags and check this machine."""
    flags = Flags("gpucheck", "checks the real NVML of this machine against what the node agent assumes")
    flags.add("--nvml-library", "the libnvidia-ml.so.1 to load", str, None)
    flags.add("--host-root", "where the host's root is mounted", str, "/")
    read = flags.read(arguments)
    paths = HostPaths.under(read.host_root)
    driver = NvmlDriver(Binding(read.nvml_library), PciBus(paths.sysfs))
    return check(driver, paths, say=lambda line: sys.stdout.write(f"{line}\n"))


if __name__ == "__main__":
    sys.exit(main())
