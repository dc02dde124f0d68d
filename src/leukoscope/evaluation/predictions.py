"""Predictions of cells: the table that every metric, calibration and threshold is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leukoscope import DataError
from leukoscope.files import atomic_file


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
    """

    cell_ids: tuple[str, ...]
    subjects: tuple[str, ...]
    references: np.ndarray
    probabilities: np.ndarray
    label_names: tuple[str, ...]
    areas: np.ndarray | None = None
    pixel_hashes: tuple[str, ...] | None = None
    folds: np.ndarray | None = None

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
                "--subject_pattern or --labels"
            )

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
        names, unit_of_cell = np.unique(self.subjects, return_inverse=True)
        cells = np.zeros((len(names), len(self.label_names)), dtype=int)
        np.add.at(cells, (unit_of_cell, self.references), 1)
        return dict(zip(names.tolist(), cells.argmax(axis=1).tolist(), strict=True))

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
        hashes = None
        if self.pixel_hashes is not None:
            hashes = tuple(self.pixel_hashes[row] for row in chosen)
        return CellPredictions(
            tuple(self.cell_ids[row] for row in chosen),
            tuple(self.subjects[row] for row in chosen),
            self.references[chosen],
            self.probabilities[chosen],
            self.label_names,
            _rows_of(self.areas, chosen),
            hashes,
            _rows_of(self.folds, chosen),
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
        columns = pq.read_table(path).to_pydict()
        names = tuple(c.removeprefix("p_") for c in columns if c.startswith("p_"))
        hashes = None
        if "pixel_hash" in columns:
            hashes = tuple(columns["pixel_hash"])
        return cls(
            tuple(columns["cell_id"]),
            tuple(columns["subject"]),
            np.asarray([names.index(label) for label in columns["label"]]),
            np.stack([np.asarray(columns[f"p_{name}"]) for name in names], axis=1),
            names,
            _array_of(columns.get("area")),
            hashes,
            _array_of(columns.get("fold")),
        )


def _rows_of(column: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """Some rows of a column; None where there is no such column."""
    if column is None:
        return None
    return column[rows]


def _array_of(column: list[float] | None) -> np.ndarray | None:
    """A column as an array; None where there is no such column."""
    if column is None:
        return None
    return np.asarray(column)


def pooled(parts: Sequence[CellPredictions]) -> CellPredictions:
    """Concatenate the predictions of the folds of a cross-validation, in their order."""
    areas = [p.areas for p in parts if p.areas is not None]
    hashes = [p.pixel_hashes for p in parts if p.pixel_hashes is not None]
    all_areas = None
    if len(areas) == len(parts):
        all_areas = np.concatenate(areas)
    all_hashes = None
    if len(hashes) == len(parts):
        all_hashes = tuple(chain.from_iterable(hashes))
    return CellPredictions(
        tuple(c for p in parts for c in p.cell_ids),
        tuple(s for p in parts for s in p.subjects),
        np.concatenate([p.references for p in parts]),
        np.concatenate([p.probabilities for p in parts]),
        parts[0].label_names,
        all_areas,
        all_hashes,
        np.repeat(np.arange(len(parts)), [len(p.cell_ids) for p in parts]),
    )
