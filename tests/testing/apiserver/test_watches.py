"""Watches: where they begin, what they show, how they end."""

from __future__ import annotations

import asyncio

import pytest


@pytest.fixture
def secrets(namespace):
    return f"/api/v1/namespaces/{namespace}/secrets"


async def add(api, path, name, **labels):
    return (await api.post(path, {"metadata": {"name": name, "labels": labels}})).ok()


async def test_a_watch_goes_on_from_its_version(api, secrets, make):
    await add(api, secrets, "before")
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    await add(api, secrets, "a")
    async with api.watch(secrets, resourceVersion=version) as events:
        (await api.patch(f"{secrets}/a", {"metadata": {"labels": {"x": "y"}}}, make.MERGE)).ok()
        (await api.delete(f"{secrets}/a")).ok()
        assert await events.names(3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


async def test_a_watch_without_a_version_begins_with_what_is_there(api, secrets):
    await add(api, secrets, "a")
    for version in ({}, {"resourceVersion": "0"}):
        async with api.watch(secrets, **version) as events:
            assert await events.names(1) == [("ADDED", "a")]


async def test_objects_in_a_watch_are_whole(api, secrets):
    created = await add(api, secrets, "a")
    async with api.watch(secrets) as events:
        assert (await events.next())["object"] == created


async def test_versions_only_grow_and_a_deletion_has_its_own(api, secrets, make):
    created = await add(api, secrets, "a")
    async with api.watch(secrets, resourceVersion=created["metadata"]["resourceVersion"]) as events:
        (await api.patch(f"{secrets}/a", {"metadata": {"labels": {"x": "y"}}}, make.MERGE)).ok()
        (await api.delete(f"{secrets}/a")).ok()
        changed, gone = await events.next(), await events.next()
    versions = [int(o["metadata"]["resourceVersion"]) for o in (created, changed["object"], gone["object"])]
    assert versions == sorted(set(versions))
    assert gone["object"]["metadata"]["labels"] == {"x": "y"}


async def test_an_object_that_leaves_the_selector_is_deleted_from_the_watch(api, secrets, make):
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    async with api.watch(secrets, resourceVersion=version, labelSelector="in=yes") as events:
        await add(api, secrets, "out")
        await add(api, secrets, "a", **{"in": "yes"})
        (await api.patch(f"{secrets}/a", {"metadata": {"labels": {"in": "no"}}}, make.MERGE)).ok()
        (await api.patch(f"{secrets}/out", {"metadata": {"labels": {"in": "yes"}}}, make.MERGE)).ok()
        added, left, entered = await events.next(), await events.next(), await events.next()
    assert (added["type"], left["type"], entered["type"]) == ("ADDED", "DELETED", "ADDED")
    # As it was when it was last selected, but under the version of the change.
    assert left["object"]["metadata"]["labels"] == {"in": "yes"}
    assert int(left["object"]["metadata"]["resourceVersion"]) > int(added["object"]["metadata"]["resourceVersion"])
    assert entered["object"]["metadata"]["name"] == "out"


async def test_a_watch_by_node_sees_a_pod_appear_when_it_is_bound(api, pods, make):
    version = (await api.get(pods)).ok()["metadata"]["resourceVersion"]
    async with api.watch(pods, resourceVersion=version, fieldSelector="spec.nodeName=n1") as events:
        (await api.post(pods, make.pod("a"))).ok()
        (await api.post(f"{pods}/a/binding", make.binding("a", "n1"))).ok()
        assert await events.names(1) == [("ADDED", "a")]


async def test_a_watch_of_all_namespaces(api, namespace, secrets):
    version = (await api.get("/api/v1/secrets")).ok()["metadata"]["resourceVersion"]
    async with api.watch("/api/v1/secrets", resourceVersion=version) as events:
        await add(api, secrets, "a")
        assert (await events.next())["object"]["metadata"]["namespace"] == namespace


async def test_a_watch_ends_when_its_time_is_up(api, secrets):
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    async with api.watch(secrets, resourceVersion=version, timeoutSeconds="1") as events:
        assert await events.next() is None


async def test_a_watch_from_a_version_that_is_none(api, secrets):
    for query, code in (({"watch": "true"}, 500), ({}, 400)):
        answer = await api.get(secrets, resourceVersion="abc", **query)
        assert answer.code == code
        assert 'Invalid value: "abc"' in answer.body["message"]


async def test_initial_events_end_with_a_bookmark(api, secrets):
    await add(api, secrets, "a")
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    async with api.watch(secrets, **query) as events:
        assert (await events.next(bookmarks=True))["type"] == "ADDED"
        bookmark = await events.next(bookmarks=True)
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


async def test_many_watchers_see_the_same_order(api, secrets):
    version = (await api.get(secrets)).ok()["metadata"]["resourceVersion"]
    names = [f"s{number}" for number in range(20)]

    async def follow():
        async with api.watch(secrets, resourceVersion=version) as events:
            return await events.names(len(names))

    followers = [asyncio.create_task(follow()) for _ in range(10)]
    for name in names:
        await add(api, secrets, name)
    expected = [("ADDED", name) for name in names]
    assert await asyncio.gather(*followers) == [expected] * 10
