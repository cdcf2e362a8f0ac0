"""The cluster tests need root, minutes and a cluster: `make e2e` runs them, and `make test` doesn't see them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("TESSERA_E2E_SUITE") else ["suite/*", "contract/*"]
