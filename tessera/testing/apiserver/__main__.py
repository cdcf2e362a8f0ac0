"""The fake as a process: ``python -m tessera.testing.apiserver``. Prints one line of JSON when it is ready."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence

import yaml

from tessera.testing.apiserver.access import ADMIN
from tessera.testing.apiserver.server import FakeApiServer


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT, or until standard input is closed where that is asked for."""
    options = _parser().parse_args(arguments)
    try:
        asyncio.run(_serve(options))
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        sys.stderr.write(f"fake API server: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tessera.testing.apiserver", description="A fake kube-apiserver for tests and demos."
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--kubeconfig", metavar="FILE", help="write an administrator's kubeconfig here")
    parser.add_argument("--tls", action="store_true", help="serve HTTPS by a certificate authority of its own")
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME=HOST:PORT",
        help="where webhooks that are named by Service are",
    )
    parser.add_argument("--load", action="append", default=[], metavar="FILE", help="objects to begin with (YAML)")
    parser.add_argument("--bookmark-interval", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input is closed")
    return parser


async def _serve(options: argparse.Namespace) -> None:
    host, _, port = str(options.listen).rpartition(":")
    services = dict(str(service).split("=", 1) for service in options.service)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with FakeApiServer(
        host=host.strip("[]") or "127.0.0.1",
        port=int(port),
        tls=options.tls,
        services=services,
        bookmark_interval=options.bookmark_interval,
    ) as api:
        for file in options.load:
            _load(api, file)
        kubeconfig = api.kubeconfig(options.kubeconfig, user=ADMIN) if options.kubeconfig else None
        sys.stdout.write(json.dumps({"url": api.url, "kubeconfig": kubeconfig, "ca": api.ca_file}) + "\n")
        sys.stdout.flush()
        if options.exit_with_stdin:
            loop.add_reader(sys.stdin.fileno(), _read_stdin, stop)
        await stop.wait()


def _read_stdin(stop: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        stop.set()


def _load(api: FakeApiServer, file: str) -> None:
    with open(file, encoding="utf-8") as stream:
        for document in yaml.safe_load_all(stream):
            if document is not None:
                api.load(document)


if __name__ == "__main__":
    sys.exit(main())
