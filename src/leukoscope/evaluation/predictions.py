"""Predictions of cells: the table that every metric, calibration and threshold is computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from leukoscope import DataError
from leukoscope.files import atomic_file

# With one entry per cell
_COLUMNS = ("cell_ids", "subjects", "references", "probabilities", "areas", "pixel_hashes", "folds", "outcomes")


@dataclass(frozen=True)
class CellPredictions:
    """One prediction per cell.

    Attributes:
        cell_ids: (N,) unique ids.
        subjects: (N,) subject of each cell, or its block of neighbouring images where subjects are not published;
            "" where neither is known.
        references: (N,) int, the true class.
        probabilities: (N, K) float, rows sum to 1.
        label_names: K class names in output order.
        areas: (N,) share of its image that each cell covers; None where cells are not cut out on black.
        pixel_hashes: `pixel_hash` of each cell's decoded image; None where they were not computed.
        folds: (N,) int, the fold of a cross-validation whose network predicted the cell; None where one network
            predicted all.
        outcomes: what `leukoscope predict` answers for each cell: a class, or why there is none; None where only
            probabilities were computed.
        left_out: one line per cell that could not be predicted.
    """

    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]
    areas: np.ndarray | None = None
    pixel_hashes: tuple[str, ...] | None = None
    folds: np.ndarray | None = None
    outcomes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.cell_ids)) != len(self.cell_ids):
            twice = next(c for c in self.cell_ids if self.cell_ids.count(c) > 1)
            raise DataError(f"predictions: cell {twice} appears more than once; give one prediction per cell")
        if not len(self.cell_ids) == len(self.subjects) == len(self.references) == len(self.probabilities):
            raise DataError("predictions: ids, subjects, references and probabilities differ in length")

    def require_subjects(self, why: str) -> None:
        """Raise `LeukoscopeError` with `why` subjects are needed, where a cell's subject is not known."""
        if "" in self.subjects:
            raise DataError(
                f"cell {self.cell_ids[self.subjects.index('')]}: its subject is not known; {why}: give "
                "--subject_pattern, --subject_folders, --labels or --subject_column"
            )

    @property
    def subjects_of_class(self) -> dict[str, int]:
        """Class → how many named subjects have cells of it."""
        pairs = set(zip(self.subjects, self.references.tolist(), strict=True))
        counts = Counter(self.label_names[reference] for subject, reference in pairs if subject)
        return {name: counts[name] for name in self.label_names}

    @property
    def predicted(self) -> np.ndarray:
        """(N,) int, the most probable class."""
        return self.probabilities.argmax(axis=1)

    @property
    def subject_weights(self) -> np.ndarray | None:
        """(N,) float, 1 / (cells of the cell's subject); None where a subject is not known."""
        if "" in self.subjects:
            return None
        _, subject, cells = np.unique(self.subjects, return_inverse=True, return_counts=True)
        return 1 / cells[subject]

    @property
    def fit_weights(self) -> np.ndarray:
        """(N,) float: subjects weigh the same and, of two classes, both classes; all 1 where a subject is not known.

        With two classes, fits assume equal class frequencies; with more, those of the data.
        """
        weights = self.subject_weights
        if weights is None:
            return np.ones(len(self.cell_ids))
        if len(self.label_names) == 2:
            of_class = np.bincount(self.references, weights, minlength=2)
            weights = weights * weights.sum() / (2 * of_class[self.references])
        return weights

    @property
    def subject_classes(self) -> dict[str, int]:
        """Each subject, in the order of their names → the class of most of its cells; of equally many, the first."""
        classes = pd.crosstab(np.asarray(self.subjects), self.references).idxmax(axis=1)
        return {str(subject): int(number) for subject, number in classes.items()}

    @property
    def equal_size_strata(self) -> np.ndarray | None:
        """(N,) int, one number for each decile of the areas and fold; None where areas are not known."""
        if self.areas is None:
            return None
        edges = np.quantile(self.areas, np.linspace(0, 1, 11)[1:-1])
        deciles = np.searchsorted(edges, self.areas, side="right")
        if self.folds is None:
            return deciles
        return 10 * self.folds + deciles

    def take(self, rows: np.ndarray | Sequence[int]) -> CellPredictions:
        """Return the predictions of some rows, in the order given."""
        chosen = np.asarray(rows, dtype=int)
        return replace(self, **{name: _rows_of(getattr(self, name), chosen) for name in _COLUMNS})

    def with_labels(self, labels: Sequence[str]) -> CellPredictions:
        """Return the same predictions with the classes in this order."""
        order = [self.label_names.index(label) for label in labels]
        references = np.argsort(order)[self.references]
        return replace(
            self, references=references, probabilities=self.probabilities[:, order], label_names=tuple(labels)
        )

    def save(self, path: Path) -> None:
        """Write a Parquet file with one row per cell; it holds no pixels."""
        names = np.asarray(self.label_names)
        columns = {"cell_id": self.cell_ids, "subject": self.subjects, "label": names[self.references]}
        columns |= {f"p_{name}": self.probabilities[:, k].astype(np.float32) for k, name in enumerate(self.label_names)}
        if self.areas is not None:
            columns["area"] = self.areas.astype(np.float32)
        if self.pixel_hashes is not None:
            columns["pixel_hash"] = self.pixel_hashes
        if self.folds is not None:
            columns["fold"] = self.folds.astype(np.int32)
        with atomic_file(path) as temporary:
            pq.write_table(pa.table(columns), temporary)

    @classmethod
    def load(cls, path: Path) -> CellPredictions:
        """Read a file that `save` wrote."""
        columns = {name: np.asarray(entries) for name, entries in pq.read_table(path).to_pydict().items()}
        names = tuple(name.removeprefix("p_") for name in columns if name.startswith("p_"))
        hashes = columns.get("pixel_hash")
        return cls(
            tuple(columns["cell_id"].tolist()),
            tuple(columns["subject"].tolist()),
            np.asarray([names.index(label) for label in columns["label"]]),
            np.stack([columns[f"p_{name}"] for name in names], axis=1),
            names,
            areas=columns.get("area"),
            pixel_hashes=None if hashes is None else tuple(hashes.tolist()),
            folds=columns.get("fold"),
        )


def _rows_of(column: Any, rows: np.ndarray) -> Any:
    """Some rows of a column, an array or a tuple; None where there is no such column."""
    if isinstance(column, tuple):
        return tuple(column[row] for row in rows)
    return None if column is None else column[rows]


def pooled(parts: Sequence[CellPredictions]) -> CellPredictions:
    """Concatenate the predictions of the folds of a cross-validation, in their order."""
    columns: dict[str, Any] = {}
    for name in _COLUMNS:
        of_parts = [getattr(part, name) for part in parts]
        if any(column is None for column in of_parts):
            columns[name] = None
        elif isinstance(of_parts[0], tuple):
            columns[name] = tuple(chain.from_iterable(of_parts))
        else:
            columns[name] = np.concatenate(of_parts)
    columns["folds"] = np.repeat(np.arange(len(parts)), [len(part.cell_ids) for part in parts])
    columns["left_out"] = tuple(line for part in parts for line in part.left_out)
    return replace(parts[0], **columns)
