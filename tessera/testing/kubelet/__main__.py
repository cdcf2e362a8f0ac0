"""One node as a process: a fake kubelet, attached to an API server where one is given.

It prints one line of JSON once it serves, then runs until SIGTERM or SIGINT. SIGHUP restarts the kubelet inside, as an
update of a real one would: sockets vanish and come back, plugins have to register again, pods keep running.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack

from tessera.testing.kubelet.client import ApiClient
from tessera.testing.kubelet.errors import KubeletError
from tessera.testing.kubelet.kubelet import FakeKubelet
from tessera.testing.kubelet.node import KubeletNode
from tessera.testing.kubelet.nodestatus import NodeSettings
from tessera.testing.kubelet.settings import Settings


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    defaults = Settings()
    found = argparse.ArgumentParser(prog="python -m tessera.testing.kubelet", description=__doc__.split("\n", 1)[0])
    found.add_argument("--dir", required=True, help="the kubelet's directory (short: it holds sockets)")
    found.add_argument("--node", required=True, help="the node's name")
    found.add_argument("--server", help="base URL of the API server; without it the kubelet has no pods")
    found.add_argument("--token", help="bearer token for the API server")
    found.add_argument("--token-file", help="file that holds the bearer token")
    found.add_argument("--ca", help="PEM file with the API server's CA")
    found.add_argument("--label", action="append", default=[], metavar="K=V", help="label of the Node; repeatable")
    found.add_argument("--resource", action="append", default=[], metavar="K=V", help="capacity such as cpu=96")
    found.add_argument("--seed", type=int, default=defaults.seed, help="of every random choice")
    found.add_argument("--startup-delay", type=float, default=defaults.startup_delay, metavar="SECONDS")
    found.add_argument("--status-period", type=float, default=10.0, metavar="SECONDS", help="of the node's status")
    found.add_argument("--first-pid", type=int, default=defaults.first_pid, help="number of the first process")
    found.add_argument("--pods-token", help="bearer token that GET /pods asks for")
    found.add_argument("--log-level", default="WARNING", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return found


async def run(arguments: argparse.Namespace) -> None:
    """Serve until told to stop.

    Raises:
        KubeletError: the directory, a socket or the API server is not as it should be.
    """
    stop, restart = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, restart.set)
    settings = Settings(
        node=arguments.node,
        seed=arguments.seed,
        startup_delay=arguments.startup_delay,
        first_pid=arguments.first_pid,
    )
    kubelet = FakeKubelet(arguments.dir, settings=settings, pods_token=arguments.pods_token)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kubelet.close)
        part: KubeletNode | FakeKubelet = kubelet
        if arguments.server:
            api = ApiClient(arguments.server, token=_token(arguments), ca_file=arguments.ca)
            await stack.enter_async_context(api)
            part = KubeletNode(kubelet, api, settings=_node_settings(arguments))
            stack.push_async_callback(part.stop)
        await part.start()
        print(_ready(kubelet), flush=True)  # noqa: T201 - the line that whoever started us waits for
        while await _next(stop, restart):
            await part.restart()


async def _next(stop: asyncio.Event, restart: asyncio.Event) -> bool:
    """Wait for a signal; tells whether it was the one to restart."""
    waits = [asyncio.create_task(event.wait()) for event in (stop, restart)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    restart.clear()
    return not stop.is_set()


def _ready(kubelet: FakeKubelet) -> str:
    return json.dumps(
        {
            "node": kubelet.settings.node,
            "dir": kubelet.paths.root,
            "pods": kubelet.pods_url,
            "podsPort": kubelet.pods_port,
            "pid": os.getpid(),
        }
    )


def _token(arguments: argparse.Namespace) -> str | None:
    if arguments.token_file is None:
        return str(arguments.token) if arguments.token is not None else None
    try:
        with open(arguments.token_file, encoding="utf-8") as file:
            return file.read().strip()
    except OSError as error:
        raise KubeletError(f"--token-file {arguments.token_file} can't be read: {error.strerror}") from error


def _node_settings(arguments: argparse.Namespace) -> NodeSettings:
    defaults = NodeSettings(name=arguments.node)
    return NodeSettings(
        name=arguments.node,
        labels=_pairs("--label", arguments.label),
        resources={**defaults.resources, **_pairs("--resource", arguments.resource)},
        status_period=arguments.status_period,
    )


def _pairs(flag: str, values: Sequence[str]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    wrong = next((value for value, (_, sign, _) in zip(values, pairs, strict=True) if not sign), None)
    if wrong is not None:
        raise KubeletError(f"{flag} {wrong}: write it as name=value")
    return {name: text for name, _, text in pairs}


def main() -> int:
    """Run from the command line; returns the exit code."""
    arguments = parser().parse_args()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(arguments))
    except KubeletError as error:
        print(f"{arguments.node}: {error}", file=sys.stderr)  # noqa: T201 - the reason why it stopped
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
