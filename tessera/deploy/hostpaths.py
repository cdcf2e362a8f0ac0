"""Ways to a GPU that go through the host: its folders, and containers that see all of its devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tessera.deploy.cel import listed, text
from tessera.deploy.policy import FRESH, NOT_MIRROR, Check, Denial, Policy, fresh
from tessera.model.config import Config
from tessera.model.pod import Manifest

INJECTED: Final = "nvidia-container-devices"
"""Folder whose entries, as mount points of /dev/null, choose GPUs (NVIDIA's container toolkit, volume mounts as a list)."""
_CDI: Final = "cdi.k8s.io/"
"""Annotations by which a runtime is told to inject devices; NVIDIA's operator puts a prefix in front."""
_OTHERS_ROOT: Final = "^/proc/(self|thread-self|[0-9]+)(/.*)?$"
"""``/proc/1/root`` is the whole host."""
_PRINTABLE: Final = "^[ -~]{1,256}$"
NAME: Final = "tessera-host-paths"
"""Of the policy about volumes."""
PRIVILEGED: Final = "tessera-privileged"
"""Of the policy about privileged containers."""


def host_paths(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about volumes of kind hostPath, and about mount points that choose GPUs.

    A path is compared as its parts, so doubled and trailing slashes and ``.`` change nothing; ``..`` is denied wherever it
    stands (the API server refuses it too). A folder above a protected one reaches it, so it is denied as well.

    Args:
        config: which folders.
        exempt: namespaces that it doesn't look at.
    """
    return Policy(
        name=NAME,
        exempt=exempt,
        conditions=(NOT_MIRROR,),
        variables=(FRESH, *_volumes(_bad(config.guard.host_paths)), _choosing(), _injecting()),
        checks=(
            Check(
                holds="variables.bad.size() == 0",
                message=(
                    "(variables.mounting.size() > 0 ? 'container \"' + variables.mounting[0].name + '\" mounts '"
                    " : 'the pod has ') + 'volume \"' + variables.bad[0].name + '\", hostPath '"
                    f" + (variables.bad[0].path.matches({text(_PRINTABLE)}) ? variables.bad[0].path : '(unprintable)')"
                    " + ', which reaches GPUs or their sockets on the host; mount a folder that holds none of"
                    " guard.hostPaths, or let an administrator exempt the namespace'"
                ),
                summary="a hostPath volume reaches GPUs or their sockets on the host; mount another folder",
            ),
            Check(
                holds="variables.choosing.size() == 0",
                message=(
                    "'container \"' + variables.choosing[0].name + '\" mounts something below "
                    f"{INJECTED}, which would choose GPUs; ask for a GPU in its limits and remove the mount'"
                ),
                summary=f"a container mounts something below {INJECTED}; remove the mount",
            ),
            Check(
                holds="variables.injecting.size() == 0",
                message=(
                    "'annotation ' + variables.injecting[0] + ' would inject GPUs that were not given to the pod; remove it"
                    " and ask for a GPU in a container\\'s limits'"
                ),
                summary=f"an annotation {_CDI}… would inject GPUs; remove it",
            ),
        ),
    )


def host_path_denials(pod: Manifest, config: Config) -> Iterator[Denial]:
    """What the policy would say against the creation of a pod.

    Args:
        pod: as the API server would have it after admission.
        config: which folders.
    """
    protected, containers = config.guard.host_paths, fresh(pod)
    for volume in pod.spec.volumes or ():
        if volume.host_path is None or not _reaches(path := _plain(volume.host_path.path), protected):
            continue
        mounting = (c.name for c in containers if any(m.name == volume.name for m in c.volume_mounts or ()))
        name = next(mounting, None)
        who = "the pod has " if name is None else f'container "{name}" mounts '
        shown = path if re.fullmatch(_PRINTABLE, path) else "(unprintable)"
        yield Denial(NAME, f'{who}volume "{volume.name}", hostPath {shown}')
        break
    for container in containers:
        if any(INJECTED in mount.mount_path for mount in container.volume_mounts or ()):
            yield Denial(NAME, f'container "{container.name}" mounts something below {INJECTED}')
            break
    for key, value in sorted((pod.metadata.annotations or {}).items()):
        if _CDI in key and "nvidia.com/" in value:
            yield Denial(NAME, f"annotation {key} would inject GPUs")
            break


def _plain(path: str) -> str:
    """A path as its parts; CEL's twin is the variable ``paths``."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _reaches(path: str, protected: tuple[str, ...]) -> bool:
    """`_bad`, in Python."""
    if path == "/" or "/../" in path or path.endswith("/..") or re.fullmatch(_OTHERS_ROOT, path):
        return True
    for each in protected:
        begun = each.removesuffix("*")
        below = path.startswith(begun) if each.endswith("*") else path == each or path.startswith(each + "/")
        if below or begun.startswith(path + "/"):
            return True
    return False


def _bad(protected: tuple[str, ...]) -> str:
    """CEL about a volume ``v``: its path is, is below or is above a protected one."""
    below = [path for path in protected if not path.endswith("*")]
    begun = [path.removesuffix("*") for path in protected if path.endswith("*")]
    return (
        f"v.path == '/' || v.path.contains('/../') || v.path.endsWith('/..') || v.path.matches({text(_OTHERS_ROOT)})"
        f" || {listed(below)}.exists(q, v.path == q || v.path.startsWith(q + '/') || q.startsWith(v.path + '/'))"
        f" || {listed(begun)}.exists(q, v.path.startsWith(q) || q.startsWith(v.path + '/'))"
    )


def _volumes(bad: str) -> tuple[tuple[str, str], ...]:
    """Variables: the volumes on the host that a request brings or mounts anew, those that are bad, and who mounts the first.

    An update brings no volume, but an ephemeral container may mount one that was there before the policy was.
    """
    mounts = "has(c.volumeMounts) && c.volumeMounts.exists(m, m.name == "
    volumes = (
        "dyn(has(object.spec.volumes) ? object.spec.volumes : []).filter(v, has(v.hostPath)"
        f" && (request.operation == 'CREATE' || variables.fresh.exists(c, {mounts}v.name))))"
    )
    paths = (
        "variables.volumes.map(v, {'name': string(v.name), 'path': '/' + v.hostPath.path.split('/')"
        ".filter(p, p != '' && p != '.').join('/')})"
    )
    mounting = f"variables.bad.size() == 0 ? [] : variables.fresh.filter(c, {mounts}variables.bad[0].name))"
    return (
        ("volumes", volumes),
        ("paths", paths),
        ("bad", f"variables.paths.filter(v, {bad})"),
        ("mounting", mounting),
    )


def _choosing() -> tuple[str, str]:
    """A variable: containers with a mount point that chooses GPUs. Steps back in it can't hide the folder's name."""
    mount = f"c.volumeMounts.exists(m, m.mountPath.contains({text(INJECTED)}))"
    return "choosing", f"variables.fresh.filter(c, has(c.volumeMounts) && {mount})"


def _injecting() -> tuple[str, str]:
    """A variable: annotations that a runtime may read as devices to inject, unless they were there before."""
    new, old = "object.metadata.annotations", "oldObject.metadata.annotations"
    there = f"oldObject != null && has({old}) && k in {old} && {old}[k] == {new}[k]"
    return (
        "injecting",
        f"(has({new}) ? {new} : {{}}).map(k, k).filter(k, k.contains({text(_CDI)})"  # noqa: ISC004
        f" && {new}[k].contains('nvidia.com/') && !({there}))",
    )


def privileged(config: Config, *, exempt: tuple[str, ...]) -> Policy:
    """The policy about privileged containers in pods that ask for a GPU of ours: they would see all of every GPU.

    Args:
        config: its names.
        exempt: namespaces that it doesn't look at.
    """
    under = text(config.domain + "/")
    asks = (
        "(dyn(object.spec.containers) + dyn(has(object.spec.initContainers) ? object.spec.initContainers : []))"
        ".exists(c, has(c.resources) && ((has(c.resources.limits) && c.resources.limits.exists(k, k.startsWith("
        f"{under}))) || (has(c.resources.requests) && c.resources.requests.exists(k, k.startsWith({under})))))"
    )
    variables = (
        FRESH,
        (
            "privileged",
            (
                "variables.fresh.filter(c, has(c.securityContext) && has(c.securityContext.privileged)"
                " && c.securityContext.privileged)"
            ),
        ),
    )
    return Policy(
        name=PRIVILEGED,
        exempt=exempt,
        conditions=(NOT_MIRROR,),
        variables=variables,
        checks=(
            Check(
                holds=f"variables.privileged.size() == 0 || !{asks}",
                message=(
                    "'container \"' + variables.privileged[0].name + '\" is privileged in a pod that asks for a GPU, and would"
                    " see all of every GPU of its node; drop securityContext.privileged (add the capabilities it needs), or"
                    " run it as a pod of its own'"
                ),
                summary="a privileged container stands in a pod that asks for a GPU; drop securityContext.privileged",
            ),
        ),
    )


def privileged_denials(pod: Manifest, config: Config, *, asking: bool = False) -> Iterator[Denial]:
    """What that policy would say against the creation of a pod.

    Args:
        pod: as the API server would have it after admission.
        config: its names.
        asking: admission has not seen the pod, and would give it a GPU of ours.
    """
    under = config.domain + "/"
    amounts = (
        name
        for container in (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
        if container.resources is not None
        for side in (container.resources.limits, container.resources.requests)
        for name in side or ()
    )
    if not (asking or any(name.startswith(under) for name in amounts)):
        return
    for container in fresh(pod):
        if container.security_context is not None and container.security_context.privileged:
            yield Denial(PRIVILEGED, f'container "{container.name}" is privileged in a pod that asks for a GPU')
            break
