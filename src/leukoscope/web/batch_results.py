"""The predictions of a batch and what follows from them: subjects, metrics on labels, and files to save."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.evaluation.bootstrap import cell_intervals, point_metrics, subject_intervals
from leukoscope.evaluation.overlap import same_subject, trainings_of
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import NOT_A_CELL, REFUSED, Checks, Decision, Thresholds
from leukoscope.inference.scoring import safe_cell
from leukoscope.inference.subject import SubjectPrediction, SubjectRule
from leukoscope.reports.formatting import encoded, metric_name, span
from leukoscope.web.batch_files import Batch, BatchFile, subjects_of
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import CELL, File

PICTURES_AT_ONCE, THUMBNAIL = 16, 96
MAX_KEPT = 64 * 2**20
"""Bytes of a batch's pictures that stay in the visitor's session, so that they can be opened."""


@dataclass(frozen=True)
class BatchRow:
    """One picture's prediction; `truth` and `subject` are "" where not known.

    `thumbnail` is WebP, at most 96 px on a side; `picture` lossless WebP, empty beyond `MAX_KEPT`.
    """

    name: str
    truth: str
    subject: str
    decision: Decision
    probabilities: Mapping[str, float]
    checks: Checks
    thumbnail: bytes = b""
    picture: bytes = b""

    @property
    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.decision.label or max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of `called`."""
        return self.probabilities[self.called]

    def kept(self) -> bytes:
        """The picture as a file; an error where it was not kept."""
        if not self.picture:
            raise LeukoscopeError(
                f"{self.name}: of a batch, {MAX_KEPT // 2**20} MB of pictures are kept, and this one is not among "
                "them; send this subject's cells alone"
            )
        return self.picture

    def open(self) -> Image.Image:
        """The picture; an error where it was not kept."""
        return Image.open(io.BytesIO(self.kept())).convert("RGB")


@dataclass(frozen=True)
class BatchResult:
    """A batch as one model predicts it; lives in a visitor's session, in memory only.

    Attributes:
        given: the pictures that were read, to be predicted again, and what was given with them.
        problems: one sentence for each file, and each label of a CSV, that could not be used.
    """

    rows: tuple[BatchRow, ...]
    classes: tuple[str, ...]
    model: str
    revision: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    given: Batch = field(default_factory=Batch)
    problems: tuple[str, ...] = ()

    @cached_property
    def thresholds(self) -> Thresholds:
        """What the release decides by."""
        return Thresholds.from_metrics(self.metrics)

    @property
    def positive(self) -> str:
        """The class that operating points look for; else the release's first."""
        return self.thresholds.positive_label or self.classes[0]

    @cached_property
    def subject_predictions(self) -> list[SubjectPrediction]:
        """One prediction for each known subject, by name; none where the release does not predict for subjects."""
        rule = SubjectRule.from_metrics(self.metrics, self.classes)
        if rule is None:
            return []
        found = []
        for subject, cells in self.cells_by_subject().items():
            probabilities = np.array([[row.probabilities[label] for label in self.classes] for row in cells])
            found.append(rule.predict(probabilities, [row.decision.outcome for row in cells], subject=subject))
        return found

    @cached_property
    def trained_on(self) -> set[str]:
        """Subjects that have the name of one whose cells trained the model."""
        found = set()
        for past in trainings_of(self.metrics):
            trained = {same_subject(past["name"], str(one)) for one in past["subjects"]}
            found |= {name for name in self.cells_by_subject() if same_subject(past["name"], name) in trained}
        return found

    def with_subjects(self, pattern: str) -> BatchResult:
        """The same predictions, their subjects found by another pattern, as by `subjects_of`."""
        subjects = subjects_of([row.name for row in self.rows], pattern, self.given.subjects)
        return replace(self, rows=tuple(replace(row, subject=subjects[row.name]) for row in self.rows))

    def cells_by_subject(self) -> dict[str, list[BatchRow]]:
        """Known subject → its cells, by name."""
        names = sorted({row.subject for row in self.rows} - {""})
        return {name: [row for row in self.rows if row.subject == name] for name in names}


def predict_batch(models: ModelCache, batch: Batch, choice: str | None, pattern: str) -> Iterator[int | BatchResult]:
    """Predict every picture of a batch; `pattern` finds the subject in a file's name, as in `subjects_of`.

    It yields how many files are done, after each part of them; at last the result. An error where the model or the
    pattern cannot be used, or not one picture.
    """
    predictor = models.predictor(choice)
    release = predictor.release
    names = [file.name for file in batch.files]
    subjects = subjects_of(names, pattern, batch.subjects)
    classes = {batch.label_of(name, release.labels) for name in names}
    if batch.archive and not any(subjects.values()) and len(classes) == 1:  # a zip of one subject's cells
        subjects = batch.subjects = dict.fromkeys(names, batch.archive)
    rows: list[BatchRow] = []
    first_of: dict[str, str] = {}
    kept = 0
    for first in range(0, len(batch.files), PICTURES_AT_ONCE):
        names, images = [], []
        for file in batch.files[first : first + PICTURES_AT_ONCE]:
            try:
                images.append(open_bytes(file.read(), file.name, max_pixels=CELL.pixels))
                names.append(file.name)
            except LeukoscopeError as error:
                batch.problems.append(str(error))
        predictions = models.predict(predictor, images) if images else []
        for name, image, prediction in zip(names, images, predictions, strict=True):
            if (other := first_of.setdefault(prediction.pixel_hash, name)) != name:
                batch.problems.append(f"{name}: is a copy of {other}, pixel for pixel; it counts once")
                continue
            picture = encoded(image, "WEBP", quality=0, lossless=True, method=0) if kept < MAX_KEPT else b""
            kept += len(picture)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            about = name, batch.label_of(name, release.labels), subjects[name]
            predicted = prediction.decision, prediction.probabilities, prediction.checks
            rows.append(BatchRow(*about, *predicted, encoded(image, "WEBP", quality=90), picture))
        yield min(first + PICTURES_AT_ONCE, len(batch.files))
    if not rows:
        raise LeukoscopeError(f"not one picture can be used: {[*batch.problems, 'none was given'][0]}")
    smear = "shows a smear, no single cell cut out on black; give it alone, and its cells are found"
    smears = [f"{row.name}: {smear}" for row in rows if row.decision.outcome == NOT_A_CELL]
    problems = (*smears, *batch.problems, *batch.unknown_labels(release.labels))
    given = replace(batch, files=[BatchFile(row.name, row.kept) for row in rows])
    found = tuple(rows), release.labels, str(choice), release.revision, release.metrics
    yield BatchResult(*found, given=given, problems=problems)


def wrong_rows(result: BatchResult) -> list[BatchRow]:
    """Cells whose class, or most probable class where they have none, is not the true one; most confident first."""
    wrong = (row for row in result.rows if row.truth and row.truth != row.called)
    return sorted(wrong, key=lambda row: -row.confidence)


def subject_rows(result: BatchResult) -> list[tuple[Any, ...]]:
    """For every known subject: name, cells, of these in distribution, cells of each class, mean probability."""
    table: list[tuple[Any, ...]] = []
    for subject, cells in result.cells_by_subject().items():
        outcomes = [row.decision.outcome for row in cells]
        known = sum(outcome not in REFUSED for outcome in outcomes)
        mean = float(np.mean([row.probabilities[result.positive] for row in cells]))
        table.append((subject, len(cells), known, *map(outcomes.count, result.classes), f"{mean:.3f}"))
    return table


def too_good(result: BatchResult) -> str:
    """A warning where subjects may have trained the model; else ""."""
    if not result.trained_on:
        return ""
    subjects = ", ".join(sorted(result.trained_on))
    return f"The model was trained on subjects called {subjects}: if these are the same, the results are too good."


@dataclass(frozen=True)
class LabelMetrics:
    """Metrics on the cells whose true class is known: rows of name, value and interval, and what to know of them."""

    rows: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def label_metrics(result: BatchResult) -> LabelMetrics | None:
    """Every metric with its interval, over the cells whose true class is known; None where there is none."""
    rows = [row for row in result.rows if row.truth]
    if not rows:
        return None
    subjects = tuple(row.subject for row in rows)
    cells = CellPredictions(
        tuple(row.name for row in rows),
        subjects,
        np.asarray([result.classes.index(row.truth) for row in rows], int),
        np.asarray([[row.probabilities[label] for label in result.classes] for row in rows]),
        result.classes,
    )
    notes = [f"{len(rows)} cells with a known class, by their most probable one."]
    try:
        intervals = subject_intervals(cells)
        notes.append("95 % intervals from bootstrap samples of subjects.")
    except LeukoscopeError as error:
        intervals = cell_intervals(cells)
        missing = "not every cell has a subject: give a pattern that finds it, a folder for each, or a CSV"
        reason = missing if "" in subjects else str(error)
        notes.append(f"95 % intervals from samples of cells, too narrow for new subjects ({reason}).")
    if result.trained_on:
        notes.insert(0, too_good(result))
    found = [
        (metric_name(name), f"{value:.3f}", span(intervals.get(name))) for name, value in point_metrics(cells).items()
    ]
    return LabelMetrics(tuple(found), tuple(notes))


def columns(result: BatchResult, *, safe: bool = False) -> dict[str, Sequence[Any]]:
    """Column → one value per picture; `safe` lets no text be taken for a formula."""
    rows, text = result.rows, safe_cell if safe else str
    shares = np.array([[row.probabilities[label] for label in result.classes] for row in rows])
    outcomes = [row.decision.outcome for row in rows]
    about = {"model": text(result.model), "revision": result.revision, "notice": RESEARCH_NOTICE}
    return {
        "file": [text(row.name) for row in rows],
        "subject": [text(row.subject) for row in rows],
        "outcome": [text(outcome) for outcome in outcomes],
        "reasons": [" ".join(reason.code for reason in row.decision.reasons) for row in rows],
        "label": [text(row.truth) for row in rows],
        **{f"p_{label}": [row.probabilities[label] for row in rows] for label in result.classes},
        **result.thresholds.positive_columns(shares, result.classes, outcomes),
        "ood_score": [row.checks.ood_score for row in rows],
        **{name: [value] * len(rows) for name, value in about.items()},
    }


def save_cells(result: BatchResult) -> File:
    """One row per cell, as CSV."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.table(columns(result, safe=True)), buffer)
    return File("leukoscope-batch.csv", "text/csv", buffer.getvalue())


def save_subjects(result: BatchResult) -> File:
    """One row per subject, as CSV; an error where no subject is known, or the release does not predict for subjects."""
    rows = [one.to_dict() for one in result.subject_predictions]
    if not rows:
        raise LeukoscopeError("no subject is known: name the subjects by a pattern, a folder each, or a CSV")
    safe = [{key: safe_cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist(safe), buffer)
    return File("leukoscope-subjects.csv", "text/csv", buffer.getvalue())
