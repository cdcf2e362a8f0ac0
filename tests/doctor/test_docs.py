"""docs/doctor.md has an entry for every check, and none for a check that there isn't."""

import re
from pathlib import Path

from tessera.doctor.checks import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_every_check_has_its_entry_in_order():
    entries = re.findall(r"^### `([a-z-]+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert entries == [check.id for check in CHECKS]


def test_every_entry_says_what_is_seen_and_how_to_mend_it():
    for entry in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]:
        assert "\nSeen: " in entry
        assert "\nMend: " in entry.partition("\n## ")[0]
