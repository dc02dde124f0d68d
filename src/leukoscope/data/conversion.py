"""Pictures that training refuses and a reader of single results can take: 16 bits a channel, print colours, animations.

What is done to the pixels is said in a remark, which stands beside the result.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from leukoscope.data.images import MAX_SIDE_RATIO, MIN_SIDE, _check_scans, _damage_named, to_rgb

_FORMATS = ("PNG", "TIFF", "JPEG", "GIF")
# Pillow keeps the high byte of 16-bit colour; read in the other byte order, it keeps the low one.
_OTHER_ORDER = {";16L": ";16B", ";16B": ";16L", ";16N": ";16B"}


def open_converted(path: str | Path, max_pixels: int) -> tuple[Image.Image, str] | None:
    """Open a picture of 16 bits a channel, one in CMYK, or the first frame of a GIF; None for any other file.

    Returns:
        Upright RGB and which conversion was made: "bits", "cmyk" or "frames".

    Raises:
        UnreadableImage: it is damaged.
    """
    with _damage_named(path), Image.open(path, formats=_FORMATS) as image:
        small, long = sorted(image.size)
        if small * long > max_pixels or small < MIN_SIDE or long > MAX_SIDE_RATIO * small:
            return None
        if image.format == "GIF":
            image.seek(0)
            return to_rgb(Image.fromarray(np.asarray(image.convert("RGB"))), path), "frames"
        _check_scans(image, path)
        if image.mode == "CMYK":
            return to_rgb(_from_cmyk(image), path), "cmyk"
        if image.mode.startswith("I;16"):
            return to_rgb(_from_deep(np.asarray(image)), path), "bits"
        order = next((order for order in _OTHER_ORDER if image.mode == "RGB" and order in str(image.tile)), None)
        if order is None:
            return None
        high = np.asarray(image, np.uint16)
    with _damage_named(path), Image.open(path, formats=_FORMATS) as image:
        image.tile = [_with_order(tile, order, _OTHER_ORDER[order]) for tile in image.tile]
        low = np.asarray(image, np.uint16)
    return to_rgb(_from_deep(high * 256 + low), path), "bits"


def _with_order(tile: Any, order: str, other: str) -> Any:
    """A part of a file that Pillow decodes, read in another byte order."""
    args = tile.args
    if isinstance(args, str):
        return tile._replace(args=args.replace(order, other))
    return tile._replace(args=(str(args[0]).replace(order, other), *args[1:]))


def _from_deep(values: np.ndarray) -> Image.Image:
    """8 bits of (H, W) or (H, W, 3) uint16, whose white is the next power of two: 12-bit cameras fill 12 of the 16."""
    bits = max(8, int(values.max()).bit_length())
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")


def _from_cmyk(image: Image.Image) -> Image.Image:
    """By the profile that the file carries, else as Pillow converts it."""
    profile = image.info.get("icc_profile")
    if isinstance(profile, bytes):
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            return converted or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")
