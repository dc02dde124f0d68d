"""Many cells on the stage: their subjects on the left, what follows from them on the right, each cell to be opened."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from html import escape
from threading import Semaphore

from PIL import Image

from leukoscope import LeukoscopeError
from leukoscope.inference.prediction import REFUSED, WITHOUT_CLASS
from leukoscope.inference.subject import SubjectPrediction
from leukoscope.reports.formatting import data_uri, encoded
from leukoscope.reports.text import about_model, outcome_text, percent
from leukoscope.synthetic import PHANTOM_LABELS, draw_cell
from leukoscope.web import stage
from leukoscope.web.batch_files import SUGGESTIONS, Batch, BatchFile, open_batch, subjects_of, suggested_pattern
from leukoscope.web.batch_results import BatchResult, BatchRow, label_metrics, predict_batch, too_good, wrong_rows
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import deleted_afterwards

# A batch holds hundreds of megabytes while it is read.
BATCHES_AT_ONCE = 2
# Enough cells of each for one prediction for a subject, which needs 50 by the releases of C-NMC.
SAMPLE_SUBJECTS, SAMPLE_CELLS = 2, 56
SHOWN, SHOWN_WRONG, SHOWN_PROBLEMS = 120, 24, 20
# How a visitor may order the cells.
ORDERS: dict[str, tuple[str, Callable[[BatchRow], tuple[float | str, ...]]]] = {
    "names": ("names, A to Z", lambda row: (row.name,)),
    "most": ("the most confident", lambda row: (-row.confidence,)),
    "least": ("the least confident", lambda row: (row.confidence,)),
    "ood": ("the most unlike the training cells", lambda row: (-(row.checks.ood_score or 0.0),)),
}
_WIDTH, _HEIGHT, _MARGIN = 640, 110, 26
_line = Semaphore(BATCHES_AT_ONCE)


@cache
def sample_batch() -> Batch:
    """Cells of two synthetic subjects, each of one class."""

    def draw(subject: int, cell: int) -> bytes:
        pixels = draw_cell(PHANTOM_LABELS[subject], subject=subject, cell=cell).image
        return encoded(Image.fromarray(pixels), "PNG", compress_level=1)

    return Batch(
        [
            BatchFile(f"synthetic-{subject + 1}/cell-{cell + 1:02d}.png", partial(draw, subject, cell))
            for subject in range(SAMPLE_SUBJECTS)
            for cell in range(SAMPLE_CELLS)
        ]
    )


def predict_files(models: ModelCache, paths: Sequence[str] | None, name: str | None, pattern: str) -> BatchResult:
    """Predict everything uploaded and delete it, whatever happens."""
    if not paths:
        raise LeukoscopeError("files: none was sent; give pictures of single cells, or a zip of them")
    with deleted_afterwards(paths):
        *_, result = predict_batch(models, open_batch(paths), name, pattern.strip())
    assert isinstance(result, BatchResult)
    return result


def reading_batch(models: ModelCache, batch: Batch, name: str, pattern: str = "") -> Iterator[str | BatchResult]:
    """Predict a batch once others are done; how far it is as HTML, at last the result.

    Without a pattern, or with one that was suggested for the files before these, one is suggested.
    """
    start, names, pattern = time.monotonic(), [file.name for file in batch.files], pattern.strip()
    if pattern in ("", *SUGGESTIONS):
        pattern = suggested_pattern(names, models.predictor(name).release.labels)
    found = subjects_found(list(subjects_of(names, pattern, batch.subjects).values()))
    yield progress(0, len(names), 0.0, found)
    # Not the event's own limit: single pictures come by the same event, and must not wait for batches.
    while not _line.acquire(timeout=1):
        yield progress(0, len(names), 0.0, found)
    try:
        for step in predict_batch(models, batch, name, pattern):
            if isinstance(step, BatchResult):
                yield step
            else:
                yield progress(step, len(names), time.monotonic() - start, found)
    finally:
        _line.release()


def progress(done: int, total: int, seconds: float, subjects: str) -> str:
    """How many of a batch are predicted after so many seconds, and what is known of its subjects."""
    left = f", about {max(1, round(seconds / done * (total - done)))} s left" if 0 < done < total else ""
    return (
        f'<p class="lk-headline" role="status">{done} of {total} pictures predicted{left}.</p>'
        f'<progress max="{total}" value="{done}" aria-label="Pictures predicted"></progress>{stage.note(subjects)}'
        f'<div class="lk-acts">{stage.act("stop", "Stop")}</div>'
    )


def subjects_found(subjects: Sequence[str]) -> str:
    """Whose cells these are, in words."""
    counts = Counter(one for one in subjects if one)
    if not counts:
        return "No subjects: the names suggest none."
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    rest = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    if without := len(subjects) - sum(counts.values()):
        rest += f"; {without} files without a subject"
    return f"Subjects: {len(counts)}. {named}{rest}."


def batch_picture(result: BatchResult, order: str = "names") -> str:
    """The left of the stage: every subject's cells as dots, then the cells themselves."""
    top = f'<div class="lk-top"><span>{len(result.rows)} cells</span></div>'
    strips = "".join(_strip(result, subject) for subject in result.cells_by_subject())
    if strips:
        unsure = ", shaded: no class" if _zone(result) else ""
        strips = stage.note(f"A dot is a cell, by its probability of {result.positive}{unsure}. Click one.") + strips
    key = ORDERS.get(order, ORDERS["names"])[1]
    rows = sorted(enumerate(result.rows), key=lambda numbered: key(numbered[1]))
    more = stage.note(f"and {len(rows) - SHOWN} more") if len(rows) > SHOWN else ""
    options = "".join(
        f'<option value="{one}"{" selected" if one == order else ""}>{said}</option>'
        for one, (said, _) in ORDERS.items()
    )
    sort = f'<label class="lk-sort">Sort by <select data-act="order">{options}</select></label>'
    return f"{top}<div class='lk-tall lk-wide'>{strips}{sort}{_cells(result, rows[:SHOWN])}{more}</div>"


def _zone(result: BatchResult) -> tuple[float, float] | None:
    """The probabilities between which no class is given, of two classes; None without them."""
    limit = result.thresholds.abstain_below
    return (1 - limit, limit) if limit is not None and limit > 0.5 and len(result.classes) == 2 else None


def _strip(result: BatchResult, subject: str) -> str:
    """Every cell of a subject as a dot, sorted by its probability of the positive class; refused ones at the left."""
    cells = [(number, row) for number, row in enumerate(result.rows) if row.subject == subject]
    cells.sort(key=lambda one: (one[1].decision.outcome not in REFUSED, one[1].probabilities[result.positive]))
    step = (_WIDTH - 2 * _MARGIN) / max(1, len(cells))
    radius = min(4.5, max(1.8, 0.45 * step))

    def height(probability: float) -> float:
        return 8 + (1 - probability) * (_HEIGHT - 16)

    shapes = ""
    if zone := _zone(result):
        shapes += (
            f'<rect class="lk-zone" x="{_MARGIN}" width="{_WIDTH - 2 * _MARGIN}" y="{height(zone[1]):.1f}" '
            f'height="{height(zone[0]) - height(zone[1]):.1f}"><title>no class</title></rect>'
        )
    for value in (0, 0.5, 1):
        shapes += f'<text x="{_MARGIN - 6}" y="{height(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
    for place, (number, row) in enumerate(cells):
        share = row.probabilities[result.positive]
        shapes += (
            f'<circle data-act="cell:{number}" cx="{_MARGIN + (place + 0.5) * step:.1f}" cy="{height(share):.1f}" '
            f'r="{radius:.1f}" fill="{stage.colour(row.decision.outcome, result.classes)}"><title>{escape(row.name)}: '
            f"{percent(share)}, {escape(outcome_text(row.decision.outcome))}</title></circle>"
        )
    said = subject_text(result, subject)
    label = escape(f"{subject}: {said}")
    return (
        f'<section class="lk-subject"><h3>{escape(subject)}</h3>{stage.note(said)}'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{shapes}</svg></section>'
    )


def subject_text(result: BatchResult, subject: str) -> str:
    """How many of a subject's cells have each outcome, and how many were right where that is known."""
    rows = result.cells_by_subject()[subject]
    found = Counter(row.decision.outcome for row in rows)
    refused, unsure = sum(found[one] for one in REFUSED), found["abstain"]
    said = ", ".join(f"{found[label]} {label}" for label in result.classes)
    said = f"{len(rows)} cells: {said}, {unsure} without a class, {refused} refused."
    given = [row for row in rows if row.truth and row.decision.label]
    if given:
        right = sum(row.decision.label == row.truth for row in given)
        said += f" Of {len(given)} given a class, {right} right."
    return said


def batch_answer(result: BatchResult, pattern: str = "", others: tuple[str, ...] = ()) -> str:
    """The right of the stage: counts, one prediction for a subject, metrics on labels, wrong cells, problems, files."""
    found = Counter(row.decision.outcome for row in result.rows)
    numbers = {one: found[one] for one in (*result.classes, *WITHOUT_CLASS) if found[one] or one in result.classes}
    html = f'<p class="lk-headline" role="status">{len(result.rows)} cells predicted.</p>'
    html += f"{stage.counts(numbers, result.classes)}{_subjects(result)}"
    if measured := label_metrics(result):
        rows = stage.table(("metric", "value", "95 % interval"), measured.rows)
        html += stage.details(
            "Measured on your labels", f"{''.join(map(stage.note, measured.notes))}{rows}", is_open=True
        )
    if wrong := wrong_rows(result):
        places = {row.name: number for number, row in enumerate(result.rows)}
        shown = _cells(result, [(places[row.name], row) for row in wrong[:SHOWN_WRONG]])
        html += stage.details(f"Wrong, the most confident first ({len(wrong)})", shown)
    if result.problems:
        lines = list(result.problems[:SHOWN_PROBLEMS])
        if (more := len(result.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(f"and {more} more")
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        html += stage.details(f"{len(result.problems)} not used", f"<ul>{items}</ul>", is_open=True)
    saves = stage.act("save:csv", "Save CSV")
    saves += stage.act("save:subjects", "Save subjects") if result.subject_predictions else ""
    given = (
        f'<label>Regular expression <input type="text" value="{escape(pattern)}" data-act="pattern"></label>'
        f"{stage.note('It finds the subject in a file’s name; empty: one is suggested.')}"
    )
    about = f"{about_model(result.model, result.revision)}."
    return (
        f'<div data-model="{escape(result.model)}">{html}<div class="lk-acts">{saves}</div>{stage.readers(others)}'
        f"{stage.details('How subjects are named', given)}{stage.note(about)}</div>"
    )


def _subjects(result: BatchResult) -> str:
    """One prediction for each subject with all its cells; without a rule for subjects, nothing but a warning."""
    seen = stage.message("Warning", too_good(result)) if result.trained_on else ""
    if not result.subject_predictions:
        return seen
    positive = result.subject_predictions[0].positive_label
    heads = ("subject", "outcome", *result.classes, "no class", "refused", f"probability of {positive}")
    rows = [_subject_row(result, one) for one in result.subject_predictions]
    reasons = "".join(stage.note(f"{one.subject}: {one.reason}.") for one in result.subject_predictions if one.reason)
    rule = f"Rule: {result.subject_predictions[0].rule.text}. The interval does not say how subjects differ."
    return f"{seen}{stage.table(heads, rows, 'Subjects')}{reasons}{stage.note(rule)}"


def _subject_row(result: BatchResult, one: SubjectPrediction) -> tuple[str, ...]:
    found = Counter(row.decision.outcome for row in result.cells_by_subject()[one.subject])
    share = "–"
    if one.is_result and one.probability is not None and one.interval is not None:
        share = f"{one.probability:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})"
    seen = " (in training?)" if one.subject in result.trained_on else ""
    counted = (*(found[label] for label in result.classes), one.abstained, one.refused)
    return (f"{one.subject}{seen}", outcome_text(one.outcome), *map(str, counted), share)


def _cells(result: BatchResult, rows: Sequence[tuple[int, BatchRow]]) -> str:
    return f'<ul class="lk-cells">{"".join(_cell(result, number, row) for number, row in rows)}</ul>'


def _cell(result: BatchResult, number: int, row: BatchRow) -> str:
    truth = f", is {row.truth}" if row.truth and row.truth != row.called else ""
    share = f" {percent(row.confidence)}" if row.decision.label else ""
    said = f"{outcome_text(row.decision.outcome)}{share}{truth}"
    # What it shows stands beside it in words.
    shown = f'<img src="{data_uri("image/webp", row.thumbnail)}" alt="" loading="lazy" width="96" height="96">'
    if row.picture:
        shown = stage.act(f"cell:{number}", shown, title=f"{row.name}: {said}; open it", classes="")
    wrong = ' class="wrong"' if truth else ""
    ink = stage.colour(row.decision.outcome, result.classes)
    # The end of a name tells it apart.
    name = f'<span class="lk-end" title="{escape(row.name)}"><bdi>{escape(row.name)}</bdi></span>'
    return f'<li{wrong} style="--c:{ink}">{shown}<b>{escape(said)}</b>{name}</li>'
