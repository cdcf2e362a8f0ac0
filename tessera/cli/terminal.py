"""What the looking commands share of the terminal: their flags, the console, JSON that can't hurt, a line of progress."""

from __future__ import annotations

import argparse
import os
import random
import sys
import textwrap
from types import TracebackType
from typing import Final, Self

import msgspec
from rich.console import Console
from rich.status import Status
from rich.text import Text

from tessera.cli.configfile import read_config
from tessera.dialects.registry import OPTIONS
from tessera.doctor.evidence import Look, Settings
from tessera.doctor.objects import ConfigMap
from tessera.doctor.settings import settings
from tessera.kube.client import ApiClient
from tessera.kube.clock import SystemClock
from tessera.kube.config import connect
from tessera.kube.servertime import ServerClock
from tessera.report.plaintext import plain, plain_json

SYSTEM_NAMESPACE: Final = "tessera-system"
ROOM_FOR_BARS: Final = 120
"""Columns of a terminal below which tables have numbers only: a bar says nothing that they don't."""
PIPE_WIDTH: Final = 160
"""A pipe has no width of its own, and a cut table is of no use to whoever reads it."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every command that looks at a cluster."""
    parser.add_argument("-o", "--output", choices=("table", "wide", "json"), default="table", help="how to show it")
    parser.add_argument("--kubeconfig", help="which cluster (default: the pod's own, then $KUBECONFIG)")
    parser.add_argument("--no-color", action="store_true", help="plain text (also $NO_COLOR)")


def add_installation(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say by which config the installation runs."""
    parser.add_argument("--config", metavar="FILE", help="Tessera's config file (default: the installed ConfigMap's)")
    parser.add_argument(
        "--system-namespace", default=SYSTEM_NAMESPACE, help="where Tessera is installed (default %(default)s)"
    )


def installed(maps: Look[tuple[ConfigMap, ...]], arguments: argparse.Namespace) -> Settings:
    """The config that the installation runs by: the file's, else the ConfigMap's where it can be read, else the defaults.

    Raises:
        ConfigError: the file can't be read, or is refused.
    """
    if arguments.config:
        return from_file(arguments.config)
    return settings(maps.value or (), arguments.system_namespace, dialects=OPTIONS)


def from_file(path: str) -> Settings:
    """The config of a file.

    Raises:
        ConfigError: it can't be read, or is refused.
    """
    return Settings(read_config(path), path)


def client(kubeconfig: str | None, clock: ServerClock | None = None) -> ApiClient:
    """A client of the cluster that is meant; make it inside a running event loop.

    Args:
        kubeconfig: the value of ``--kubeconfig``, or None.
        clock: learns the API server's time, for who compares with moments in objects.

    Raises:
        ConnectionConfigError: which one can't be told.
    """
    passing, rng = clock or ServerClock(SystemClock()), random.Random()  # noqa: S311  jitter
    connection = connect(kubeconfig, environ=os.environ, clock=passing)
    return ApiClient(connection, clock=passing, rng=rng, user_agent="tessera-cli", dates=passing.heard)


class _Output(Console):
    """Standard output, whose reader may go away."""

    def on_broken_pipe(self) -> None:
        """Leave it to the program's one door; rich would end the process with code 1, which means something here.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError


def console(arguments: argparse.Namespace) -> Console:
    """Standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return _Output(no_color=arguments.no_color or "NO_COLOR" in os.environ, highlight=False, markup=False, emoji=False,
                   width=width)  # fmt: skip


def text(what: str, style: str = "") -> Text:
    """Others' words as one line for a table."""
    return Text(plain(what), style=style)


def yielding(cell: Text) -> Text:
    """A cell whose end may be left out where the terminal is narrow; its column must not be declared `no_wrap`.

    Columns that may wrap give way before those that may not, so names get shorter and numbers stay whole.
    """
    cell.no_wrap, cell.overflow = True, "ellipsis"
    return cell


def hanging(out: Console, said: str, *, indent: int, label: str = "", style: str = "") -> None:
    """Print others' words as a paragraph that hangs under a label, nothing after a line's last letter."""
    lines = textwrap.wrap(plain(said), max(30, out.width - indent - len(label)), break_on_hyphens=False)
    for at, line in enumerate(lines or [""]):
        begin = label if at == 0 else " " * len(label)
        out.print(Text.assemble(" " * indent, (begin, "dim"), (line, style)), soft_wrap=True)


def write_json(value: object) -> None:
    """Print a value as JSON that reads back as it was and does nothing to a terminal."""
    shown = msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
    sys.stdout.write(plain_json(shown) + "\n")


class Progress:
    """One line on standard error that changes while lists are read; nothing where standard error is no terminal."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._status = Status("", console=self._console)

    def __enter__(self) -> Self:
        """Begin."""
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal clean."""
        self._status.stop()

    def __call__(self, what: str, count: int) -> None:
        """Say what is being read."""
        self._status.update(Text(f"reading {plain(what)}{f', {count:,} so far' if count else ''}"))
