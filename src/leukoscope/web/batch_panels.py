"""A batch as HTML: counts, persons with all their cells, metrics, the errors to learn from, and a gallery."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from leukoscope.evaluation.patient_report import strip_plot
from leukoscope.inference.decision import WITHOUT_CLASS
from leukoscope.inference.patient import PatientPrediction
from leukoscope.web.batch_results import BatchResult, BatchRow, figures, subject_rows, wrong_rows
from leukoscope.web.panels import details, notice, table
from leukoscope.web.words import percent, point_name

SHOWN, SHOWN_WRONG, SHOWN_REFUSED = 120, 24, 20
# How a visitor may order the gallery → what each order sorts by.
ORDERS: dict[str, Callable[[BatchRow], tuple[float | str, ...]]] = {
    "names, A to Z": lambda row: (row.name,),
    "the surest": lambda row: (-row.confidence,),
    "the least sure": lambda row: (row.confidence,),
    "the highest OOD score": lambda row: (-(row.checks.ood_score or 0.0),),
    "subjects": lambda row: (row.subject, row.name),
}


def report(result: BatchResult, point: str = "") -> str:
    """All that is said of the batch as a whole.

    Args:
        point: the operating point that its decisions were made at.
    """
    parts = [_lead(result, point), _persons(result, point), _figures(result), _wrong(result), _refused(result)]
    return "".join((*parts, notice()))


def gallery(result: BatchResult, order: str) -> str:
    """The first 120 cells in one of `ORDERS`, each a button that opens it."""
    numbers = sorted(range(len(result.rows)), key=lambda i: ORDERS.get(order, ORDERS["names, A to Z"])(result.rows[i]))
    more = len(numbers) - SHOWN
    note = f'<p class="lk-note">{more} more are in the table below.</p>' if more > 0 else ""
    return _cells([(i, result.rows[i]) for i in numbers[:SHOWN]]) + note


def progress(done: int, total: int, seconds: float, subjects: str) -> str:
    """How far a batch is.

    Args:
        seconds: since it was begun.
        subjects: what is known of its subjects.
    """
    left = f", about {max(1, round(seconds / done * (total - done)))} s left" if done else ""
    return (
        f'<p class="lk-verdict" role="status">{done} of {total} pictures predicted{left}.</p>'
        f'<progress max="{total}" value="{done}"></progress><p class="lk-note">{escape(subjects)}</p>'
    )


def subjects_found(subjects: Sequence[str], pattern: str) -> str:
    """What a pattern finds, in words."""
    counts = Counter(one for one in subjects if one)
    if not counts:
        return "No subjects: no pattern is given, and the file names suggest none. Cells are predicted one by one."
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    without = len(subjects) - sum(counts.values())
    rest = f"; {without} files without a subject" if without else ""
    by = f" by the pattern {pattern}" if pattern else ""
    return f"{len(counts)} subject{'' if len(counts) == 1 else 's'}{by}, with their cells: {named}{more}{rest}."


def _lead(result: BatchResult, point: str) -> str:
    found = Counter(row.decision.outcome for row in result.rows)
    counted = (*result.classes, *WITHOUT_CLASS)
    rows = "".join(f"<div><dt>{escape(outcome)}</dt><dd>{found[outcome]}</dd></div>" for outcome in counted)
    about = f"Model {result.model}, " + (f"revision {result.revision[:12]}" if result.revision else "local files")
    plural = "" if len(result.rows) == 1 else "s"
    rule = f"is decided at the {point_name(point)} operating point" if point else "gets its most probable class"
    return (
        f'<p class="lk-verdict" role="status">{len(result.rows)} cell{plural} predicted.</p>'
        f'<dl class="lk-counts">{rows}</dl><p class="lk-note">{escape(about)}. Each cell {escape(rule)}.</p>'
    )


def _figures(result: BatchResult) -> str:
    judged = figures(result)
    if judged is None:
        return ""
    notes = "".join(f'<p class="lk-note">{escape(note)}</p>' for note in judged.notes)
    return f"<h2>Measured on your labels</h2>{notes}{table(('figure', 'value', '95 % interval'), judged.rows)}"


def _wrong(result: BatchResult) -> str:
    wrong = wrong_rows(result)
    if not wrong:
        return ""
    number = {row.name: i for i, row in enumerate(result.rows)}
    shown = _cells([(number[row.name], row) for row in wrong[:SHOWN_WRONG]])
    return f"<h2>Wrong, the surest first ({len(wrong)})</h2>{shown}"


def _persons(result: BatchResult, point: str) -> str:
    """One prediction for each subject with all its cells; without a rule for persons, counts by subject."""
    found = result.persons()
    if not found:
        return _subjects(result)
    positive = found[0].positive_label
    heads = ("person", "outcome", f"probability of {positive}", "95 % interval", "cells", "refused", "unsure")
    rows = [
        (one.patient, one.outcome, *_shares(one), *map(str, (one.cells, one.refused, one.abstained))) for one in found
    ]
    strips = "".join(_strip(result, one, point) for one in found)
    return (
        f"<h2>One prediction for a person</h2>{table(heads, rows, 'Persons')}"
        f'<p class="lk-note">Rule: {escape(found[0].rule.text)}. The interval is of the cells of one person; it does '
        "not say how persons differ. An operating point changes cells, not persons.</p>"
        f'<h2>Every cell of a person</h2><p class="lk-note">A dot a cell, sorted by its probability of '
        f"{escape(positive)}; refused cells are grey. Click a dot to open the cell.</p>{strips}"
    )


def _shares(one: PatientPrediction) -> tuple[str, str]:
    if one.probability is None or one.interval is None:
        return "–", "–"
    return f"{one.probability:.3f}", "{:.3f} to {:.3f}".format(*one.interval)


def _strip(result: BatchResult, one: PatientPrediction, point: str) -> str:
    numbers = [i for i, row in enumerate(result.rows) if row.subject == one.patient]
    rows = [result.rows[i] for i in numbers]
    drawn = strip_plot(
        [row.probabilities[one.positive_label] for row in rows],
        [row.decision.outcome for row in rows],
        threshold=result.thresholds.operating_points.get(point, 0.5),
        cells=numbers,
    )
    reason = f": {one.reason}" if one.reason else ""
    return (
        f'<section class="lk-person"><h3>{escape(one.patient)}</h3>'
        f'<p class="lk-note">{escape(one.outcome)}{escape(reason)}</p>{drawn}</section>'
    )


def _subjects(result: BatchResult) -> str:
    rows = [tuple(map(str, row)) for row in subject_rows(result)]
    if not rows:
        return ""
    heads = ("subject", "cells", "in distribution", *result.classes, f"mean probability of {result.positive}")
    return f"<h2>By subject</h2>{table(heads, rows)}"


def _refused(result: BatchResult) -> str:
    if not result.refused:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in result.refused[:SHOWN_REFUSED])
    more = len(result.refused) - SHOWN_REFUSED
    rest = f"<li>and {more} more</li>" if more > 0 else ""
    return details(f"{len(result.refused)} not used", f"<ul>{lines}{rest}</ul>", is_open=True)


def _cells(rows: Sequence[tuple[int, BatchRow]]) -> str:
    return f'<ul class="lk-cells">{"".join(_cell(number, row) for number, row in rows)}</ul>'


def thumbnail(row: BatchRow, side: int = 96) -> str:
    """A row's picture, `side` pixels wide; what it shows stands beside it in words."""
    source = "data:image/webp;base64," + base64.b64encode(row.thumbnail).decode()
    return f'<img src="{source}" alt="" loading="lazy" width="{side}" height="{side}">'


def _cell(number: int, row: BatchRow) -> str:
    truth = f", is {row.truth}" if row.truth and row.truth != row.answer else ""
    share = f" {percent(row.confidence)}" if row.decision.label else ""
    says = f"{row.decision.outcome}{share}{truth}"
    wrong = ' class="wrong"' if truth else ""
    picture = thumbnail(row)
    if row.picture:
        name = escape(f"{row.name}: {says}; open it")
        picture = f'<button type="button" data-cell="{number}" aria-label="{name}">{picture}</button>'
    return f'<li{wrong}>{picture}<b>{escape(says)}</b><span title="{escape(row.name)}">{escape(row.name)}</span></li>'
