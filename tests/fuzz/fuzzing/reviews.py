"""Fuzzing of the pure part: a review's bytes in, an answer out, and what has to hold of every answer."""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Mapping
from random import Random
from typing import Any

import jsonpatch
from prometheus_client import CollectorRegistry

from fuzzing.seeds import AMOUNTS, TEXTS, pods, words
from tessera.dialects.registry import OPTIONS
from tessera.model.config import parse
from webhook.admission.connection import Handler
from webhook.admission.metrics import Metrics
from webhook.admission.paths import MUTATE, VALIDATE, Paths

CONFIGS = (
    "",
    "guard: {environment: strip, hideOthers: true}\nruntimeClassName: nvidia\nschedulerName: ''",
    "dialects: {nvidia: {whole: true, sharedPercent: 25, mig: true}, gke: {partitions: true}, kai: {reserve: limit}}",
    (
        "limits: {'*': {gpus: 4, memory: 40Gi, compute: 80}}\n"
        "profiles: [{name: p, units: [{name: idc, nodeSelector: {site: idc}}, {name: cloud, regions: [r],"
        " tolerations: [{key: c, operator: Exists}]}, {name: vk, serverless: true, nodeSelector: {type: virtual-kubelet},"
        " labels: {alibabacloud.com/eci: 'true'}}]}]\ncni: {image: registry.example/x}"
    ),
)
MOST_CORPUS = 4000
_TICKETS = (b"tessera.dev/gpu-memory.", b"tessera.dev/gpu-compute.", b"tessera.dev/mig-")
"""Who writes tickets by hand, and applies them again, says what the pod has; there is nothing to be brought back."""
_NOISE = re.compile(r"\"[^\"]*\"|'[^']*'|[0-9]+")
_INDEX = re.compile(r"/[0-9]+")


class BrokenError(AssertionError):
    """An answer that must not be."""


class ReviewFuzzer:
    """Makes reviews out of others, keeps those that are answered in a new way, and checks every answer.

    What is new is told by the answer's shape (its message without names and numbers, its patch's paths without indices):
    a coverage of behaviour that needs no instrumentation, so an input costs under a millisecond.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._words = words()
        self._seeds = pods()
        self._corpus: list[dict[str, Any]] = []
        self._shapes: set[Any] = set()
        metrics = Metrics(CollectorRegistry())
        self.handlers = [Paths(parse(text, dialects=OPTIONS), metrics).handlers for text in CONFIGS]

    @property
    def shapes(self) -> int:
        """Ways of answering seen so far."""
        return len(self._shapes)

    def input(self) -> tuple[int, bytes]:
        """The next review: which config, and its bytes."""
        random = self._random
        pool = self._corpus if self._corpus and random.random() < 0.5 else self._seeds
        pod = copy.deepcopy(random.choice(pool))
        for _ in range(random.choice((1, 1, 2, 3, 5))):
            pod = self._changed(pod)
        body = json.dumps(review(pod, random)).encode()
        if random.random() < 0.03:
            body = scrambled(body, random)
        return random.randrange(len(CONFIGS)), body

    def run(self, which: int, body: bytes) -> None:
        """Answer one review and check the answer.

        Raises:
            BrokenError: it must not be like that. Any other exception is a crash.
        """
        shape = check(self.handlers[which], body)
        if shape is not None and (which, shape) not in self._shapes:
            self._shapes.add((which, shape))
            pod = json.loads(body)["request"].get("object")
            if isinstance(pod, dict) and len(body) < 20_000:
                if len(self._corpus) >= MOST_CORPUS:
                    self._corpus.pop(self._random.randrange(MOST_CORPUS))
                self._corpus.append(pod)

    def _changed(self, pod: Any) -> Any:
        random = self._random
        places = list(_places(pod))
        if not places:
            return pod
        holder, key = random.choice(places)
        kind = random.randrange(9)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = copy.deepcopy(random.choice(AMOUNTS))
        elif kind == 2:
            holder[key] = random.choice(TEXTS)
        elif kind in (3, 4):
            into = holder[key]
            if isinstance(into, dict):
                value = random.choice(AMOUNTS if random.random() < 0.7 else TEXTS)
                into[random.choice(self._words)] = copy.deepcopy(value)
            elif isinstance(into, list) and into:
                into.insert(random.randrange(len(into) + 1), copy.deepcopy(random.choice(into)))
        elif kind == 5 and isinstance(holder, dict):
            holder[random.choice(self._words)] = holder.pop(key)
        elif kind == 6:
            other = random.choice(self._seeds)
            theirs, name = random.choice(list(_places(other)))
            holder[key] = copy.deepcopy(theirs[name])
        elif kind == 7:
            self._graft(pod)
        else:
            other, name = random.choice(places)
            holder[key] = copy.deepcopy(other[name])
        return pod

    def _graft(self, pod: Any) -> None:
        """Take a container, or what else a pod carries, over from another pod."""
        random = self._random
        other = copy.deepcopy(random.choice(self._seeds))
        spec, theirs = pod.get("spec"), other["spec"]
        if not isinstance(spec, dict):
            return
        if random.random() < 0.5:
            container = random.choice(theirs["containers"])
            container["name"] = random.choice((container.get("name"), "grafted", "main"))
            into = spec.setdefault(random.choice(("containers", "initContainers")), [])
            if isinstance(into, list):
                into.append(container)
        else:
            pod["metadata"] = other["metadata"]
            for name in ("nodeSelector", "schedulerName", "affinity", "tolerations"):
                if name in theirs:
                    spec[name] = theirs[name]


def review(pod: Any, random: Random) -> dict[str, Any]:
    """An AdmissionReview of a pod, mostly a sound one."""
    request: dict[str, Any] = {
        "uid": "u",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": random.choice(("team", "kube-system")),
        "operation": "CREATE" if random.random() < 0.95 else random.choice(("UPDATE", "DELETE", "", "CONNECT")),
        "object": pod,
    }
    if request["operation"] == "UPDATE":
        request["oldObject"] = copy.deepcopy(pod)
    if random.random() < 0.02:
        request[random.choice(list(request))] = random.choice(AMOUNTS)
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def scrambled(body: bytes, random: Random) -> bytes:
    """The same with some bytes changed, cut out or doubled."""
    found = bytearray(body)
    for _ in range(random.randrange(1, 5)):
        at, end = sorted(random.randrange(len(found) + 1) for _ in range(2))
        kind = random.randrange(4)
        if kind == 0 and at < len(found):
            found[at] = random.randrange(256)
        elif kind == 1:
            del found[at : min(end, at + 40)]
        elif kind == 2:
            found[at:at] = found[at : min(end, at + 40)]
        else:
            del found[at:]
        if not found:
            break
    return bytes(found)


def check(handlers: Mapping[str, Handler], body: bytes) -> Any:
    """Take a review through both paths and check the answers.

    Returns:
        The shape of the answer; None for a body that is no review.
    """
    answer = handlers[MUTATE](body)
    if answer.status == 400:
        return None
    response = _response(answer.status, answer.body)
    try:
        request = json.loads(body)["request"]
    except UnicodeDecodeError:
        return None  # where nobody has to look
    if not response["allowed"]:
        return ("denied", _NOISE.sub("", response["status"]["message"]))
    pod = request.get("object")
    patch = json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
    shape = (*sorted({(op["op"], _INDEX.sub("/0", op["path"])) for op in patch}), len(response.get("warnings", ())))
    if request.get("operation") != "CREATE" or not isinstance(pod, dict):
        return shape
    try:
        found = jsonpatch.apply_patch(pod, patch)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise BrokenError(f"the patch does not apply: {error}") from error
    if patch and not response.get("auditAnnotations"):
        raise BrokenError("a change that is not in the audit log")
    again = json.dumps({**json.loads(body), "request": {**request, "object": found}}).encode()
    second = _response(200, handlers[MUTATE](again).body)
    if not second["allowed"] or "patch" in second:
        raise BrokenError(f"a second pass says {second}")
    last = _response(200, handlers[VALIDATE](again).body)
    if not last["allowed"]:
        raise BrokenError(f"validation refuses what mutation made: {last['status']['message']}")
    same = {**request, "operation": "UPDATE", "object": found, "oldObject": found}
    update = _response(200, handlers[MUTATE](json.dumps({**json.loads(body), "request": same}).encode()).body)
    if not update["allowed"] or "patch" in update:
        raise BrokenError(f"an update that changes nothing is answered {update}")
    if _converted(found, pod) and not any(ticket in body for ticket in _TICKETS):
        _apply_again(handlers, json.loads(body), pod, found)
    return shape


def _apply_again(
    handlers: Mapping[str, Handler], body: dict[str, Any], pod: dict[str, Any], found: dict[str, Any]
) -> None:
    """What kubectl apply does the second time: the manifest's words are merged into the live pod. They have to go again."""
    live = copy.deepcopy(found)
    for which in ("initContainers", "containers"):
        for written, there in zip(pod["spec"].get(which) or (), live["spec"].get(which) or (), strict=True):
            for side in ("limits", "requests"):
                amounts = (written.get("resources") or {}).get(side)
                if amounts:
                    there["resources"][side] = {**(there["resources"].get(side) or {}), **amounts}
    for name in ("schedulerName", "affinity"):
        if pod["spec"].get(name):
            live["spec"][name] = pod["spec"][name]
    if pod["spec"].get("nodeSelector"):
        live["spec"]["nodeSelector"] = {**(live["spec"].get("nodeSelector") or {}), **pod["spec"]["nodeSelector"]}
    request = {**body["request"], "operation": "UPDATE", "object": live, "oldObject": found}
    response = _response(200, handlers[MUTATE](json.dumps({**body, "request": request}).encode()).body)
    patch = json.loads(base64.b64decode(response["patch"])) if "patch" in response else []
    if not response["allowed"] or jsonpatch.apply_patch(live, patch) != found:
        raise BrokenError(f"applied again, it is patched by {patch}")


def _response(status: int, body: bytes) -> dict[str, Any]:
    if status != 200:
        raise BrokenError(f"status {status}: {body[:200]!r}")
    response: dict[str, Any] = json.loads(body)["response"]
    if len(response.get("warnings", ())) > 20 or any(not 0 < len(w) <= 120 for w in response.get("warnings", ())):
        raise BrokenError(f"warnings {response['warnings']}")
    if not response["allowed"] and not (0 < len(response["status"]["message"]) <= 2000 and "patch" not in response):
        raise BrokenError(f"a denial {response}")
    return response


def _converted(found: dict[str, Any], pod: dict[str, Any]) -> bool:
    def annotation(of: dict[str, Any]) -> Any:
        metadata = of.get("metadata")
        annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
        return annotations.get("tessera.dev/request") if isinstance(annotations, dict) else None

    return annotation(found) is not None and annotation(found) != annotation(pod)


def _places(value: Any) -> Any:
    """Every member of every object and list in a value: (holder, key)."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield value, key
            yield from _places(below)
    elif isinstance(value, list):
        for at, below in enumerate(value):
            yield value, at
            yield from _places(below)
