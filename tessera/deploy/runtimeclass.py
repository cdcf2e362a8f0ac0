"""NVIDIA's RuntimeClass in pods that ask for no GPU: there the image's own NVIDIA_VISIBLE_DEVICES would choose.

What an image says is invisible at admission, and every CUDA image says ``all``. Where the nodes' default runtime is a plain
one, nobody but a pod that names NVIDIA's can get a GPU by it, so this closes that way in every injection mode. Where
NVIDIA's is the default runtime of the nodes, it closes nothing, and `tessera doctor` says so.
"""

from __future__ import annotations

from tessera.deploy.cel import listed
from tessera.deploy.policy import NOT_MIRROR, Check, Policy
from tessera.dialects.registry import FOREIGN
from tessera.model.config import Config


def runtime_class(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about RuntimeClasses.

    A request in any dialect counts, also in one that is off here: another system's plugin may serve it. So do DRA's claims.

    Args:
        config: which classes, and the names.
        exempt: namespaces that it doesn't look at.
    """
    names = {name for dialect in FOREIGN for name in dialect.resources}
    prefixes = {prefix for dialect in FOREIGN for prefix in dialect.prefixes} | {config.domain + "/"}
    asked = f"(k in {listed(names)} || {listed(prefixes)}.exists(p, k.startsWith(p)))"

    def among(side: str) -> str:
        return f"(has(c.resources.{side}) && c.resources.{side}.exists(k, {asked} && string(c.resources.{side}[k]) != '0'))"

    containers = "dyn(object.spec.containers) + dyn(has(object.spec.initContainers) ? object.spec.initContainers : [])"
    return Policy(
        name="tessera-runtime-class",
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
