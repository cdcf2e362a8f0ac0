"""The fuzzers are plain modules, so that `make fuzz` runs them without pytest; here tests find them too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
