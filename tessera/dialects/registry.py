"""The table of dialects. A new dialect is one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tessera.dialects import (
    acs,
    alibaba,
    aliyun,
    aws,
    cce,
    elasticgpu,
    gke,
    hami,
    kai,
    koordinator,
    kubeshare,
    nos,
    nvfractions,
    nvidia,
    nvshare,
    qgpu,
    runai,
    tencent,
    vgpumanager,
    volcano,
    volcano_old,
)
from tessera.dialects.dialect import Dialect
from tessera.dialects.native import NATIVE
from tessera.model.config import DialectOptions
from tessera.model.tickets import DIALECT as TICKETS

FOREIGN: Final[tuple[Dialect, ...]] = (
    gke.DIALECT,
    cce.DIALECT,
    hami.DIALECT,
    volcano.DIALECT,
    volcano_old.DIALECT,
    vgpumanager.DIALECT,
    aliyun.DIALECT,
    acs.DIALECT,
    alibaba.DIALECT,
    koordinator.DIALECT,
    tencent.DIALECT,
    qgpu.DIALECT,
    elasticgpu.DIALECT,
    nos.DIALECT,
    aws.DIALECT,
    nvshare.DIALECT,
    nvfractions.DIALECT,
    kai.DIALECT,
    runai.DIALECT,
    kubeshare.DIALECT,
    nvidia.DIALECT,
)
"""Foreign dialects, in the order in which they are asked: of those that share ``nvidia.com/gpu`` the one that knows most
about it first (selectors, fractions, HAMi's signs), NVIDIA's own last."""

OPTIONS: Final[Mapping[str, type[DialectOptions]]] = MappingProxyType(
    {NATIVE: DialectOptions, TICKETS: DialectOptions} | {dialect.name: dialect.options for dialect in FOREIGN}
)
"""The options type of each dialect, for `tessera.model.config.parse`."""
