"""`tessera generate`: the part of an installation that depends on the config, as files for `kubectl apply -k` or as YAML.

What a config decides (names, dialects, exempt namespaces) must not be written by hand into manifests as well, so those files
are made here and committed; whoever changes the config makes them again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
import yaml

from tessera.cli.configfile import read_config
from tessera.deploy.policies import policies
from tessera.deploy.scheduler import scheduler_configuration
from tessera.deploy.webhooks import webhook_configurations
from tessera.model.config import Cni, Config
from tessera.model.errors import TesseraError

STDOUT: Final = "-"
_WIDTH: Final = 120
HEADER: Final = (
    "# Made by `tessera generate` from the config; a change here is lost. Change the config and generate again.\n"
)

Object = dict[str, object]


class GenerateError(TesseraError):
    """The files can't be made."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `tessera generate`."""
    parser.epilog = (
        "With -o DIR, DIR is a copy of the folder manifests; the files below it that depend on the config are replaced."
    )
    parser.add_argument(
        "-o", "--output", default=STDOUT, metavar="DIR", help="folder manifests, or - for YAML (default -)"
    )
    parser.add_argument("--config", metavar="FILE", help="Tessera's config file (default: the defaults)")
    parser.add_argument(
        "part", nargs="?", choices=(*PARTS, "all"), default="all", help="which part (default %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the files, or print their objects.

    Raises:
        ConfigError: the config is refused.
        GenerateError: the folder isn't there.
    """
    made = generate(read_config(options.config), None if options.part == "all" else options.part)
    if options.output == STDOUT:
        sys.stdout.write("---\n".join(made.values()))
        return 0
    if not os.path.isdir(options.output):
        raise GenerateError(f"{options.output} is no folder; give the folder manifests, or a copy of it")
    for path, text in sorted(made.items()):
        target = os.path.join(options.output, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = f"{target}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, target)
        sys.stderr.write(f"wrote {target}\n")
    return 0


def generate(config: Config, part: str | None = None) -> dict[str, str]:
    """The text of each file by its path below the folder manifests.

    Args:
        config: of the installation.
        part: one of `PARTS`; None means all.

    Raises:
        ConfigError: the config can't be installed so.
    """
    wanted = PARTS if part is None else (part,)
    return {path: text for name in wanted for path, text in PARTS[name](config).items()}


def _scheduler(config: Config) -> dict[str, str]:
    made = {"components/default-scheduler/scheduler.yaml": _text(scheduler_configuration(config, form="default"))}
    # Where pods go to the cluster's own scheduler there is no second one.
    if config.scheduler_name not in ("", "default-scheduler"):
        made["components/second-scheduler/scheduler.yaml"] = _text(scheduler_configuration(config, form="second"))
    return made


def _policies(config: Config) -> dict[str, str]:
    return {"base/policies.yaml": _text(*policies(config))}


def _webhooks(config: Config) -> dict[str, str]:
    without = msgspec.structs.replace(config, cni=Cni(enabled=False))
    made = {"base/webhooks.yaml": _text(*webhook_configurations(without))}
    known = _entries(without)
    patch = [{"op": "add", "path": "/webhooks/-", "value": entry} for entry in _entries(config) if entry not in known]
    return made | {"components/cni-repair/entry.yaml": _text(patch)}


def _entries(config: Config) -> list[object]:
    entries = webhook_configurations(config)[0]["webhooks"]
    if not isinstance(entries, list):
        raise GenerateError("the webhook configuration has no entries")
    return entries


PARTS: Final[Mapping[str, Callable[[Config], dict[str, str]]]] = MappingProxyType(
    {"scheduler": _scheduler, "policies": _policies, "webhooks": _webhooks}
)
"""What can be made, by name."""


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and long texts in a form that people can read."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  the library's signature
        """Equal parts are written out each time."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists stand under their key without more indentation, as in the hand-written manifests."""
        super().increase_indent(flow, indentless)


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Expressions are long and full of quotes: folded, they read as they are, and a change shows in one line."""
    style = "|" if "\n" in text else ">" if len(text) > _WIDTH else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def _text(*objects: object) -> str:
    documents = [yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=_WIDTH, allow_unicode=True) for each in objects]
    return HEADER + "---\n".join(documents)
