"""NVIDIA's RuntimeClass in pods that ask for no GPU: there the image's own NVIDIA_VISIBLE_DEVICES would choose.

What an image says is invisible at admission, and every CUDA image says ``all``. Where the nodes' default runtime is a plain
one, nobody but a pod that names NVIDIA's can get a GPU by it, so this closes that way in every injection mode. Where
NVIDIA's is the default runtime of the nodes, it closes nothing, and `tessera doctor` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tessera.deploy.cel import listed
from tessera.deploy.policy import NOT_MIRROR, Check, Denial, Policy
from tessera.dialects.registry import FOREIGN
from tessera.model.config import Config
from tessera.model.pod import Manifest

NAME: Final = "tessera-runtime-class"
"""Of the policy."""


def runtime_class(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about RuntimeClasses.

    A request in any dialect counts, also in one that is off here: another system's plugin may serve it. So do DRA's claims.

    Args:
        config: which classes, and the names.
        exempt: namespaces that it doesn't look at.
    """
    names, prefixes = _asked(config)
    asked = f"(k in {listed(names)} || {listed(prefixes)}.exists(p, k.startsWith(p)))"

    def among(side: str) -> str:
        return f"(has(c.resources.{side}) && c.resources.{side}.exists(k, {asked} && string(c.resources.{side}[k]) != '0'))"

    containers = "dyn(object.spec.containers) + dyn(has(object.spec.initContainers) ? object.spec.initContainers : [])"
    return Policy(
        name=NAME,
        resources=("pods",),
        operations=("CREATE",),
        exempt=exempt,
        conditions=(
            NOT_MIRROR,
            (
                "names-a-guarded-class",
                f"has(object.spec.runtimeClassName) && object.spec.runtimeClassName in {listed(config.guard.runtime_classes)}",
            ),
        ),
        variables=(
            (
                "asking",
                f"({containers}).exists(c, has(c.resources) && ({among('limits')} || {among('requests')}))",
            ),
        ),
        checks=(
            Check(
                holds="variables.asking || has(object.spec.resourceClaims)",
                message=(
                    "'container \"' + object.spec.containers[0].name + '\" would see the GPUs that its image asks for, since the"
                    " pod names the runtimeClassName ' + object.spec.runtimeClassName + ' and asks for none; remove it, or ask by"
                    f" the limits {config.names.gpu}, {config.names.gpu_memory}, {config.names.gpu_compute}'"
                ),
                summary=f"a pod that asks for no GPU names NVIDIA's runtime; remove it, or ask by the limit {config.names.gpu}",
            ),
        ),
    )


def _asked(config: Config) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of resources by which a pod asks for a GPU of anybody's, and beginnings of such names."""
    names = frozenset(name for dialect in FOREIGN for name in dialect.resources)
    return names, (*(prefix for dialect in FOREIGN for prefix in dialect.prefixes), config.domain + "/")


def denials(pod: Manifest, config: Config) -> Iterator[Denial]:
    """What the policy would say against the creation of a pod.

    Args:
        pod: as the API server would have it after admission: an amount of nothing is written 0.
        config: which classes, and the names.
    """
    name = pod.spec.runtime_class_name
    if name not in config.guard.runtime_classes or pod.spec.resource_claims is not None:
        return
    names, prefixes = _asked(config)
    containers = (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
    asking = any(
        (key in names or key.startswith(prefixes)) and str(amount) != "0"
        for container in containers
        if container.resources is not None
        for side in (container.resources.limits, container.resources.requests)
        for key, amount in (side or {}).items()
    )
    if not asking:
        first = containers[0].name if containers else ""
        said = f"since the pod names the runtimeClassName {name} and asks for none"
        yield Denial(NAME, f'container "{first}" would see the GPUs that its image asks for, {said}')
