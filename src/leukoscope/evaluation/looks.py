"""One look at every picture of a data set: all that an audit needs of it, in a few kilobytes.

Each file is decoded once, whatever is asked of it later: copies, odd pictures, sizes, trivial features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope.cells.images import BACKGROUND_LEVEL, UnreadableImage, cell_areas, open_encoded
from leukoscope.cells.loading import LoadedCells
from leukoscope.evaluation.duplicates import PictureKey, picture_key
from leukoscope.evaluation.shortcuts import trivial_features

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

# Side in pixels at which sizes, colours and corners are measured; a scale bar's strokes are still seen.
FEATURE_SIDE = 112
# Standard deviation in grey levels below which a picture shows nothing, and the largest distance between its channels
# at which it counts as grey: what JPEG leaves of a truly blank or grey picture stays below both.
BLANK_SPREAD = 3.0
GREY_DISTANCE = 3
# A cell cut out on black reaches the picture's border when more than this share of the border's pixels belong to it:
# two pixels may be noise of the encoding.
BORDER_SHARE = 0.005
ODDITIES = {
    "blank": "shows nothing: all pixels are nearly alike",
    "grey": "has no colour",
    "cut off": "the cell reaches the border of the picture",
    "size": "differs in width or height from nearly all others",
}


@dataclass(frozen=True)
class Look:
    """What is kept of one picture.

    Attributes:
        size: (width, height) in pixels.
        features: name → (D,), see `trivial_features`.
        area: the share of the picture that the cell covers, None where cells are not cut out on black.
        oddities: keys of `ODDITIES`.
    """

    key: PictureKey
    size: tuple[int, int]
    features: Mapping[str, np.ndarray]
    area: float | None
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class SeenCells:
    """A data set less its damaged pictures, and one look a cell, in the order of `rows`."""

    data: LoadedCells
    looks: Sequence[Look]

    @cached_property
    def rows(self) -> Dataset:
        """Every cell, the publisher's test set after the others; `image` undecoded."""
        from datasets import Image as ImageFeature
        from datasets import concatenate_datasets

        return concatenate_datasets(list(self.data.cells.values())).cast_column("image", ImageFeature(decode=False))


def look_at_cells(data: LoadedCells, *, progress: Callable[[int, int], None] | None = None) -> SeenCells:
    """Open every picture once.

    Args:
        progress: called with (done, total) after each picture.
    """
    rows = SeenCells(data, ()).rows
    ids = rows["cell_id"][:]

    def look(row: int) -> Look | str:
        try:
            return look_at(open_cell(rows[row]), data.info.background)
        except UnreadableImage as error:
            return str(error)

    looks, problems = [], {}
    with ThreadPoolExecutor() as pool:
        for row, seen in enumerate(pool.map(look, range(len(ids)))):
            if isinstance(seen, str):
                problems[ids[row]] = seen
            else:
                looks.append(seen)
            if progress:
                progress(row + 1, len(ids))
    return SeenCells(data.without(problems), looks)


def open_cell(row: Mapping[str, Any]) -> Image:
    """The picture of one of `SeenCells.rows`."""
    return open_encoded(row["image"], row["cell_id"])


def look_at(image: Image, background: Any) -> Look:
    """Take from a decoded RGB picture all that an audit needs of it."""
    from PIL.Image import Resampling

    small = np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE), Resampling.BOX))
    features = {name: values[0] for name, values in trivial_features([small], background).items()}
    area = float(cell_areas([small])[0]) if background == "black" else None
    oddities = tuple(_oddities(np.asarray(image), small, background))
    return Look(picture_key(image), image.size, features, area, oddities)


def _oddities(pixels: np.ndarray, small: np.ndarray, background: str) -> Iterable[str]:
    """Keys of `ODDITIES`, from the pixels of a picture and from those of its reduction."""
    if small.std(axis=(0, 1)).max() < BLANK_SPREAD:
        yield "blank"
        return
    if np.ptp(small, axis=2).max() <= GREY_DISTANCE:
        yield "grey"
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    if background == "black" and (border.max(axis=1) > BACKGROUND_LEVEL).mean() > BORDER_SHARE:
        yield "cut off"
