"""The input guard: how familiar a picture looks to a release, told from the features that also give its answer.

A classifier answers anything, a blank slide included. The guard is fitted on the features of the cells a release knows
and travels with it as guard.safetensors; the predictor asks it with the one feature map it has computed anyway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.models.release_files import read_arrays

METHOD = (
    "Mahalanobis distance of the pooled features, scaled to unit length (Lee et al. 2018, "
    "doi:10.48550/arXiv.1807.03888; Müller & Hein 2025, doi:10.48550/arXiv.2505.18032), with a probabilistic PCA "
    "as covariance (Tipping & Bishop 1999, doi:10.1111/1467-9868.00196)"
)
KEPT_SHARE = 0.98
FOLDS = 10
MIN_CELLS, MIN_SUBJECTS = 50, 2
# On C-NMC with DenseNet121, 16 axes miss a tenth of mildly blurred cells and 64 one in fifty; twice as many change
# little and double the file.
MAX_DIMENSION = 64
CELLS_PER_AXIS = 10


@dataclass(frozen=True)
class Guard:
    """A Gaussian over unit-length features, and how far from it a picture may lie.

    The covariance has `spread` along a few axes and one variance, `rest`, in every other direction: what known cells
    never do (noise, edges, print) shows in those. Two common companions are left out, as they added nothing on real
    cells: one Gaussian a class, and the energy score (Liu et al. 2020, doi:10.48550/arXiv.2010.03759), which ranked
    fields of view above true cells. Without the logits, the guard stands whatever temperature is folded into them.

    Attributes:
        mean: (C,) float32, centre of the known cells' unit-length features.
        axes: (D, C) float32, orthonormal directions in which they vary most.
        spread: (D,) float32, their variance along each axis.
        rest: () float32, their variance in every direction beyond the axes.
        limit: () float32, the largest distance of a picture that is recognised.
    """

    mean: np.ndarray
    axes: np.ndarray
    spread: np.ndarray
    rest: np.ndarray
    limit: np.ndarray

    def distances(self, pooled: np.ndarray) -> np.ndarray:
        """(B, C) pooled features → (B,) float32 Mahalanobis distances, ≥ 0."""
        centred = _unit_length(pooled.astype(np.float32)) - self.mean
        # Not `@`: the threads of numpy's matrix library go on spinning for tens of milliseconds, on the cores that the
        # network needs for the next batch (a seventh of all answers a second on two cores).
        along = np.square(np.einsum("bc,dc->bd", centred, self.axes, dtype=np.float64))
        beyond = np.maximum(np.square(centred).sum(axis=1) - along.sum(axis=1), 0)
        return np.sqrt((along / self.spread).sum(axis=1) + beyond / self.rest).astype(np.float32)

    def scores(self, pooled: np.ndarray) -> np.ndarray:
        """(B, C) pooled features → (B,) float32 familiarity, at most 1; below 0 beyond the limit."""
        return 1 - self.distances(pooled) / self.limit

    def save(self, path: Path) -> Path:
        """Write guard.safetensors, whole or not at all.

        Raises:
            LeukoscopeError: the disk refuses.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        about = {"format": "pt", "method": METHOD, "kept_share": str(KEPT_SHARE)}
        try:
            save_file({name: np.array(array, order="C") for name, array in self._arrays().items()}, aside, about)
            aside.chmod(0o644)  # safetensors leaves the file readable by its owner alone
            return aside.replace(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LeukoscopeError(f"{path}: the guard cannot be written there ({reason}); free some space") from None
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, width: int) -> Guard:
        """Read what `save` wrote.

        Args:
            width: number of features of the network it is to guard.

        Raises:
            LeukoscopeError: missing or damaged file, or a guard fitted on another number of features.
        """
        arrays = read_arrays(path)
        if arrays.keys() != {field.name for field in fields(cls)}:
            found = ", ".join(sorted(arrays))
            raise LeukoscopeError(f"{path}: is no input guard (holds {found}); restore it from the release")
        guard = cls(**{name: array.astype(np.float32) for name, array in arrays.items()})
        if guard.mean.size != width:
            raise LeukoscopeError(
                f"{path}: fitted on {guard.mean.size} features, but this network has {width}; restore both from one "
                "release"
            )
        directions = guard.spread.size
        shapes = {"mean": (width,), "axes": (directions, width), "spread": (directions,), "rest": (), "limit": ()}
        wrong = [name for name, shape in shapes.items() if arrays[name].shape != shape]
        if wrong or not all(np.isfinite(array).all() for array in arrays.values()):
            raise LeukoscopeError(f"{path}: damaged ({', '.join(wrong) or 'not finite'}); restore it from the release")
        return guard

    def _arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def fit_guard(features: np.ndarray, subjects: Sequence[str]) -> tuple[Guard, np.ndarray]:
    """Fit a guard on known cells; its limit keeps 98 % of cells whose subjects the fit did not see.

    The limit is cross-fitted: the subjects are dealt into folds, and each fold's cells are measured by a guard fitted
    on the others. Distances of a guard's own cells are shorter, and would set it too tight for anyone new.

    Args:
        features: (N, C) pooled features of the known cells.
        subjects: (N,) who each cell is from, or the block it must stay with where patients are unknown.

    Returns:
        The guard fitted on all cells, and each cell's familiarity (N,) float32 as its held-out fold gave it.

    Raises:
        LeukoscopeError: too few cells or subjects.
    """
    from sklearn.model_selection import GroupKFold

    known = len(set(subjects))
    if len(features) < MIN_CELLS or known < MIN_SUBJECTS:
        raise LeukoscopeError(
            f"input guard: {len(features)} cells of {known} subject(s) are too few to fit it; "
            f"give at least {MIN_CELLS} cells of {MIN_SUBJECTS} subjects"
        )
    distances = np.empty(len(features), dtype=np.float32)
    for others, held_out in GroupKFold(min(FOLDS, known)).split(features, groups=np.asarray(subjects)):
        guard = _fit_gaussian(features[others])
        distances[held_out] = guard.distances(features[held_out])
    # Copies of one picture lie at distance 0 from each other, and a limit of 0 could not be divided by.
    limit = np.array(max(np.quantile(distances, KEPT_SHARE), 1e-6), dtype=np.float32)
    return replace(_fit_gaussian(features), limit=limit), 1 - distances / limit


def _fit_gaussian(features: np.ndarray) -> Guard:
    """A guard whose limit is still open."""
    from sklearn.decomposition import PCA

    unit = _unit_length(features.astype(np.float64))
    # With fewer cells, fewer axes: a variance taken from a handful of cells would reject the next one.
    dimension = min(MAX_DIMENSION, features.shape[1] - 1, len(features) // CELLS_PER_AXIS)
    pca = PCA(dimension, svd_solver="covariance_eigh").fit(unit)
    # Axes along which the cells at hand do not vary at all would make every distance infinite.
    least = 1e-12
    values = (pca.mean_, pca.components_, pca.explained_variance_.clip(least), max(pca.noise_variance_, least), np.inf)
    return Guard(*(np.asarray(value, dtype=np.float32) for value in values))


def _unit_length(features: np.ndarray) -> np.ndarray:
    """(B, C) rows scaled to length 1; a row of zeros stays one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
