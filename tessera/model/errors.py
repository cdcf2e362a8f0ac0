"""The error tree of the whole project: one root, one branch per thing that can be wrong.

Every message is written for the person who has to act on it: it names the object, the number asked, the number there
is, and the fix. Layers above add branches of their own under the same root.
"""

from __future__ import annotations

from typing import Final

_LONGEST_NAME: Final = 63
"""Of a container, as Kubernetes takes it."""


class TesseraError(Exception):
    """Root of every error that Tessera raises on purpose."""


class QuantityError(TesseraError, ValueError):
    """A text that the API server would not take as a quantity, or that has no whole value where one is needed."""


class RequestError(TesseraError):
    """A pod asks for something that can't be meant or can't be given; admission turns it into a denial.

    Attributes:
        container: name of the container at fault, or "" where the whole pod is.
        fix: what to write instead.
    """

    def __init__(self, problem: str, *, container: str = "", fix: str = "") -> None:
        """Join the parts into one sentence: container, problem with its value, fix."""
        self.container = container
        self.problem = problem
        self.fix = fix
        # Admission comes before validation, so a name may have any length, and the rest has to be read too.
        name = container if len(container) <= _LONGEST_NAME else f"{container[: _LONGEST_NAME - 1]}…"
        where = f'container "{name}": ' if name else ""
        super().__init__(f"{where}{problem}{f'; {fix}' if fix else ''}")


class ConfigError(TesseraError):
    """The config file is refused: the message holds the key's path, its line and the nearest valid key."""


class AnnotationError(TesseraError):
    """One of our own annotations can't be read: it was forged, cut, or written by a version we don't know."""
