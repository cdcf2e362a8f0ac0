"""``python -m webhook.extender`` is ``tessera-extender``."""

from __future__ import annotations

import sys

from webhook.extender.main import main

sys.exit(main())
