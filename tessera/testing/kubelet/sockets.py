"""gRPC servers on the kubelet's sockets, with the life of a kubelet's socket files.

A kubelet that stops leaves its socket files behind, dead, and the next one makes new files. gRPC would remove its file
when the server stops, which would tell plugins something that no kubelet tells them; so the file is bound under another
name and renamed: it appears when the server answers, atomically, and nobody removes it at the end.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from tessera.testing.kubelet.errors import KubeletError

Handler: TypeAlias = "grpc.RpcMethodHandler[Message, Message]"
Context: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


def unary(answer: Callable[[_Request, Context], Awaitable[_Response]], request: type[_Request]) -> Handler:
    """Make a handler of a coroutine function that takes messages of type `request`."""
    handler: grpc.RpcMethodHandler[_Request, _Response] = grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
    return cast("Handler", handler)


def unary_stream(answer: Callable[[_Request, Context], AsyncIterator[_Response]], request: type[_Request]) -> Handler:
    """Make a handler of an asynchronous generator that takes one message of type `request`."""
    handler: grpc.RpcMethodHandler[_Request, _Response] = grpc.unary_stream_rpc_method_handler(
        answer, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
    return cast("Handler", handler)


async def serve(
    path: str, service: str, methods: Mapping[str, Handler], *, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
) -> grpc.aio.Server:
    """Start a server of one service on a unix socket; a file that is already there is replaced.

    Args:
        path: the socket, in a folder that exists.
        service: the service's full name, such as ``v1beta1.Registration``.
        methods: method name -> handler.
        interceptors: see grpc.aio.server.

    Raises:
        KubeletError: the socket can't be bound.
    """
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, dict(methods)),))
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}")
    try:
        server.add_insecure_port(f"unix:{draft}")
    except RuntimeError as error:
        raise KubeletError(f"can't bind {draft}, which is to become {path}: {error}") from error
    await server.start()
    os.rename(draft, path)
    return server
