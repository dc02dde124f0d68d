"""Many cells: predicted file by file, counted by subject, measured where folders name their class."""

from __future__ import annotations

import io
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError
from leukoscope.data.images import filled_note, is_cut_out, is_dark, to_rgb
from leukoscope.evaluation.bootstrap import Interval, cell_intervals, point_metrics, subject_intervals
from leukoscope.evaluation.overlap import same_subject, trainings_of
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import NOT_A_CELL, REFUSED, Prediction
from leukoscope.inference.subject import SubjectPrediction, SubjectRule
from leukoscope.reports.formatting import encoded, metric_name, span
from leukoscope.reports.text import NOTHING_FOUND
from leukoscope.reports.trust import training_subject
from leukoscope.web.answer import holds_no_cell
from leukoscope.web.batch_files import THUMBNAIL_SIDE, Batch, BatchFacts, BatchFile, open_batch, read_parts
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import deleted_afterwards

SHEET_CELLS = 6
SHEET_SIZE = (132, 108)  # pixels
SMEAR = "shows a smear, no single cell cut out on black; give it alone, and its cells are found"
NO_CELL = f"{NOTHING_FOUND[0].lower()}{NOTHING_FOUND[1:]}; nothing in it is stained as the nucleus of one is"
MAX_KEPT = 64 * 2**20  # bytes of a batch's pictures that stay in the visitor's session, to be opened


def by_number(name: str) -> list[int | str]:
    """Sorts names as people do: 2 before 16."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


@dataclass(frozen=True)
class BatchRow:
    """One picture's prediction."""

    name: str
    truth: str  # "" where it is not known, as the subject
    subject: str
    prediction: Prediction
    thumbnail: bytes = b""  # WebP, at most 132 px on a side
    picture: bytes = b""  # lossless WebP, empty beyond `MAX_KEPT`
    on_black: bool = False  # whether the cell is cut out on black
    is_dark: bool = False  # whether it is shown brighter, too
    shows_no_cell: bool = False  # whether it is refused, and holds neither a cell on black nor what is stained as one

    @property
    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.prediction.decision.label or self.prediction.most_probable

    @property
    def confidence(self) -> float:
        """The probability of `called`."""
        return self.prediction.probabilities[self.called]

    @property
    def no_cell(self) -> str:
        """Why the picture does not count as a cell; "" for one that does."""
        if self.shows_no_cell:
            return NO_CELL
        return SMEAR if self.prediction.outcome == NOT_A_CELL else ""

    @property
    def is_wrong(self) -> bool:
        """Whether its true class is known, and another."""
        return bool(self.truth) and self.truth != self.called

    def kept(self) -> bytes:
        """The picture as a file; an error where it was not kept."""
        if self.picture:
            return self.picture
        raise DataError(
            f"{self.name}: of a batch, {MAX_KEPT // 2**20} MB of pictures are kept, and this one is not among them; "
            "send this person's cells alone"
        )


@dataclass(frozen=True)
class BatchResult:
    """A batch as one model predicts it; lives in a visitor's session, in memory only."""

    rows: tuple[BatchRow, ...]
    classes: tuple[str, ...]
    model: str
    revision: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    given: Batch = field(default_factory=Batch)  # the pictures that were read, to be predicted again
    problems: tuple[str, ...] = ()  # a sentence for each file that could not be used, or is no cell
    guessed_from: str = ""  # of `BatchFacts`, as the guess and the notes
    guess: str = ""
    notes: tuple[str, ...] = ()
    total: int = 0  # how many files were given
    unread: Mapping[str, int] = field(default_factory=dict)  # subject, "" for unknown → files not read yet
    stopped: bool = False  # by the visitor, before all files were read
    seconds: float = 0.0  # since its first file was read

    @property
    def is_reading(self) -> bool:
        """Whether files of it are still read."""
        return bool(self.unread) and not self.stopped

    @property
    def is_one_cell(self) -> bool:
        """Whether all that was given is one cell, which is opened."""
        return len(self.rows) == 1 and not self.problems

    @property
    def done(self) -> int:
        """How many of the files given were read."""
        return self.total - sum(self.unread.values())

    @property
    def memory(self) -> int:
        """Bytes that its pictures and thumbnails have."""
        return sum(len(row.picture) + len(row.thumbnail) for row in self.rows)

    @property
    def subjects(self) -> list[str]:
        """Every known subject, by name, those without a cell yet as well."""
        return sorted({*self.by_subject, *self.unread} - {""}, key=by_number)

    @property
    def positive(self) -> str:
        """The class that sensitivity is measured for; else the release's first."""
        return self.metrics.get("positive_label") or self.classes[0]

    @cached_property
    def cells(self) -> list[tuple[int, BatchRow]]:
        """Number and row of each picture that counts as a cell; of every picture where none does."""
        pictures = list(enumerate(self.rows))
        return [(number, row) for number, row in pictures if not row.no_cell] or pictures

    @cached_property
    def sheet(self) -> bytes:
        """Six of its cells beside each other, or all of fewer, as a WebP of `SHEET_SIZE`."""
        rows = [row for _, row in self.cells]
        chosen = rows[:: max(1, len(rows) // SHEET_CELLS)][:SHEET_CELLS]
        columns = min(3, math.ceil(math.sqrt(len(chosen))))
        width = SHEET_SIZE[0] // columns
        height = SHEET_SIZE[1] // math.ceil(len(chosen) / columns)
        sheet = Image.new("RGB", SHEET_SIZE)
        for place, row in enumerate(chosen):
            corner = (place % columns * width, place // columns * height)
            with Image.open(io.BytesIO(row.thumbnail)) as thumbnail:
                sheet.paste(ImageOps.fit(thumbnail, (width, height)), corner)
        return encoded(sheet, "WEBP", quality=88)

    @cached_property
    def by_subject(self) -> dict[str, list[BatchRow]]:
        """Known subject → its cells, by name."""
        cells = defaultdict(list)
        for row in self.rows:
            if row.subject:
                cells[row.subject].append(row)
        return {subject: cells[subject] for subject in sorted(cells, key=by_number)}

    @cached_property
    def rule(self) -> SubjectRule | None:
        """What the release predicts for subjects by."""
        return SubjectRule.from_metrics(self.metrics, self.classes)

    @cached_property
    def subject_predictions(self) -> list[SubjectPrediction]:
        """One prediction for each known subject whose files are all read, by name; none without a rule for subjects."""
        if self.rule is None:
            return []
        predictions = []
        for subject, cells in self.by_subject.items():
            if subject in self.unread:
                continue
            outcomes = [row.prediction.outcome for row in cells]
            predictions.append(self.rule.predict(_probabilities(cells, self.classes), outcomes, subject=subject))
        return predictions

    @cached_property
    def trained_on(self) -> set[str]:
        """Subjects that have the name of one whose cells trained the model."""
        names = set()
        for past in trainings_of(self.metrics):
            trained = {same_subject(past["name"], str(subject)) for subject in past["subjects"]}
            names |= {name for name in self.subjects if same_subject(past["name"], name) in trained}
        return names

    @cached_property
    def names_of_training(self) -> list[str]:
        """`trained_on`, and what the names of cells of unknown subjects say as the name of one cell does, sorted."""
        names = {training_subject(self.metrics, row.name) for row in self.rows if not row.subject}
        return sorted(self.trained_on | names - {""}, key=by_number)

    @property
    def warnings(self) -> list[str]:
        """What must be said beside the results: subjects that may have trained the model, cells of unknown subjects."""
        lines = []
        names = ", ".join(self.names_of_training)
        if names:
            lines.append(
                f"The model was trained on people called {names}: if these are the same, the results are too good."
            )
        if self.without_subject:
            lines.append(self.without_subject)
        if self.guess:
            lines.append(self.guess)
        return [*lines, *self.notes]

    @property
    def without_subject(self) -> str:
        """How many cells have no known subject, where the release answers about subjects; "" where all have one."""
        unknown = sum(not row.subject for _, row in self.cells)
        if not self.rule or not unknown:
            return ""
        return (
            f"The person of {unknown} of {len(self.cells)} cells is not known: give a table that names people, or each "
            "person's cells a folder."
        )

    @property
    def wrong(self) -> list[tuple[int, BatchRow]]:
        """Number and cell where the class, or else the most probable one, is not the true one; most confident first."""
        wrong = ((number, row) for number, row in self.cells if row.is_wrong)
        return sorted(wrong, key=lambda numbered: -numbered[1].confidence)


def predict_files(models: ModelCache, paths: Sequence[str] | None, name: str | None) -> BatchResult:
    """Predict everything uploaded and delete it, whatever happens."""
    if not paths:
        raise DataError("files: none was sent; give pictures of single cells, or a zip of them")
    with deleted_afterwards(paths):
        *_, result = predict_batch(models, open_batch(paths), name)
    return result


def predict_batch(models: ModelCache, batch: Batch, choice: str | None) -> Generator[BatchResult]:
    """Predict every picture of a batch: first no row, after each part the rows so far, at last the whole result.

    Raises:
        LeukoscopeError: the model cannot be used, or not one picture.
    """
    predictor = models.predictor(choice)
    release = predictor.release
    problems = [*batch.problems]
    facts = batch.facts(release.labels)
    rows: list[BatchRow] = []
    first_of: dict[str, str] = {}
    kept_bytes = 0
    total = len(batch.files)
    so_far = BatchResult(
        rows=(),
        classes=release.labels,
        model=str(choice),
        revision=release.revision,
        metrics=release.metrics,
        given=replace(batch, files=[]),
        guessed_from=facts.guessed_from,
        guess=facts.guess,
        total=total,
    )
    known_pictures = {file.name: file.picture for file in batch.files}
    yield replace(so_far, unread=_unread(batch.files, facts))
    start = time.monotonic()
    for names, images, done in read_parts(batch.files, problems):
        predictions = models.predict(predictor, images) if images else []
        for name, image, prediction in zip(names, images, predictions, strict=True):
            other = first_of.setdefault(prediction.pixel_hash, name)
            if other != name:
                problems.append(f"{name}: is a copy of {other}, pixel for pixel; it counts once")
                continue
            picture = known_pictures[name]
            if not picture and kept_bytes < MAX_KEPT:
                picture = encoded(image, "WEBP", quality=0, lossless=True, method=0)
            kept_bytes += len(picture)
            seen = to_rgb(image, name, ground=release.blank_rgb)
            on_black = is_cut_out(seen)
            shows_no_cell = prediction.outcome in REFUSED and holds_no_cell(seen, on_black=on_black)
            seen.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
            thumbnail = encoded(seen, "WEBP", quality=90)
            truth = facts.class_of[name]
            subject = facts.subject_of[name]
            is_dark_cell = is_dark(seen, on_black=on_black)
            rows.append(
                BatchRow(name, truth, subject, prediction, thumbnail, picture, on_black, is_dark_cell, shows_no_cell)
            )
        if done < total:
            yield replace(
                so_far,
                rows=tuple(rows),
                given=_readable(batch, rows, problems),
                unread=_unread(batch.files[done:], facts),
                seconds=time.monotonic() - start,
                problems=_not_used(rows, problems),
            )
    if not rows:
        raise DataError(f"not one picture can be used: {[*problems, 'none was given'][0]}")
    filled = sum(row.prediction.checks.filled_with is not None for row in rows)
    filling = filled_note(filled, len(rows), release.blank_rgb)
    notes = facts.notes
    if filling:
        notes = (*notes, f"{filling}.")
    given = _readable(batch, rows, problems)
    yield replace(so_far, rows=tuple(rows), given=given, notes=notes, problems=_not_used(rows, problems))


def _not_used(rows: Sequence[BatchRow], problems: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each picture that is no cell, then the problems."""
    return (*(f"{row.name}: {row.no_cell}" for row in rows if row.no_cell), *problems)


def _readable(batch: Batch, rows: Sequence[BatchRow], problems: Sequence[str]) -> Batch:
    """The pictures of these rows, which can be read after the files that were given are deleted."""
    files = [BatchFile(row.name, row.kept, row.picture) for row in rows]
    return replace(batch, files=files, problems=list(problems))


def _unread(files: Sequence[BatchFile], facts: BatchFacts) -> dict[str, int]:
    """Subject, "" for unknown → how many of these files are its."""
    return dict(Counter(facts.subject_of[file.name] for file in files))


def _probabilities(rows: Sequence[BatchRow], classes: Sequence[str]) -> np.ndarray:
    """The cells' probabilities, (cells, classes), 0–1."""
    return np.array([list(map(row.prediction.probabilities.__getitem__, classes)) for row in rows])


# What is measured and saved.


@dataclass(frozen=True)
class LabelMetrics:
    """What is measured on the cells whose true class is known, by their most probable one.

    Attributes:
        values: name of the metric, as in metrics.json → its value, 0–1.
        intervals: name → its 95 % interval, low and high; where cells were sampled, none for metrics by subject.
        cells: class → how many cells it has.
        right: class → how many of them get it.
        people: class → how many subjects it has; {} where not every cell has one.
        by_subject: whether the intervals are of subjects that were sampled, not of cells.
        notes: sentences on cells and intervals.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    cells: Mapping[str, int] = field(default_factory=dict)
    right: Mapping[str, int] = field(default_factory=dict)
    people: Mapping[str, int] = field(default_factory=dict)
    by_subject: bool = False
    notes: tuple[str, ...] = ()


def measured_on_labels(result: BatchResult) -> LabelMetrics:
    """The metrics on the cells whose true class is known; empty without one."""
    rows = [row for _, row in result.cells if row.truth]
    if not rows:
        return LabelMetrics()
    cells = CellPredictions(
        tuple(row.name for row in rows),
        tuple(row.subject for row in rows),
        np.asarray([result.classes.index(row.truth) for row in rows], int),
        _probabilities(rows, result.classes),
        result.classes,
    )
    notes = [f"{len(rows)} cells with a known class, by their most probable one."]
    people: dict[str, int] = {}
    if "" not in cells.subjects:
        people = dict(Counter(label for label, _ in {(row.truth, row.subject) for row in rows}))
    by_subject = True
    try:
        intervals = subject_intervals(cells)
        notes.append("95 % intervals from bootstrap samples of subjects.")
    except LeukoscopeError as error:
        by_subject = False
        intervals = cell_intervals(cells)
        reason = str(error)
        if not people:
            reason = "not every cell has a subject: give a folder for each"
        notes.append(f"95 % intervals from samples of cells, too narrow for new subjects ({reason}).")
    return LabelMetrics(
        values=point_metrics(cells),
        intervals=intervals,
        cells=dict(Counter(row.truth for row in rows)),
        right=dict(Counter(row.truth for row in rows if row.prediction.most_probable == row.truth)),
        people=people,
        by_subject=by_subject,
        notes=tuple(notes),
    )


def label_metrics(result: BatchResult) -> tuple[list[tuple[str, str, str]], list[str]]:
    """`measured_on_labels` as the API gives it: rows of name, value and interval, and notes; empty without labels."""
    measured = measured_on_labels(result)
    rows = [
        (metric_name(name), f"{value:.3f}", span(measured.intervals.get(name)))
        for name, value in measured.values.items()
    ]
    return rows, list(measured.notes)


def columns(result: BatchResult) -> dict[str, Sequence[Any]]:
    """Column → one value per picture."""
    rows = result.rows
    same_in_all = {"model": result.model, "revision": result.revision, "notice": RESEARCH_NOTICE}
    probabilities = _probabilities(rows, result.classes).T.tolist()
    return {
        "file": [row.name for row in rows],
        "subject": [row.subject for row in rows],
        "outcome": [row.prediction.outcome for row in rows],
        "reasons": [_reason_codes(row) for row in rows],
        "label": [row.truth for row in rows],
        **{f"p_{label}": shares for label, shares in zip(result.classes, probabilities, strict=True)},
        "ood_score": [row.prediction.checks.ood_score for row in rows],
        **{name: [value] * len(rows) for name, value in same_in_all.items()},
    }


def _reason_codes(row: BatchRow) -> str:
    return " ".join(reason.code for reason in row.prediction.decision.reasons)
