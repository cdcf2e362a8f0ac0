"""A real process while strangers do their worst: it answers the API server all the while, and its memory stays bounded."""

import asyncio
import contextlib
import json
import socket
import ssl

import aiohttp
import pytest

POD = {
    "metadata": {"name": "p", "namespace": "team"},
    "spec": {"containers": [{"name": "main", "resources": {"limits": {"tessera.dev/gpu-memory": "8Gi"}}}]},
}
MIB = 1 << 20
HEAD = "POST /mutate HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"


def post(body, kind="application/json"):
    return HEAD.format(kind=kind, length=len(body)).encode() + body


@pytest.fixture
async def target(replicas, tmp_path):
    """A running process, and a way to open connections to it."""
    replica = await replicas()
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    opened = []

    async def connect():
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", replica.port, ssl=context, server_hostname="localhost"
        )
        opened.append(writer)
        return reader, writer

    yield replica, connect
    for writer in opened:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def resident(replica):
    with open(f"/proc/{replica.process.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024


async def answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def metric(replica, name):
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{replica.status}/metrics") as found:
        text = await found.text()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))


async def test_the_api_server_is_answered_while_strangers_do_their_worst(target, review):
    replica, connect = target
    reader, writer = await connect()

    async def admit():
        writer.write(post(json.dumps(review(POD)).encode()))
        status, body = await answer(reader)
        assert status == 200
        assert json.loads(body)["response"]["allowed"] is True

    await admit()
    before = resident(replica)

    silent = [socket.create_connection(("127.0.0.1", replica.port)) for _ in range(200)]
    loris = [await connect() for _ in range(30)]
    for _, slow in loris:
        slow.write(b"POST /mutate HTTP/1.1\r\nHost: h\r\nX-")
    await admit()

    large = review(POD | {"metadata": {"annotations": {"x": "y" * (8 * MIB - 2000)}}})
    for body in (json.dumps(large).encode(), b'{"kind":' * MIB, b"[" * (8 * MIB - 1), b"\x00" * (4 * MIB)):
        many = [await connect() for _ in range(6)]
        for _, each in many:
            each.write(post(body))
        await admit()
        statuses = [(await answer(each))[0] for each, _ in many]
        assert set(statuses) <= {200, 400, 503}, statuses
        for _, each in many:
            each.close()

    piped, pipe = await connect()
    pipe.write(post(json.dumps(review(POD)).encode()) * 300)
    await admit()
    assert [(await answer(piped))[0] for _ in range(300)] == [200] * 300

    for kind in ("text/plain", "application/yaml", "application/x-protobuf"):
        asked, ask = await connect()
        ask.write(post(b"{}", kind))
        assert (await answer(asked))[0] == 415
    await admit()

    assert resident(replica) < before + 160 * MIB
    assert await metric(replica, "tessera_webhook_event_loop_worst_stall_seconds") >= 0
    assert replica.process.returncode is None
    for each in silent:
        each.close()


async def test_nothing_grows_with_the_number_of_requests(target, review):
    replica, connect = target
    reader, writer = await connect()
    bodies = [post(json.dumps(review(POD, uid=f"u{at}")).encode()) for at in range(500)]

    async def round_trip():
        for body in bodies:
            writer.write(body)
            assert (await answer(reader))[0] == 200

    await round_trip()
    await round_trip()
    before = resident(replica)
    await round_trip()
    await round_trip()
    assert resident(replica) <= before + 4 * MIB
