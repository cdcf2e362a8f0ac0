"""Text that others wrote, fit for a terminal: nothing in it can move the cursor, change colours or reorder a line.

Names, annotations, messages and GPU models come from whoever may write objects. Escape sequences in them (ESC and the C1
controls, of which U+009B begins one alone) and marks that reverse the reading order are shown as escapes.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 2000
"""Characters of one text that are shown; an API server's message may hold a whole object."""

_HIDDEN: Final = (
    "\x00-\x1f\x7f-\x9f"  # controls
    "\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"  # bidirectional and invisible marks
    "\u2028\u2029\ud800-\udfff\U000e0000-\U000e007f"  # separators, halves of letters, tags
)
_SHOWN_AS_ESCAPE: Final = re.compile(f"[{_HIDDEN}]")
_IN_JSON: Final = re.compile(f"[{_HIDDEN.replace(chr(10), '')}]")


def plain(text: str, *, longest: int = LONGEST) -> str:
    r"""One line of a text as it may be printed.

    >>> plain("a\n\x1b[2Jb")
    'a \\x1b[2Jb'
    """
    line = " ".join(text.split()) if len(text) <= longest else " ".join(text[:longest].split()) + "…"
    return _SHOWN_AS_ESCAPE.sub(_escape, line)


def plain_json(text: str) -> str:
    r"""A JSON document whose strings hold none of these either: written as ``\uXXXX``, which reads back as it was."""
    return _IN_JSON.sub(lambda match: "\n" if match[0] == "\n" else _json_escape(match[0]), text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "backslashreplace").decode()


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
