"""Variables that would show a container GPUs it was not given, or lift the limits of its slice.

A container's own variables win over those that a device plugin returns (kubelet appends the pod's after the plugin's), so
they can't be left to the node. By value or by reference makes no difference: where a value comes from a ConfigMap, what it
will be is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tessera.deploy.cel import listed, text
from tessera.deploy.policy import FRESH, NOT_MIRROR, Check, Policy
from tessera.model.config import Config

DEVICES: Final = "NVIDIA_VISIBLE_DEVICES"
CAPABILITIES: Final = "NVIDIA_DRIVER_CAPABILITIES"
NO_DEVICES: Final = ("none", "void")
MEMORY: Final = "NVIDIA_GPU_MEMORY_"
MPS: Final = "CUDA_MPS_"
DEVICE_MEMORY: Final = "CUDA_DEVICE_MEMORY_LIMIT"
_PRINTABLE: Final = "^[ -~]{0,64}$"


@dataclass(frozen=True, slots=True)
class _Rule:
    """One kind of variable: which, and what is to be done instead."""

    name: str
    bad: str
    instead: str


def environment(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about variables.

    Args:
        config: its names and what it allows.
        exempt: namespaces that it doesn't look at.
    """
    rules = _rules(config)
    variables = [
        FRESH,
        (
            "suspects",
            (
                "variables.fresh.filter(c, has(c.env)"
                " && c.env.exists(e, e.name.startsWith('NVIDIA_') || e.name.startsWith('CUDA_')))"
            ),
        ),
    ]
    checks = []
    for rule in rules:
        variables.append((rule.name, f"variables.suspects.filter(c, c.env.exists(e, {rule.bad}))"))
        first = f"variables.{rule.name}[0]"
        found = f"{first}.env.filter(e, {rule.bad})[0]"
        # A message with a line break, or too long a one, would be dropped by the API server as a whole.
        printable = f"has({found}.value) && {found}.value.matches({text(_PRINTABLE)})"
        said = f"(has({found}.valueFrom) ? ' by reference' : {printable} ? '=' + {found}.value : '')"
        checks.append(
            Check(
                holds=f"variables.{rule.name}.size() == 0",
                message=f"'container \"' + {first}.name + '\": ' + {found}.name + {said} + {text(rule.instead)}",
                summary=f"a variable of the container{rule.instead}",
            )
        )
    return Policy(
        name="tessera-environment",
        exempt=exempt,
        conditions=(NOT_MIRROR,),
        variables=tuple(variables),
        checks=tuple(checks),
    )


def _rules(config: Config) -> tuple[_Rule, ...]:
    names, allowed = config.names, config.guard.driver_capabilities
    ask = f"GPUs are asked for by the limits {names.gpu}, {names.gpu_memory}, {names.gpu_compute}"
    either = "|".join(allowed)
    listing = f"^({either})(,({either}))*$" if allowed else "^$"
    return (
        _Rule(
            "visible",
            f"e.name == {text(DEVICES)} && !(has(e.value) && e.value in {listed(NO_DEVICES)})",
            f" would choose GPUs that were not given to it; remove it ({ask}), or write void",
        ),
        _Rule(
            "capabilities",
            f"e.name == {text(CAPABILITIES)} && !(has(e.value) && e.value.matches({text(listing)}))",
            f" goes beyond what guard.driverCapabilities allows ({','.join(allowed) or 'nothing'});"
            " list some of these, by value, or remove it",
        ),
        _Rule(
            "limits",
            " || ".join(
                (
                    f"e.name.startsWith({text(MEMORY)})",
                    f"e.name.startsWith({text(MPS)})",
                    f"e.name.startsWith({text(DEVICE_MEMORY)})",
                )
            ),
            f" would change the limits of a slice; remove it, the node sets what the slice has ({ask})",
        ),
    )
