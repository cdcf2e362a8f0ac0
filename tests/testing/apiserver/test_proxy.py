"""pods/proxy of the fake: what a pod answers is passed on as it is, and what can't be asked is the server's own error."""

import aiohttp
import pytest
from aiohttp import web

from tessera.testing.apiserver import FakeApiServer
from tessera.testing.apiserver.access import User


@pytest.fixture
async def proxied():
    """A fake API server with one pod whose status port answers."""

    async def answer(request):
        return web.Response(text=f"{request.path} says no", status=503)

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    addresses = {"default/p:9465": f"127.0.0.1:{runner.addresses[0][1]}", "default/dead:1": "127.0.0.1:1"}

    def allow(user, _verb, target):
        return user.name != "nobody" or target.subresource != "proxy"

    async with FakeApiServer(proxied_pods=addresses, authorize=allow) as fake:
        for name in ("p", "dead"):
            fake.put("pods", {"metadata": {"name": name, "namespace": "default"}, "spec": {"containers": []}})
        yield fake
    await runner.cleanup()


async def get(fake, path, *, user=None):
    headers = {"Authorization": f"Bearer {fake.token(user)}"} if user else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{fake.url}/api/v1/namespaces/default/pods/{path}", headers=headers) as found,
    ):
        return found.status, await found.text()


@pytest.mark.parametrize("name", ["p:9465", "p%3A9465"])
async def test_an_answer_is_passed_on_as_it_is(proxied, name):
    assert await get(proxied, f"{name}/proxy/readyz") == (503, "/readyz says no")


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("absent:9465/proxy/metrics", 404, "not found"),
        ("p:1/proxy/metrics", 503, "no address is known"),
        ("dead:1/proxy/", 503, "error trying to reach service"),
    ],
)
async def test_what_can_not_be_asked(proxied, path, code, said):
    status, text = await get(proxied, path)
    assert status == code
    assert said in text


async def test_it_is_a_right_of_its_own(proxied):
    status, text = await get(proxied, "p:9465/proxy/metrics", user=User(name="nobody"))
    assert status == 403
    assert "pods/proxy" in text
    assert proxied.requests[-1].seen.subresource == "proxy"
