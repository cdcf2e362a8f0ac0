"""What the tests of dialects share: cases as data, and pods taken through admission with the patch applied by `jsonpatch`."""

import copy
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonpatch
import msgspec
import pytest
import yaml

from tessera.dialects.recognise import Dialects
from tessera.dialects.registry import OPTIONS
from tessera.model.config import parse
from tessera.model.pod import Manifest
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE

CASES = Path(__file__).parent / "cases"
_MANIFEST = msgspec.json.Decoder(Manifest)


@dataclass(frozen=True, slots=True)
class Case:
    """One pod as somebody wrote it, and what it means.

    Attributes:
        dialect: whose words these are (the name of the file).
        name: what the case shows.
        pod: the manifest, without what every pod has.
        config: options of dialects that differ from their defaults.
        means: by container, amounts as people write them; None where the pod is left as it is or refused.
        refused: parts of the message that says why not.
        annotations: of ours that it gets beside the request.
        dropped: nodeSelector keys that are taken away.
        warnings: parts of warnings, all of them in this order.
        spoken: the dialect of the request, where that is another one.
        document: whether docs/dialects.md shows it.
    """

    dialect: str
    name: str
    pod: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    means: dict[str, Any] | None = None
    refused: list[str] | None = None
    annotations: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    spoken: str = ""
    document: bool = False


def cases() -> list[Case]:
    """Every case there is."""
    return [
        Case(dialect=path.stem, name=plain.pop("case"), **plain)
        for path in sorted(CASES.glob("*.yaml"))
        for plain in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def whole(pod: dict[str, Any]) -> dict[str, Any]:
    """A case's pod as the API server would hand it over: what the case leaves out is filled in."""
    pod = copy.deepcopy(pod)
    pod.setdefault("metadata", {}).setdefault("name", "p")
    spec = pod.setdefault("spec", {})
    for container in spec.setdefault("containers", [{"name": "main"}]) + spec.get("initContainers", []):
        container.setdefault("image", "registry.example/app:1")
    return {"apiVersion": "v1", "kind": "Pod", **pod}


def decode(pod: dict[str, Any]) -> Manifest:
    """Read a pod given as plain data, as the webhook does."""
    return _MANIFEST.decode(json.dumps(pod).encode())


def config_of(dialects: dict[str, Any] | None):
    """A config with these options of dialects."""
    return _config(json.dumps(dialects or {}, sort_keys=True))


@lru_cache(maxsize=64)
def _config(dialects: str):
    return parse(f'{{"dialects": {dialects}}}', dialects=OPTIONS)


@lru_cache(maxsize=64)
def _mutator(dialects: str) -> Mutator:
    return Mutator(_config(dialects))


def admitted(pod: dict[str, Any], dialects: dict[str, Any] | None = None):
    """Take a pod through admission.

    Returns:
        The pod after the patch, applied by somebody else's code, and what was decided.
    """
    outcome = _mutator(json.dumps(dialects or {}, sort_keys=True)).mutate(decode(pod), namespace="team")
    return jsonpatch.apply_patch(pod, json.loads(WIRE.encode(outcome.operations))), outcome


def pytest_generate_tests(metafunc):
    """A test that asks for a case runs once for each."""
    if "case" in metafunc.fixturenames:
        known = cases()
        metafunc.parametrize("case", known, ids=[f"{case.dialect}: {case.name}" for case in known])


@pytest.fixture(scope="session")
def every_case():
    """All cases at once."""
    return tuple(cases())


@pytest.fixture(scope="session")
def fill():
    """What the API server adds to a case's pod."""
    return whole


@pytest.fixture(scope="session")
def admit():
    """Take a pod through admission; see `admitted`."""
    return admitted


@pytest.fixture(scope="session")
def read():
    """Read a pod in every dialect: plain data (and options) in, a recognition or None out."""

    def run(pod, dialects=None):
        return Dialects(config_of(dialects)).recognise(decode(pod))

    return run


@pytest.fixture(scope="session")
def manifest():
    """Read a pod given as plain data."""
    return decode
