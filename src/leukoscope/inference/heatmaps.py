"""A Grad-CAM as an array, and its drawing: `overlay` lays it over the part of the picture the network saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from leukoscope.cells.framing import BACKGROUND_LEVEL

# Inferno rises evenly in lightness, so it reads the same with any colour vision and in grey.
_COLORMAP = "inferno"
# Okabe & Ito's blue stands out equally from a black background and from a pale smear.
_FRAME_RGB = (0, 114, 178)
BLACK_SHARE = 0.05
"""Of a picture at least; with less, it shows no cell cut out on black."""


@dataclass(frozen=True)
class HeatMap:
    """One class's Grad-CAM of one picture.

    Attributes:
        evidence: (h, w) float32, ≥ 0, raw Grad-CAM; one scale for all classes of a picture.
        label: the class it speaks for.
    """

    evidence: np.ndarray
    label: str

    def relative(self) -> np.ndarray:
        """Stretched to 0–1 as pytorch-grad-cam shows it, (h, w) float32; a flat map becomes all zeros."""
        lowest, highest = float(self.evidence.min()), float(self.evidence.max())
        if highest == lowest:
            return np.zeros_like(self.evidence)
        return (self.evidence - lowest) / (highest - lowest)


def share_on_cell(heat: np.ndarray, pixels: np.ndarray) -> float | None:
    """Share of a heat map's sum that lies on a cell cut out on black.

    Args:
        heat: (h, w), ≥ 0.
        pixels: (S, S, 3) uint8, what the network saw.

    Returns:
        0–1; None for a map without heat, and for a picture that is not mostly a cell on black.
    """
    cell = pixels.max(axis=2) > BACKGROUND_LEVEL
    if float(heat.sum()) <= 0 or not cell.any() or (~cell).mean() < BLACK_SHARE:
        return None
    return share_within(heat, cell)


def share_within(heat: np.ndarray, region: np.ndarray) -> float:
    """Share, 0–1, of the sum of a heat map (h, w) that lies in a region (H, W) bool of what the network saw."""
    height, width = region.shape
    spread = np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    return float(spread[region].sum()) / float(spread.sum())


@dataclass(frozen=True)
class EvidenceScale:
    """How strong the evidence in a release's heat maps usually is, so that weak evidence looks weak in any picture.

    Attributes:
        strong: the strongest evidence of a cell, for any class, that one cell in twenty exceeds: the upper end of the
            release's colour scale. None where it was not measured.
        weak: the one that one cell in twenty stays below; None where it was not measured.
    """

    strong: float | None = None
    weak: float | None = None

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> EvidenceScale:
        """That of a release's metrics.json; empty where none was measured."""
        measured = metrics.get("evidence_scale") or {}
        return cls(strong=measured.get("p95") or None, weak=measured.get("p05"))


def overlay(
    image: Image.Image,
    heat: HeatMap,
    view_box: tuple[float, float, float, float],
    *,
    opacity: float = 0.5,
    peak: float | None = None,
) -> Image.Image:
    """A heat map laid over the part of a picture that the network saw.

    Colour covers the picture in proportion to the heat: cold regions stay as they are. A thin frame marks the view
    where it is smaller than the picture.

    Args:
        image: the upright picture the map was made from.
        view_box: (left, top, right, bottom) of the view in the picture's pixels.
        opacity: how much the hottest point is covered, 0–1.
        peak: the evidence shown hottest; its own maximum when None. Give classes one peak to compare them, and
            pictures their release's (`EvidenceScale`).

    Returns:
        RGB, the size of `image`.
    """
    height, width = image.height, image.width
    left, top, right, bottom = view_box
    across = _interpolation(left, right, heat.evidence.shape[1], width)
    down = _interpolation(top, bottom, heat.evidence.shape[0], height)
    columns, rows = _span(left, right, width), _span(top, bottom, height)

    peak = float(heat.evidence.max()) if peak is None else peak
    warmth = np.clip(heat.evidence / peak, 0, 1) if peak > 0 else np.zeros_like(heat.evidence)
    # Not `@`: see `picture_statistics` in ood.py.
    warmth = np.einsum("yi,xi->yx", down[rows], np.einsum("ij,xj->xi", warmth, across[columns])).astype(np.float32)

    colours = Image.fromarray(np.rint(warmth * 255).astype(np.uint8))
    colours.putpalette(_colours().tobytes())
    cover = Image.fromarray(np.rint(opacity * warmth * 255).astype(np.uint8))
    drawn = image.convert("RGB").copy()
    drawn.paste(colours.convert("RGB"), (columns.start, rows.start), cover)
    if right - left <= width - 1 or bottom - top <= height - 1:
        _draw_frame(drawn, rows, columns)
    return drawn


def _interpolation(start: float, stop: float, cells: int, pixels: int) -> np.ndarray:
    """(pixels, cells) weights that spread a map's cells over start…stop, bilinear between their centres.

    Beyond the outermost centres the outermost value holds, as in cv2's INTER_LINEAR and align_corners=False.
    """
    position = (np.arange(pixels) + 0.5 - start) / (stop - start) * cells - 0.5
    distance = np.abs(np.clip(position, 0, cells - 1)[:, None] - np.arange(cells))
    return np.maximum(0.0, 1.0 - distance).astype(np.float32)


def _span(start: float, stop: float, pixels: int) -> slice:
    """The pixels whose centres lie between start and stop."""
    return slice(max(0, round(start)), min(pixels, round(stop)))


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """(256, 3) uint8, cold to hot."""
    from matplotlib import colormaps

    return colormaps[_COLORMAP](np.arange(256), bytes=True)[:, :3]


def _draw_frame(image: Image.Image, rows: slice, columns: slice) -> None:
    corners = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=_FRAME_RGB, width=max(1, round(min(image.size) / 200)))
