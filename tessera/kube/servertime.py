"""The API server's time, as its answers tell it.

Certificates that we make are verified by the API server, and moments in objects were written by it; a machine whose own
clock jumps (an empty battery, a step of NTP, a virtual machine that slept) must not judge either of them by that clock.
Every answer carries a Date (RFC 9110, section 6.6.1; Go's net/http sets it), which is kept against the monotonic clock. It
has whole seconds and has travelled, so what comes out is right to about two seconds.

A Date that leads far away from what was known is believed where this machine's clock says the same, else only after
answers in a row agree on it: an error page of some proxy, or one of several API servers that is wrong, moves nothing.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Final

from tessera.kube.clock import Clock

EARLIEST: Final = 0.0
LATEST: Final = datetime(2200, 1, 1, tzinfo=UTC).timestamp()
"""From where an empty clock begins to where no certificate of today lasts; far beyond, reckoning with dates overflows."""
STEP: Final = 60.0
"""Seconds of difference above which a clock is called wrong."""
AGREED: Final = 3
"""Answers in a row that have to agree on a new time."""
_STEADY: Final = 2.0
"""Seconds within which a Date says nothing new; so `wall` runs evenly in spite of whole seconds."""
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LENGTH: Final = len("Sun, 06 Nov 1994 08:49:37 GMT")
_DATE: Final = re.compile(
    rf"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{{2}}) ({'|'.join(_MONTHS)}) ([0-9]{{4}}) "
    r"([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)

_log = logging.getLogger(__name__)


class ServerClock:
    """A clock whose wall is the API server's time, as far as it is known; else this machine's."""

    def __init__(self, local: Clock) -> None:
        """Know nothing yet.

        Args:
            local: of this machine; it measures and waits, and its wall stands in until the first answer.
        """
        self._local = local
        self._text = ""
        self._offset: float | None = None
        self._claim = 0.0
        self._claims = 0
        self._wrong = False

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment; never goes back."""
        return self._local.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._local.wall() if self._offset is None else self._local.monotonic() + self._offset

    async def sleep(self, seconds: float) -> None:
        """Wait, letting others run."""
        await self._local.sleep(seconds)

    @property
    def ahead(self) -> float:
        """Seconds by which this machine's clock is ahead of the API server's; 0 while that is not known."""
        return 0.0 if self._offset is None else self._local.wall() - self.wall()

    def heard(self, date: str) -> None:
        """Take in the Date of an answer that has just come; anything else than a Date is passed over.

        Cheap enough for every answer: those of one second carry the same text, and one of them is read.
        """
        if date == self._text or len(date) != _LENGTH:
            return
        self._text = date
        said = parse_date(date)
        if said is not None and EARLIEST <= said < LATEST:
            # In the middle of the second that it names.
            self._take(said + 0.5 - self._local.monotonic())
            self._tell()

    def _take(self, offset: float) -> None:
        known = self._offset
        if known is None:
            self._offset = offset
            return
        away = abs(offset - known)
        if away < STEP or abs(self._local.monotonic() + offset - self._local.wall()) < STEP:
            self._claims = 0
            if away > _STEADY:
                self._offset = offset
            return
        again = self._claims and abs(offset - self._claim) < STEP
        self._claims = self._claims + 1 if again else 1
        self._claim = offset
        if self._claims >= AGREED:
            self._claims = 0
            self._offset = offset

    def _tell(self) -> None:
        ahead = self.ahead
        if not self._wrong and abs(ahead) >= STEP:
            self._wrong = True
            _log.warning(
                "this machine's clock is %s %s the API server's, whose time is used for certificates and for moments "
                "in objects; set the one that is wrong (chronyc tracking, timedatectl)",
                _length(abs(ahead)),
                "ahead of" if ahead > 0 else "behind",
            )
        elif self._wrong and abs(ahead) < STEP / 2:
            self._wrong = False
            _log.info("this machine's clock agrees with the API server's again")


def _length(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def parse_date(text: str) -> float | None:
    """Read an HTTP date in the form that servers send (IMF-fixdate); seconds since 1970, None where it is none."""
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    day, month, year, hour, minute, second = found.groups()
    try:
        moment = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp()
