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

from tessera.deploy.environment import environment
from tessera.deploy.hostpaths import host_paths, privileged
from tessera.deploy.policy import Object, objects
from tessera.deploy.runtimeclass import runtime_class
from tessera.deploy.writers import Accounts, agents, bindings, nodes, pods
from tessera.model.config import Config


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
    exempt = tuple(sorted({namespace, *config.guard.exempt_namespaces}))
    found = [
        environment(config, exempt=exempt),
        host_paths(config, exempt=exempt),
        privileged(config, exempt=exempt),
        runtime_class(config, exempt=exempt),
        pods(config, accounts),
        bindings(config, accounts),
        nodes(config, accounts),
        agents(config, accounts),
    ]
    return [each for policy in found for each in objects(policy)]
