"""Many cells on the stage: predicted file by file, counted by subject, measured where folders name their class.

Their subjects stand on the left, what follows from them on the right; each cell can be opened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from threading import Semaphore
from typing import Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.bootstrap import cell_intervals, point_metrics, subject_intervals
from leukoscope.evaluation.overlap import same_subject, trainings_of
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.inference.prediction import NOT_A_CELL, REFUSED, WITHOUT_CLASS, Prediction, Thresholds
from leukoscope.inference.subject import SubjectPrediction, SubjectRule
from leukoscope.reports.formatting import data_uri, encoded, metric_name, span
from leukoscope.reports.text import about_model, outcome_text, percent
from leukoscope.web import stage
from leukoscope.web.batch_files import Batch, BatchFile, open_batch, read_parts, true_class
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import deleted_afterwards

THUMBNAIL = 96  # pixels
MAX_KEPT = 64 * 2**20  # bytes of a batch's pictures that stay in the visitor's session, to be opened
BATCHES_AT_ONCE = 2  # a batch holds hundreds of megabytes while it is read
SHOWN, SHOWN_WRONG, SHOWN_PROBLEMS = 120, 24, 20
_WIDTH, _HEIGHT = 600, 110
_line = Semaphore(BATCHES_AT_ONCE)


@dataclass(frozen=True)
class BatchRow:
    """One picture's prediction."""

    name: str
    truth: str  # "" where it is not known, as the subject
    subject: str
    prediction: Prediction
    thumbnail: bytes = b""  # WebP, at most 96 px on a side
    picture: bytes = b""  # lossless WebP, empty beyond `MAX_KEPT`

    @property
    def called(self) -> str:
        """The class decided on; where there is none, the most probable one."""
        return self.prediction.decision.label or self.prediction.most_probable

    @property
    def confidence(self) -> float:
        """The probability of `called`."""
        return self.prediction.probabilities[self.called]

    def kept(self) -> bytes:
        """The picture as a file; an error where it was not kept."""
        if self.picture:
            return self.picture
        kept = f"of a batch, {MAX_KEPT // 2**20} MB of pictures are kept, and this one is not among them"
        raise LeukoscopeError(f"{self.name}: {kept}; send this subject's cells alone")


@dataclass(frozen=True)
class BatchResult:
    """A batch as one model predicts it; lives in a visitor's session, in memory only."""

    rows: tuple[BatchRow, ...]
    classes: tuple[str, ...]
    model: str
    revision: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    given: Batch = field(default_factory=Batch)  # the pictures that were read, to be predicted again
    problems: tuple[str, ...] = ()  # a sentence for each file that could not be used

    @property
    def positive(self) -> str:
        """The class that sensitivity is measured for; else the release's first."""
        return self.metrics.get("positive_label") or self.classes[0]

    @cached_property
    def by_subject(self) -> dict[str, list[BatchRow]]:
        """Known subject → its cells, by name."""
        names = sorted({row.subject for row in self.rows} - {""})
        return {name: [row for row in self.rows if row.subject == name] for name in names}

    @cached_property
    def rule(self) -> SubjectRule | None:
        """What the release predicts for subjects by."""
        return SubjectRule.from_metrics(self.metrics, self.classes)

    @cached_property
    def subject_predictions(self) -> list[SubjectPrediction]:
        """One prediction for each known subject, by name; none where the release does not predict for subjects."""
        if self.rule is None:
            return []
        found = []
        for subject, cells in self.by_subject.items():
            probabilities = np.array([[row.prediction.probabilities[label] for label in self.classes] for row in cells])
            found.append(self.rule.predict(probabilities, [row.prediction.outcome for row in cells], subject=subject))
        return found

    @cached_property
    def trained_on(self) -> set[str]:
        """Subjects that have the name of one whose cells trained the model."""
        found = set()
        for past in trainings_of(self.metrics):
            trained = {same_subject(past["name"], str(one)) for one in past["subjects"]}
            found |= {name for name in self.by_subject if same_subject(past["name"], name) in trained}
        return found

    @property
    def warnings(self) -> list[str]:
        """What must be said beside the results: subjects that may have trained the model, cells of unknown subjects."""
        found, names = [], ", ".join(sorted(self.trained_on))
        if names:
            said = f"The model was trained on subjects called {names}: if these are the same"
            found.append(f"{said}, the results are too good.")
        if self.rule and (unknown := sum(not row.subject for row in self.rows)):
            said = f"The subject of {unknown} of {len(self.rows)} cells is not known"
            found.append(f"{said}: give each subject's cells a folder.")
        return found

    @property
    def wrong(self) -> list[tuple[int, BatchRow]]:
        """Number and cell where the class, or else the most probable one, is not the true one; most confident first."""
        wrong = ((number, row) for number, row in enumerate(self.rows) if row.truth and row.truth != row.called)
        return sorted(wrong, key=lambda one: -one[1].confidence)


def predict_files(models: ModelCache, paths: Sequence[str] | None, name: str | None) -> BatchResult:
    """Predict everything uploaded and delete it, whatever happens."""
    if not paths:
        raise LeukoscopeError("files: none was sent; give pictures of single cells, or a zip of them")
    with deleted_afterwards(paths):
        *_, result = predict_batch(models, open_batch(paths), name)
    assert isinstance(result, BatchResult)
    return result


def predict_batch(models: ModelCache, batch: Batch, choice: str | None) -> Iterator[int | BatchResult]:
    """Predict every picture of a batch: after each part how many files are done, at last the result.

    Raises:
        LeukoscopeError: the model cannot be used, or not one picture.
    """
    predictor = models.predictor(choice)
    release = predictor.release
    problems = [*batch.problems]
    subjects = batch.subjects(release.labels)
    rows: list[BatchRow] = []
    first_of: dict[str, str] = {}
    kept = 0
    for names, images, done in read_parts(batch.files, problems):
        predictions = models.predict(predictor, images) if images else []
        for name, image, prediction in zip(names, images, predictions, strict=True):
            if (other := first_of.setdefault(prediction.pixel_hash, name)) != name:
                problems.append(f"{name}: is a copy of {other}, pixel for pixel; it counts once")
                continue
            picture = encoded(image, "WEBP", quality=0, lossless=True, method=0) if kept < MAX_KEPT else b""
            kept += len(picture)
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            truth, thumbnail = true_class(name, release.labels), encoded(image, "WEBP", quality=90)
            rows.append(BatchRow(name, truth, subjects[name], prediction, thumbnail, picture))
        yield done
    if not rows:
        raise LeukoscopeError(f"not one picture can be used: {[*problems, 'none was given'][0]}")
    smear = "shows a smear, no single cell cut out on black; give it alone, and its cells are found"
    smears = [f"{row.name}: {smear}" for row in rows if row.prediction.outcome == NOT_A_CELL]
    given = replace(batch, files=[BatchFile(row.name, row.kept) for row in rows])
    found = tuple(rows), release.labels, str(choice), release.revision, release.metrics
    yield BatchResult(*found, given=given, problems=(*smears, *problems))


def reading_batch(models: ModelCache, batch: Batch, name: str) -> Iterator[str | BatchResult]:
    """Predict a batch once others are done; how far it is as HTML, at last the result."""
    start, total = time.monotonic(), len(batch.files)
    subjects = set(batch.subjects(models.predictor(name).release.labels).values()) - {""}
    found = f"Subjects: {len(subjects)}." if subjects else "No subjects: give each one's cells a folder."
    yield progress(0, total, 0.0, found)
    # Not the event's own limit: single pictures come by the same event, and must not wait for batches.
    while not _line.acquire(timeout=1):
        yield progress(0, total, 0.0, found)
    try:
        for step in predict_batch(models, batch, name):
            yield step if isinstance(step, BatchResult) else progress(step, total, time.monotonic() - start, found)
    finally:
        _line.release()


# What is measured and saved.


def label_metrics(result: BatchResult) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Metrics on the cells whose true class is known: rows of name, value and interval, and notes; empty without."""
    rows = [row for row in result.rows if row.truth]
    if not rows:
        return [], []
    cells = CellPredictions(
        tuple(row.name for row in rows),
        tuple(row.subject for row in rows),
        np.asarray([result.classes.index(row.truth) for row in rows], int),
        np.asarray([[row.prediction.probabilities[label] for label in result.classes] for row in rows]),
        result.classes,
    )
    notes = [f"{len(rows)} cells with a known class, by their most probable one."]
    try:
        intervals = subject_intervals(cells)
        notes.append("95 % intervals from bootstrap samples of subjects.")
    except LeukoscopeError as error:
        intervals = cell_intervals(cells)
        missing = "not every cell has a subject: give a folder for each"
        reason = missing if "" in cells.subjects else str(error)
        notes.append(f"95 % intervals from samples of cells, too narrow for new subjects ({reason}).")
    measured = point_metrics(cells)
    return [(metric_name(name), f"{value:.3f}", span(intervals.get(name))) for name, value in measured.items()], notes


def columns(result: BatchResult) -> dict[str, Sequence[Any]]:
    """Column → one value per picture."""
    rows, about = result.rows, {"model": result.model, "revision": result.revision, "notice": RESEARCH_NOTICE}
    return {
        "file": [row.name for row in rows],
        "subject": [row.subject for row in rows],
        "outcome": [row.prediction.outcome for row in rows],
        "reasons": [" ".join(reason.code for reason in row.prediction.decision.reasons) for row in rows],
        "label": [row.truth for row in rows],
        **{f"p_{label}": [row.prediction.probabilities[label] for row in rows] for label in result.classes},
        "ood_score": [row.prediction.checks.ood_score for row in rows],
        **{name: [value] * len(rows) for name, value in about.items()},
    }


# What is shown.


def progress(done: int, total: int, seconds: float, subjects: str) -> str:
    """How many of a batch are predicted after so many seconds, and what is known of its subjects."""
    left = f", about {max(1, round(seconds / done * (total - done)))} s left" if 0 < done < total else ""
    return (
        f'<p class="lk-headline" role="status">{done} of {total} pictures predicted{left}.</p>'
        f'<progress max="{total}" value="{done}" aria-label="Pictures predicted"></progress>{stage.note(subjects)}'
        f'<div class="lk-acts">{stage.act("stop", "Stop")}</div>'
    )


def batch_picture(result: BatchResult) -> str:
    """The left of the stage: every subject's cells as dots, then the cells themselves, the least confident first."""
    strips = "".join(_strip(result, subject) for subject in result.by_subject)
    if strips:
        unsure = ", shaded: no class" if _zone(result) else ""
        strips = stage.note(f"A dot is a cell, by its probability of {result.positive}{unsure}. Click one.") + strips
    rows = sorted(enumerate(result.rows), key=lambda one: one[1].confidence)
    more = f", {SHOWN} of {len(rows)}" if len(rows) > SHOWN else ""
    said = stage.note(f"The least confident first{more}:")
    return (
        f'<div class="lk-top"><span>{len(rows)} cells</span></div>'
        f'<div class="lk-tall lk-wide">{strips}{said}{_cells(result, rows[:SHOWN])}</div>'
    )


def _zone(result: BatchResult) -> tuple[float, float] | None:
    """The probabilities between which no class is given, of two classes; None without them."""
    limit = Thresholds.from_metrics(result.metrics).abstain_below
    return (1 - limit, limit) if limit is not None and limit > 0.5 and len(result.classes) == 2 else None


def _strip(result: BatchResult, subject: str) -> str:
    """Every cell of a subject as a dot, sorted by its probability of the positive class; refused ones at the left."""
    cells = [
        (row.prediction.outcome not in REFUSED, row.prediction.probabilities[result.positive], number)
        for number, row in enumerate(result.rows)
        if row.subject == subject
    ]
    step, shapes = _WIDTH / len(cells), ""

    def height(probability: float) -> float:
        return 8 + (1 - probability) * (_HEIGHT - 16)

    if zone := _zone(result):
        top, bottom = height(zone[1]), height(zone[0])
        shapes += f'<rect class="lk-zone" width="{_WIDTH}" y="{top:.1f}" height="{bottom - top:.1f}"/>'
    for place, (_, share, number) in enumerate(sorted(cells)):
        row = result.rows[number]
        title = f"{row.name}: {percent(share)}, {outcome_text(row.prediction.outcome)}"
        shapes += (
            f'<circle data-act="cell:{number}" cx="{(place + 0.5) * step:.1f}" cy="{height(share):.1f}" '
            f'r="{min(4.5, max(2, 0.45 * step)):.1f}" fill="{stage.colour(row.prediction.outcome, result.classes)}">'
            f"<title>{escape(title)}</title></circle>"
        )
    said, seen = subject_text(result, subject), " (in training?)" if subject in result.trained_on else ""
    axis = '<div aria-hidden="true"><span>1</span><span>0.5</span><span>0</span></div>'
    return (
        f'<section class="lk-subject"><h3>{escape(subject + seen)}</h3>{stage.note(said)}<div class="lk-dots">{axis}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{subject}: {said}")}">{shapes}</svg>'
        "</div></section>"
    )


def subject_text(result: BatchResult, subject: str) -> str:
    """What a subject's cells say together, how many have each outcome, and how many were right where that is known."""
    rows, said = result.by_subject[subject], ""
    if one := next((one for one in result.subject_predictions if one.subject == subject), None):
        said = f"Together {outcome_text(one.outcome)}"
        if one.is_result and one.probability is not None and one.interval is not None:
            low, high = one.interval
            said += f", probability of {one.positive_label} {one.probability:.3f} ({low:.3f} to {high:.3f})"
        said += f": {one.reason}. " if one.reason else ". "
    found = Counter(row.prediction.outcome for row in rows)
    said += f"{len(rows)} cells: {', '.join(f'{found[label]} {label}' for label in result.classes)}"
    said += f", {found['abstain']} without a class, {sum(found[one] for one in REFUSED)} refused."
    given = [row for row in rows if row.truth and row.prediction.decision.label]
    right = sum(row.prediction.decision.label == row.truth for row in given)
    return f"{said} Of {len(given)} given a class, {right} right." if given else said


def batch_answer(result: BatchResult, others: tuple[str, ...] = ()) -> str:
    """The right of the stage: counts, the rule for subjects, metrics on labels, wrong cells, problems, files."""
    found = Counter(row.prediction.outcome for row in result.rows)
    numbers = {one: found[one] for one in (*result.classes, *WITHOUT_CLASS) if found[one] or one in result.classes}
    html = f'<p class="lk-headline" role="status">{len(result.rows)} cells predicted.</p>'
    html += stage.counts(numbers, result.classes)
    html += stage.message("Warning", " ".join(result.warnings)) if result.warnings else ""
    if result.rule:
        html += stage.note(f"Rule for a subject: {result.rule.text}. Its interval does not say how subjects differ.")
    measured, notes = label_metrics(result)
    if measured:
        rows = stage.facts({name: f"{value} ({interval})" for name, value, interval in measured})
        html += stage.details("Measured on your labels", f"{''.join(map(stage.note, notes))}{rows}", is_open=True)
    if result.wrong:
        shown = _cells(result, result.wrong[:SHOWN_WRONG])
        html += stage.details(f"Wrong, the most confident first ({len(result.wrong)})", shown)
    if result.problems:
        lines = list(result.problems[:SHOWN_PROBLEMS])
        if (more := len(result.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(f"and {more} more")
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        html += stage.details(f"{len(result.problems)} not used", f"<ul>{items}</ul>", is_open=True)
    about = f"{about_model(result.model, result.revision)}."
    return (
        f'<div data-model="{escape(result.model)}">{html}<div class="lk-acts">{stage.act("save:csv", "Save CSV")}</div>'
        f"{stage.readers(others)}{stage.note(about)}</div>"
    )


def _cells(result: BatchResult, rows: Sequence[tuple[int, BatchRow]]) -> str:
    """Cells, each with what the model says of it."""
    shown = ""
    for number, row in rows:
        truth = f", is {row.truth}" if row.truth and row.truth != row.called else ""
        share = f" {percent(row.confidence)}" if row.prediction.decision.label else ""
        said = f"{outcome_text(row.prediction.outcome)}{share}{truth}"
        # What it shows stands beside it in words.
        image = f'<img src="{data_uri("image/webp", row.thumbnail)}" alt="" loading="lazy" width="96" height="96">'
        if row.picture:
            image = stage.act(f"cell:{number}", image, title=f"{row.name}: {said}; open it", classes="")
        style = f'{"class=wrong " if truth else ""}style="--c:{stage.colour(row.prediction.outcome, result.classes)}"'
        # The end of a name tells it apart.
        name = f'<span class="lk-end" title="{escape(row.name)}"><bdi>{escape(row.name)}</bdi></span>'
        shown += f"<li {style}>{image}<b>{escape(said)}</b>{name}</li>"
    return f'<ul class="lk-cells">{shown}</ul>'
