"""One connection without sockets: any cut of the bytes gives the same answers, and no bytes at all give a crash."""

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook.admission.connection import SMALL_BODY, Connection, Limits
from webhook.admission.http1 import END_OF_HEAD, Answer


class Loop:
    """Time that stands still, and callbacks that run when the test says so."""

    def __init__(self):
        self.now = 0.0
        self.soon = []

    def time(self):
        return self.now

    def call_soon(self, callback):
        self.soon.append(callback)

    def turn(self):
        todo, self.soon = self.soon, []
        for callback in todo:
            callback()


class Transport:
    def __init__(self):
        self.written = b""
        self.reading = True
        self.ended = None

    def write(self, data):
        assert self.ended is None
        self.written += data

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def close(self):
        self.ended = self.ended or "closed"

    def abort(self):
        self.ended = "aborted"


class Host:
    """A server that echoes, and counts what is reserved."""

    def __init__(self, limits=None):
        self.limits = limits or Limits()
        self.draining = False
        self.date = b"now"
        self.paths = {"/mutate": self.echo}
        self.bodies = []
        self.refusals = []
        self.reserved = 0
        self.open = set()

    def echo(self, body):
        self.bodies.append(body)
        return Answer(HTTPStatus.OK, b"answer to %d" % len(body))

    def answer(self, path, body):
        return self.paths[path](body)

    def refused(self, status):
        self.refusals.append(status)

    def reserve(self, size):
        if self.reserved + size > self.limits.large_bodies:
            return False
        self.reserved += size
        return True

    def release(self, size):
        self.reserved -= size

    def opened(self, connection):
        self.open.add(connection)

    def closed(self, connection):
        self.open.discard(connection)


class Wire:
    """A connection with everything around it."""

    def __init__(self, limits=None):
        self.loop, self.host, self.transport = Loop(), Host(limits), Transport()
        self.connection = Connection(self.host, self.loop)
        self.connection.connection_made(self.transport)

    def send(self, data):
        """Deliver bytes as asyncio would: only while reading is not paused."""
        while not self.transport.reading and self.loop.soon:
            self.loop.turn()
        self.connection.data_received(data)

    def settle(self):
        while self.loop.soon:
            self.loop.turn()

    def lose(self):
        self.connection.connection_lost(None)
        assert self.host.reserved == 0
        assert not self.host.open


def request(body, *lines):
    head = [
        "POST /mutate HTTP/1.1",
        "Host: h",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *lines,
    ]
    return "\r\n".join(head).encode() + END_OF_HEAD + body


def chunked(body, sizes=(), *lines, trailer=b""):
    head = ["POST /mutate HTTP/1.1", "Host: h", "Content-Type: application/json", "Transfer-Encoding: chunked", *lines]
    found, at = b"", 0
    for size in sizes:
        if piece := body[at : at + size]:
            found += b"%x;ext=1\r\n%b\r\n" % (len(piece), piece)
            at += len(piece)
    if rest := body[at:]:
        found += b"%X\r\n%b\r\n" % (len(rest), rest)
    return "\r\n".join(head).encode() + END_OF_HEAD + found + b"0\r\n" + trailer + b"\r\n"


@given(
    st.lists(st.tuples(st.binary(max_size=40), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=5),
    st.lists(st.integers(0, 1500), max_size=12),
)
def test_the_cut_of_the_bytes_does_not_matter_for_chunks_either(bodies, cuts):
    """Chunked and plain requests by turns on one connection."""
    stream = b"".join(
        chunked(body, sizes, trailer=b"X-A: b\r\n" if sizes else b"") + request(body) for body, sizes in bodies
    )
    wire = Wire()
    at = 0
    for cut in sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)}):
        wire.send(stream[at:cut])
        at = cut
    wire.settle()
    assert wire.host.bodies == [body for body, _ in bodies for _ in range(2)]
    assert wire.connection.state == "idle"
    wire.lose()


def test_room_for_a_body_in_chunks_is_taken_as_it_grows_and_given_back():
    wire = Wire(Limits(large_bodies=SMALL_BODY + 10))
    body = bytes(SMALL_BODY + 20)
    wire.connection.data_received(chunked(body, [SMALL_BODY, 5])[:-8])
    assert wire.host.refusals == [HTTPStatus.SERVICE_UNAVAILABLE]
    assert wire.host.reserved == 0
    wire = Wire()
    stream = chunked(body, [SMALL_BODY, 5])
    wire.connection.data_received(stream[:-8])
    assert wire.host.reserved > SMALL_BODY
    wire.connection.data_received(stream[-8:])
    assert wire.host.reserved == 0
    assert wire.host.bodies == [body]


def test_permission_for_chunks_is_given_before_the_first():
    wire = Wire()
    stream = chunked(b"abc", [], "Expect: 100-continue")
    end = stream.index(END_OF_HEAD) + len(END_OF_HEAD)
    wire.connection.data_received(stream[:end])
    assert wire.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.connection.data_received(stream[end:])
    assert wire.host.bodies == [b"abc"]


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.lists(st.integers(0, 1500), max_size=12))
def test_the_cut_of_the_bytes_does_not_matter(bodies, cuts):
    stream = b"".join(request(body) for body in bodies)
    wire = Wire()
    at = 0
    for cut in sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)}):
        wire.send(stream[at:cut])
        at = cut
    wire.settle()
    assert wire.host.bodies == bodies
    assert wire.transport.written.count(b"HTTP/1.1 200 OK") == len(bodies)
    assert wire.connection.state == "idle"
    wire.lose()


_pieces = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            request(b"{}"),
            request(b"", "Connection: close"),
            request(b"abc", "Expect: 100-continue"),
            request(bytes(SMALL_BODY + 1))[:400],
            b"GET / HTTP/1.1\r\n",
            b"Host: h\r\n",
            b"Content-Length: 3\r\n",
            b"Content-Length: 99999999\r\n",
            b"Transfer-Encoding: chunked\r\n",
            chunked(b"abc"),
            chunked(b"abc" * 9, [4, 4])[:-9],
            b"5\r\nhello\r\n",
            b"FFFFFFFF\r\n",
            b"0\r\n",
            b"\r\n",
            b"\r",
            b"\x00",
            b"A" * 17_000,
        ]
    ),
)
_events = st.one_of(_pieces, st.sampled_from(["stuck", "free", "late", "drain", "turn"]))


@given(st.lists(_events, max_size=25))
def test_nothing_that_comes_is_a_crash_and_nothing_is_kept(events):
    wire = Wire(Limits(large_bodies=100_000))
    for event in events:
        if wire.transport.ended:
            break
        if isinstance(event, bytes):
            wire.send(event)
        elif event == "stuck":
            wire.connection.pause_writing()
        elif event == "free":
            wire.connection.resume_writing()
        elif event == "late":
            wire.connection.expire()
        elif event == "drain":
            wire.host.draining = True
        else:
            wire.loop.turn()
        assert len(wire.connection._buffer) <= wire.host.limits.body + 20_000
    wire.settle()
    wire.lose()


def test_pipelined_requests_take_one_turn_each_with_reading_paused():
    wire = Wire()
    wire.connection.data_received(request(b"1") * 3)
    assert len(wire.host.bodies) == 1
    assert not wire.transport.reading
    wire.loop.turn()
    assert len(wire.host.bodies) == 2
    wire.settle()
    assert len(wire.host.bodies) == 3
    assert wire.transport.reading


def test_no_answers_are_made_for_a_client_that_takes_none():
    wire = Wire()
    wire.connection.data_received(request(b"1"))
    wire.connection.pause_writing()
    assert not wire.transport.reading
    wire.connection.data_received(request(b"2"))
    wire.settle()
    assert len(wire.host.bodies) == 1
    wire.connection.resume_writing()
    assert len(wire.host.bodies) == 2
    wire.connection.pause_writing()
    wire.connection.expire()
    assert wire.transport.ended == "aborted"


@pytest.mark.parametrize(
    ("sent", "state", "seconds"),
    [
        pytest.param(b"", "idle", Limits().head, id="a new connection has the time of a head"),
        pytest.param(b"POST", "head", Limits().head, id="head"),
        pytest.param(request(b"12")[:-1], "body", Limits().body_time, id="body"),
        pytest.param(request(b"12"), "idle", Limits().idle, id="between requests"),
        pytest.param(b"nonsense\r\n\r\n", "refusing", Limits().linger, id="after a refusal"),
    ],
)
def test_every_state_has_its_deadline(sent, state, seconds):
    wire = Wire()
    if sent:
        wire.connection.data_received(sent)
    assert wire.connection.state == state
    assert wire.connection.deadline == seconds


def test_more_bytes_of_a_head_do_not_move_its_deadline():
    wire = Wire()
    wire.connection.data_received(b"POST /mutate HTTP/1.1\r\n")
    wire.loop.now = 5.0
    wire.connection.data_received(b"Host: h\r\n")
    assert wire.connection.deadline == Limits().head


def test_permission_is_given_only_where_the_body_is_waited_for():
    wire = Wire()
    wire.connection.data_received(request(b"abc", "Expect: 100-continue")[:-3])
    assert wire.transport.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.connection.data_received(b"abc")
    assert wire.host.bodies == [b"abc"]
    wire.transport.written = b""
    wire.connection.data_received(request(b"abc", "Expect: 100-continue"))
    assert b"100 Continue" not in wire.transport.written


def test_room_for_large_bodies_is_given_back_however_it_ends():
    large = request(bytes(SMALL_BODY + 1))
    for end in ("complete", "late", "lost"):
        wire = Wire()
        wire.connection.data_received(large[:-1])
        assert wire.host.reserved == SMALL_BODY + 1
        if end == "complete":
            wire.connection.data_received(large[-1:])
        elif end == "late":
            wire.connection.expire()
        else:
            wire.connection.connection_lost(ConnectionResetError())
        assert wire.host.reserved == 0
