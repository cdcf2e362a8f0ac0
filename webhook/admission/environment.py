"""Variables of a pod that asks for GPUs: what would show a container others' GPUs, or lift the limits of its slice, goes.

A container's own variables win over those that a device plugin returns. The guard's policies deny them in every pod; where
config would rather have pods that ask for GPUs cleaned than refused, they are taken away here, before the policies look.
Which variables these are is the policies' to say (`tessera.deploy.environment`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from tessera.deploy.environment import DEVICES, FAMILIES, denies
from tessera.dialects.reader import ContainerReader
from tessera.model.config import Guard
from webhook.admission.patch import Edit, append, put, remove

VOID: Final = "void"
"""What NVIDIA's runtime takes for: leave this container alone, whatever its image says."""
_FIX: Final = "the node sets what a slice has"


def clean(
    containers: Collection[ContainerReader], asking: Collection[str], guard: Guard
) -> tuple[list[Edit], list[str]]:
    """What is done to the variables of a pod that asks for GPUs.

    Args:
        containers: of the pod.
        asking: names of those that ask.
        guard: of the config.

    Returns:
        Edits and warnings.
    """
    edits: list[Edit] = []
    warnings: list[str] = []
    if guard.environment != "strip" and not guard.hide_others:
        return edits, warnings
    for container in containers:
        hidden = guard.hide_others and container.name not in asking
        found = list(_changes(container, guard, hidden=hidden))
        edits += [edit for edit, _ in found]
        if gone := list(dict.fromkeys(name for _, name in found if name)):
            warnings.append(f'container "{container.name[:40]}": removed {", ".join(gone)[:48]}; {_FIX}')
    return edits, warnings


def _changes(container: ContainerReader, guard: Guard, *, hidden: bool) -> Iterator[tuple[Edit, str]]:
    """Edits of one container, each with the variable that was taken away, or ""."""
    where = ("spec", "initContainers" if container.init else "containers", container.index, "env")
    strip = guard.environment == "strip"
    has_devices = False
    for at, variable in enumerate(container.container.env or ()):
        if not variable.name.startswith(FAMILIES):
            continue
        bad = denies(variable, guard)
        if variable.name == DEVICES and not (bad and strip):
            has_devices = True  # it hides the GPUs as well, or the policies deny it
        elif bad and strip and hidden and variable.name == DEVICES and not has_devices:
            # In its place, not anew: a manifest that is applied again finds it there, with the value that it has now.
            has_devices = True
            yield put((*where, at, "value"), VOID), variable.name
            if variable.value_from is not None:
                yield remove((*where, at, "valueFrom")), ""
        elif bad and strip:
            yield remove((*where, at)), variable.name
    if hidden and not has_devices:
        yield append(where, {"name": DEVICES, "value": VOID}), ""
