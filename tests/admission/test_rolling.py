"""Two real replicas roll while pods are admitted without a pause, by a client that does what Go's does; nothing is lost."""

import asyncio
import contextlib
import json
import re
import signal
import ssl

POD = {
    "metadata": {"name": "p", "namespace": "team"},
    "spec": {"containers": [{"name": "main", "resources": {"limits": {"tessera.dev/gpu-memory": "8Gi"}}}]},
}


class Service:
    """The replicas' endpoints, and the client's idle connections: those to a replica that has left live on."""

    def __init__(self, context):
        self.context = context
        self.endpoints = []
        self.idle = []
        self.turn = 0
        self.opened = []

    async def connection(self):
        """An idle connection that the other side has not closed, else a new one to the next endpoint."""
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        self.turn += 1
        port = self.endpoints[self.turn % len(self.endpoints)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=self.context, server_hostname="localhost")
        self.opened.append(writer)
        return reader, writer

    async def close(self):
        for writer in self.opened:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def post(self, body):
        reader, writer = await self.connection()
        head = (
            "POST /mutate?timeout=5s HTTP/1.1\r\nHost: tessera-webhook.tessera-system.svc:443\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", answer)[1])
        said = await reader.readexactly(length)
        if b"Connection: close" in answer:
            writer.close()
        else:
            self.idle.append((reader, writer))
        return answer.startswith(b"HTTP/1.1 200 ") and json.loads(said)["response"]["allowed"]


async def test_nothing_is_lost_while_both_replicas_are_replaced(replicas, tmp_path, review, until):
    one, two = await asyncio.gather(replicas(), replicas())
    service = Service(ssl.create_default_context(cafile=str(tmp_path / "ca.crt")))
    service.endpoints = [one.port, two.port]
    body = json.dumps(review(POD)).encode()
    admitted, lost, over = [0], [], asyncio.Event()

    async def admit():
        while not over.is_set():
            try:
                if await service.post(body):
                    admitted[0] += 1
                else:
                    lost.append("refused")
            except (OSError, asyncio.IncompleteReadError) as error:
                lost.append(error)
            await asyncio.sleep(0)

    async def some_more(number=50):
        wanted = admitted[0] + number
        await until(lambda: admitted[0] >= wanted or lost)

    clients = [asyncio.create_task(admit()) for _ in range(4)]
    try:
        await some_more()
        for old in (one, two):
            new = await replicas()
            assert await new.ready()
            service.endpoints.append(new.port)
            old.process.send_signal(signal.SIGTERM)
            await some_more(10)  # nobody has heard of it yet
            service.endpoints.remove(old.port)
            code, said = await old.ends()
            assert code == 0, said
            assert "cut off" not in said
            await some_more()
    finally:
        over.set()
        await asyncio.gather(*clients)
        await service.close()
    assert lost == []
    assert admitted[0] > 160
    assert len(service.opened) > 8, "connections were told to go elsewhere"
