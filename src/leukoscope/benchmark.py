"""A benchmark: cells of a data set in folds by subject, and one metric, so that claims can be compared.

Its folds are part of the package, its pictures are not. `leukoscope evaluate --benchmark` predicts the reader's copy of
the cells, or reads a table of predictions, and writes the entry that a model's repository on the Hub holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from leukoscope import RESEARCH_NOTICE, ConfigError, DataError, ReleaseError, __version__
from leukoscope.data.cells import LoadedCells
from leukoscope.data.images import cell_area
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.data.splits import Split
from leukoscope.data.table_files import open_table
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.evaluate import (
    SelectedCells,
    match_labels,
    open_model,
    opened_batches,
    predictions_of_model,
    training_overlap,
)
from leukoscope.evaluation.metrics import measure, versions
from leukoscope.evaluation.overlap import KnownCells
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.models.hub_download import HubUnreachable, hub_model_info, parse_hub_id
from leukoscope.models.release import METRICS_FILE, local_release
from leukoscope.split_check import cell_named, original_of

BENCHMARKS = ("cnmc2019-subjects",)
FOLD_PLACE = "{fold}"
"""In the name of a model: the number of the fold that it was not trained on."""
EVALUATION_FRAMEWORK = "leukoscope"
_FROM_WORST = ("bad", "", "warning", "good")  # verdicts of `training_overlap`; "" where nothing is known
_NAME_COLUMNS = ("file", "file_name", "filename", "cell_id", "image", "name", "path")


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
        left_out: one line per cell that could not be predicted.
    """

    predictions: CellPredictions
    source: str
    overlap: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def read_benchmark(name: str) -> Benchmark:
    """Read a benchmark by its name, or by its repository `owner/name`; an error where there is none."""
    short = name.rpartition("/")[2]
    if short not in BENCHMARKS:
        raise ConfigError(f"--benchmark {name}: unknown; choose one of {', '.join(BENCHMARKS)}")
    file = package_files("leukoscope") / f"benchmark_{short.replace('-', '_')}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    folds = tuple(tuple(subjects) for subjects in content.pop("folds"))
    return Benchmark(**content, folds=folds)


# Predictions


def read_table(benchmark: Benchmark, path: Path) -> BenchmarkPredictions:
    """Read a table of predictions: a column of file names, and one of probabilities for each class.

    Args:
        path: CSV, lines of JSON or Parquet. The columns of probabilities are called like the classes, or `p_` and the
            class. Class and subject of a cell come from its name.

    Raises:
        DataError: a table without these columns, a name of no cell of the benchmark or given twice, or
            probabilities that are none.
    """
    fix = f"give a table with the columns file, {', '.join(benchmark.info.labels)}"
    table = open_table(path, fix)
    columns = {title.strip().casefold(): number for number, title in enumerate(table.header)}
    name_column = next((columns[title] for title in _NAME_COLUMNS if title in columns), None)
    labels = benchmark.info.labels
    places = [columns.get(f"p_{label}".casefold(), columns.get(label.casefold())) for label in labels]
    if name_column is None or None in places:
        raise DataError(f"{path}: lacks a column of file names or of a class; {fix}")
    names = []
    subjects = []
    references = []
    probabilities = []
    for number, row in table.rows:
        name = str(row[name_column])
        cell = _known_cell(benchmark, name)
        if cell is None:
            raise DataError(f"{path}: row {number}, {name}: is not a cell of {benchmark.name}; leave it out")
        try:
            shares = [float(row[place]) for place in places if place is not None]
        except (TypeError, ValueError):
            shares = []
        if not shares or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 0.01:
            raise DataError(f"{path}: row {number}, {name}: its probabilities are not from 0 to 1 with the sum 1")
        names.append(original_of(name)[0])
        references.append(labels.index(cell[0]))
        subjects.append(cell[1])
        probabilities.append(shares)
    if not names:
        raise DataError(f"{path}: has no row; {fix}")
    folds = np.asarray([benchmark.fold_of[subject] for subject in subjects])
    predictions = CellPredictions(
        tuple(names), tuple(subjects), np.asarray(references), np.asarray(probabilities), labels, folds=folds
    )
    unknown = {"verdict": "", "statement": "A table does not say what trained its model; its author answers for it."}
    return BenchmarkPredictions(predictions, f"predictions of {path.name}", unknown)


def _known_cell(benchmark: Benchmark, name: str) -> tuple[str, str] | None:
    """(class, subject) of a cell of the benchmark, None for another name."""
    cell = cell_named(benchmark.info, name)
    if cell is None:
        return None
    subject = benchmark.info.canonical_subject(cell[1])
    if subject not in benchmark.fold_of:
        return None
    return cell[0], subject


def predict_cells(
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
    subjects = data.train["subject"][:]
    cells = data.train["cell_id"][:]
    if FOLD_PLACE not in model:
        tested = [cell for cell, subject in zip(cells, subjects, strict=True) if subject in benchmark.fold_of]
        return _predict(benchmark, model, data, tested, label_map, batch_size, device)
    parts = []
    for number in range(len(benchmark.folds)):
        tested = [
            cell for cell, subject in zip(cells, subjects, strict=True) if benchmark.fold_of.get(subject) == number
        ]
        name = model.replace(FOLD_PLACE, str(number))
        parts.append(_predict(benchmark, name, data, tested, label_map, batch_size, device))
    worst = min((part.overlap for part in parts), key=lambda overlap: _FROM_WORST.index(overlap["verdict"]))
    left_out = tuple(line for part in parts for line in part.left_out)
    predictions = pooled([part.predictions for part in parts])
    return BenchmarkPredictions(predictions, f"{model}, a model for each fold", worst, left_out)


def _predict(
    benchmark: Benchmark,
    model: str,
    data: LoadedCells,
    cells: Sequence[str],
    label_map: Mapping[str, str],
    batch_size: int,
    device: str,
) -> BenchmarkPredictions:
    if not cells:
        raise DataError(f"--benchmark {benchmark.name}: {data.info.name} as given holds no cell of it")
    split = Split("none", data.info.group, 0, data.fingerprint, (), (), tuple(cells), detail=benchmark.name)
    selected = SelectedCells(data, split, split)
    if not _is_release(model):
        return _predict_by_pipeline(model, selected, label_map, batch_size, device)
    predicted = predictions_of_model(open_model(model, device), selected, label_map=label_map, batch_size=batch_size)
    known_cells = KnownCells.of_release(predicted.release.folder)
    overlap = training_overlap(predicted.release.metrics, predicted.predictions, selected, known_cells)
    return BenchmarkPredictions(predicted.predictions, predicted.name, overlap, predicted.left_out)


def _is_release(model: str) -> bool:
    """Whether a model is a release of Leukoscope; any other is for `pipeline`."""
    local = local_release(model)
    if local is not None:
        return (local / METRICS_FILE).is_file()
    hub_id, revision = parse_hub_id(model)
    try:
        siblings = hub_model_info(hub_id, revision).siblings or ()
    except HubUnreachable:
        return True  # whose error says what to do
    return any(file.rfilename == METRICS_FILE for file in siblings)


def _predict_by_pipeline(
    model: str, cells: SelectedCells, label_map: Mapping[str, str], batch_size: int, device: str
) -> BenchmarkPredictions:
    """Predict cells with a model that transformers' `pipeline` loads."""
    classify = _open_pipeline(model, device)
    theirs = [str(label) for label in (classify.model.config.id2label or {}).values()]
    labels = cells.data.info.labels
    to_ours = np.eye(len(labels))[list(match_labels(model, theirs, labels, label_map))]
    wanted = set(cells.split.test)
    rows = cells.data.train.select([row for row, cell in enumerate(cells.data.train["cell_id"][:]) if cell in wanted])
    readable = list[int]()
    areas = list[float]()
    left_out = list[str]()
    probabilities = [np.zeros((0, len(labels)))]
    for opened, pictures in opened_batches(rows, batch_size, left_out):
        readable += opened
        areas += [cell_area(np.asarray(picture)) for picture in pictures]
        answers = classify(pictures, batch_size=len(pictures), top_k=len(theirs), function_to_apply="softmax")
        probabilities.append(_probabilities(answers, theirs) @ to_ours)
    rows = rows.select(readable)
    predictions = CellPredictions(
        tuple(rows["cell_id"][:]),
        tuple(rows["subject"][:]),
        np.asarray(rows["label"][:], dtype=int),
        np.concatenate(probabilities),
        labels,
        np.asarray(areas),
    )
    name = Path(model).name if Path(model).exists() else model  # the rest of a path is private
    unknown = {"verdict": "", "statement": "What trained this model is not recorded; its author answers for it."}
    return BenchmarkPredictions(predictions, name, unknown, tuple(left_out))


def _open_pipeline(model: str, device: str) -> Any:
    """Open a model with transformers' `pipeline`; raises `ReleaseError` where it cannot."""
    from transformers import pipeline

    try:
        return pipeline(
            "image-classification",
            model=model,
            device=None if device == "auto" else device,
            model_kwargs={"use_safetensors": True},  # pickled weights can run code
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ReleaseError(f"{model}: transformers' pipeline cannot load it ({reason}); give another model") from None


def _probabilities(answers: Sequence[Sequence[Mapping[str, Any]]], labels: Sequence[str]) -> np.ndarray:
    """The answers of a pipeline for B pictures as (B, K) probabilities, in the order of the K labels."""
    rows = []
    for answers_of_cell in answers:
        score_of = {answer["label"]: answer["score"] for answer in answers_of_cell}
        rows.append([score_of[label] for label in labels])
    return np.asarray(rows)


# Results


def benchmark_result(benchmark: Benchmark, predicted: BenchmarkPredictions, *, seed: int = 0) -> dict[str, Any]:
    """Measure predictions of a benchmark's cells: content of `benchmark.json`.

    Returns:
        `value` of the benchmark's metric with its interval, every other metric, coverage, and what is known of the
        training.

    Raises:
        DataError: one subject or class alone was predicted.
    """
    predictions = predicted.predictions
    if not predictions.cell_ids:
        reason = next(iter(predicted.left_out), "none was given")
        raise DataError(f"{predicted.source}: no cell was predicted ({reason})")
    metrics = measure(predictions)
    value = metrics.get(benchmark.metric)
    if value is None:
        raise DataError(f"{predicted.source}: {benchmark.metric} needs cells of {' and '.join(benchmark.info.labels)}")
    intervals = bootstrap.subject_intervals(predictions, seed=seed)
    return {
        "notice": RESEARCH_NOTICE,
        "benchmark": benchmark.name,
        "version": benchmark.version,
        "task": benchmark.task_id,
        "metric": benchmark.metric,
        "value": value,
        "interval": intervals.get(benchmark.metric),
        "model": predicted.source,
        "training_overlap": dict(predicted.overlap),
        "cells": len(predictions.cell_ids),
        "of_cells": benchmark.cells,
        "subjects": len(set(predictions.subjects)),
        "of_subjects": len(benchmark.fold_of),
        "left_out": list(predicted.left_out),
        "metrics": metrics,
        "intervals": intervals,
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(),
    }


def eval_results(result: Mapping[str, Any], dataset_id: str, *, source: Mapping[str, str] | None = None) -> str:
    """The YAML of `.eval_results/<benchmark>.yaml`, as the Hub reads it in a model's repository.

    Args:
        result: of `benchmark_result`.
        dataset_id: the benchmark's repository, `owner/name`.
        source: `url`, and `name` and `user` where known, of the predictions or a paper.

    Raises:
        ReleaseError: the weights were trained on tested subjects.
    """
    if result["training_overlap"]["verdict"] == "bad":
        raise ReleaseError(f"{result['model']}: no benchmark result: {result['training_overlap']['statement']}")
    interval = result["interval"]
    notes = (
        f"{result['metric']} of {result['cells']:,} of {result['of_cells']:,} cells, {result['subjects']} of "
        f"{result['of_subjects']} subjects; 95 % interval {interval['low']:.3f} to {interval['high']:.3f}; "
        f"{result['model']}; version {result['version']}, measured with Leukoscope {__version__}. "
        f"{result['training_overlap']['statement']}"
    )
    row: dict[str, Any] = {
        "dataset": {"id": dataset_id, "task_id": result["task"]},
        "value": round(result["value"], 4),
        "date": result["created"],
    }
    if source:
        row["source"] = dict(source)
    row["evaluation_framework"] = EVALUATION_FRAMEWORK
    row["notes"] = notes
    return yaml.safe_dump([row], sort_keys=False, allow_unicode=True, width=120)
