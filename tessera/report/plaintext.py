"""Text that others wrote, fit for a terminal: nothing in it can move the cursor, change colours or reorder a line.

Names, annotations, messages and GPU models come from whoever may write objects. What is no printable character (escape
sequences, the C1 controls of which U+009B begins one alone, marks that reverse the reading order or are not to be seen at
all) is shown as an escape.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 2000
"""Characters of one text that are shown; an API server's message may hold a whole object."""
LONGEST_WORD: Final = 340
"""Characters of one word of it: the longest name that Kubernetes takes, an annotation's of 253 + 1 + 63, in quotes."""
_READ: Final = 20
"""Times the longest that is shown, for what is cut from words."""


def short(text: str, longest: int) -> str:
    """A text of so many characters at most; what is cut ends in a mark.

    >>> short("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= longest else text[: longest - 1] + "…"


def plain(text: str, *, longest: int = LONGEST) -> str:
    r"""One line of a text as it may be printed; words longer than any name are cut, so that the rest can be read.

    >>> plain("a\n\x1b[2Jb")
    'a \\x1b[2Jb'
    """
    line = short(" ".join(short(word, LONGEST_WORD) for word in text[: _READ * longest].split()), longest)
    return line if line.isprintable() else "".join(map(_shown, line))


def plain_json(text: str) -> str:
    r"""A JSON document whose strings hold none of these either: written as ``\uXXXX``, which reads back as it was."""
    return "\n".join(line if line.isprintable() else "".join(map(_written, line)) for line in text.split("\n"))


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode()


def _written(letter: str) -> str:
    if letter.isprintable():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
