"""The PNG pictures of a store, which may be another one's: decoded as PNG alone, within Pillow's limit of pixels."""

import io

from PIL import Image

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
"""What Pillow may raise of a file that is no PNG, is damaged, or claims too many pixels."""


def is_png(data: bytes) -> bool:
    """Return whether bytes are a PNG that can be decoded."""
    try:
        decoded(data)
    except UNREADABLE:
        return False
    return True


def decoded(data: bytes) -> Image.Image:
    """Return the picture of PNG bytes; one of UNREADABLE if they are none."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.load()
        return image


def reduced(data: bytes, side: int) -> bytes:
    """Return a PNG with at most `side` pixels a side; one of UNREADABLE if it is none."""
    image = decoded(data)
    if max(image.size) <= side:
        return data
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
