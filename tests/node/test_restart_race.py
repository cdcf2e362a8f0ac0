"""A kubelet that is restarted at an awkward moment is registered with once, and not again a moment later."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from deviceplugin._proto import deviceplugin_v1beta1_pb2 as api
from deviceplugin.metrics import NodeMetrics
from deviceplugin.registration import Registrar
from deviceplugin.server import TicketServer
from tessera.model.names import names
from tessera.testing.kubelet.sockets import serve, unary


async def test_a_kubelet_that_came_between_the_look_and_the_registration_is_not_taken_for_a_later_one(
    folder, board, clock
):
    """On a busy machine the two are seconds apart, and an end of what was just registered would cost pods."""
    heard = {"before": [], "after": []}

    def registry(which):
        async def register(request, _):
            heard[which].append(request.resource_name)
            return api.Empty()

        return {"Register": unary(register, api.RegisterRequest)}

    before = await serve(f"{folder}/kubelet.sock", "v1beta1.Registration", registry("before"))
    after = await serve(f"{folder}/after.sock", "v1beta1.Registration", registry("after"))

    def make(resource):
        if os.path.exists(f"{folder}/after.sock"):
            os.replace(f"{folder}/after.sock", f"{folder}/kubelet.sock")
        return TicketServer(
            resource,
            board=board,
            allocator=None,
            prestart=None,
            injector=None,
            metrics=NodeMetrics(),
            clock=clock,
        )

    registrar = Registrar(
        folder, resources=lambda: board.offers, make=make, token="t", clock=clock, metrics=NodeMetrics()
    )
    try:
        for _ in range(3):
            await registrar.step()
        assert heard["before"] == []
        assert sorted(heard["after"]) == sorted(names().tickets)
    finally:
        await registrar.stop()
        await before.stop(None)
        await after.stop(None)


async def test_a_kubelet_that_is_about_to_listen_is_looked_for_at_once(folder, board, clock):
    """It admits what was bound meanwhile as soon as it serves; a tenth of a second later is too late for some."""
    heard = []

    async def register(request, _):
        heard.append(request.resource_name)
        return api.Empty()

    def make(resource):
        return TicketServer(
            resource,
            board=board,
            allocator=None,
            prestart=None,
            injector=None,
            metrics=NodeMetrics(),
            clock=clock,
        )

    registrar = Registrar(
        folder, resources=lambda: board.offers, make=make, token="t", clock=clock, metrics=NodeMetrics()
    )
    path = f"{folder}/kubelet.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        # There, and nobody listens yet.
        bound.bind(path)
        await registrar.step()
    assert registrar.problem
    hurry = registrar.pause
    os.unlink(path)
    server = await serve(path, "v1beta1.Registration", {"Register": unary(register, api.RegisterRequest)})
    try:
        clock.now += hurry
        await registrar.step()
        assert sorted(heard) == sorted(names().tickets)
        assert registrar.problem is None
        assert hurry < registrar.pause
        await server.stop(None)
        with suppress(FileNotFoundError):
            os.unlink(path)
        await registrar.step()
        assert registrar.pause == hurry
        clock.now += 3600
        await registrar.step()
        assert registrar.pause > hurry, "a kubelet that stays away is not asked for all the time"
    finally:
        await registrar.stop()
        await server.stop(None)
