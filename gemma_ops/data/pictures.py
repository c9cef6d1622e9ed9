"""Image files: their facts, and their pixels as Gemma 4's processor sees them.

Pillow is imported when an image is looked at, never before.
"""

from __future__ import annotations

import io
from typing import Any

from gemma_ops.errors import MachineError

MOST_PIXELS = 100_000_000
"""Most pixels of an image; a larger one is refused before it is decoded, since files of a few kilobytes can claim
gigapixels. Nothing is lost: the largest budget sees fewer than three million."""
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tiff", "MPO": "jpg"}
"""Image formats that are read, with the file ending of each."""
_TURNED = 274  # EXIF's orientation; from 5 on the sides change places


class UnreadableError(ValueError):
    """The bytes of a file can't be used; the text says why."""


def picture_facts(data: bytes, *, whole: bool = True) -> tuple[str, int, int]:
    """Return file ending, width and height in pixels, turned as its EXIF orientation says.

    `whole` decodes all of it, which finds a file that was cut off. Raises UnreadableError, and MachineError without
    Pillow.
    """
    image = _open(data)
    if image.format not in ENDINGS:
        raise UnreadableError(f"images of type {image.format} are not read; give one of {', '.join(sorted(ENDINGS))}")
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise UnreadableError(f"{width} x {height} pixels are more than {MOST_PIXELS / 1e6:.0f} million")
    try:
        turned = image.getexif().get(_TURNED, 1) >= 5
        if whole:
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableError(f"the image can't be decoded: {error}") from None
    return ENDINGS[image.format], *((height, width) if turned else (width, height))


def picture(data: bytes) -> Any:
    """Return the image as RGB `PIL.Image`, upright, transparency over white. Raises as `facts`.

    So do transformers (`convert_to_rgb`) and vLLM; dropping the alpha channel would show what the author hid.
    """
    from PIL import Image, ImageOps

    try:
        image = ImageOps.exif_transpose(_open(data))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnreadableError(f"the image can't be decoded: {error}") from None


def _open(data: bytes) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MachineError(
            "images need the package pillow, which is not installed", "pip install 'gemma-ops[multimodal]'"
        ) from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS is our own bound
        try:
            return Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            raise UnreadableError(f"it has more than {MOST_PIXELS / 1e6:.0f} million pixels") from None
        except (OSError, ValueError, SyntaxError) as error:
            reason = "its type is unknown" if "cannot identify" in str(error) else str(error)
            raise UnreadableError(f"it is no image that can be read: {reason}") from None
