"""Out-of-distribution (OOD) detection: does a picture look like the cells a release was trained on?

A classifier gives every picture a class, a blank slide included. The detector compares 22 statistics of the framed
pixels (colour, texture, shape) with those of the training cells. It needs no network, so its limit can be taken from
subjects that nothing was fitted on, and it costs less than a hundredth of a prediction. Our own code because libraries
such as pytorch-ood score a network's features or logits: on C-NMC 2019 this detector refuses white cells of other
laboratories at more than twice the limit, and distances in the network's last features let some of them pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from leukoscope import DataError, ReleaseError
from leukoscope.data.images import BACKGROUND_LEVEL, foreground
from leukoscope.files import atomic_file, disk_errors
from leukoscope.models.release import read_arrays

OOD_METHOD = (
    "Mahalanobis distance of 22 statistics of the framed pixels (mean, deviation, skewness and correlation of the "
    "optical densities; differences between neighbouring pixels; size, outline and place of the cell, share and "
    "outline of its dark part), every subject weighing the same"
)
KEPT_SHARE = 0.98
"""Share of the cells of held-out subjects that lie within the limit, every subject weighing the same."""
OOD_FOLDS = 10
MIN_CELLS = 50
MIN_SUBJECTS = 2
STATISTIC_GROUPS = {"colour": slice(0, 12), "texture": slice(12, 15), "shape": slice(15, 22)}
NUM_STATISTICS = 22
_GRID = 48
"""A picture is sampled at about this many points a side, on four grids, each half a step from the others.

On one grid, of 300 cells of C-NMC moved by a pixel or turned, 13 were refused in one placing and 3 in all; the mean of
four is 5 and 4.
"""
_FEWEST = 20  # points, of which a cell's statistics are taken
_EMPTY = -10.0  # every statistic of a picture without as many
_SHRINKAGE = 0.01  # added to the correlation matrix: axes along which training cells hardly vary may not decide alone
_LEAST_DEVIATION = 0.01
_OPTICAL_DENSITY = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


def picture_statistics(pixels: np.ndarray) -> np.ndarray:
    """Measure colour, texture and shape of what is brighter than black.

    (S, S, 3) uint8, framed for the network → (22,) float32, in the order of `STATISTIC_GROUPS`.
    """
    step = max(1, round(len(pixels) / _GRID))
    bright = foreground(pixels)
    starts = sorted({0, step // 2})
    grids = []
    for down in starts:
        for across in starts:
            statistics = _grid_statistics(pixels[down:, across:], bright[down::step, across::step], step)
            if statistics is None:
                return np.full(NUM_STATISTICS, _EMPTY, np.float32)
            grids.append(statistics)
    return np.mean(grids, axis=0)


def _grid_statistics(pixels: np.ndarray, cell: np.ndarray, step: int) -> np.ndarray | None:
    """The statistics of every `step`-th pixel of (H, W, 3) uint8; None where too few of them are of the cell."""
    points = pixels[::step, ::step]
    count = int(np.count_nonzero(cell))
    if count < _FEWEST:
        return None

    density = _OPTICAL_DENSITY[points[cell]].T.copy()
    mean = density.mean(axis=1)
    centred = density - mean[:, None]
    # Not `@`: the threads of numpy's matrix library stay busy for tens of milliseconds afterwards, on the cores that
    # the network needs for the next batch (a seventh of the predictions per second on two cores).
    covariance = np.einsum("in,jn->ij", centred, centred) / count
    deviation = np.sqrt(covariance.diagonal()) + 1e-3
    standard = centred / deviation[:, None]
    skewness = (standard * standard * standard).mean(axis=1)  # numpy's `** 3` calls pow for every point
    correlation = covariance / deviation / deviation[:, None]

    green = pixels[..., 1]
    texture = []
    for apart in (1, 2, 4):
        neighbour = green[::step, apart::step]
        width = neighbour.shape[1]
        both = cell[:, :width] & (neighbour > BACKGROUND_LEVEL)
        change = _OPTICAL_DENSITY[neighbour[both]] - _OPTICAL_DENSITY[green[::step, ::step][:, :width][both]]
        if len(change):
            texture.append(np.log(np.abs(change).mean() + 1e-3))
        else:
            texture.append(0.0)

    dark = np.zeros_like(cell)
    dark[cell] = density[1] > mean[1]  # of a cell mostly its nucleus
    nucleus = max(1, int(np.count_nonzero(dark)))
    across, down = ((np.arange(edge) + 0.5) / edge for edge in reversed(cell.shape))
    in_row = cell.sum(axis=1)
    in_column = cell.sum(axis=0)
    y = (in_row * down).sum() / count
    x = (in_column * across).sum() / count
    var_y = (in_row * (down - y) ** 2).sum() / count
    var_x = (in_column * (across - x) ** 2).sum() / count
    both_ways = np.einsum("y,yx,x->", down - y, cell, across - x) / count
    spread = 2 * np.hypot((var_y - var_x) / 2, both_ways)
    border = sum(float(edge.mean()) for edge in (points[0], points[-1], points[:, 0], points[:, -1])) / 1020
    shape = [
        np.log(count / cell.size),
        nucleus / count,
        np.log(_perimeter(dark) ** 2 / nucleus + 1),
        np.log(_perimeter(cell) ** 2 / count + 1),
        np.log((var_y + var_x + spread) / max(var_y + var_x - spread, 1e-6)),
        np.hypot(y - 0.5, x - 0.5),
        border,
    ]
    correlations = (correlation[0, 1], correlation[0, 2], correlation[1, 2])
    return np.array([*mean, *np.log(deviation), *skewness, *correlations, *texture, *shape], np.float32)


def _perimeter(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask[1:] != mask[:-1]) + np.count_nonzero(mask[:, 1:] != mask[:, :-1]))


@dataclass(frozen=True)
class OodDetector:
    """A Gaussian over `picture_statistics`, and the largest distance in distribution.

    Attributes:
        mean, deviation: (22,) float32, of the training cells, every subject weighing the same.
        correlation: (22, 22) float32, of the statistics, shrunk.
        limit: () float32, the largest distance of a picture that is in distribution.
    """

    mean: np.ndarray
    deviation: np.ndarray
    correlation: np.ndarray
    limit: np.ndarray

    @cached_property
    def _inverse(self) -> np.ndarray:
        return np.linalg.inv(self.correlation.astype(np.float64))

    def distances(self, statistics: np.ndarray) -> np.ndarray:
        """(B, 22) → (B,) float64 Mahalanobis distances, ≥ 0."""
        standard = (statistics - self.mean) / self.deviation
        return np.asarray(np.sqrt(np.einsum("bi,ij,bj->b", standard, self._inverse, standard)))

    def scores(self, pixels: np.ndarray) -> np.ndarray:
        """(B, S, S, 3) uint8 → (B,) float32, the distance over the limit: above 1 is out of distribution."""
        statistics = np.stack([picture_statistics(picture) for picture in pixels])
        return (self.distances(statistics) / self.limit).astype(np.float32)

    def farthest_group(self, pixels: np.ndarray) -> str:
        """Return which of `STATISTIC_GROUPS` sets a picture (S, S, 3) apart most, for its number of statistics.

        Compared are the Mahalanobis distances of each group's statistics, over the square root of their number.
        """
        standard = (picture_statistics(pixels) - self.mean) / self.deviation
        distances = {}
        for name, columns in STATISTIC_GROUPS.items():
            inverse = np.linalg.inv(self.correlation[columns, columns].astype(np.float64))
            squared = np.einsum("i,ij,j->", standard[columns], inverse, standard[columns])
            distances[name] = float(np.sqrt(squared / len(inverse)))
        return max(distances, key=distances.__getitem__)

    def save(self, path: Path) -> Path:
        """Write ood.safetensors, whole or not at all; an error where the disk refuses."""
        metadata = {"format": "pt", "method": OOD_METHOD, "kept_share": str(KEPT_SHARE)}
        arrays = {field.name: np.array(getattr(self, field.name), np.float32, order="C") for field in fields(self)}
        problem = f"{path}: cannot be written there"
        with disk_errors(problem, "check who may write there"), atomic_file(path) as temporary:
            save_file(arrays, temporary, metadata)
            temporary.chmod(0o644)  # safetensors leaves the file readable by its owner alone
        return path

    @classmethod
    def load(cls, path: Path) -> OodDetector:
        """Read what `save` wrote; an error for a missing or damaged file."""
        shapes = {
            "mean": (NUM_STATISTICS,),
            "deviation": (NUM_STATISTICS,),
            "correlation": (NUM_STATISTICS,) * 2,
            "limit": (),
        }
        arrays = {name: array.astype(np.float32) for name, array in read_arrays(path).items()}
        same_shapes = {name: array.shape for name, array in arrays.items()} == shapes
        if not same_shapes or not _can_measure(cls(**arrays)):
            raise ReleaseError(f"{path}: is not an OOD detector or is damaged; restore it")
        return cls(**arrays)


def _can_measure(detector: OodDetector) -> bool:
    """Whether distances are finite, and can exceed the limit."""
    if not all(np.isfinite(getattr(detector, field.name)).all() for field in fields(detector)):
        return False
    smallest = np.linalg.eigvalsh(detector.correlation.astype(np.float64))[0]
    return bool(min(detector.deviation.min(), detector.limit, smallest) > 0)


def fit_detector(statistics: np.ndarray, subjects: Sequence[str]) -> tuple[OodDetector, np.ndarray]:
    """Fit a detector on training cells, with a limit that 98 % of the cells of held-out subjects lie within.

    The limit is cross-fitted, since distances of a detector's own cells are too short: each fold's cells are measured
    by a detector fitted on the other subjects. Their scores are relative to a limit that the distances of the other
    folds' cells set, so that no cell sets a limit for itself.

    Args:
        statistics: (N, 22), `picture_statistics` of the training cells.
        subjects: (N,) subject of each cell, or its block where subjects are unknown.

    Returns:
        The detector fitted on all cells, and each cell's OOD score (N,) float32 by distances and limit of other folds.

    Raises:
        DataError: too few cells or subjects.
    """
    from sklearn.model_selection import GroupKFold  # not at the top: it would slow the first prediction down

    names, of, counts = np.unique(np.asarray(subjects), return_inverse=True, return_counts=True)
    if len(statistics) < MIN_CELLS or len(names) < MIN_SUBJECTS:
        raise DataError(
            f"OOD detector: {len(statistics)} cells of {len(names)} subject(s) are too few to fit it; "
            f"give at least {MIN_CELLS} cells of {MIN_SUBJECTS} subjects"
        )
    weights = 1 / counts[of]
    folds = list(GroupKFold(min(OOD_FOLDS, len(names))).split(statistics, groups=of))
    distances = np.empty(len(statistics))
    scores = np.empty(len(statistics), np.float32)
    for others, held_out in folds:
        distances[held_out] = _fit_gaussian(statistics[others], weights[others]).distances(statistics[held_out])
    for others, held_out in folds:
        scores[held_out] = distances[held_out] / _limit(distances[others], weights[others])
    return _fit_gaussian(statistics, weights, _limit(distances, weights)), scores


def _limit(distances: np.ndarray, weights: np.ndarray) -> float:
    """The distance that `KEPT_SHARE` of the weight lies within."""
    order = np.argsort(distances)
    reached = np.cumsum(weights[order]) >= KEPT_SHARE * weights.sum() * (1 - 1e-12)
    # Copies of one picture lie at distance 0 from each other, and a limit of 0 could not be divided by.
    return max(float(distances[order][reached.argmax()]), 1e-6)


def _fit_gaussian(statistics: np.ndarray, weights: np.ndarray, limit: float = np.inf) -> OodDetector:
    mean = np.average(statistics, axis=0, weights=weights)
    deviation = np.sqrt(np.average((statistics - mean) ** 2, axis=0, weights=weights)).clip(_LEAST_DEVIATION)
    standard = (statistics - mean) / deviation
    correlation = np.einsum("n,ni,nj->ij", weights / weights.sum(), standard, standard)
    # A statistic that hardly varies (the border of cells on black) has its least deviation, not none.
    np.fill_diagonal(correlation, 1)
    return OodDetector(
        mean=mean.astype(np.float32),
        deviation=deviation.astype(np.float32),
        correlation=(correlation + _SHRINKAGE * np.eye(NUM_STATISTICS)).astype(np.float32),
        limit=np.asarray(limit, np.float32),
    )
