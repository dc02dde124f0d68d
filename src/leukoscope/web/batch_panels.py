"""A batch's answers as HTML: counts, subjects, figures, the errors to learn from, and a gallery in a chosen order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from html import escape

from leukoscope.inference.decision import WITHOUT_CLASS
from leukoscope.web.batch_results import BatchResult, BatchRow, figures, subject_rows, wrong_rows
from leukoscope.web.panels import data_uri, details, notice, table
from leukoscope.web.words import LIKELIEST, percent

SHOWN, SHOWN_WRONG, SHOWN_REFUSED = 120, 24, 20
# How a visitor may order the gallery → what each order sorts by.
ORDERS: dict[str, Callable[[BatchRow], tuple[float | str, ...]]] = {
    "names, A to Z": lambda row: (row.name,),
    "the surest": lambda row: (-row.confidence,),
    "the least sure": lambda row: (row.confidence,),
    "the highest OOD score": lambda row: (-(row.ood_score or 0.0),),
    "subjects": lambda row: (row.subject, row.name),
}


def report(result: BatchResult) -> str:
    """All that is said of the batch as a whole."""
    parts = [_lead(result), _figures(result), _wrong(result), _subjects(result), _refused(result), notice()]
    return "".join(parts)


def gallery(result: BatchResult, order: str) -> str:
    """The first 120 cells in one of `ORDERS`."""
    rows = sorted(result.rows, key=ORDERS.get(order, ORDERS["names, A to Z"]))
    more = len(rows) - SHOWN
    note = f'<p class="lk-note">{more} more are in the table below.</p>' if more > 0 else ""
    return _cells(rows[:SHOWN]) + note


def _lead(result: BatchResult) -> str:
    found = Counter(row.decision.outcome for row in result.rows)
    counted = (*result.classes, *WITHOUT_CLASS)
    rows = "".join(f"<div><dt>{escape(outcome)}</dt><dd>{found[outcome]}</dd></div>" for outcome in counted)
    about = f"Model {result.model}, " + (f"revision {result.revision[:12]}" if result.revision else "local files")
    plural = "" if len(result.rows) == 1 else "s"
    return (
        f'<p class="lk-verdict" role="status">{len(result.rows)} cell{plural} answered.</p>'
        f'<dl class="lk-counts">{rows}</dl><p class="lk-note">{escape(about)}. {LIKELIEST}</p>'
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
    return f"<h2>Wrong, the surest first ({len(wrong)})</h2>{_cells(wrong[:SHOWN_WRONG])}"


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


def _cells(rows: Sequence[BatchRow]) -> str:
    return f'<ul class="lk-cells">{"".join(map(_cell, rows))}</ul>'


def _cell(row: BatchRow) -> str:
    truth = f", is {row.truth}" if row.truth and row.truth != row.answer else ""
    share = f" {percent(row.confidence)}" if row.decision.label else ""
    says = f"{row.decision.outcome}{share}{truth}"
    wrong = ' class="wrong"' if truth else ""
    return (
        f'<li{wrong}><img src="{data_uri(row.thumbnail)}" alt="" loading="lazy" width="96" height="96">'
        f'<b>{escape(says)}</b><span title="{escape(row.name)}">{escape(row.name)}</span></li>'
    )
