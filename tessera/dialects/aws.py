"""AWS's virtual GPU device plugin: shares of a card under MPS, 10 to a card unless its installer said otherwise.

Source: awslabs/aws-virtual-gpu-device-plugin README (``--vgpu``). How many make a card stands on the node only: see
`AwsOptions`. ``hostIPC`` and the mount of the MPS pipe in its samples do no harm.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from tessera.dialects.dialect import Baggage, Context, Dialect, ForeignOptions, Reading
from tessera.dialects.reader import ContainerReader, PodReader
from tessera.model.errors import RequestError
from tessera.model.request import container_request

VGPU: Final = "k8s.amazonaws.com/vgpu"
_FIRST: Final = "eks.amazonaws.com/vgpu"
"""The name in the first versions, which samples in its repository still have."""
_SELECTOR: Final = "k8s.amazonaws.com/accelerator"


class AwsOptions(ForeignOptions, frozen=True, kw_only=True):
    """What the plugin's installation could be told.

    Attributes:
        per_gpu: virtual GPUs of one card (its ``--vgpu``).
    """

    per_gpu: Annotated[int, msgspec.Meta(ge=1, le=48)] = 10


def _container(container: ContainerReader, _pod: PodReader, context: Context) -> Reading | None:
    asked, each = container.count(VGPU) or container.count(_FIRST), context.option(AwsOptions).per_gpu
    if asked is None:
        return None
    if asked > each and asked % each:
        raise RequestError(
            f"{VGPU}: {asked} is neither a share of one GPU nor a number of whole ones ({each} make one)",
            container=container.name,
            fix=f"write at most {each}, or a multiple of it",
        )
    percent = max(1, 100 * asked // each) if asked < each else 100
    request = container_request(
        container=container.name,
        gpus=max(1, asked // each),
        memory_percent=percent,
        compute=percent,
        init=container.role == "init",
    )
    return None if request is None else Reading(request=request, resources=container.present((VGPU, _FIRST)))


def _baggage(pod: PodReader, _context: Context) -> Baggage:
    return Baggage(selectors=(_SELECTOR,) if pod.choices(_SELECTOR) == ("vgpu",) else ())


DIALECT: Final = Dialect(
    name="aws",
    about="AWS virtual GPU device plugin",
    options=AwsOptions,
    resources=frozenset({VGPU, _FIRST}),
    container=_container,
    baggage=_baggage,
)
