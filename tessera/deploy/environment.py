"""Variables that would show a container GPUs it was not given, or lift the limits of its slice.

A container's own variables win over those that a device plugin returns (kubelet appends the pod's after the plugin's), so
they can't be left to the node. By value or by reference makes no difference: where a value comes from a ConfigMap, what it
will be is not known here.

The rules are said once, and written twice: in CEL for the API server, and in Python for what looks at pods before there is
a policy (admission that strips, `tessera doctor`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tessera.deploy.cel import listed, text
from tessera.deploy.policy import FRESH, NOT_MIRROR, Check, Denial, Policy, fresh
from tessera.model.config import Config, Guard
from tessera.model.pod import EnvVar, Manifest

DEVICES: Final = "NVIDIA_VISIBLE_DEVICES"
CAPABILITIES: Final = "NVIDIA_DRIVER_CAPABILITIES"
NO_DEVICES: Final = ("none", "void")
MEMORY: Final = "NVIDIA_GPU_MEMORY_"
MPS: Final = "CUDA_MPS_"
DEVICE_MEMORY: Final = "CUDA_DEVICE_MEMORY_LIMIT"
NAME: Final = "tessera-environment"
"""Of the policy."""
FAMILIES: Final = ("NVIDIA_", "CUDA_")
"""Beginnings of every variable that a rule is about."""
_PRINTABLE: Final = "^[ -~]{0,64}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One kind of variable.

    Attributes:
        name: of the rule.
        variable: which it is; "" where `prefixes` say it.
        prefixes: how the names of its variables begin.
        values: which values are fine.
        several: whether several of them are, with commas between.
    """

    name: str
    variable: str = ""
    prefixes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    several: bool = False

    @property
    def bad(self) -> str:
        """CEL about a variable ``e``: it is one of these, and not fine."""
        if not self.variable:
            return " || ".join(f"e.name.startsWith({text(prefix)})" for prefix in self.prefixes)
        one = "|".join(self.values)
        listing = f"^({one})(,({one}))*$" if self.values else "^$"
        fine = f"e.value.matches({text(listing)})" if self.several else f"e.value in {listed(self.values)}"
        return f"e.name == {text(self.variable)} && !(has(e.value) && {fine})"

    def denies(self, variable: EnvVar) -> bool:
        """`bad`, in Python."""
        if not self.variable:
            return variable.name.startswith(self.prefixes)
        if variable.name != self.variable:
            return False
        if variable.value is None:
            return True
        if not self.several:
            return variable.value not in self.values
        return not all(each in (self.values or ("",)) for each in variable.value.split(","))


def environment(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about variables.

    Args:
        config: its names and what it allows.
        exempt: namespaces that it doesn't look at.
    """
    instead = _instead(config)
    variables = [
        FRESH,
        (
            "suspects",
            (
                "variables.fresh.filter(c, has(c.env)"
                f" && c.env.exists(e, {' || '.join(f'e.name.startsWith({text(family)})' for family in FAMILIES)}))"
            ),
        ),
    ]
    checks = []
    for rule in _rules(config.guard):
        variables.append((rule.name, f"variables.suspects.filter(c, c.env.exists(e, {rule.bad}))"))
        first = f"variables.{rule.name}[0]"
        found = f"{first}.env.filter(e, {rule.bad})[0]"
        # A message with a line break, or too long a one, would be dropped by the API server as a whole.
        printable = f"has({found}.value) && {found}.value.matches({text(_PRINTABLE)})"
        said = f"(has({found}.valueFrom) ? ' by reference' : {printable} ? '=' + {found}.value : '')"
        checks.append(
            Check(
                holds=f"variables.{rule.name}.size() == 0",
                message=f"'container \"' + {first}.name + '\": ' + {found}.name + {said} + {text(instead[rule.name])}",
                summary=f"a variable of the container{instead[rule.name]}",
            )
        )
    return Policy(
        name=NAME,
        exempt=exempt,
        conditions=(NOT_MIRROR,),
        variables=tuple(variables),
        checks=tuple(checks),
    )


def denies(variable: EnvVar, guard: Guard) -> bool:
    """Whether a container may not have a variable."""
    return any(rule.denies(variable) for rule in _rules(guard))


def denials(pod: Manifest, config: Config) -> Iterator[Denial]:
    """What the policy would say against the creation of a pod.

    Args:
        pod: as the API server would have it after admission.
        config: what it allows.
    """
    suspects = [
        (container, variable)
        for container in fresh(pod)
        for variable in container.env or ()
        if variable.name.startswith(FAMILIES)
    ]
    for rule in _rules(config.guard) if suspects else ():
        for container, variable in suspects:
            if not rule.denies(variable):
                continue
            said = ""
            if variable.value_from is not None:
                said = " by reference"
            elif variable.value is not None and re.fullmatch(_PRINTABLE, variable.value):
                said = f"={variable.value}"
            yield Denial(NAME, f'container "{container.name}": {variable.name}{said}')
            break


def _rules(guard: Guard) -> tuple[_Rule, ...]:
    return (
        _Rule(name="visible", variable=DEVICES, values=NO_DEVICES),
        _Rule(name="capabilities", variable=CAPABILITIES, values=guard.driver_capabilities, several=True),
        _Rule(name="limits", prefixes=(MEMORY, MPS, DEVICE_MEMORY)),
    )


def _instead(config: Config) -> dict[str, str]:
    """By rule, how its message goes on."""
    names, allowed = config.names, config.guard.driver_capabilities
    ask = f"GPUs are asked for by the limits {names.gpu}, {names.gpu_memory}, {names.gpu_compute}"
    return {
        "visible": f" would choose GPUs that were not given to it; remove it ({ask}), or write void",
        "capabilities": f" goes beyond what guard.driverCapabilities allows ({','.join(allowed) or 'nothing'});"
        " list some of these, by value, or remove it",
        "limits": f" would change the limits of a slice; remove it, the node sets what the slice has ({ask})",
    }
