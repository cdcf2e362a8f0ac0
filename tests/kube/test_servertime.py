"""The API server's time from its answers: believed over a wrong local clock, and not at the first odd word."""

from __future__ import annotations

import asyncio
import random
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.kube.client import ApiClient
from tessera.kube.config import StaticConnection
from tessera.kube.errors import KubeError, UnavailableError
from tessera.kube.resources import CONFIGMAPS, LEASES
from tessera.kube.servertime import AGREED, EARLIEST, LATEST, ServerClock, parse_date
from tessera.testing.apiserver import StatusError, on
from webhook.admission.selfmade import make

TRUE = 1_790_000_000.0
"""When the clocks below begin, by the right time."""
DAY = 86_400.0
YEARS = 3650 * DAY
JUMPS = [DAY, -DAY, YEARS, -YEARS, -1.7e9]


class Machine:
    """A machine whose wall clock jumps; its monotonic clock does not."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wrong = 0.0

    @property
    def true(self) -> float:
        return TRUE + self.passed

    def monotonic(self) -> float:
        return 500.0 + self.passed

    def wall(self) -> float:
        return self.true + self.wrong

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def clock(machine):
    return ServerClock(machine)


def date(moment: float) -> str:
    return formatdate(moment, usegmt=True)


def off(clock, machine) -> float:
    return abs(clock.wall() - machine.true)


def test_before_the_first_answer_it_is_the_local_clock(clock, machine):
    machine.wrong = DAY
    assert clock.wall() == machine.wall()
    assert clock.ahead == 0


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_is_wrong_from_the_start_is_not_believed(clock, machine, jump):
    machine.wrong = jump
    clock.heard(date(machine.true))
    assert off(clock, machine) <= 1
    machine.passed += 3600
    assert off(clock, machine) <= 1
    assert clock.ahead == pytest.approx(jump, abs=1)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_and_comes_back_changes_nothing(clock, machine, jump):
    for wrong in (0.0, jump, 0.0):
        machine.wrong = wrong
        for _ in range(10):
            machine.passed += 7.3
            clock.heard(date(machine.true))
            assert off(clock, machine) <= 2


def test_it_runs_evenly_between_and_over_answers(clock, machine):
    before = None
    for _ in range(200):
        machine.passed += 0.31
        clock.heard(date(machine.true))
        now = clock.wall() - machine.true
        assert before is None or now == pytest.approx(before)
        before = now


def test_a_drift_is_followed(clock, machine):
    clock.heard(date(machine.true))
    server = 0.0
    for _ in range(100):
        machine.passed += 10
        server += 10.4
        clock.heard(date(TRUE + server))
    assert clock.wall() == pytest.approx(TRUE + server, abs=3)


@pytest.mark.parametrize("jump", JUMPS[:4])
def test_one_odd_answer_moves_nothing_and_those_that_agree_do(clock, machine, jump):
    clock.heard(date(machine.true))
    for _ in range(5):
        machine.passed += 2
        clock.heard(date(machine.true + jump))
        assert off(clock, machine) <= 2
        machine.passed += 2
        clock.heard(date(machine.true))
        assert off(clock, machine) <= 2
    for _ in range(AGREED):
        machine.passed += 2
        clock.heard(date(machine.true + jump))
    assert clock.wall() == pytest.approx(machine.true + jump, abs=2)


def test_a_machine_that_slept_believes_the_first_answer_that_its_own_clock_confirms(clock, machine):
    clock.heard(date(machine.true))
    machine.wrong = 3 * DAY  # the monotonic clock stood still meanwhile
    clock.heard(date(machine.wall()))
    assert clock.wall() == pytest.approx(machine.wall(), abs=2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "Fri, 06 Nov 1964 08:49:37 GMT",
        "Sun, 06 Nov 9994 08:49:37 GMT",
        "Fri, 31 Feb 2027 08:49:37 GMT",
        "Fri, 01 Jan 2027 25:49:37 GMT",
        "Fri, 01 Jan 2027 08:49:37 UTC",
        "Fri, 01 Jan 2027 08:49:37 GMT ",
        "Fri, +1 Jan 2027 08:49:37 GMT",
        "Fri, \u0660\u0661 Jan 2027 08:49:37 GMT",
        "Fri, 01 Jan 2027 08:49:37 GMT" * 10_000,
        "2027-01-01T08:49:37.000000Z!!",
    ],
)
def test_what_is_no_date_is_passed_over(clock, machine, text):
    clock.heard(text)
    assert clock.wall() == machine.wall()
    clock.heard(date(machine.true))
    clock.heard(text)
    assert off(clock, machine) <= 1


@given(st.text(max_size=40) | st.floats(min_value=-6e10, max_value=2.5e11).map(date))
def test_nothing_that_is_heard_breaks_it(text):
    clock = ServerClock(Machine())
    clock.heard(text)
    assert EARLIEST <= clock.wall() < LATEST + 1


@given(st.integers(min_value=int(EARLIEST), max_value=int(LATEST)))
def test_dates_are_read_as_they_are_written(moment):
    assert parse_date(date(moment)) == moment


def test_a_wrong_clock_is_said_once_and_its_end_too(clock, machine, caplog):
    caplog.set_level("INFO")
    clock.heard(date(machine.true))
    assert caplog.records == []
    machine.wrong = -7300.0
    for _ in range(20):
        machine.passed += 5
        clock.heard(date(machine.true))
    assert [(each.levelname, "2 hours behind" in each.message) for each in caplog.records] == [("WARNING", True)]
    machine.wrong = 0.0
    for _ in range(20):
        machine.passed += 5
        clock.heard(date(machine.true))
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize(
    ("wrong", "said"), [(90.5, "90 s"), (700, "12 minutes"), (-1e5, "28 hours"), (YEARS, "3650 days")]
)
def test_a_difference_is_said_in_words_for_people(clock, machine, caplog, wrong, said):
    clock.heard(date(machine.true))
    machine.wrong = wrong
    machine.passed += 1
    clock.heard(date(machine.true))
    assert f"clock is {said} {'ahead of' if wrong > 0 else 'behind'} the API server's" in caplog.text


@pytest.fixture
async def asking(api, clock, machine):
    api.date = lambda: date(machine.true)
    connection = StaticConnection(api.url)
    async with ApiClient(connection, clock=clock, rng=random.Random(1), dates=clock.heard) as made:
        yield made


async def test_every_kind_of_answer_tells_the_time(asking, clock, machine):
    machine.wrong = DAY
    with pytest.raises(KubeError):
        await asking.get(CONFIGMAPS, "none", namespace="default", decoder=None)
    assert off(clock, machine) <= 1


async def test_a_watch_tells_the_time_as_it_opens(asking, clock, machine):
    machine.wrong = DAY
    async with asking.watch(LEASES, resource_version="0", lasts=5, idle_timeout=5):
        assert off(clock, machine) <= 1


@pytest.mark.parametrize("wrong", [YEARS, -YEARS])
async def test_a_certificate_refused_for_its_dates_makes_one_look_at_the_clock(clock, tmp_path, wrong):
    """A clock that is wrong by more than the API server's certificate lasts cuts us off from it."""
    made = make(["127.0.0.1"], now=datetime.now(UTC) + timedelta(seconds=wrong))
    for name, content in (("crt", made.certificate), ("key", made.key)):
        (tmp_path / name).write_text(content)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=serving)
    async with server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        trusting = StaticConnection(url, tls=ssl.create_default_context(cadata=made.bundle))
        async with ApiClient(trusting, clock=clock, rng=random.Random(1)) as client:
            with pytest.raises(UnavailableError, match="see that this machine's clock is right"):
                await client.read("/version")


async def test_who_answers_for_a_server_that_is_away_is_not_asked_for_the_time(api, asking, clock, machine):
    api.faults.add(on("get", "configmaps"), StatusError(503, "ServiceUnavailable", "down"), times=None)
    machine.wrong = DAY
    with pytest.raises(KubeError):
        await asking.get(CONFIGMAPS, "none", namespace="default", decoder=None)
    assert clock.wall() == machine.wall()
