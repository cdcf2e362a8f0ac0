"""Reading side by side: bounded, told, each list with its value or its problem."""

import asyncio

import msgspec
import pytest

from tessera.cli.looking import AT_ONCE, Looker
from tessera.kube.errors import DecodeError, ForbiddenError, GoneError, NotFoundError, UnavailableError
from tessera.kube.reader import Page
from tessera.kube.resources import NODES, PODS
from tessera.model.node import Node
from tessera.model.pod import Pod


class Reader:
    """Answers pages from a script: lists of objects, or errors; remembers how many calls ran at once."""

    def __init__(self, *pages):
        self._pages = list(pages)
        self.now = self.most = 0
        self.asked = []

    async def page(self, resource, *, rest="", limit=0, **_):
        self.asked.append((resource.plural, rest, limit))
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(20):
            await asyncio.sleep(0)
        self.now -= 1
        found = self._pages.pop(0)
        if isinstance(found, Exception):
            raise found
        return Page([msgspec.Raw(msgspec.json.encode(each)) for each in found], "1", "more" if self._pages else "")

    async def get(self, *_, **__):
        raise self._pages.pop(0)


def pods(*names):
    return [{"metadata": {"name": name}} for name in names]


async def test_lists_are_read_side_by_side_and_not_all_at_once():
    reader = Reader(*[UnavailableError("list pods")] * 3 * AT_ONCE)
    looker = Looker(reader)
    await asyncio.gather(*(looker.all(PODS, Pod) for _ in range(3 * AT_ONCE)))
    assert reader.most == AT_ONCE


async def test_pages_are_joined_and_told():
    told = []
    looker = Looker(Reader(pods("a", "b"), pods("c")), tell=lambda what, count: told.append((what, count)))
    found = await looker.all(PODS, Pod)
    assert [pod.metadata.name for pod in found.need()] == ["a", "b", "c"]
    assert told == [("pods", 0), ("pods", 2)]


async def test_an_expired_snapshot_is_read_anew_in_one_piece():
    reader = Reader(pods("a"), GoneError("x"), pods("a", "b"))
    found = await Looker(reader).all(PODS, Pod)
    assert [pod.metadata.name for pod in found.need()] == ["a", "b"]
    assert reader.asked[-1] == ("pods", "", 0)


async def test_what_can_not_be_decoded_is_counted():
    looker = Looker(Reader([{"metadata": {"name": 7}}, {"metadata": {"name": "n"}}, 3]))
    assert [node.metadata.name for node in (await looker.all(NODES, Node)).need()] == ["n"]
    assert looker.unreadable == {"nodes": 2}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ForbiddenError("list pods", status=403, detail="no \x1b[2J\nway"),
            "pods: not permitted (403); no \\x1b[2J way",
        ),
        (
            ForbiddenError("x", status=403, detail='pods is forbidden: User "a" cannot list'),
            "pods: not permitted (403)",
        ),
        (NotFoundError("list pods", status=404), "pods: not there (404)"),
        (UnavailableError("list pods", detail="refused"), "pods: list pods: refused"),
        (DecodeError("list pods: html"), "list pods: html"),
        (ValueError("'a/b' can't be a part of a URL path"), "pods: 'a/b' can't be a part of a URL path"),
    ],
)
async def test_every_failure_is_a_problem_of_its_list(error, said):
    found = await Looker(Reader(error)).all(PODS, Pod)
    assert (found.value, found.problem) == (None, said)


async def test_a_name_that_can_not_be_a_path_is_a_problem():
    found = await Looker(Reader(ValueError("a slash"))).one(PODS, Pod, "../x", namespace="default")
    assert found.value is None
    assert "a slash" in found.problem
