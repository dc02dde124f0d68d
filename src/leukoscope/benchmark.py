"""A benchmark: cells of a data set in folds by subject, and one metric, so that claims can be compared.

Its folds are part of the package, its pictures are not. `leukoscope evaluate --benchmark` predicts the reader's copy of
the cells, or reads a table of predictions, and writes the entry that a model's repository on the Hub holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from pydantic import TypeAdapter

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, ReleaseError, __version__
from leukoscope.data.cells import LoadedCells
from leukoscope.data.names import column_key
from leukoscope.data.reading import NO_FLAGS
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.table import cell_table, read_frame
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.evaluate import select_cells, training_overlap
from leukoscope.evaluation.metrics import measure, versions
from leukoscope.evaluation.predict import open_any_model, predict_cells, public_name_of
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.split_check import cell_named, original_of

BENCHMARKS = ("cnmc2019-subjects",)
FOLD_PLACE = "{fold}"
"""In the name of a model: the number of the fold that it was not trained on."""
EVALUATION_FRAMEWORK = "leukoscope"
_FROM_WORST = ("bad", "warning", "good")  # verdicts of `training_overlap`


@dataclass(frozen=True)
class Benchmark:
    """Folds of a data set by subject.

    Attributes:
        name: as `--benchmark` and the repository are called.
        dataset: the entry of `DATASETS`.
        cells: how many there are.
        metric: key of `measure` that is the result.
        folds: the subjects of each.
    """

    name: str
    title: str
    version: str
    dataset: str
    cells: int
    metric: str
    task_id: str
    folds: tuple[tuple[str, ...], ...]

    @property
    def info(self) -> DatasetInfo:
        """The data set."""
        return DATASETS[self.dataset]

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """Subject → the number of its fold."""
        return {subject: number for number, subjects in enumerate(self.folds) for subject in subjects}


@dataclass(frozen=True)
class BenchmarkPredictions:
    """Predictions of a benchmark's cells.

    Attributes:
        source: what made them, in words.
        overlap: verdict and statement of `training_overlap`, the worst of several models; verdict "" where nothing
            is known of the training.
    """

    predictions: CellPredictions
    source: str
    overlap: Mapping[str, Any]


def read_benchmark(name: str) -> Benchmark:
    """Read a benchmark by its name, or by its repository `owner/name`; an error where there is none."""
    short = name.rpartition("/")[2]
    if short not in BENCHMARKS:
        raise ConfigError(f"--benchmark {name}: unknown; choose one of {', '.join(BENCHMARKS)}")
    file = package_files("leukoscope") / f"benchmark_{short.replace('-', '_')}.json"
    return TypeAdapter(Benchmark).validate_json(file.read_bytes())


# Predictions


def _number(entry: str) -> float:
    """The number that a text is; NaN for another text."""
    try:
        return float(entry)
    except ValueError:
        return np.nan


def read_table(benchmark: Benchmark, path: Path) -> BenchmarkPredictions:
    """Read a table of predictions: a column of file names, and one of probabilities for each class.

    Args:
        path: CSV, lines of JSON or Parquet. The columns of probabilities are called like the classes. Class and
            subject of a cell come from its name.

    Raises:
        DataError: a table without these columns, a name of no cell of the benchmark or given twice, or
            probabilities that are none.
    """
    fix = f"give a table with the columns file, {', '.join(benchmark.info.labels)}"
    frame = read_frame(path, fix)
    rows = cell_table(str(path), frame, NO_FLAGS, ("file", "cell_id")).rows
    labels = benchmark.info.labels
    columns = {column_key(title): title for title in frame.columns}
    titles = [columns.get(column_key(label), "") for label in labels]
    if "" in titles:
        raise DataError(f"{path}: lacks a column of a class; {fix}")
    shares = frame[titles].map(_number).to_numpy()
    are_shares = ((shares >= 0) & (shares <= 1)).all(axis=1) & (abs(shares.sum(axis=1) - 1) <= 0.01)
    cells = []
    for row, is_sound in zip(rows, are_shares, strict=True):
        label, subject = cell_named(benchmark.info, row.file) or ("", "")
        subject = benchmark.info.canonical_subject(subject)
        if subject not in benchmark.fold_of:
            raise DataError(f"{path}: row {row.number}, {row.file}: is not a cell of {benchmark.name}; leave it out")
        if not is_sound:
            raise DataError(
                f"{path}: row {row.number}, {row.file}: its probabilities are not from 0 to 1 with the sum 1"
            )
        cells.append((original_of(row.file)[0], subject, labels.index(label), benchmark.fold_of[subject]))
    names, subjects, references, folds = zip(*cells, strict=True)
    predictions = CellPredictions(names, subjects, np.asarray(references), shares, labels, folds=np.asarray(folds))
    unknown = {"verdict": "", "statement": "A table does not say what trained its model; its author answers for it."}
    return BenchmarkPredictions(predictions, f"predictions of {path.name}", unknown)


def predict_benchmark(
    benchmark: Benchmark,
    model: str,
    data: LoadedCells,
    *,
    label_map: Mapping[str, str],
    batch_size: int = 16,
    device: str = "auto",
) -> BenchmarkPredictions:
    """Predict the benchmark's cells with a release, or with any model that transformers' `pipeline` loads.

    Args:
        model: a folder, or a Hub id. With `FOLD_PLACE` in it, one model for each fold, trained without it.
        data: the benchmark's data set, or a part of it.

    Raises:
        LeukoscopeError: other data, a model that cannot be opened, or classes that do not match.
    """
    if (data.info.copy_of or data.info.name) != benchmark.dataset:
        raise DataError(f"--benchmark {benchmark.name}: needs the cells of {benchmark.dataset}, not {data.info.name}")
    cells = zip(data.train["cell_id"][:], data.train["subject"][:], strict=True)
    names = [model.replace(FOLD_PLACE, str(fold)) for fold in range(len(benchmark.folds))]
    tested_by: dict[str, list[str]] = {name: [] for name in names}
    for cell, subject in cells:
        if subject in benchmark.fold_of:
            tested_by[names[benchmark.fold_of[subject]]].append(cell)
    if not all(tested_by.values()):
        raise DataError(f"--benchmark {benchmark.name}: {data.info.name} as given holds no cell of it")
    parts = []
    overlaps = []
    for name, tested in tested_by.items():
        opened = open_any_model(name, device)
        parts.append(predict_cells(opened, data, tested, label_map=label_map, batch_size=batch_size))
        overlaps.append(training_overlap(opened.release, parts[-1], select_cells(data)))
    worst = min(overlaps, key=lambda overlap: _FROM_WORST.index(overlap["verdict"]))
    if len(parts) > 1:
        return BenchmarkPredictions(pooled(parts), f"{model}, a model for each fold", worst)
    return BenchmarkPredictions(parts[0], public_name_of(opened.release), worst)


# Results


def benchmark_result(benchmark: Benchmark, predicted: BenchmarkPredictions) -> dict[str, Any]:
    """Measure predictions of a benchmark's cells: content of `benchmark.json`.

    Returns:
        `value` of the benchmark's metric with its interval, both None where a cell of it was not predicted; every
        metric of what was predicted, coverage, and what is known of the training.

    Raises:
        DataError: one subject or class alone was predicted.
    """
    predictions = predicted.predictions
    if not predictions.cell_ids:
        reason = next(iter(predictions.left_out), "none was given")
        raise DataError(f"{predicted.source}: no cell was predicted ({reason})")
    metrics = measure(predictions)
    if metrics.get(benchmark.metric) is None:
        raise DataError(f"{predicted.source}: {benchmark.metric} needs cells of {' and '.join(benchmark.info.labels)}")
    intervals = bootstrap.subject_intervals(predictions)
    is_whole = len(predictions.cell_ids) == benchmark.cells
    return {
        "notice": RESEARCH_NOTICE,
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "task": benchmark.task_id,
        "metric": benchmark.metric,
        "value": metrics[benchmark.metric] if is_whole else None,
        "interval": intervals.get(benchmark.metric) if is_whole else None,
        "model": predicted.source,
        "training_overlap": dict(predicted.overlap),
        "cells": len(predictions.cell_ids),
        "of_cells": benchmark.cells,
        "subjects": len(set(predictions.subjects)),
        "of_subjects": len(benchmark.fold_of),
        "left_out": list(predictions.left_out),
        "metrics": metrics,
        "intervals": intervals,
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def eval_results(result: Mapping[str, Any], dataset_id: str) -> str:
    """The YAML of `.eval_results/<benchmark>.yaml`, as the Hub reads it in a model's repository.

    Args:
        result: of `benchmark_result`.
        dataset_id: the benchmark's repository, `owner/name`.

    Raises:
        ReleaseError: the weights were trained on tested subjects, or a cell of the benchmark was not predicted.
    """
    if result["training_overlap"]["verdict"] == "bad":
        raise ReleaseError(f"{result['model']}: no benchmark result: {result['training_overlap']['statement']}")
    if result["value"] is None:
        raise ReleaseError(
            f"{result['model']}: no benchmark result: {result['cells']:,} of {result['of_cells']:,} cells were "
            "predicted; predict all of them"
        )
    interval = result["interval"]
    notes = (
        f"{result['metric']} of {result['cells']:,} of {result['of_cells']:,} cells, {result['subjects']} of "
        f"{result['of_subjects']} subjects; 95 % interval {interval['low']:.3f} to {interval['high']:.3f}; "
        f"{result['model']}; version {result['version']}, measured with Leukoscope {__version__}. "
        f"{result['training_overlap']['statement']}"
    )
    entry = EvalResultEntry(
        dataset_id=dataset_id,
        task_id=result["task"],
        value=round(result["value"], 4),
        date=result["created"],
        notes=notes,
    )
    (row,) = eval_result_entries_to_yaml([entry])
    row["evaluation_framework"] = EVALUATION_FRAMEWORK
    return yaml.safe_dump([row], sort_keys=False, allow_unicode=True, width=120)
