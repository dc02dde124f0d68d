"""What the stages show, as plain data: every picture is in memory only, and travels within the page as a data URI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import TypedDict

from leukoscope.data.images import foreground, is_cut_out, is_dark, to_rgb
from leukoscope.data.smear import looks_like_smear
from leukoscope.inference.gradcam import overlay
from leukoscope.inference.prediction import Prediction, turned
from leukoscope.reports.words import data_uri, encoded
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEAR_PITCH, example_cell, example_smear

CELL_SIDE = 640  # pixels of a cell as the stage shows it
TILE_SIDE = 132
SMEAR_SIDE = 1400
OPACITY = 0.8  # of a map
FINER_MAP = 2  # how many times as large as its cell a map is drawn, so that the cell's outline has no steps
FILLS = 0.7  # share of the stage's side that a cell on black fills
FILLS_TILE = 0.88
MOST_ENLARGED = 2.2
LEAST_CELL = 0.002  # share of a picture on black that a cell covers at least
CELL_NAMES = [str(number) for number in range(1, len(EXAMPLE_CELLS) + 1)]
SMEAR_NAME = "smear"


@dataclass(frozen=True)
class Picture:
    """One picture, in memory only.

    Attributes:
        image: upright, RGB, or RGBA where parts of it are transparent.
        name: its file name, or which synthetic one it is.
        example: what the page's address calls it; "" for any other.
        um_per_pixel: its scale, where that is known.
        field_share: of a cell of a smear, the share of the smear's cells that are like the training cells.
        back: the tab that it was opened from; "" for none.
    """

    image: Image.Image
    name: str
    example: str = ""
    um_per_pixel: float | None = None
    field_share: float | None = None
    back: str = ""

    def on(self, ground: tuple[int, int, int]) -> Picture:
        """The picture in RGB, its transparent parts in this colour."""
        return replace(self, image=to_rgb(self.image, self.name, ground=ground))

    @property
    def bytes(self) -> int:
        """Of its pixels."""
        return self.image.width * self.image.height * len(self.image.getbands())

    @cached_property
    def rgb(self) -> Image.Image:
        """Its pixels on black, unless a model put them on another ground."""
        return to_rgb(self.image, self.name)

    @cached_property
    def on_black(self) -> bool:
        """Whether this is a cell cut out on black."""
        return is_cut_out(self.rgb)

    @cached_property
    def is_dark(self) -> bool:
        """Whether this is a cell on black that is shown brighter."""
        return is_dark(self.rgb, on_black=self.on_black)

    @cached_property
    def holds_no_cell(self) -> bool:
        """Whether it holds neither a cell on black nor what is stained as in a smear."""
        if self.on_black:
            return bool(foreground(np.asarray(self.rgb)).mean() < LEAST_CELL)
        return not looks_like_smear(self.rgb)

    def zoom(self, fills: float = FILLS) -> float:
        """How much a cell on black is enlarged, ≥ 1, to fill that share of the stage; other pictures are not."""
        if not self.on_black:
            return 1.0
        box = Image.fromarray(foreground(np.asarray(self.rgb))).getbbox() or (0, 0, *self.rgb.size)
        # The picture is enlarged about its centre: the farthest edge of the cell counts.
        farthest = max(abs(2 * edge / side - 1) for edge, side in zip(box, self.rgb.size * 2, strict=True))
        return min(max(fills / farthest, 1), MOST_ENLARGED)


Row = dict[str, Any]
"""What a template draws in a line."""


class Stage(TypedDict, total=False):
    """A cell as the stage shows it."""

    name: str
    picture: str
    dark: bool
    zoom: float
    back: str
    map: str
    map_label: str
    map_state: str  # "passed", "unreliable", "unchecked"; "" where there is none
    map_saved: str  # lines below a map that is saved
    map_words: str
    map_of: str  # the model whose maps passed where those of this one failed
    map_of_name: str
    tiles: list[Row]
    tiles_words: str


def full(image: Image.Image) -> str:
    """A picture as it fills the stage: with every pixel of the file, where it is no larger than the stage."""
    if max(image.size) <= CELL_SIDE:
        return data_uri("image/webp", encoded(image, "WEBP", lossless=True, quality=0, method=0))
    return small(image, CELL_SIDE, quality=92)


def small(image: Image.Image, side: int = TILE_SIDE, *, quality: int = 88) -> str:
    """A picture of at most so many pixels a side."""
    image = image.copy()
    image.thumbnail((side, side))
    return data_uri("image/webp", encoded(image, "WEBP", quality=quality, method=0))


def closer(image: Image.Image, zoom: float) -> Image.Image:
    """The middle of a picture that is enlarged so many times."""
    left = round(image.width * (1 - 1 / zoom) / 2)
    top = round(image.height * (1 - 1 / zoom) / 2)
    return image.crop((left, top, image.width - left, image.height - top))


def turned_views(image: Image.Image) -> list[Image.Image]:
    """A picture in its eight orientations, as it is first."""
    return [Image.fromarray(np.ascontiguousarray(turned(np.asarray(image)[None], view)[0])) for view in range(8)]


def map_over(picture: Picture, prediction: Prediction, label: str, finer: int = 1) -> Image.Image:
    """A class's map over its picture, `finer` times as large where that is a cell on black; all classes share a scale.

    The prediction has maps.
    """
    heats = {name: heat.evidence for name, heat in (prediction.heatmaps or {}).items()}
    peak = max(float(heat.max()) for heat in heats.values())
    image = picture.rgb.copy()
    image.thumbnail((CELL_SIDE, CELL_SIDE))
    if finer > 1 and picture.on_black:
        image = image.resize((finer * image.width, finer * image.height), Image.Resampling.BICUBIC)
    scale = image.width / picture.image.width
    left, top, right, bottom = (round(edge * scale) for edge in prediction.view_box)
    if finer == 1 or not picture.on_black:
        return overlay(image, heats[label], (left, top, right, bottom), opacity=OPACITY, peak=peak)
    # Without the frame of the view, which is a stray line on a black stage.
    view = image.crop((left, top, right, bottom))
    image.paste(overlay(view, heats[label], (0, 0, *view.size), opacity=OPACITY, peak=peak), (left, top))
    return image


@cache
def examples() -> dict[str, Picture]:
    """The synthetic cells and the synthetic smear, by name."""
    smear = Image.fromarray(example_smear())
    pictures = {SMEAR_NAME: Picture(smear, "Synthetic smear", SMEAR_NAME, um_per_pixel=EXAMPLE_SMEAR_PITCH)}
    for name, (label, column) in zip(CELL_NAMES, EXAMPLE_CELLS, strict=True):
        pictures[name] = Picture(Image.fromarray(example_cell(label, column)), f"Synthetic {label}", name)
    return pictures


def tile(image: Image.Image, picture: Picture) -> Row:
    """A form of a picture as a tile, as near as the picture itself."""
    return {"picture": small(closer(image, picture.zoom(FILLS_TILE))), "dark": picture.is_dark}


def example_tile(name: str, example: str, label: str) -> Row:
    """An example in a strip, with the picture of a synthetic cell or smear."""
    picture = examples()[example]
    return {"name": name, "label": label, **tile(picture.rgb, picture)}
