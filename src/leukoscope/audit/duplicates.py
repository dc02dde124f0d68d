"""Find duplicate images: pixel-identical copies, and near-duplicates that were re-encoded, turned or taken anew.

A copy on both sides of a split leaks the label of a test cell. `find_duplicates` works on what `picture_key` keeps of
each image (3 KB), so a data set of any size is compared in one pass over its files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from leukoscope.data.framing import BACKGROUND_LEVEL
from leukoscope.data.images import pixel_hash
from leukoscope.inference.predictor import VIEWS, turned

if TYPE_CHECKING:
    from PIL.Image import Image

SMALL_SIDE = 32
# The perceptual hash: which of the lowest 16 × 16 frequencies but the mean are above their median (after Zauner 2010,
# "Implementation and benchmarking of perceptual image hash functions"). 8 × 8, as it is mostly used, cannot tell cells
# on black apart: all are round. JPEG at quality 50 of a picture at half its size moves at most 18 of these 255 bits.
HASH_SIDE = 16
HASH_DISTANCE = 32
# Two pictures count as one when, at 32 × 32 and over the pixels where either shows a cell, they differ by at most this
# many grey levels (root mean square) and correlate. On 7,779 C-NMC cells, 903 pairs do as they lie and not one after a
# turn or a flip of either, which is how often chance would produce them.
SAME_DIFFERENCE = 5.0
SAME_CORRELATION = 0.9
_ROWS_AT_ONCE = 512
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class PictureKey:
    """What copies of an image are found by.

    Attributes:
        pixels: hash of all its pixels and its size; equal for identical pictures, however they are stored.
        small: (32, 32, 3) uint8, the whole picture reduced.
    """

    pixels: str
    small: np.ndarray


@dataclass(frozen=True)
class Duplicate:
    """Two rows that show one picture.

    Attributes:
        difference: root mean square, in grey levels of 0–255; 0 for identical pixels.
        turned: the second matches only after a turn by right angles or a flip.
    """

    first: int
    second: int
    identical: bool
    difference: float = 0.0
    turned: bool = False


def picture_key(image: Image) -> PictureKey:
    """Compute from a decoded RGB image what its copies are found by."""
    from PIL.Image import Resampling

    small = image.resize((SMALL_SIDE, SMALL_SIDE), Resampling.BOX)
    return PictureKey(pixel_hash(image), np.asarray(small))


def find_duplicates(keys: Sequence[PictureKey]) -> list[Duplicate]:
    """Find all duplicates among N images, identical ones first, each by its row.

    Of n identical pictures the first is paired with each other; only it takes part in the search for near-duplicates.
    """
    same: defaultdict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        same[key.pixels].append(row)
    identical = [Duplicate(rows[0], other, True) for rows in same.values() for other in rows[1:]]
    alone = np.asarray([rows[0] for rows in same.values()], dtype=np.int64)
    return identical + list(_near_duplicates(alone, [keys[row].small for row in alone.tolist()]))


def _near_duplicates(rows: np.ndarray, smalls: Sequence[np.ndarray]) -> Iterator[Duplicate]:
    if len(rows) < 2:
        return
    pictures = np.stack(smalls)
    found: dict[tuple[int, int], Duplicate] = {}
    upright = _hashes(pictures)
    for view in range(VIEWS):
        for first, second in _similar_hashes(upright, _hashes(turned(pictures, view)) if view else upright):
            differences, correlations = _compare(pictures[first], turned(pictures[second], view))
            same = (differences <= SAME_DIFFERENCE) & (correlations >= SAME_CORRELATION)
            for i, j, difference in zip(first[same], second[same], differences[same], strict=True):
                duplicate = Duplicate(int(rows[i]), int(rows[j]), False, float(difference), view > 0)
                known = found.get((i, j), duplicate)
                found[i, j] = min(known, duplicate, key=lambda d: d.difference)
    yield from found.values()


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: the perceptual hash of each (S, S, 3) picture."""
    from scipy.fft import dctn

    frequencies = dctn(pictures @ _LUMA, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(pictures), -1)
    frequencies[:, 0] = -np.inf
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)


def _similar_hashes(ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (i, j), i < j, whose hashes differ in few bits; some hundred rows i at a time, to bound the memory."""
    for start in range(0, len(ones), _ROWS_AT_ONCE):
        block, rest = ones[start : start + _ROWS_AT_ONCE], others[start:]
        distance = np.zeros((len(block), len(rest)), dtype=np.uint16)
        for word in range(ones.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ rest[None, :, word])
        first, second = np.nonzero(distance <= HASH_DISTANCE)
        later = first < second
        yield first[later] + start, second[later] + start


def _compare(ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference in grey levels and correlation of M pairs of (S, S, 3) pictures, where either shows a cell."""
    cell = (ones.max(axis=3) > BACKGROUND_LEVEL) | (others.max(axis=3) > BACKGROUND_LEVEL)
    count = np.maximum(cell.sum(axis=(1, 2)), 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (values * cell).sum(axis=(1, 2)) / count

    squares = mean(((ones.astype(np.float32) - others) ** 2).mean(axis=3))
    a, b = ones @ _LUMA, others @ _LUMA
    a, b = a - mean(a)[:, None, None], b - mean(b)[:, None, None]
    spread = np.sqrt(mean(a * a) * mean(b * b))
    # Two pictures without any structure agree in nothing that could be compared.
    correlation = np.divide(mean(a * b), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.sqrt(squares), correlation


def linked(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Join pairs of names into groups, each sorted, the largest first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.asarray(sorted(set(pairs))).reshape(-1, 2)
    names, index = np.unique(ends, return_inverse=True)
    index = index.reshape(-1, 2)
    links = coo_array((np.ones(len(index)), (index[:, 0], index[:, 1])), shape=(len(names), len(names)))
    count, component = connected_components(links, directed=False)
    groups = [names[component == k].tolist() for k in range(count)]
    return sorted(groups, key=lambda group: (-len(group), group))
