"""`tessera mutate`: the webhook's own code on manifests, with no cluster. What it shows is what a cluster would do.

The patch it prints is relative to the pod template (to the object, where that is a Pod), as in a review of a pod made from
it. `-o yaml` and `-o diff` show whole objects.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import json
import sys
from dataclasses import dataclass
from typing import Any, Final

import jsonpatch
import msgspec
import yaml

from tessera.cli.manifests import ManifestError, Template, read, templates, with_template
from tessera.dialects.registry import OPTIONS
from tessera.model.config import Config, parse
from tessera.model.errors import ConfigError, TesseraError
from tessera.model.pod import Manifest
from tessera.model.request import encode
from webhook.admission.mutate import Mutator
from webhook.admission.patch import WIRE

ALLOWED: Final = 0
DENIED: Final = 1
UNREADABLE: Final = 2

_MANIFEST: Final = msgspec.json.Decoder(Manifest)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera mutate`."""
    parser.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE", help="manifests, YAML or JSON; - is stdin"
    )
    parser.add_argument(
        "-o", "--output", choices=("patch", "yaml", "diff", "json"), default="diff", help="what to show"
    )
    parser.add_argument("--config", metavar="FILE", help="config file (default: every dialect on)")
    parser.add_argument("--namespace", "-n", default="default", help="of objects that name none (default %(default)s)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What admission says of one template.

    Attributes:
        pod: after the patch (as it was where denied).
        patch: operations as plain JSON.
        request: the request annotation's content, or None.
    """

    template: Template
    allowed: bool
    message: str
    warnings: tuple[str, ...]
    patch: list[dict[str, Any]]
    request: dict[str, Any] | None
    pod: dict[str, Any]


def run(arguments: argparse.Namespace) -> int:
    """Show what admission would do; 0 all allowed, 1 some denied, 2 unreadable."""
    try:
        mutator = Mutator(_config(arguments.config))
        objects = [each for name in arguments.filename for each in read(_bytes(name), name=name)]
    except (ManifestError, ConfigError) as error:
        sys.stderr.write(f"tessera mutate: {error}\n")
        return UNREADABLE
    code = ALLOWED
    for number, manifest in enumerate(objects):
        verdicts = [judge(mutator, each, namespace=arguments.namespace) for each in templates(manifest)]
        if not all(verdict.allowed for verdict in verdicts):
            code = DENIED
        _show(arguments.output, manifest, verdicts, first=number == 0)
    return code


def judge(mutator: Mutator, template: Template, *, namespace: str) -> Verdict:
    """Ask the webhook's code about one template.

    Args:
        mutator: by the config.
        template: what is asked about.
        namespace: where the object names none.
    """
    try:
        pod = _MANIFEST.decode(json.dumps(template.pod).encode())
        outcome = mutator.mutate(pod, namespace=template.namespace or namespace)
    except (TesseraError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        message = str(error) if isinstance(error, TesseraError) else f"the pod can't be read: {error}"
        return Verdict(template, allowed=False, message=message, warnings=(), patch=[], request=None, pod=template.pod)
    patch = json.loads(WIRE.encode(outcome.operations))
    return Verdict(
        template,
        allowed=True,
        message="",
        warnings=outcome.warnings,
        patch=patch,
        request=None if outcome.request is None else json.loads(encode(outcome.request)),
        pod=jsonpatch.apply_patch(template.pod, patch),
    )


def _show(output: str, manifest: dict[str, Any], verdicts: list[Verdict], *, first: bool) -> None:
    kind, name = str(manifest.get("kind", "")), _name(manifest)
    if output != "json":
        for verdict in verdicts:
            if not verdict.allowed:
                sys.stderr.write(f"{kind} {name}: denied: {verdict.message}\n")
            for warning in verdict.warnings:
                sys.stderr.write(f"{kind} {name}: warning: {warning}\n")
    match output:
        case "json":
            for verdict in verdicts:
                line = {
                    "kind": kind,
                    "name": name,
                    "allowed": verdict.allowed,
                    "message": verdict.message,
                    "warnings": verdict.warnings,
                    "patch": verdict.patch,
                    "request": verdict.request,
                }
                sys.stdout.write(json.dumps(line) + "\n")
        case "patch":
            for verdict in verdicts:
                sys.stdout.write(json.dumps(verdict.patch, indent=1) + "\n")
        case "yaml":
            sys.stdout.write(("" if first else "---\n") + _yaml(_changed(manifest, verdicts)))
        case _:
            before, after = _yaml(manifest), _yaml(_changed(manifest, verdicts))
            title = f"{kind} {name}"
            for text in difflib.unified_diff(
                before.splitlines(), after.splitlines(), title, f"{title} (admitted)", lineterm=""
            ):
                sys.stdout.write(_coloured(text) + "\n")


def _changed(manifest: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    """The object with every template that is changed in its place; untouched ones stay as they are written."""
    changed = copy.deepcopy(manifest)
    for verdict in verdicts:
        if verdict.patch:
            changed = with_template(changed, verdict.template.path, verdict.pod)
    return changed


def _name(manifest: dict[str, Any]) -> str:
    metadata = manifest.get("metadata")
    if not isinstance(metadata, dict):
        return ""
    return str(metadata.get("name") or metadata.get("generateName") or "")


def _coloured(line: str) -> str:
    if not sys.stdout.isatty() or line[:1] not in "+-@":
        return line
    colour = {"+": 32, "-": 31, "@": 36}[line[0]]
    return f"\x1b[{colour}m{line}\x1b[0m"


def _yaml(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


class _Dumper(yaml.SafeDumper):
    """Manifests without anchors: what is written once in memory may stand in two places."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _config(path: str | None) -> Config:
    if path is None:
        return parse("", dialects=OPTIONS)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} can't be read: {error}") from error
    try:
        return parse(text, dialects=OPTIONS)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _bytes(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read()
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise ManifestError(f"{name} can't be read: {error.strerror}") from error
