"""`tessera mutate`: the webhook's own code on manifests, with no cluster. What it shows is what a cluster would do.

A patch is relative to the pod template (to the object, where that is a Pod), as in a review of a pod made from it. It can be
applied to the template as it stands in the file, and as the API server's defaulting would show it to admission. `-o yaml`
and `-o diff` show whole objects with their templates changed; `-o yaml` leaves out what is denied, so that it can be piped.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from typing import Final

import msgspec

from tessera.cli.configfile import read_config
from tessera.cli.manifests import STDIN, Manifest, ManifestError, read
from tessera.cli.podview import admitted, apply, decode, portable
from tessera.cli.stray import resources_of, stray
from tessera.cli.templates import Template, templates
from tessera.cli.yamlreader import Object
from tessera.cli.yamlwriter import diff, dump
from tessera.model.config import Config
from tessera.model.errors import ConfigError, TesseraError
from tessera.model.names import Names
from tessera.model.request import PodRequest
from tessera.report.plaintext import plain, plain_json
from webhook.admission.mutate import Mutator
from webhook.admission.validate import Validator

ALLOWED: Final = 0
DENIED: Final = 1
UNREADABLE: Final = 2
_NVIDIA: Final = "nvidia.com/gpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera mutate`."""
    parser.epilog = (
        "Patches are relative to the pod template (to the object, where that is a Pod), as admission sees a pod made from it. "
        "What is denied is left out of -o yaml. Exit code: 0 all allowed, 1 some denied, 2 something could not be read."
    )
    parser.add_argument(
        "-f", "--filename", action="extend", nargs="+", required=True, metavar="FILE",
        help="manifests, YAML or JSON; a folder's *.yaml, *.yml and *.json; - is standard input",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", choices=("patch", "yaml", "diff", "json"), default="diff",
        help="JSON patch of each pod template, whole objects, what changes in them, or one line of JSON per pod template "
        "(default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="Tessera's config file (default: every dialect on)")
    parser.add_argument("--namespace", "-n", default="default", help="of objects that name none (default %(default)s)")
    parser.add_argument("--no-color", action="store_true", help="plain text (also $NO_COLOR)")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What admission says of one pod template; `-o json` writes it as it is.

    Attributes:
        kind: of the object that the template is part of.
        name: of that object.
        allowed: whether its pods may be.
        message: why not.
        warnings: for its author.
        patch: operations relative to the template.
        request: the request annotation's content, or None where nothing is asked.
    """

    kind: str
    name: str
    allowed: bool
    message: str = ""
    warnings: tuple[str, ...] = ()
    patch: list[Object] = msgspec.field(default_factory=list)
    request: PodRequest | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Both halves of admission by one config: what `/mutate` does, then what `/validate` says of the result.

    Make it with `by`.
    """

    mutator: Mutator
    validator: Validator
    names: Names

    @classmethod
    def by(cls, config: Config) -> Admission:
        """Prepare both by a config."""
        return cls(Mutator(config), Validator(config), config.names)

    def judge(self, template: Template, manifest: Manifest, *, namespace: str) -> Verdict:
        """Decide about the pods of one template.

        Args:
            template: of the object.
            manifest: the object.
            namespace: where the object names none.
        """
        kind, name = manifest.kind, manifest.name
        try:
            if template.problem:
                raise ManifestError(template.problem)
            seen = admitted(template.pod)
            pod = decode(seen, owner=template.owner)
            outcome = self.mutator.mutate(pod, namespace=manifest.namespace or namespace)
            patch = portable(outcome.operations, written=template.pod, seen=seen)
            apply(patch, seen)
            self.validator.validate(decode(seen, owner=template.owner))
        except TesseraError as error:
            return Verdict(kind=kind, name=name, allowed=False, message=str(error))
        warnings = outcome.warnings + stray(template.pod, self.names)
        if outcome.request is None and manifest.value is not template.pod:
            warnings += self._astray(manifest)
        return Verdict(kind=kind, name=name, allowed=True, warnings=warnings, patch=patch, request=outcome.request)

    def _astray(self, manifest: Manifest) -> tuple[str, ...]:
        """Annotations that ask, on the workload instead of on its pods: its author will wonder."""
        metadata = manifest.value.get("metadata")
        there = metadata.get("annotations") if isinstance(metadata, dict) else None
        return tuple(
            f"annotation {name} of the {manifest.kind} itself asks for nothing; write it on the pod template"
            for name in self.names.asks
            if isinstance(there, dict) and name in there
        )


def run(arguments: argparse.Namespace) -> int:
    """Show what admission would do; 0 all allowed, 1 some denied, 2 something could not be read."""
    program = "tessera mutate"
    if arguments.filename.count(STDIN) > 1:
        return _complain(f"{program}: standard input (-) can be read once")
    try:
        config = read_config(arguments.config)
    except ConfigError as error:
        return _complain(f"{program}: {error}")
    admission = Admission.by(config)
    show = _Show(arguments.output, config.names, colour=not arguments.no_color and _colour())
    code = ALLOWED
    seen = 0
    for name in arguments.filename:
        for found in read(name, stdin=sys.stdin.buffer):
            if isinstance(found, ManifestError):
                code = _complain(f"{program}: {found}")
                continue
            there = templates(found.value)
            verdicts = [admission.judge(each, found, namespace=arguments.namespace) for each in there]
            show.object(found, there, verdicts)
            seen += len(there)
            if code == ALLOWED and not all(verdict.allowed for verdict in verdicts):
                code = DENIED
    if not seen and code == ALLOWED and arguments.output == "diff":
        sys.stderr.write(f"{program}: no pod and no pod template in what was read\n")
    return code


class _Show:
    """Writes verdicts as they come: answers on standard output; unless they are JSON, reasons on standard error."""

    def __init__(self, output: str, names: Names, *, colour: bool) -> None:
        self._output = output
        self._names = names
        self._colour = colour
        self._shown = 0

    def object(self, manifest: Manifest, there: list[Template], verdicts: list[Verdict]) -> None:
        """Write what is said of one object; its templates are changed."""
        if self._output == "json":
            for verdict in verdicts:
                sys.stdout.write(plain_json(msgspec.json.encode(verdict).decode()) + "\n")
            return
        title = f"{manifest.kind} {manifest.name}"
        for template, verdict in zip(there, verdicts, strict=True):
            where = f"{title} {template.path}".rstrip()
            if not verdict.allowed:
                _complain(f"{where}: denied: {verdict.message}")
            for warning in verdict.warnings:
                _complain(f"{where}: warning: {warning}")
            if self._output == "diff" and verdict.allowed and not verdict.patch:
                _complain(f"{where}: {_untouched(template.pod, self._names)}")
        if self._output == "patch":
            for verdict in verdicts:
                sys.stdout.write(_patch(verdict.patch))
        elif all(verdict.allowed for verdict in verdicts):
            self._whole(manifest, there, verdicts, title)

    def _whole(self, manifest: Manifest, there: list[Template], verdicts: list[Verdict], title: str) -> None:
        if self._output == "diff" and not any(verdict.patch for verdict in verdicts):
            return
        before = dump(manifest.value) if self._output == "diff" else ""
        for template, verdict in zip(there, verdicts, strict=True):
            if verdict.patch:
                apply(verdict.patch, template.pod)
                template.settle()
        after = dump(manifest.value)
        if self._output == "diff":
            for line in diff(before, after, title=plain(title), colour=self._colour):
                sys.stdout.write(line + "\n")
        else:
            sys.stdout.write(("---\n" if self._shown else "") + after)
        self._shown += 1


def _untouched(pod: Object, names: Names) -> str:
    """Why nothing is shown, where a diff would have been looked for."""
    asked = {name for _, name in resources_of(pod)}
    if any(map(names.is_ticket, asked)):
        return "has its tickets already; left as it is"
    said = "asks for no GPU of Tessera's; left as it is"
    if _NVIDIA in asked:
        said += f" ({_NVIDIA} is NVIDIA's plugin's, unless the config says dialects: {{nvidia: {{whole: true}}}})"
    return said


def _patch(patch: list[Object]) -> str:
    """A patch as JSON with one operation per line."""
    lines = ",\n ".join(plain_json(msgspec.json.encode(operation).decode()) for operation in patch)
    return f"[{lines}]\n"


def _complain(text: str) -> int:
    sys.stderr.write(plain(text) + "\n")
    return UNREADABLE


def _colour() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
