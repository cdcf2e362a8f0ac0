"""Command-line flags of the daemons: every flag is also an environment variable, TESSERA_ and its name in capitals.

A container's command line is fixed in its manifest while its environment is where people override things, so both are
offered for everything and `--help` names both.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn, TypeVar

T = TypeVar("T")


class Address(NamedTuple):
    """Where a server listens: a host name or IP address, and a port (0 lets the kernel choose)."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str) -> Address:
    """Read ``host:port`` or ``[::1]:port``.

    Raises:
        argparse.ArgumentTypeError: no port, a port out of range, or brackets missing around an IPv6 address.
    """
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or (":" in host and not bracketed):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9460 or [::1]:9460")
    return Address(host.strip("[]") or "0.0.0.0", int(port))  # noqa: S104 - ":9460" asks for every interface by name


class Flags:
    """Declares a program's flags and reads them.

    >>> flags = Flags("tessera-demo", "shows flags", environ={"TESSERA_LISTEN": "127.0.0.1:1"})
    >>> flags.add("--listen", "where to listen", address, "127.0.0.1:9460")
    >>> flags.read([]).listen
    Address(host='127.0.0.1', port=1)
    """

    def __init__(self, program: str, purpose: str, *, environ: Mapping[str, str] = os.environ) -> None:
        """Start a program's flags with the ones that all programs have."""
        self._environ = environ
        self._parser = argparse.ArgumentParser(prog=program, description=purpose, allow_abbrev=False)
        self._parser.add_argument("--version", action=_Version, nargs=0, help="say the version and stop")
        self.add("--log-level", "debug, info, warning or error", _level, "info")

    def add(self, name: str, purpose: str, kind: Callable[[str], T], default: str | None) -> None:
        """Declare one flag with a value; the order of precedence is command line, environment, default."""
        variable = variable_of(name)
        shown = f" (default {default})" if default else ""
        self._parser.add_argument(
            name,
            metavar=name.removeprefix("--").rpartition("-")[2].upper(),
            type=kind,
            default=self._environ.get(variable) or default,
            help=f"{purpose}{shown} [{variable}]",
        )

    def read(self, arguments: list[str] | None = None) -> argparse.Namespace:
        """Read the command line; a mistake ends the program with code 2 and one line, as argparse does."""
        return self._parser.parse_args(arguments)


def variable_of(flag: str) -> str:
    """The environment variable of a flag: ``--kubelet-dir`` -> ``TESSERA_KUBELET_DIR``."""
    return "TESSERA_" + flag.removeprefix("--").upper().replace("-", "_")


def _level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a log level; write debug, info, warning or error")
    return text.upper()


class _Version(argparse.Action):
    """Says the version; only then is it looked up, which costs a daemon half a MiB."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

        try:
            found = version("tessera-gpu")
        except PackageNotFoundError:
            found = "unknown (not installed)"
        sys.stdout.write(f"{parser.prog} {found}\n")
        parser.exit()
