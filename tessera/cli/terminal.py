"""What the looking commands share of the terminal: their flags, the console, JSON that can't hurt, a line of progress."""

from __future__ import annotations

import argparse
import os
import random
import sys
from types import TracebackType
from typing import Final, Self

import msgspec
from rich.console import Console
from rich.status import Status
from rich.text import Text

from tessera.kube.client import ApiClient
from tessera.kube.clock import Clock, SystemClock
from tessera.kube.config import connect
from tessera.model.names import DOMAIN, Names, names
from tessera.model.quantity import whole
from tessera.report.plaintext import plain, plain_json

PIPE_WIDTH: Final = 160
"""A pipe has no width of its own, and a cut table is of no use to whoever reads it."""


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every command that looks at a cluster."""
    parser.add_argument("-o", "--output", choices=("table", "wide", "json"), default="table", help="how to show it")
    parser.add_argument("--kubeconfig", help="which cluster (default: the pod's own, then $KUBECONFIG)")
    parser.add_argument("--no-color", action="store_true", help="plain text (also $NO_COLOR)")


def add_names(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say by which names the installation goes."""
    parser.add_argument("--domain", default=DOMAIN, help="domain of the installation's names (default %(default)s)")
    parser.add_argument("--memory-unit", default="256Mi", help="memory unit of the installation (default %(default)s)")


def names_of(arguments: argparse.Namespace) -> Names:
    """The installation's names.

    Raises:
        ConfigError: a domain or a unit that can't be.
        QuantityError: a unit that is no amount.
    """
    return names(arguments.domain, whole(arguments.memory_unit))


def client(kubeconfig: str | None, clock: Clock | None = None) -> ApiClient:
    """A client of the cluster that is meant; make it inside a running event loop.

    Raises:
        ConnectionConfigError: which one can't be told.
    """
    passing = clock or SystemClock()
    connection = connect(kubeconfig, environ=os.environ, clock=passing)
    return ApiClient(connection, clock=passing, rng=random.Random(), user_agent="tessera-cli")  # noqa: S311  jitter


def console(arguments: argparse.Namespace) -> Console:
    """Standard output."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(no_color=arguments.no_color or "NO_COLOR" in os.environ, highlight=False, markup=False, emoji=False,
                   width=width)  # fmt: skip


def text(what: str, style: str = "") -> Text:
    """Others' words as one line for a table."""
    return Text(plain(what), style=style)


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
