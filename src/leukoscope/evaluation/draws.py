"""One drawing of subjects, or of cells, that every interval of a set of answers is computed from.

Cells of one subject resemble each other, so the subject is what a new hospital brings more of, and what is drawn;
drawing cells instead shows how narrow a naive interval is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from leukoscope import LeukoscopeError
from leukoscope.evaluation.metrics import CellPredictions

Interval: TypeAlias = dict[str, float]
DRAWS = 2000
LEVEL = 0.95
# So many draws at a time: a few MB for 10,000 cells, whatever the number of draws.
_CHUNK = 64


@dataclass(frozen=True)
class Draws:
    """D samples, with replacement and within each class, of the units (subjects or cells) that answers come from.

    Attributes:
        unit_of_cell: (N,) int, the unit each cell belongs to.
        classes: (U,) int, the class a unit is drawn within: that of most of its cells.
        counts: (D, U) int16, how often each unit is in each sample.
        of_subjects: units are subjects, not single cells.
    """

    unit_of_cell: np.ndarray
    classes: np.ndarray
    counts: np.ndarray
    of_subjects: bool = True

    def chunks(self) -> Iterator[np.ndarray]:
        """The counts as (d, U) floats, a few draws at a time."""
        for first in range(0, len(self.counts), _CHUNK):
            yield self.counts[first : first + _CHUNK].astype(float)

    def cell_weights(self) -> Iterator[np.ndarray]:
        """(d, N) floats, how often each cell is in each sample, a few draws at a time."""
        for counts in self.chunks():
            yield counts[:, self.unit_of_cell]

    def sums(self, per_cell: np.ndarray) -> np.ndarray:
        """Sum a quantity over the cells of each sample.

        Args:
            per_cell: (N,) or (N, F).

        Returns:
            (D,) or (D, F).
        """
        per_unit = np.zeros((len(self.classes), *per_cell.shape[1:]))
        np.add.at(per_unit, self.unit_of_cell, per_cell)
        return np.concatenate([counts @ per_unit for counts in self.chunks()])

    def means(self, per_cell: np.ndarray) -> np.ndarray:
        """The mean of a quantity over the cells of each sample; shapes as for `sums`."""
        cells = self.sums(np.ones(len(self.unit_of_cell)))
        return self.sums(per_cell) / cells.reshape(-1, *(1,) * (per_cell.ndim - 1))

    def auroc(self, scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Area under the ROC curve in each sample.

        Args:
            scores, positive: (N,) float and bool, one a cell.
            weights: (N,) of the cells; None weighs all the same.

        Returns:
            (D,), 0–1; NaN for a sample without positive or negative cells.
        """
        won, pairs = self._pairs(scores, positive, np.ones(len(scores)) if weights is None else weights)
        with np.errstate(invalid="ignore"):
            return won / pairs

    def auroc_within(self, scores: np.ndarray, positive: np.ndarray, strata: np.ndarray) -> np.ndarray:
        """Area under the ROC curve within strata, weighted by their numbers of pairs, in each sample.

        Args:
            scores, positive: (N,) float and bool, one a cell.
            strata: (N,) int, which stratum a cell belongs to.

        Returns:
            (D,), 0–1; NaN for a sample in which no stratum has positive and negative cells.
        """
        won, pairs = np.zeros(len(self.counts)), np.zeros(len(self.counts))
        for stratum in np.unique(strata):
            rows = strata == stratum
            here = replace(self, unit_of_cell=self.unit_of_cell[rows])
            more = here._pairs(scores[rows], positive[rows], np.ones(int(rows.sum())))
            won, pairs = won + more[0], pairs + more[1]
        with np.errstate(invalid="ignore"):
            return won / pairs

    def _pairs(self, scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(D,) each: the weight of the positive–negative pairs ranked right (ties half), and of all pairs.

        Weighted Mann–Whitney: cells are ranked once, and each sample only changes how much they weigh.
        """
        order = np.argsort(scores, kind="stable")
        ranked, is_positive, unit, base = scores[order], positive[order], self.unit_of_cell[order], weights[order]
        negatives = ranked[~is_positive]
        below = np.searchsorted(negatives, ranked[is_positive], side="left")
        up_to = np.searchsorted(negatives, ranked[is_positive], side="right")
        won, pairs = [], []
        for counts in self.chunks():
            beaten = np.zeros((len(counts), len(negatives) + 1))
            np.cumsum(counts[:, unit[~is_positive]] * base[~is_positive], axis=1, out=beaten[:, 1:])
            own = counts[:, unit[is_positive]] * base[is_positive]
            won.append((own * (beaten[:, below] + beaten[:, up_to])).sum(axis=1) / 2)
            pairs.append(own.sum(axis=1) * beaten[:, -1])
        return np.concatenate(won), np.concatenate(pairs)

    def interval(self, values: np.ndarray, *, level: float = LEVEL, of_class: int | None = None) -> Interval:
        """The interval of a figure from its value in each sample.

        A plain percentile interval is too narrow where a class has few units, so its tails are widened as Hesterberg
        (2015, doi:10.1080/00031305.2015.1089789) proposes, by √(n/(n-1)) and Student's t for the n units of the class
        (of the smallest one, when a figure rests on all). In simulations like C-NMC, 32 subjects beside 16 of very
        unequal size, nominal 95 % then cover about 93 %, plain percentiles 90 %. No widening helps beyond the extremes
        of the samples: with 3 subjects in a class, its recall is covered only three times in four; and a
        figure that is the same in all samples, such as a recall of 1, gets an interval without width.

        Args:
            values: (D,); samples where the figure is not defined (NaN) are left out.
            of_class: the class whose units alone decide the figure.
        """
        units = np.bincount(self.classes)
        own = units[of_class] if of_class is not None and of_class < len(units) else 0
        tail = _expanded_tail(level, int(own or units[units > 0].min()))
        low, high = np.nanquantile(values, [tail, 1 - tail])
        return {"low": float(low), "high": float(high)}

    def once(self) -> Draws:
        """The one sample that holds every unit once: what point estimates are computed from."""
        return replace(self, counts=np.ones((1, len(self.classes)), dtype=np.int16))


def subject_draws(answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draw subjects with replacement within their class.

    Raises:
        LeukoscopeError: cells of unknown subject, or a class with a single one.
    """
    if "" in answers.subjects:
        cell = answers.cell_ids[answers.subjects.index("")]
        raise LeukoscopeError(
            f"cell {cell}: its subject is not known; intervals by subject need a subject id for every cell "
            "(for class folders: --subject_pattern or --subject_csv)"
        )
    names, unit_of_cell = np.unique(answers.subjects, return_inverse=True)
    cells = np.zeros((len(names), len(answers.label_names)), dtype=int)
    np.add.at(cells, (unit_of_cell, answers.references), 1)
    classes = cells.argmax(axis=1)
    for k, count in enumerate(np.bincount(classes)):
        if count == 1:
            raise LeukoscopeError(
                f"class {answers.label_names[k]}: only subject {names[classes == k][0]} has it; "
                "intervals by subject need two or more subjects a class"
            )
    return Draws(unit_of_cell, classes, _resampled(classes, draws, seed))


def cell_draws(answers: CellPredictions, *, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draw cells with replacement within their class, as if no two came from one subject."""
    classes = np.asarray(answers.references)
    return Draws(np.arange(len(classes)), classes, _resampled(classes, draws, seed), of_subjects=False)


def _resampled(classes: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = np.zeros((draws, len(classes)), dtype=np.int16)
    for k in np.unique(classes):
        units = np.flatnonzero(classes == k)
        for first in range(0, draws, _CHUNK):
            rows = min(_CHUNK, draws - first)
            picked = rng.integers(len(units), size=(rows, len(units))) + len(units) * np.arange(rows)[:, None]
            drawn = np.bincount(picked.ravel(), minlength=rows * len(units)).reshape(rows, -1)
            counts[first : first + rows, units] = drawn
    return counts


def _expanded_tail(level: float, units: int) -> float:
    """The quantile that stands for (1 - level)/2 with so few units; see `Draws.interval`."""
    from scipy.stats import norm, t

    if units < 2:
        return 0.0
    return float(norm.cdf(np.sqrt(units / (units - 1)) * t.ppf((1 - level) / 2, units - 1)))
