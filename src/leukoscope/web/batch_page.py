"""Many cells on the stage: their subjects and the cells on the left, what follows from them on the right."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from threading import Semaphore
from typing import Any

from markupsafe import Markup

from leukoscope.inference.prediction import ABSTAIN, REFUSED, WITHOUT_CLASS, Thresholds
from leukoscope.reports import trust
from leukoscope.reports.formatting import data_uri
from leukoscope.reports.text import about_model, outcome_text, percent
from leukoscope.web.batch import BATCHES_AT_ONCE, BatchResult, BatchRow, label_metrics, predict_batch
from leukoscope.web.batch_files import Batch
from leukoscope.web.drawing import colour, render
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.smear_page import number_word

SHOWN_CELLS = 120
SHOWN_WRONG = 24
SHOWN_PROBLEMS = 20
# Of a subject's dots, in their own units.
_WIDTH = 600
_HEIGHT = 110
_line = Semaphore(BATCHES_AT_ONCE)


def reading_batch(models: ModelCache, batch: Batch, name: str) -> Iterator[str | BatchResult]:
    """Predict a batch once others are done; how far it is as HTML, at last the result."""
    start = time.monotonic()
    total = len(batch.files)
    subjects = set(batch.subjects(models.predictor(name).release.labels).values()) - {""}
    sentence = "No subjects: give a table that names them, or each one's cells a folder."
    if subjects:
        sentence = f"Subjects: {len(subjects)}."
    yield progress(0, total, 0.0, sentence)
    # Not the event's own limit: single pictures come by the same event, and must not wait for batches.
    while not _line.acquire(timeout=1):
        yield progress(0, total, 0.0, sentence)
    try:
        for step in predict_batch(models, batch, name):
            if isinstance(step, BatchResult):
                yield step
            else:
                yield progress(step, total, time.monotonic() - start, sentence)
    finally:
        _line.release()


def progress(done: int, total: int, seconds: float, subjects: str) -> Markup:
    """How many of a batch are predicted after so many seconds, and what is known of its subjects."""
    seconds_left = None
    if 0 < done < total:
        seconds_left = max(1, round(seconds / done * (total - done)))
    return render("progress.html", done=done, total=total, seconds_left=seconds_left, subjects=subjects)


def batch_picture(result: BatchResult) -> Markup:
    """The left of the stage: every subject's cells as dots, then the cells themselves, the least confident first."""
    rows = sorted(enumerate(result.rows), key=lambda numbered: numbered[1].confidence)
    return render(
        "batch_picture.html",
        total=len(rows),
        subjects=[_strip(result, subject) for subject in result.by_subject],
        positive=result.positive,
        has_zone=_zone(result) is not None,
        shown=min(SHOWN_CELLS, len(rows)),
        cells=[_cell(result, number, row) for number, row in rows[:SHOWN_CELLS]],
    )


def _zone(result: BatchResult) -> tuple[float, float] | None:
    """The probabilities between which no class is given, of two classes; None without them."""
    limit = Thresholds.from_metrics(result.metrics).abstain_below
    if limit is None or limit <= 0.5 or len(result.classes) != 2:
        return None
    return 1 - limit, limit


def _height(probability: float) -> float:
    """Where a probability lies in a subject's dots, from the top."""
    return 8 + (1 - probability) * (_HEIGHT - 16)


def _strip(result: BatchResult, subject: str) -> dict[str, Any]:
    """Every cell of a subject as a dot, sorted by its probability of the positive class; refused ones at the left."""
    cells = [
        (row.prediction.outcome not in REFUSED, row.prediction.probabilities[result.positive], number)
        for number, row in enumerate(result.rows)
        if row.subject == subject
    ]
    step = _WIDTH / len(cells)
    dots = []
    for place, (_, share, number) in enumerate(sorted(cells)):
        row = result.rows[number]
        dots.append(
            {
                "number": number,
                "x": f"{(place + 0.5) * step:.1f}",
                "y": f"{_height(share):.1f}",
                "radius": f"{min(4.5, max(2, 0.45 * step)):.1f}",
                "colour": colour(row.prediction.outcome, result.classes),
                "title": f"{row.name}: {percent(share)}, {outcome_text(row.prediction.outcome)}",
            }
        )
    zone = _zone(result)
    band = None
    if zone is not None:
        band = {"top": f"{_height(zone[1]):.1f}", "height": f"{_height(zone[0]) - _height(zone[1]):.1f}"}
    return {
        "subject": subject,
        "in_training": subject in result.trained_on,
        "words": subject_text(result, subject),
        "dots": dots,
        "band": band,
        "width": _WIDTH,
        "height": _HEIGHT,
    }


def subject_text(result: BatchResult, subject: str) -> str:
    """What a subject's cells say together, how many have each outcome, and how many were right where that is known."""
    rows = result.by_subject[subject]
    together = ""
    predictions = {prediction.subject: prediction for prediction in result.subject_predictions}
    prediction = predictions.get(subject)
    if prediction is not None:
        together = f"Together {outcome_text(prediction.outcome)}"
        if prediction.is_result and prediction.probability is not None and prediction.interval is not None:
            low, high = prediction.interval
            together += f", probability of {prediction.positive_label} {prediction.probability:.3f}"
            together += f" ({low:.3f} to {high:.3f})"
        if prediction.reason:
            together += f": {prediction.reason}"
        together += ". "
    counts = Counter(row.prediction.outcome for row in rows)
    classes = ", ".join(f"{counts[label]} {label}" for label in result.classes)
    refused = sum(counts[outcome] for outcome in REFUSED)
    words = f"{together}{len(rows)} cells: {classes}, {counts[ABSTAIN]} not sure, {refused} refused."
    judged = [row for row in rows if row.truth and row.prediction.decision.label]
    right = sum(row.prediction.decision.label == row.truth for row in judged)
    if not judged:
        return words
    return f"{words} {right} of the {len(judged)} with a class are right."


def batch_answer(result: BatchResult, others: Sequence[str] = ()) -> Markup:
    """The right of the stage: counts, the rule for subjects, metrics on labels, wrong cells, problems, files."""
    counts = Counter(row.prediction.outcome for row in result.rows)
    outcomes = [label for label in (*result.classes, *WITHOUT_CLASS) if counts[label] or label in result.classes]
    measured, notes = label_metrics(result)
    problems = list(result.problems[:SHOWN_PROBLEMS])
    more = len(result.problems) - SHOWN_PROBLEMS
    if more > 0:
        problems.append(f"and {more} more")
    rule = ""
    if result.rule:
        rule = f"Rule for a subject: {result.rule.text}. Its interval does not say how subjects differ."
    trust_rows: Sequence[trust.TrustRow] = ()
    if result.metrics:
        trust_rows = trust.trust_rows(result.metrics)
    return render(
        "batch.html",
        model=result.model,
        verdict=_verdict(result),
        caveats=result.warnings,
        counts=[(outcome_text(outcome), counts[outcome], colour(outcome, result.classes)) for outcome in outcomes],
        rule=rule,
        measured=measured,
        notes=notes,
        wrong=[_cell(result, number, row) for number, row in result.wrong[:SHOWN_WRONG]],
        wrong_total=len(result.wrong),
        problems=problems,
        problems_total=len(result.problems),
        trust=trust_rows,
        labels=result.classes,
        colours={label: colour(label, result.classes) for label in result.classes},
        others=others,
        details=f"{about_model(result.model, result.revision)}.",
    )


def _verdict(result: BatchResult) -> str:
    """How many cells of how many subjects were predicted."""
    people = len(result.by_subject)
    if len(result.rows) == 1:
        return "1 cell of one subject" if people else "1 cell, subject unknown"
    cells = f"{len(result.rows)} cells"
    if not people:
        return f"{cells}, subjects unknown"
    subjects = "subject" if people == 1 else "subjects"
    return f"{cells} of {number_word(people)} {subjects}"


def _cell(result: BatchResult, number: int, row: BatchRow) -> dict[str, Any]:
    """A cell with what the model says of it."""
    is_wrong = bool(row.truth) and row.truth != row.called
    words = outcome_text(row.prediction.outcome)
    if row.prediction.decision.label:
        words += f" {percent(row.confidence)}"
    if is_wrong:
        words += f", is {row.truth}"
    return {
        "number": number,
        "name": row.name,
        "words": words,
        "source": data_uri("image/webp", row.thumbnail),
        "opens": bool(row.picture),
        "wrong": is_wrong,
        "dark": row.on_black,
        "colour": colour(row.prediction.outcome, result.classes),
    }
