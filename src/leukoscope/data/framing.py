"""Every cut-out cell at one size: the square of a picture that a cell is shown in.

This file is used by Leukoscope and copied as it is into every release whose preprocessing frames cells so; it needs
numpy and Pillow only.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

BACKGROUND_LEVEL = 8
"""Black may be as bright in a compressed picture: the WebP and JPEG copies of cut-out cells carry pixels of 1–8."""
CELL_SIDE = 1.25
"""Side of the square, in roots of the cell's area: a round cell covers 64 % of it."""


def foreground(pixels: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 → (…) bool: what is brighter than black."""
    # Channel by channel: numpy takes twenty times as long for a maximum over a last axis of three.
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]) > BACKGROUND_LEVEL


def cell_box(image: Image.Image) -> tuple[float, float, float, float] | None:
    """The square that shows a cell, (left, top, right, bottom) in the picture's pixels; it may reach beyond it.

    Returns:
        None for a picture without a cell.
    """
    mask = foreground(np.asarray(image))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    half = CELL_SIDE * math.sqrt(mask.sum()) / 2
    across, down = (columns[0] + columns[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2
    return across - half, down - half, across + half, down + half


def framed_cell(
    image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str
) -> Image.Image:
    """The square of a picture, black where it reaches beyond it, resized to `size` pixels."""
    left, top = math.floor(min(box[0], 0)), math.floor(min(box[1], 0))
    right, bottom = math.ceil(max(box[2], image.width)), math.ceil(max(box[3], image.height))
    # Not by `crop`, which takes a padded picture of many pixels for a decompression bomb.
    whole = Image.new(image.mode, (right - left, bottom - top))
    whole.paste(image, (-left, -top))
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    return whole.resize((size, size), Image.Resampling[interpolation.upper()], box=inside)
