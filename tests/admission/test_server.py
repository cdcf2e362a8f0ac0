"""The HTTPS server over real TLS: good clients, bad clients, and an end that loses nothing."""

import asyncio
import contextlib
import io
import json
import ssl
from http import HTTPStatus

import aiohttp
import pytest

from tessera.daemon.flags import Address
from tessera.kube.clock import SystemClock
from webhook.admission.certificates import _context, _load
from webhook.admission.connection import Limits
from webhook.admission.http1 import Answer
from webhook.admission.server import AdmissionServer

LOOPBACK = Address("127.0.0.1", 0)


def echo(body):
    return Answer(HTTPStatus.OK, b'{"bytes":%d}' % len(body))


def broken(_):
    raise KeyError("internal: secret detail")


@pytest.fixture
def client_context(pair):
    return ssl.create_default_context(cadata=pair.bundle)


@pytest.fixture
def serve(pair, metrics):
    """Start servers; all of them are stopped at the end."""

    @contextlib.asynccontextmanager
    async def start(**limits):
        context = _context()
        _load(context, pair, "test")
        server = AdmissionServer(
            LOOPBACK,
            context=context,
            handlers={"/mutate": echo, "/broken": broken},
            metrics=metrics,
            clock=SystemClock(),
            limits=Limits(**{"sweep": 0.02, "linger": 0.1, **limits}),
        )
        async with server:
            yield server

    return start


@pytest.fixture
def raw(client_context):
    """A TLS connection to send any bytes by."""

    @contextlib.asynccontextmanager
    async def connect(server, *, context=None):
        reader, writer = await asyncio.open_connection(
            server.address.host, server.address.port, ssl=context or client_context, server_hostname="localhost"
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    return connect


def post(path="/mutate", body=b"{}", *lines):
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


async def read_answer(reader):
    async with asyncio.timeout(20):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return int(lines[0].split()[1]), headers, body


async def read_end(reader):
    """Read until the server has closed."""
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


async def test_a_client_with_keep_alive(serve, client_context):
    async with (
        serve() as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context, limit=1)) as session,
    ):
        for size in (2, 1000, 300_000):
            url = f"https://localhost:{server.address.port}/mutate?timeout=10s"
            async with session.post(url, data=bytes(size), headers={"Content-Type": "application/json"}) as answer:
                assert answer.status == 200
                assert await answer.json() == {"bytes": size}
                assert "Date" in answer.headers
        assert len(server._connections) == 1


async def test_only_http_1_is_agreed_on(serve, raw, client_context):
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    async with serve() as server, raw(server) as (_, writer):
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"


async def test_a_body_in_pieces(serve, raw):
    request = post(body=b"x" * 100)
    async with serve() as server, raw(server) as (reader, writer):
        for at in range(len(request)):
            writer.write(request[at : at + 1])
            await writer.drain()
        status, _, body = await read_answer(reader)
        assert (status, json.loads(body)) == (200, {"bytes": 100})


async def test_pipelined_requests_are_answered_in_order(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(b"".join(post(body=b"x" * size) for size in range(200)))
        for size in range(200):
            status, _, body = await read_answer(reader)
            assert (status, json.loads(body)) == (200, {"bytes": size})


async def test_a_client_that_floods_and_never_reads_is_cut_off(serve, raw, counted):
    async with serve(write=0.1) as server, raw(server) as (reader, writer):
        reader._transport.pause_reading()
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(post(body=b"x") * 1000)
                    await writer.drain()
        assert counted("tessera_webhook_connections_dropped_total", reason="deadline") == 1


async def test_an_empty_line_before_a_request_is_ignored(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(b"\r\n" + post() + b"\r\n" + post())
        assert (await read_answer(reader))[0] == 200
        assert (await read_answer(reader))[0] == 200


async def test_a_client_that_waits_for_permission_gets_it(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(post(body=b"", path="/mutate").replace(b"Length: 0", b"Length: 3\r\nExpect: 100-continue"))
        assert (await read_answer(reader))[0] == 100
        writer.write(b"abc")
        assert json.loads((await read_answer(reader))[2]) == {"bytes": 3}


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(post("/healthz"), 404, id="another path"),
        pytest.param(b"GET /mutate HTTP/1.1\r\nHost: h\r\n\r\n", 405, id="another method"),
        pytest.param(post().replace(b"application/json", b"text/yaml"), 415, id="another type"),
        pytest.param(b"nonsense\r\n\r\n", 400, id="nonsense"),
        pytest.param(b"A" * 20_000, 431, id="a head without end"),
        pytest.param(post("/mutate", b"", "Transfer-Encoding: chunked"), 400, id="smuggling"),
        pytest.param(post().replace(b"Length: 2", b"Length: 8388609"), 413, id="one byte above 8 MiB"),
    ],
)
async def test_refusals_are_told_and_end_the_connection(serve, raw, counted, request_bytes, status):
    async with serve() as server, raw(server) as (reader, writer):
        # A second request behind it must not be answered: nobody knows where the first one ends.
        writer.write(request_bytes + post())
        found, headers, body = await read_answer(reader)
        assert found == status
        assert headers["connection"] == "close"
        assert json.loads(body)["code"] == status
        writer.write_eof() if writer.can_write_eof() else writer.close()
        assert await read_end(reader) == b""
        assert counted("tessera_webhook_requests_refused_total", status=str(status)) == 1


async def test_the_longest_body_is_taken(serve, client_context):
    async with (
        serve() as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=client_context)) as session,
    ):
        url = f"https://localhost:{server.address.port}/mutate"
        data = io.BytesIO(bytes(8 * 1024 * 1024))
        async with session.post(url, data=data, headers={"Content-Type": "application/json"}) as answer:
            assert await answer.json() == {"bytes": 8 * 1024 * 1024}


async def test_a_client_still_sending_sees_why_it_was_refused(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(post().replace(b"Length: 2", b"Length: 9000000"))
        writer.write(bytes(2_000_000))
        assert (await read_answer(reader))[0] == 413


async def test_large_bodies_share_a_bound_and_small_ones_do_not_wait_for_it(serve, raw, until):
    async with serve(large_bodies=150_000) as server, raw(server) as (_, first), raw(server) as (reader, second):
        first.write(post(body=bytes(100_000))[:50_000])
        await first.drain()
        await until(lambda: server._large)
        second.write(post())
        assert (await read_answer(reader))[0] == 200
        second.write(post(body=bytes(100_000)))
        assert (await read_answer(reader))[0] == 503
        first.transport.abort()
        await until(lambda: not server._large)
        async with raw(server) as (again, third):
            third.write(post(body=bytes(100_000)))
            assert (await read_answer(again))[0] == 200


async def test_a_handler_that_fails_is_a_500_without_detail_and_the_server_lives(serve, raw, caplog):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(post("/broken") + post())
        status, _, body = await read_answer(reader)
        assert status == 500
        assert b"secret detail" not in body
        assert (await read_answer(reader))[0] == 200
    assert "secret detail" in caplog.text


@pytest.mark.parametrize(
    ("sent", "limits"),
    [
        pytest.param(b"", {"head": 0.05}, id="nothing at all"),
        pytest.param(b"POST /mutate HTTP/1.1\r\nHost: ", {"head": 0.05}, id="half a head"),
        pytest.param(post(body=b"x" * 100)[:-1], {"body_time": 0.05}, id="all but the last byte of a body"),
        pytest.param(post(), {"idle": 0.05}, id="no second request"),
    ],
)
async def test_whoever_takes_too_long_is_sent_away(serve, raw, counted, sent, limits):
    async with serve(**limits) as server, raw(server) as (reader, writer):
        writer.write(sent)
        said = await read_end(reader)
        if sent and sent != post():
            assert b" 408 " in said
    assert counted("tessera_webhook_connections_dropped_total", reason="deadline") == 1


async def test_a_byte_now_and_then_does_not_buy_time(serve, raw):
    async with serve(head=0.1) as server, raw(server) as (reader, writer):
        ended = asyncio.create_task(read_end(reader))
        writer.write(b"POST /mutate HTTP/1.1\r\n")
        while not ended.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.01)
        assert b" 408 " in await ended


async def test_plain_http_and_strangers_to_our_ca_only_count(serve, raw, counted, until):
    async with serve() as server:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
        writer.write(post())
        await read_end(reader)
        writer.close()
        with pytest.raises(ssl.SSLCertVerificationError):
            async with raw(server, context=ssl.create_default_context()):
                pass
        await until(lambda: counted("tessera_webhook_connections_dropped_total", reason="handshake") == 2)
        async with raw(server) as (reader, writer):
            writer.write(post())
            assert (await read_answer(reader))[0] == 200


async def test_a_handshake_that_never_comes_does_not_hold_a_place(serve, counted):
    async with serve(handshake=0.05) as server:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
        await read_end(reader)
        writer.close()
        assert counted("tessera_webhook_connections_dropped_total", reason="handshake") == 1


async def test_at_the_cap_newcomers_replace_those_who_never_asked(serve, raw, counted):
    async with serve(connections=3) as server, contextlib.AsyncExitStack() as stack:
        reader, writer = await stack.enter_async_context(raw(server))
        writer.write(post())
        assert (await read_answer(reader))[0] == 200
        for _ in range(10):
            await stack.enter_async_context(raw(server))
        newest, ask = await stack.enter_async_context(raw(server))
        ask.write(post())
        assert (await read_answer(newest))[0] == 200
        # The one that had been useful before the flood is still there.
        writer.write(post())
        assert (await read_answer(reader))[0] == 200
        assert len(server._connections) <= 4
        assert counted("tessera_webhook_connections_dropped_total", reason="evicted") >= 8


async def test_draining_ends_each_connection_with_its_next_answer_and_still_takes_new_ones(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(post())
        assert "connection" not in (await read_answer(reader))[1]
        server.drain()
        writer.write(post())
        status, headers, _ = await read_answer(reader)
        assert (status, headers["connection"]) == (200, "close")
        assert await read_end(reader) == b""
        async with raw(server) as (newcomer, ask):
            ask.write(post())
            assert (await read_answer(newcomer))[1]["connection"] == "close"


async def test_stopping_lets_a_request_under_way_end(serve, raw, until):
    async with serve() as server, raw(server) as (reader, writer), raw(server) as (idle, idle_writer):
        idle_writer.write(post())
        await read_answer(idle)
        request = post(body=b"x" * 100)
        writer.write(request[:-1])
        await writer.drain()
        await until(lambda: any(each.state == "body" for each in server._connections))
        stopping = asyncio.create_task(server.stop(grace=20))
        assert await read_end(idle) == b""
        writer.write(request[-1:])
        assert (await read_answer(reader))[0] == 200
        await stopping
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection(server.address.host, server.address.port)


async def test_stopping_does_not_wait_for_ever(serve, raw):
    async with serve() as server, raw(server) as (reader, writer):
        writer.write(post(body=b"x" * 100)[:-1])
        await writer.drain()
        await server.stop(grace=0.05)
        assert not server._connections
        await read_end(reader)


async def test_every_address_of_both_families(pair, metrics, raw):
    context = _context()
    _load(context, pair, "test")
    server = AdmissionServer(
        Address("::", 0), context=context, handlers={"/mutate": echo}, metrics=metrics, clock=SystemClock()
    )
    async with server:
        for host in ("127.0.0.1", "::1"):
            server.address = Address(host, server.address.port)
            async with raw(server) as (reader, writer):
                writer.write(post())
                assert (await read_answer(reader))[0] == 200


async def test_an_address_that_is_taken_is_an_error(serve, metrics):
    async with serve() as server:
        other = AdmissionServer(server.address, context=_context(), handlers={}, metrics=metrics, clock=SystemClock())
        with pytest.raises(OSError, match=r"in use"):
            async with other:
                pass
