"""A batch's answers and what can be said of them together: a table, subjects, and figures where the truth is known."""

from __future__ import annotations

import io
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.images import open_bytes
from leukoscope.evaluation.overlap import same_person
from leukoscope.inference.decision import REFUSED, Checks, Thresholds
from leukoscope.inference.patient import PatientPrediction, PatientRule
from leukoscope.web.batch_files import Batch, Given, subjects_of
from leukoscope.web.saving import File
from leukoscope.web.shelf import Shelf
from leukoscope.web.tables import safe_cell
from leukoscope.web.upload import CELL

if TYPE_CHECKING:
    from leukoscope.evaluation.metrics import CellPredictions
    from leukoscope.inference.decision import Decision

AT_ONCE, THUMBNAIL = 16, 96
MAX_KEPT = 64 * 2**20
"""Bytes of a batch's pictures that stay in the visitor's session, so that they can be opened."""


@dataclass(frozen=True)
class BatchRow:
    """One picture's prediction.

    Attributes:
        truth, subject: "" where not known.
        decision: what is decided of it.
        checks: what the decision rests on beside the probabilities.
        thumbnail: WebP, at most 96 px on a side.
        picture: the picture as lossless WebP; empty beyond `MAX_KEPT`.
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
    def answer(self) -> str:
        """The most probable class, whatever the outcome."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def confidence(self) -> float:
        """The probability of that class."""
        return self.probabilities[self.answer]


@dataclass(frozen=True)
class BatchResult:
    """A batch as one model answers it; lives in a visitor's session, in memory only.

    Attributes:
        positive: the class that operating points look for; else the release's first.
        batch_subjects: file name → subject, as the CSV says.
        refused: one sentence for each file, and each label of a CSV, that could not be used.
        trained_on: subjects whose cells the release was trained on, known aliases joined.
        data_name: of the data set that it was trained on.
        thresholds: what the release decides by.
        metrics: the release's metrics.json.
    """

    rows: tuple[BatchRow, ...]
    classes: tuple[str, ...]
    positive: str
    model: str
    revision: str
    batch_subjects: Mapping[str, str]
    refused: tuple[str, ...]
    trained_on: frozenset[str]
    data_name: str
    thresholds: Thresholds = field(default_factory=Thresholds)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def points(self) -> tuple[str, ...]:
        """The release's operating points."""
        return tuple(self.thresholds.operating_points)

    def at_point(self, point: str) -> BatchResult:
        """The same predictions, decided at an operating point; "" for the most probable class."""
        known = point if point in self.points else ""

        def decide(row: BatchRow) -> Decision:
            return self.thresholds.decide(row.probabilities, row.checks, operating_point=known)

        return replace(self, rows=tuple(replace(row, decision=decide(row)) for row in self.rows))

    def persons(self) -> list[PatientPrediction]:
        """One prediction for each known subject, by name; none where the release does not predict for persons."""
        return self._persons

    @cached_property
    def _persons(self) -> list[PatientPrediction]:
        # The page, its report and the exports ask for them; each takes a thousand resamples a person.
        rule = PatientRule.from_metrics(self.metrics, self.classes)
        if rule is None:
            return []
        found = []
        for subject in sorted({row.subject for row in self.rows} - {""}):
            cells = [row for row in self.rows if row.subject == subject]
            probabilities = np.array([[row.probabilities[label] for label in self.classes] for row in cells])
            found.append(rule.predict(probabilities, [row.decision.outcome for row in cells], patient=subject))
        return found

    def with_subjects(self, pattern: str) -> BatchResult:
        """The same answers, their subjects told by another pattern.

        Raises:
            LeukoscopeError: see `subjects_of`.
        """
        subjects = subjects_of([row.name for row in self.rows], pattern, self.batch_subjects)
        return replace(self, rows=tuple(replace(row, subject=subjects[row.name]) for row in self.rows))


def answer_batch(shelf: Shelf, batch: Batch, choice: str | None, pattern: str) -> Generator[int, None, BatchResult]:
    """Ask a model about every picture of a batch.

    Args:
        pattern: finds the subject in a file's name; see `subjects_of`.

    Yields:
        how many files are done.

    Raises:
        LeukoscopeError: the model or the pattern cannot be used, or not one picture.
    """
    release = shelf.predictor(choice).release
    subjects = subjects_of([file.name for file in batch.files], pattern, batch.subjects)
    refused = [*batch.refused, *batch.unknown_labels(release.labels)]
    thresholds, rows, kept = Thresholds.from_metrics(release.metrics), [], 0
    for first in range(0, len(batch.files), AT_ONCE):
        opened = []
        for file in batch.files[first : first + AT_ONCE]:
            try:
                opened.append((file, open_bytes(file.read(), file.name, max_pixels=CELL.pixels)))
            except LeukoscopeError as error:
                refused.append(str(error))
        answers = shelf.ask(str(choice), [image for _, image in opened]) if opened else []
        for (file, image), answer in zip(opened, answers, strict=True):
            picture = _packed(image, lossless=True) if kept < MAX_KEPT else b""
            kept += len(picture)
            rows.append(_row(batch, file, subjects[file.name], release.labels, answer, image, picture))
        yield min(first + AT_ONCE, len(batch.files))
    if not rows:
        raise LeukoscopeError(f"not one picture can be used: {refused[0] if refused else 'none was given'}")
    source = release.metrics.get("data", {}).get("name", "")
    trained_on = frozenset(
        same_person(source, str(one)) for one in release.metrics.get("training", {}).get("subjects", ())
    )
    return BatchResult(
        tuple(rows),
        release.labels,
        thresholds.positive_label or release.labels[0],
        str(choice),
        release.revision,
        batch.subjects,
        tuple(refused),
        trained_on,
        source,
        thresholds,
        release.metrics,
    )


def _row(
    batch: Batch, file: Given, subject: str, classes: tuple[str, ...], answer: Any, image: Image.Image, picture: bytes
) -> BatchRow:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return BatchRow(
        name=file.name,
        truth=batch.label_of(file.name, classes),
        subject=subject,
        decision=answer.decision,
        probabilities=answer.probabilities,
        checks=answer.checks,
        thumbnail=_packed(image),
        picture=picture,
    )


def _packed(image: Image.Image, *, lossless: bool = False) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=0 if lossless else 90, lossless=lossless, method=0 if lossless else 4)
    return buffer.getvalue()


def wrong_rows(result: BatchResult) -> list[BatchRow]:
    """Cells whose most probable class is not the true one, the surest first."""
    wrong = (row for row in result.rows if row.truth and row.truth != row.answer)
    return sorted(wrong, key=lambda row: -row.confidence)


def subject_rows(result: BatchResult) -> list[tuple[Any, ...]]:
    """For every known subject: name, cells, of these in distribution, cells of each class, mean probability."""
    table: list[tuple[Any, ...]] = []
    for subject in sorted({row.subject for row in result.rows} - {""}):
        cells = [row for row in result.rows if row.subject == subject]
        known = sum(row.decision.outcome not in REFUSED for row in cells)
        decided = [sum(row.decision.outcome == label for row in cells) for label in result.classes]
        mean = float(np.mean([row.probabilities[result.positive] for row in cells]))
        table.append((subject, len(cells), known, *decided, f"{mean:.3f}"))
    return table


@dataclass(frozen=True)
class Figures:
    """What labelled cells say of the model: rows of name, value and interval, and what to know about them."""

    rows: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def figures(result: BatchResult) -> Figures | None:
    """Every figure with its interval, over the cells whose true class is known; None where there is none."""
    from leukoscope.evaluation.evaluation_page import figure_name
    from leukoscope.evaluation.intervals import cell_intervals, point_figures, subject_intervals

    answers = _labelled(result)
    if not answers.cell_ids:
        return None
    notes = [f"{len(answers.cell_ids)} cells with a known class, each counted with its most probable class."]
    try:
        intervals = subject_intervals(answers)
        notes.append("95 % intervals from drawing whole subjects anew: what to expect of other patients.")
    except LeukoscopeError as error:
        intervals = cell_intervals(answers)
        notes.append(f"95 % intervals from drawing cells, far too narrow for new patients ({error}).")
    tested = set(answers.subjects)
    if seen := sorted(one for one in tested if same_person(result.data_name, one) in result.trained_on):
        notes.insert(0, f"This model was trained on cells of {', '.join(seen)}: the figures flatter it.")
    shown = point_figures(answers).items()
    return Figures(tuple((figure_name(k), f"{v:.3f}", _span(intervals.get(k))) for k, v in shown), tuple(notes))


def _labelled(result: BatchResult) -> CellPredictions:
    from leukoscope.evaluation.metrics import CellPredictions

    rows = [row for row in result.rows if row.truth]
    return CellPredictions(
        tuple(row.name for row in rows),
        tuple(row.subject for row in rows),
        np.asarray([result.classes.index(row.truth) for row in rows], int),
        np.asarray([[row.probabilities[label] for label in result.classes] for row in rows]),
        result.classes,
    )


def _span(interval: Mapping[str, float] | None) -> str:
    return f"{interval['low']:.2f}–{interval['high']:.2f}" if interval else "–"


def save_table(kind: str, result: BatchResult) -> File:
    """Every answer as a file.

    Args:
        kind: "CSV" or "Parquet".
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table, buffer = pa.table(columns(result, safe=kind == "CSV")), io.BytesIO()
    if kind == "CSV":
        pyarrow.csv.write_csv(table, buffer)
        return File("leukoscope-batch.csv", "text/csv", buffer.getvalue())
    pyarrow.parquet.write_table(table, buffer)
    return File("leukoscope-batch.parquet", "application/vnd.apache.parquet", buffer.getvalue())


def _called(result: BatchResult) -> dict[str, np.ndarray]:
    shares = np.array([[row.probabilities[label] for label in result.classes] for row in result.rows])
    return result.thresholds.positives(shares, result.classes)


def save_persons(result: BatchResult) -> File:
    """One row a person, as CSV.

    Raises:
        LeukoscopeError: no person is known, or the release does not predict for persons.
    """
    import pyarrow as pa
    import pyarrow.csv

    rows = [person.to_dict() for person in result.persons()]
    if not rows:
        raise LeukoscopeError("no person is known: name the subjects by a pattern, a folder each, or a CSV")
    safe = [{key: safe_cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(pa.Table.from_pylist(safe), buffer)
    return File("leukoscope-persons.csv", "text/csv", buffer.getvalue())


def save_report(shelf: Shelf, result: BatchResult, subject: str, name: str) -> File:
    """The report on one person's cells.

    Args:
        subject: whose.
        name: what the report calls the person; "" for nobody.

    Raises:
        LeukoscopeError: no such person, or pictures that are no longer kept.
    """
    from leukoscope.evaluation.patient_report import ShownCell, cells_to_show, patient_report

    person = next((one for one in result.persons() if one.patient == subject), None)
    if person is None:
        raise LeukoscopeError(f"subject {subject!r}: is none of this batch; choose one of the list")
    rows = [row for row in result.rows if row.subject == subject]
    positive = np.array([row.probabilities[person.positive_label] for row in rows])
    outcomes = [row.decision.outcome for row in rows]
    shown = []
    for chosen in cells_to_show(positive, outcomes):
        images = [opened(rows[i]) for i in chosen]
        answers = shelf.ask(result.model, images, explain=True) if images else []
        named = [f"cell {i + 1}" for i in chosen]
        shown.append([ShownCell(*one) for one in zip(images, answers, named, strict=True)])
    html = patient_report(
        replace(person, patient=name.strip()),
        positive,
        outcomes,
        (shown[0], shown[1], shown[2]),
        model=result.model,
        revision=result.revision,
        metrics=result.metrics,
    )
    return File("leukoscope-report.html", "text/html", html.encode())


def opened(row: BatchRow) -> Image.Image:
    """A row's picture.

    Raises:
        LeukoscopeError: it was not kept.
    """
    if not row.picture:
        raise LeukoscopeError(
            f"{row.name}: of a batch, {MAX_KEPT // 2**20} MB of pictures are kept, and this one is not among them; "
            "open it in the tab “One cell”"
        )
    return Image.open(io.BytesIO(row.picture)).convert("RGB")


def columns(result: BatchResult, *, safe: bool = False) -> dict[str, Sequence[Any]]:
    """Column → one value a picture.

    Args:
        safe: so that no text can be taken for a formula.
    """
    rows, text = result.rows, safe_cell if safe else str
    said: dict[str, Sequence[Any]] = {
        "file": [text(row.name) for row in rows],
        "subject": [text(row.subject) for row in rows],
        "outcome": [text(row.decision.outcome) for row in rows],
        "reasons": [" ".join(reason.code for reason in row.decision.reasons) for row in rows],
        "label": [text(row.truth) for row in rows],
        **{f"p_{label}": [row.probabilities[label] for row in rows] for label in result.classes},
        **{f"{result.positive}_at_{name}": called.tolist() for name, called in _called(result).items()},
        "ood_score": [row.checks.ood_score for row in rows],
    }
    about = {"model": text(result.model), "revision": result.revision, "notice": RESEARCH_NOTICE}
    return {**said, **{name: [value] * len(rows) for name, value in about.items()}}
