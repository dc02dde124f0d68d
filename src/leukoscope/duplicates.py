"""Find images that show one picture: identical pixels, or near-duplicates that were re-encoded, turned or taken again.

They are compared by what `picture_key` keeps of each image (3 KB), so a data set of any size needs one pass over its
files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from leukoscope.data.images import foreground, pixel_hash
from leukoscope.inference.prediction import VIEWS, turned

SMALL_SIDE = 32
# The perceptual hash: which of the lowest 16 × 16 frequencies but the mean are above their median (after Zauner 2010,
# "Implementation and benchmarking of perceptual image hash functions"). The usual 8 × 8 cannot tell cells on black
# apart: all are round. JPEG at quality 50 of a picture at half its size moves at most 18 of these 255 bits.
HASH_SIDE = 16
HASH_DISTANCE = 32
# Two pictures are near-duplicates when, at 32 × 32 and over the pixels where either shows a cell, they differ by at
# most this many grey levels (root mean square) and correlate. Of 7,779 C-NMC cells 903 pairs do; by chance, none would.
SAME_DIFFERENCE = 5.0
SAME_CORRELATION = 0.9
_ROWS_AT_ONCE, _PAIRS_AT_ONCE = 512, 4096
_LUMA = np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


class PictureKey(NamedTuple):
    """What the copies of an image have in common."""

    pixels: str  # hash of its size and all its pixels, equal however the file is stored
    small: np.ndarray  # (32, 32, 3) uint8, the whole image reduced


class Duplicate(NamedTuple):
    """Two rows that show one picture."""

    first: int
    second: int
    identical: bool
    difference: float = 0.0  # root mean square, in grey levels of 0–255
    turned: bool = False  # the second matches only after a turn by right angles or a flip


def picture_key(image: Image.Image) -> PictureKey:
    """Compute the key of a decoded RGB image."""
    small = image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.BOX)
    return PictureKey(pixel_hash(image), np.asarray(small))


def find_duplicates(keys: Sequence[PictureKey]) -> list[Duplicate]:
    """Find all duplicates among N images, identical ones first.

    The first of identical images is paired with each of the others, and alone is compared with different images.
    """
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key.pixels].append(row)
    identical = [Duplicate(rows[0], other, True) for rows in rows_of.values() for other in rows[1:]]
    alone = [rows[0] for rows in rows_of.values()]
    if len(alone) < 2:
        return identical
    pictures = np.stack([keys[row].small for row in alone])
    near: dict[tuple[int, int], Duplicate] = {}
    upright = _hashes(pictures)
    for view in range(VIEWS):
        for first, second in _similar_hashes(upright, _hashes(turned(pictures, view)) if view else upright):
            differences, correlations = _compare(pictures[first], turned(pictures[second], view))
            same = (differences <= SAME_DIFFERENCE) & (correlations >= SAME_CORRELATION)
            for i, j, difference in zip(first[same], second[same], differences[same], strict=True):
                duplicate = Duplicate(alone[i], alone[j], False, float(difference), view > 0)
                near[i, j] = min(near.get((i, j), duplicate), duplicate, key=lambda d: d.difference)
    return [*identical, *near.values()]


def _hashes(pictures: np.ndarray) -> np.ndarray:
    """(N, 4) uint64: the perceptual hash of each (S, S, 3) picture."""
    frequencies = dctn(pictures @ _LUMA, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE].reshape(len(pictures), -1)
    frequencies[:, 0] = -np.inf
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)


def _similar_hashes(ones: np.ndarray, others: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (i, j), i < j, whose hashes differ in few bits; some thousand pairs at a time, to bound the memory."""
    for start in range(0, len(ones), _ROWS_AT_ONCE):
        block, rest = ones[start : start + _ROWS_AT_ONCE], others[start:]
        distance = np.zeros((len(block), len(rest)), dtype=np.uint16)
        for word in range(ones.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ rest[None, :, word])
        first, second = np.nonzero(distance <= HASH_DISTANCE)
        later = np.flatnonzero(first < second)
        for some in range(0, len(later), _PAIRS_AT_ONCE):
            chosen = later[some : some + _PAIRS_AT_ONCE]
            yield first[chosen] + start, second[chosen] + start


def _compare(ones: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference in grey levels and correlation of M pairs of (S, S, 3) pictures, where either shows a cell."""
    cell = foreground(ones) | foreground(others)
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
