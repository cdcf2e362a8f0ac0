"""The gate that has no process of ours in it: ValidatingAdmissionPolicies, evaluated by the API server itself.

A webhook that is asked about every pod of a cluster is a way to stop the cluster, so denials are policies. Two kinds:

* what a pod may not say, since it would see GPUs that nobody gave it, or lift the limits of its slice: environment
  (`tessera.deploy.environment`), host paths and privileged containers (`tessera.deploy.hostpaths`), NVIDIA's runtime
  (`tessera.deploy.runtimeclass`), outside exempt namespaces;
* who may write what our parts believe: annotations and labels of ours on pods, Bindings and Nodes, everywhere
  (`tessera.deploy.writers`).

A policy sees the object after every webhook and after the API server's own validation. What it can't see (variables that
come by envFrom or with the image) is closed by the injection mode; docs/guard.md says how.
"""

from __future__ import annotations

from tessera.deploy import environment as environments
from tessera.deploy import runtimeclass
from tessera.deploy.conditions import MIRROR
from tessera.deploy.environment import environment
from tessera.deploy.hostpaths import host_path_denials, host_paths, privileged, privileged_denials
from tessera.deploy.policy import Denial, Object, objects
from tessera.deploy.runtimeclass import runtime_class
from tessera.deploy.writers import Accounts, agents, bindings, nodes, pods
from tessera.model.config import Config
from tessera.model.pod import Manifest


def policies(
    config: Config,
    *,
    namespace: str = "tessera-system",
    extender: str = "tessera-extender",
    agent: str = "tessera-node",
) -> list[Object]:
    """Every policy with its binding (admissionregistration.k8s.io/v1).

    Args:
        config: its domain and `guard`.
        namespace: of our parts; like `guard.exempt_namespaces` it is exempt from what pods may not say, since the node agent
            mounts what nobody else may.
        extender: its service account there.
        agent: the node agent's.
    """
    accounts = Accounts(
        extender=f"system:serviceaccount:{namespace}:{extender}",
        agent=f"system:serviceaccount:{namespace}:{agent}",
        trusted=config.guard.trusted,
    )
    exempt = _exempt(config, namespace)
    said = (
        environment(config, exempt=exempt),
        host_paths(config, exempt=exempt),
        privileged(config, exempt=exempt),
        runtime_class(config, exempt=exempt),
    )
    written = (
        pods(config, accounts),
        bindings(config, accounts),
        nodes(config, accounts),
        agents(config, accounts),
    )
    warns = config.guard.actions == "warn"
    return [
        *(each for policy in said for each in objects(policy, warns=warns)),
        *(each for policy in written for each in objects(policy)),
    ]


def _exempt(config: Config, namespace: str) -> tuple[str, ...]:
    return tuple(sorted({namespace, *config.guard.exempt_namespaces}))


def denials(
    pod: Manifest, config: Config, *, namespace: str = "tessera-system", asking: bool = False
) -> tuple[Denial, ...]:
    """What the policies would say against the creation of a pod; where there are none yet, too.

    Only what a pod may not say: our own annotations on a pod that is there are ours.

    Args:
        pod: as the API server has it; a static pod's mirror passes.
        config: its domain and `guard`.
        namespace: of our parts.
        asking: the pod asks for a GPU of ours in some dialect, so admission would write tickets on it, and take away its
            variables where config says so.
    """
    if pod.metadata.namespace in _exempt(config, namespace) or pod.metadata.annotation(MIRROR) is not None:
        return ()
    stripped = asking and config.guard.environment == "strip"
    return (
        *(() if stripped else environments.denials(pod, config)),
        *host_path_denials(pod, config),
        *privileged_denials(pod, config, asking=asking),
        *runtimeclass.denials(pod, config),
    )
