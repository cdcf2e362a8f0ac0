"""`tessera`, also as `kubectl tessera`: one door to the commands, each loaded only when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import MappingProxyType
from typing import Final

from tessera.model.errors import TesseraError

COMMANDS: Final = MappingProxyType(
    {
        "mutate": ("tessera.cli.mutate", "show what admission would do to manifests, without a cluster"),
        "inspect": ("tessera.cli.inspect", "show the cluster's GPUs and who holds what of them"),
        "demo": ("tessera.demo.main", "run the whole of Tessera on this machine, without a GPU or a cluster"),
    }
)
"""By name: the module with `add_arguments(parser)` and `run(namespace) -> exit code`, and a line of help."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code. A mistake of the user ends in one line, never in a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    program = "kubectl tessera" if os.path.basename(sys.argv[0]).startswith("kubectl") else "tessera"
    parser = argparse.ArgumentParser(prog=program, description="Tessera: slices of GPUs for Kubernetes.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        if name in given[:1]:
            importlib.import_module(module).add_arguments(command)
    options = parser.parse_args(given)
    module, _ = COMMANDS[options.command]
    try:
        code: int = importlib.import_module(module).run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has gone (a pager, head): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (TesseraError, OSError) as error:
        sys.stderr.write(f"{program} {options.command}: {error}\n")
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
