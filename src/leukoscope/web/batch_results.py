"""A batch's answers and what can be said of them together: a table, subjects, and figures where the truth is known."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cells.images import open_bytes
from leukoscope.evaluation.overlap import same_person
from leukoscope.inference.decision import REFUSED, Thresholds
from leukoscope.web.batch_files import Batch, Given, subjects_of
from leukoscope.web.saving import File
from leukoscope.web.shelf import Shelf
from leukoscope.web.tables import safe_cell
from leukoscope.web.upload import CELL

if TYPE_CHECKING:
    from leukoscope.evaluation.metrics import CellPredictions
    from leukoscope.inference.decision import Decision

AT_ONCE, THUMBNAIL = 16, 96


@dataclass(frozen=True)
class BatchRow:
    """One picture's answer.

    Attributes:
        truth, subject: "" where not known.
        decision: what is decided of it.
        ood_score: above 1 is out of distribution; None where the release has no detector.
        called: operating point → whether the cell counts as the positive class.
        thumbnail: at most 96 px on a side.
    """

    name: str
    truth: str
    subject: str
    decision: Decision
    probabilities: Mapping[str, float]
    ood_score: float | None
    called: Mapping[str, bool]
    thumbnail: Image.Image

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

    def with_subjects(self, pattern: str) -> BatchResult:
        """The same answers, their subjects told by another pattern.

        Raises:
            LeukoscopeError: see `subjects_of`.
        """
        subjects = subjects_of([row.name for row in self.rows], pattern, self.batch_subjects)
        return replace(self, rows=tuple(replace(row, subject=subjects[row.name]) for row in self.rows))


def answer_batch(
    shelf: Shelf, batch: Batch, choice: str | None, pattern: str, tell: Callable[[float], None]
) -> BatchResult:
    """Ask a model about every picture of a batch.

    Args:
        pattern: finds the subject in a file's name; see `subjects_of`.
        tell: is given the share that is done, 0–1.

    Raises:
        LeukoscopeError: the model or the pattern cannot be used, or not one picture.
    """
    release = shelf.predictor(choice).release
    subjects = subjects_of([file.name for file in batch.files], pattern, batch.subjects)
    refused = [*batch.refused, *batch.unknown_labels(release.labels)]
    thresholds, rows = Thresholds.from_metrics(release.metrics), []
    for first in range(0, len(batch.files), AT_ONCE):
        opened = []
        for file in batch.files[first : first + AT_ONCE]:
            try:
                opened.append((file, open_bytes(file.read(), file.name, max_pixels=CELL.pixels)))
            except LeukoscopeError as error:
                refused.append(str(error))
        make = partial(_row, batch, subjects, thresholds, release.labels)
        answers = shelf.ask(str(choice), [image for _, image in opened]) if opened else []
        rows += [make(file, image, answer) for (file, image), answer in zip(opened, answers, strict=True)]
        tell(min(1.0, (first + AT_ONCE) / len(batch.files)))
    if not rows:
        raise LeukoscopeError(f"not one picture can be used: {refused[0] if refused else 'none was given'}")
    source = release.metrics.get("data", {}).get("name", "")
    trained_on = frozenset(
        same_person(source, str(one)) for one in release.metrics.get("training", {}).get("subjects", ())
    )
    positive = thresholds.positive_label or release.labels[0]
    return BatchResult(
        tuple(rows),
        release.labels,
        positive,
        str(choice),
        release.revision,
        batch.subjects,
        tuple(refused),
        trained_on,
        source,
    )


def _row(
    batch: Batch, subjects: Mapping[str, str], thresholds: Thresholds, classes: tuple[str, ...],
    file: Given, image: Image.Image, answer: Any,
) -> BatchRow:  # fmt: skip
    shares = np.asarray([list(answer.probabilities.values())])
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return BatchRow(
        name=file.name,
        truth=batch.label_of(file.name, classes),
        subject=subjects[file.name],
        decision=answer.decision,
        probabilities=answer.probabilities,
        ood_score=answer.checks.ood_score,
        called={name: bool(called[0]) for name, called in thresholds.positives(shares, classes).items()},
        thumbnail=image,
    )


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
        **{f"{result.positive}_at_{name}": [row.called[name] for row in rows] for name in rows[0].called},
        "ood_score": [row.ood_score for row in rows],
    }
    about = {"model": text(result.model), "revision": result.revision, "notice": RESEARCH_NOTICE}
    return {**said, **{name: [value] * len(rows) for name, value in about.items()}}
