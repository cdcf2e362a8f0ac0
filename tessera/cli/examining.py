"""What doctor's checks need of a cluster, and no more, read at once: lists, the webhook's certificate, and one dry run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import msgspec

from tessera.cli.looking import Looker, problem
from tessera.cli.measuring import ask_parts
from tessera.deploy.policies import denials, policies
from tessera.dialects.registry import OPTIONS
from tessera.doctor import objects, refusing
from tessera.doctor.evidence import Evidence, Judge, Look, PartSaid, Probe, Read, Settings
from tessera.doctor.settings import settings
from tessera.doctor.webhooks import PROBE_MEMORY, services
from tessera.kube import resources
from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock
from tessera.kube.errors import ApiError, ForbiddenError, KubeError
from tessera.model.config import Config
from tessera.model.errors import TesseraError
from tessera.model.names import Names
from tessera.model.pod import Manifest
from tessera.report.plaintext import plain

T = TypeVar("T")

_WEBHOOK: Final = re.compile(r'webhook "([^"]{1,253})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What to look at.

    Attributes:
        namespace: where Tessera is installed.
        secret: name of the Secret that the webhook serves by.
        config: the config, where it was given; None takes the cluster's.
        probe: namespace of the dry run; None makes none.
    """

    namespace: str
    secret: str
    config: Config | None = None
    probe: str | None = None


async def examine(
    client: ApiClient, where: Where, reads: Collection[Read], *, looker: Looker, clock: Clock
) -> Evidence:
    """Read what is wanted, and what leads to it; the rest of the evidence stays empty.

    Raises:
        KubeError: the API server can't be reached, or doesn't know us.
    """
    version = await _version(client)
    given = where.config
    wanted = _leading_to(reads, config=given is None)
    maps = await _config_maps(looker, where.namespace) if "config_maps" in wanted else Look()

    async def listed(what: Read, resource: resources.Resource, kind: type[T]) -> Look[tuple[T, ...]]:
        return await looker.all(resource, kind) if what in wanted else Look()

    found = Settings(given, "--config") if given else settings(maps.value or (), where.namespace, dialects=OPTIONS)
    async with asyncio.TaskGroup() as group:
        nodes = group.create_task(listed("nodes", resources.NODES, objects.LookedNode))
        pods = group.create_task(listed("pods", resources.PODS, objects.LookedPod))
        namespaces = group.create_task(listed("namespaces", resources.NAMESPACES, objects.Namespace))
        mutating = group.create_task(listed("mutating", resources.MUTATING_WEBHOOKS, objects.WebhookConfiguration))
        validating = group.create_task(
            listed("validating", resources.VALIDATING_WEBHOOKS, objects.WebhookConfiguration)
        )
        guard = group.create_task(listed("policies", resources.ADMISSION_POLICIES, objects.Policy))
        bindings = group.create_task(listed("bindings", resources.ADMISSION_POLICY_BINDINGS, objects.Policy))
        classes = group.create_task(listed("runtime_classes", resources.RUNTIME_CLASSES, objects.RuntimeClass))
        quotas = group.create_task(listed("quotas", resources.RESOURCE_QUOTAS, objects.ResourceQuota))
        told = group.create_task(_refusals(looker)) if "refusals" in wanted else None
        probe = group.create_task(_probe(client, where.probe, found.names)) if "probe" in wanted else None
    evidence = Evidence(
        now=clock.wall(),
        settings=found,
        namespace=where.namespace,
        version=version,
        nodes=nodes.result(),
        pods=pods.result(),
        namespaces=namespaces.result(),
        mutating=mutating.result(),
        validating=validating.result(),
        policies=guard.result(),
        bindings=bindings.result(),
        expected_policies=expected(found.config, where.namespace) if "policies" in wanted else Look(),
        guard=Look(judging(found.config, where.namespace)),
        config_maps=maps,
        runtime_classes=classes.result(),
        quotas=quotas.result(),
        refusals=told.result() if told is not None else Look(),
        probe=probe.result() if probe is not None else Look(),
        unreadable=looker.unreadable,
    )
    if "said" in wanted:
        evidence = replace(evidence, said=await _said(client, evidence))
    if "certificates" in wanted:
        evidence = replace(evidence, certificates=await _certificates(evidence, where, looker))
    if "endpoints" in wanted:
        evidence = replace(evidence, endpoints=await _endpoints(evidence, looker))
    return evidence


def _leading_to(reads: Collection[Read], *, config: bool) -> frozenset[Read]:
    """What has to be read for these; `config`: it is the cluster's."""
    wanted = set(reads)
    if wanted & {"certificates", "endpoints"}:
        wanted |= {"config", "mutating", "validating"}
    if "probe" in wanted:
        wanted.add("config")
    if "said" in wanted:
        wanted.add("pods")
    if "config" in wanted and config:
        wanted.add("config_maps")
    return frozenset(wanted)


async def _said(client: ApiClient, evidence: Evidence) -> Look[dict[str, PartSaid]]:
    if evidence.pods.value is None:
        return Look(problem=evidence.pods.problem)
    return Look(await ask_parts(client, evidence.pods.value, namespace=evidence.namespace, now=evidence.now))


async def _version(client: ApiClient) -> Look[objects.Version]:
    """The first question: where it has no answer, nothing else will have one."""
    try:
        return Look(msgspec.json.decode(await client.read("/version"), type=objects.Version))
    except ForbiddenError as error:
        return Look(problem=problem(error, "/version"))
    except msgspec.MsgspecError as error:
        return Look(problem=f"/version: {error}")


async def _config_maps(looker: Looker, namespace: str) -> Look[tuple[objects.ConfigMap, ...]]:
    places = tuple(dict.fromkeys((namespace, "kube-system")))
    looks = await asyncio.gather(
        *(looker.all(resources.CONFIGMAPS, objects.ConfigMap, namespace=each) for each in places)
    )
    read = tuple(each for look in looks for each in look.value or ())
    if all(look.value is None for look in looks):
        return Look(problem=looks[0].problem)
    return Look(read)


async def _certificates(evidence: Evidence, where: Where, looker: Looker) -> Look[dict[str, objects.Secret]]:
    """The webhook's Secret, in the namespaces of the Services that webhooks of ours are called by."""
    spaces = tuple(dict.fromkeys(namespace for namespace, _ in services(evidence))) or (where.namespace,)
    secrets = await asyncio.gather(
        *(looker.one(resources.SECRETS, objects.Secret, where.secret, namespace=each) for each in spaces)
    )
    kept = {f"{each}/{where.secret}": look.value for each, look in zip(spaces, secrets, strict=True) if look.value}
    return Look(kept) if kept else Look(problem=secrets[0].problem)


async def _endpoints(evidence: Evidence, looker: Looker) -> Look[dict[str, tuple[objects.EndpointSlice, ...]]]:
    """The endpoints of these Services."""
    called = services(evidence)
    slices = await asyncio.gather(
        *(
            looker.all(
                resources.ENDPOINT_SLICES, objects.EndpointSlice, namespace=namespace,
                labels=f"kubernetes.io/service-name={name}",
            )
            for namespace, name in called
        )
    )  # fmt: skip
    trouble = next((look.problem for look in slices if look.value is None), "")
    if trouble:
        return Look(problem=trouble)
    return Look({f"{space}/{name}": look.value or () for (space, name), look in zip(called, slices, strict=True)})


async def _refusals(looker: Looker) -> Look[tuple[objects.Event, ...]]:
    return await looker.all(resources.EVENTS, objects.Event, namespace=refusing.NAMESPACE, fields=refusing.FIELDS)


async def _probe(client: ApiClient, namespace: str | None, names: Names) -> Look[Probe]:
    """Ask the API server what it would make of a pod that asks for the smallest slice; nothing is stored."""
    if namespace is None:
        return Look(problem="no dry run was made (--no-probe)")
    what = f"a dry run of a pod in {namespace}"
    try:
        body = await client.create(resources.PODS, _pod(names), namespace=namespace, dry_run=True)
        return Look(Probe("made", msgspec.json.decode(body, type=objects.LookedPod)))
    except ApiError as error:
        return _refusal(error, what, names.domain)
    except (KubeError, msgspec.MsgspecError, ValueError) as error:
        return Look(problem=problem(error, what))


def _refusal(error: ApiError, what: str, domain: str) -> Look[Probe]:
    said = plain(error.detail, longest=500)
    if isinstance(error, ForbiddenError) and error.detail.startswith("pods is forbidden: User "):
        return Look(problem=problem(error, what))
    named = _WEBHOOK.search(error.detail)
    mine = named is not None and named[1].endswith(f".{domain}")
    if mine and "failed calling webhook" in error.detail:
        return Look(Probe("uncalled", said=said))
    if mine and "denied the request" in error.detail:
        return Look(Probe("denied", said=said))
    if not error.status:
        return Look(problem=problem(error, what))
    return Look(Probe("refused", said=said))


def _pod(names: Names) -> bytes:
    """A pod that passes the strictest Pod Security level, and whose image nobody will ever pull."""
    limits = {"cpu": "1m", "memory": "1Mi", names.gpu_memory: str(PROBE_MEMORY)}
    secure = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65534,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {"name": "main", "image": "tessera.invalid/doctor", "resources": {"limits": limits},
                 "securityContext": secure}  # fmt: skip
    return msgspec.json.encode(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "tessera-doctor-"},
            "spec": {"containers": [container], "restartPolicy": "Never", "automountServiceAccountToken": False},
        }
    )


def expected(config: Config, namespace: str) -> Look[tuple[dict[str, object], ...]]:
    """The policies that this version generates by a config."""
    try:
        made = policies(config, namespace=namespace)
    except TesseraError as error:
        return Look(problem=f"policies can't be generated by this config: {error}")
    return Look(tuple(made))


def judging(config: Config, namespace: str) -> Judge:
    """What the guard says by a config, our parts being in a namespace."""

    def judge(pod: Manifest, asking: bool) -> tuple[tuple[str, str], ...]:
        return denials(pod, config, namespace=namespace, asking=asking)

    return judge
