"""The listener by itself, over sockets: what a strict reader of HTTP/1.1 takes, and in which order it answers."""

from __future__ import annotations

import asyncio

import pytest

from tessera.daemon.flags import Address
from webhook.extender.heads import HeadError, read_head
from webhook.extender.http import Limits, Listener

POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"


class Talk:
    """One connection."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, text):
        self.writer.write(text)

    async def answer(self):
        """Status, head and body of the next answer."""
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
            return int(head.split()[1]), head, await self.reader.readexactly(length)

    async def rest(self):
        async with asyncio.timeout(5):
            return await self.reader.read()


@pytest.fixture
async def talk():
    """Open connections to a listener that echoes; the last argument of `talk` are its limits."""
    open_now, listeners = [], []

    async def echo(body, _):
        return body

    async def fail(_, __):
        raise ValueError

    async def cancelled(_, __):
        raise asyncio.CancelledError

    async def large():
        return b"x" * 3_000_000

    async def connect(listener=None, **limits):
        if listener is None:
            listener = Listener(
                Address("127.0.0.1", 0),
                posts={"/echo": echo, "/fail": fail, "/cancelled": cancelled},
                gets={"/large": large},
                limits=Limits(**limits),
            )
            await listener.__aenter__()
            listeners.append(listener)
        made = Talk(*await asyncio.open_connection(listener.address.host, listener.address.port))
        made.listener = listener
        open_now.append(made)
        return made

    yield connect
    for each in open_now:
        each.writer.close()
    for each in listeners:
        await each.__aexit__(None, None, None)
        assert (each.connections, each.bodies) == (0, 0)


async def test_requests_on_one_connection_are_answered_in_turn_however_they_are_cut(talk):
    one = await talk()
    text = b"".join(POST % (len(body), body) for body in (b"first", b"", b"x" * 70_000, b"last"))
    for at in (1, 40, 61, len(text) - 30):
        one.send(text[:at])
        await one.writer.drain()
        await asyncio.sleep(0)
        one.send(text[at:])
        found = [await one.answer() for _ in range(4)]
        assert [status for status, _, _ in found] == [200] * 4
        assert [body for _, _, body in found] == [b"first", b"", b"x" * 70_000, b"last"]


async def test_many_requests_ahead_of_their_answers(talk):
    one = await talk()
    sending = asyncio.create_task(one.writer.drain())
    one.send((POST % (50_000, b"y" * 50_000)) * 200)
    for _ in range(200):
        assert (await one.answer())[2] == b"y" * 50_000
    await sending


async def test_a_client_that_reads_nothing_is_answered_no_further(talk):
    one = await talk()
    one.send(b"GET /large HTTP/1.1\r\n\r\n" * 20)
    await one.writer.drain()
    for _ in range(20):
        status, _, body = await one.answer()
        assert (status, len(body)) == (200, 3_000_000)


async def test_a_body_is_asked_for_where_the_client_waits(talk):
    one = await talk()
    one.send(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert await one.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    one.send(b"{}")
    assert (await one.answer())[2] == b"{}"


@pytest.mark.parametrize(
    ("head", "ends"),
    [
        (b"POST /echo HTTP/1.1\r\nConnection: close\r\n", True),
        (b"POST /echo HTTP/1.1\r\nConnection: Keep-Alive\r\n", False),
        (b"POST /echo HTTP/1.0\r\n", True),
        (b"POST /echo HTTP/1.0\r\nConnection: keep-alive\r\n", False),
        (b"POST /echo?x=/%20 HTTP/1.1\r\n", False),
    ],
)
async def test_who_closes(talk, head, ends):
    one = await talk()
    one.send(head + b"Content-Length: 1\r\n\r\nz")
    status, text, body = await one.answer()
    assert (status, body, "Connection: close" in text) == (200, b"z", ends)
    if ends:
        assert await one.rest() == b""
    else:
        one.send(POST % (1, b"a"))
        assert (await one.answer())[2] == b"a"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na", 400),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /echo HTTP/1.1\r\nContent-Length: +1\r\n\r\na", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: %b\r\n\r\n" % (b"9" * 400), 400),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nContent-Length : 1\r\n\r\na", 400),
        (b"POST /echo HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nX: a\nContent-Length: 1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nX: a\0\r\n\r\n", 400),
        (b"POST /echo HTTP/2.0\r\n\r\n", 400),
        (b"POST http://other/echo HTTP/1.1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nX: " + b"a" * 9000, 431),
        (b"PUT /echo HTTP/1.1\r\nContent-Length: 1\r\n\r\na", 405),
        (b"POST /large HTTP/1.1\r\nContent-Length: 1\r\n\r\na", 405),
        (b"GET /large HTTP/1.1\r\nContent-Length: 1\r\n\r\na", 400),
        (b"GET /other HTTP/1.1\r\n\r\n", 404),
    ],
)
async def test_what_is_not_clear_is_refused_and_ends_the_connection(talk, text, status):
    one = await talk()
    one.send(text + POST % (1, b"b"))
    found, head, _ = await one.answer()
    assert (found, "Connection: close" in head) == (status, True)
    assert await one.rest() == b"", "what came behind it is not read as a request"


async def test_a_head_alone(talk):
    one = await talk()
    one.send(b"HEAD /large HTTP/1.1\r\n\r\n" + POST % (1, b"a"))
    head = await one.reader.readuntil(b"\r\n\r\n")
    assert b"Content-Length: 3000000\r\n" in head
    assert (await one.answer())[2] == b"a"


async def test_a_fault_is_a_500_and_others_go_on(talk):
    one = await talk()
    other = await talk(one.listener)
    one.send(b"POST /fail HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert (await one.answer())[0] == 500
    other.send(POST % (1, b"a"))
    assert (await other.answer())[0] == 200


async def test_nobody_waits_for_an_answer_that_was_given_up(talk):
    one = await talk()
    one.send(b"POST /cancelled HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert await one.rest() == b""


async def test_a_refused_client_may_send_to_the_end_and_reads_why(talk):
    one = await talk(body=10)
    one.send(POST % (2_000_000, b"x" * 2_000_000))
    await one.writer.drain()
    assert (await one.answer())[0] == 413


async def test_busy_connections_are_not_taken_for_others(talk):
    one = await talk(connections=1, body_time=60.0)
    one.send(POST % (2, b"a"))
    while not one.listener.bodies:  # noqa: ASYNC110  it comes over a socket
        await asyncio.sleep(0)
    two = await talk(one.listener)
    assert await two.rest() == b""
    one.send(b"b")
    assert (await one.answer())[2] == b"ab"


@pytest.mark.parametrize(
    "text", [b"", b"GET", b"GET / HTTP/1.1\r\nX", b"\0" * 10, b"get / HTTP/1.1", b"GET /\xff HTTP/1.1"]
)
def test_heads_that_are_none(text):
    with pytest.raises(HeadError) as caught:
        read_head(text)
    assert caught.value.status == 400
