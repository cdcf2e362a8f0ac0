"""What can go wrong while an image is built."""

from tessera.model.errors import TesseraError


class ImageError(TesseraError):
    """An image can't be built; the message says which step, and why."""
