"""A node with its own state file and a pynvml of its own: module globals and function caches are never shared."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pynvml as installed
import pytest

from tessera.testing.nvml import STATE_VARIABLE, FakeGpu, FakeNvml

MIB = 1 << 20
GIB = 1 << 30

MakeNode = Callable[..., "Node"]


@dataclass(frozen=True)
class Node:
    """The fake, and a pynvml that talks to it."""

    fake: FakeNvml
    nvml: ModuleType

    def handle(self, index: int = 0) -> object:
        return self.nvml.nvmlDeviceGetHandleByIndex(index)


def fresh_pynvml(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fresh_pynvml", installed.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # It looks itself up by name while it builds its error classes.
    with patch.dict(sys.modules, {module.__name__: module}):
        spec.loader.exec_module(module)
    module.nvmlLib = ctypes.CDLL(str(library))
    return module


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeNode]:
    """Make a node and initialise its library; one at a time, as one process has one driver."""
    with ExitStack() as stack:

        def make(*gpus: str | FakeGpu, init: bool = True, **arguments: object) -> Node:
            cards = [FakeGpu.of(gpu) if isinstance(gpu, str) else gpu for gpu in gpus]
            fake = stack.enter_context(FakeNvml.create(tmp_path / "state", gpus=cards, **arguments))
            monkeypatch.setenv(STATE_VARIABLE, str(fake.path))
            node = Node(fake, fresh_pynvml(fake.library))
            if init:
                node.nvml.nvmlInit()
            stack.callback(shut_down, node.nvml)
            return node

        yield make


def shut_down(nvml: ModuleType) -> None:
    while nvml.nvmlLib.nvmlShutdown() == nvml.NVML_SUCCESS:
        pass


@pytest.fixture
def node(make_node: MakeNode) -> Node:
    """Two A100 and a T4 on the other socket."""
    return make_node("A100-80GB", "A100-80GB", FakeGpu.of("T4", numa=1))


@pytest.fixture
def error_of(node: Node) -> Callable[..., int]:
    """The NVML error code that a call raises; 0 where it raises none."""

    def call(function: Callable[..., object], *arguments: object) -> int:
        try:
            function(*arguments)
        except node.nvml.NVMLError as error:
            return int(error.value)
        return 0

    return call
