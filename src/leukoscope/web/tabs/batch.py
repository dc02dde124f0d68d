"""Many cells below the box: several pictures or a zip, predicted together, cell by cell and subject by subject.

The pictures are predicted once; sorting, subjects, operating points and exports are made from the predictions in the
visitor's session. The same steps serve the API at /batch.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from html import escape
from threading import Semaphore
from typing import Any

import gradio as gr
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.inference.prediction import REFUSED, WITHOUT_CLASS
from leukoscope.reports.formatting import data_uri, encoded
from leukoscope.reports.subject_report import strip_plot
from leukoscope.synthetic import PHANTOM_LABELS, SMEAR_LABELS, SMEARS, draw_cell, knows_smears, smear_picture
from leukoscope.web import panels
from leukoscope.web.batch_files import SUGGESTIONS, Batch, BatchFile, open_batch, subjects_of, suggested_pattern
from leukoscope.web.batch_results import (
    BatchResult,
    BatchRow,
    columns,
    label_metrics,
    predict_batch,
    save_cells,
    save_report,
    save_subjects,
    subject_rows,
    wrong_rows,
)
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.page import LAST, PRIVATE, SESSION_SECONDS, Updates
from leukoscope.web.result import CellResult, predict_cell
from leukoscope.web.text import about_model, outcome_text, percent, point_name, t
from leukoscope.web.upload import deleted_afterwards, files_upload, gradio_errors, save_button

# A batch holds hundreds of megabytes while it is read.
LIMIT: dict[str, Any] = {"concurrency_id": "batch", "concurrency_limit": 2}
# Enough cells of each for one prediction for a subject, which needs 50 by the releases of C-NMC.
SAMPLE_SUBJECTS, SAMPLE_CELLS = 2, 56
SHOWN, SHOWN_WRONG, SHOWN_PROBLEMS = 120, 24, 20
# How a visitor may order the gallery, by the end of its text's key → what each order sorts by.
ORDERS: dict[str, Callable[[BatchRow], tuple[float | str, ...]]] = {
    "names": lambda row: (row.name,),
    "most_confident": lambda row: (-row.confidence,),
    "least_confident": lambda row: (row.confidence,),
    "ood": lambda row: (-(row.checks.ood_score or 0.0),),
    "subjects": lambda row: (row.subject, row.name),
}


# Shows where the progress is, once it begins out of sight. The first value may be there before this watches it.
_FOLLOW = """
let runs = false
const follow = () => {
  const has = Boolean(element.querySelector('progress'))
  if (has && !runs) element.scrollIntoView({block: 'nearest', behavior: 'smooth'})
  runs = has
}
watch('value', follow)
requestAnimationFrame(follow)"""


@lru_cache(maxsize=2)
def sample_batch(smears: bool = False) -> Batch:
    """Cut-out cells or smears of two synthetic subjects, drawn by a program: each of one class, from no patient."""

    def draw(subject: int, cell: int) -> bytes:
        label = (SMEAR_LABELS if smears else PHANTOM_LABELS)[subject]
        pixels = smear_picture(label, cell) if smears else draw_cell(label, subject=subject, cell=cell).image
        return encoded(Image.fromarray(pixels), "PNG", compress_level=1)

    return Batch(
        [
            BatchFile(f"synthetic-{subject + 1}/cell-{cell + 1:02d}.png", partial(draw, subject, cell))
            for subject in range(SAMPLE_SUBJECTS)
            for cell in range(SMEARS if smears else SAMPLE_CELLS)
        ]
    )


def predict_files(models: ModelCache, paths: Sequence[str] | None, choice: str | None, pattern: str) -> BatchResult:
    """Predict everything uploaded and delete it, whatever happens."""
    if not paths:
        raise LeukoscopeError("files: none was sent; give pictures of single cells, or a zip of them")
    with deleted_afterwards(paths):
        *_, result = predict_batch(models, open_batch(paths), choice, pattern.strip())
    assert isinstance(result, BatchResult)
    return result


class BatchPanel:
    """What is shown of many cells, added to the Blocks being built.

    Attributes:
        result: the batch predicted last; lives in a visitor's session, in memory only.
        cells: components whose cells can be opened.
        outputs: every component that a new batch changes.
    """

    def __init__(self, models: ModelCache, model: gr.Dropdown) -> None:
        self.models, self.model = models, model
        self._line = Semaphore(LIMIT["concurrency_limit"])
        self.result = gr.State(None, time_to_live=SESSION_SECONDS)
        with gr.Column(visible=False, elem_id="batch") as self.shown:
            self.stop = gr.Button(t("stop"), size="sm", min_width=80, elem_id="batch-stop")
            self.summary = gr.HTML(js_on_load=panels.CLICK + _FOLLOW, elem_id="batch-summary", padding=False)
            with gr.Column(visible=False) as self.ended:
                self._build_result()
        self._add_endpoint()
        self.cells = [self.summary, self.gallery]
        self.outputs = [
            self.result, self.shown, self.stop, self.summary, self.ended, self.reports, self.subject, self.point,
            self.gallery, self.order, self.pattern, self.name,
        ]  # fmt: skip
        chosen = [self.result, self.order, self.point, self.subject]
        self.pattern.submit(self._on_pattern, [*chosen, self.pattern], self.outputs, **LAST)
        self.point.input(self._on_point, chosen, self.outputs, **LAST)
        self.order.input(self._on_order, [self.result, self.order], self.gallery, **LAST)

    def _build_result(self) -> None:
        with gr.Row(visible=False) as self.reports:
            self.subject = gr.Dropdown([], label=t("report_on"), elem_id="report-subject")
            self.name = gr.Textbox("", label=t("report_name"), info=t("report_name_info"), elem_id="report-name")
            save_button(
                t("save_report"), partial(save_report, self.models), [self.result, self.subject, self.name],
                elem_id="save-report",
            )  # fmt: skip
        # One subject's name must not stand on the report about another.
        self.subject.input(None, None, self.name, js="() => ''", **PRIVATE)
        self.gallery = gr.HTML(js_on_load=panels.CLICK, elem_id="batch-gallery", padding=False)
        with gr.Row():
            for kind in ("CSV", "Parquet"):
                save_button(
                    t("save_cells", kind=kind), partial(save_cells, kind), [self.result],
                    elem_id=f"save-batch-{kind.lower()}",
                )  # fmt: skip
            save_button(t("save_subjects"), save_subjects, [self.result], elem_id="save-subjects")
        with gr.Accordion(t("more"), open=False, elem_id="batch-more"), gr.Row():
            self.order = gr.Dropdown(
                [(t(f"order_{name}"), name) for name in ORDERS], value=next(iter(ORDERS)),
                label=t("show_first"), elem_id="batch-order",
            )  # fmt: skip
            self.point = gr.Dropdown(
                [(t("most_probable_class"), "")], value="",
                label=t("cells_point"), elem_id="batch-point",
            )  # fmt: skip
            self.pattern = gr.Textbox("", label=t("pattern"), info=t("pattern_info"), elem_id="batch-pattern")

    def show(self, result: BatchResult, order: str, point: str, subject: str | None = None) -> Updates:
        """Updates that show a result, decided at an operating point where the release has it.

        Args:
            subject: whom a report would be on; the first where the result does not know it.
        """
        decided, name = result.at_point(point), gr.skip()
        subjects = [one.subject for one in decided.subject_predictions]
        if subject not in subjects:
            subject, name = subjects[0] if subjects else None, ""
        known = result.thresholds.operating_points
        points = [(t("most_probable_class"), ""), *((point_name(one), one) for one in known)]
        return {
            self.result: decided,
            self.shown: gr.Column(visible=True),
            self.stop: gr.Button(visible=False),
            self.summary: batch_summary(decided),
            self.ended: gr.Column(visible=True),
            self.reports: gr.Row(visible=bool(subjects)),
            self.subject: gr.Dropdown(subjects, value=subject),
            self.name: name,
            self.point: gr.Dropdown(points, value=decided.point),
            self.gallery: gallery(decided, order),
            self.order: order,
        }

    def clear(self) -> Updates:
        """Updates that hide the batch, which is deleted."""
        return {self.result: None, self.shown: gr.Column(visible=False), self.gallery: ""}

    def sample(self, choice: str | None) -> Batch:
        """Two synthetic subjects, in pictures as the model reads them."""
        return sample_batch(knows_smears(self.models.predictor(choice).labels))

    def predict(self, read: Callable[[], Batch], choice: str | None, pattern: str) -> Iterator[Updates]:
        """Show whose cells these are, then how many are predicted, then the result."""
        start, batch = time.monotonic(), read()
        names, pattern = [file.name for file in batch.files], pattern.strip()
        if pattern in ("", *SUGGESTIONS):  # the box may hold what was suggested for the files before these
            pattern = suggested_pattern(names, self.models.predictor(choice).release.labels)
        found = subjects_found(list(subjects_of(names, pattern, batch.subjects).values()))
        begun = {self.pattern: pattern, self.shown: gr.Column(visible=True), self.ended: gr.Column(visible=False)}
        yield {**begun, self.stop: gr.Button(visible=True), self.summary: progress(0, len(names), 0.0, found)}
        # Not the event's own limit: single pictures come by the same event, and must not wait for batches.
        while not self._line.acquire(timeout=1):
            yield {self.summary: progress(0, len(names), 0.0, found)}
        try:
            for step in predict_batch(self.models, batch, choice, pattern):
                if isinstance(step, BatchResult):
                    yield self.show(step, next(iter(ORDERS)), "")
                else:
                    yield {self.summary: progress(step, len(names), time.monotonic() - start, found)}
        finally:
            self._line.release()

    def cell(self, result: BatchResult, number: int) -> CellResult:
        """A cell of a batch, predicted with its map; an error where its picture was not kept."""
        row = result.rows[number]
        return predict_cell(self.models, row.open(), row.name, result.model)

    def _on_pattern(
        self, result: BatchResult | None, order: str, point: str, subject: str | None, pattern: str
    ) -> Updates:
        if result is None:
            return {self.summary: panels.placeholder(t("result_deleted"))}
        pattern = pattern.strip() or suggested_pattern([row.name for row in result.rows], result.classes)
        try:
            return {**self.show(result.with_subjects(pattern), order, point, subject), self.pattern: pattern}
        except LeukoscopeError as error:
            return {self.summary: panels.message(t("pattern_unusable"), str(error))}

    def _on_point(self, result: BatchResult | None, order: str, point: str, subject: str | None) -> Updates:
        if result is None:
            return {self.summary: panels.placeholder(t("result_deleted"))}
        return self.show(result, order, point, subject)

    def _on_order(self, result: BatchResult | None, order: str) -> str:
        return gallery(result, order) if result else panels.placeholder(t("result_deleted"))

    def _add_endpoint(self) -> None:
        """The named endpoint /batch: files, model, pattern → every prediction, subjects and metrics as JSON."""

        def batch(files: list[str] | None, model: str | None, subject_pattern: str = "") -> dict[str, Any]:
            """Classify many cells, with one prediction for each subject where subjects are known. For research only.

            Args:
                files: pictures of single cells, zips of them, or CSV files with the columns file, label and subject.
                model: a release that comes along, or a Hub id owner/name@revision; the first one when missing.
                subject_pattern: regular expression that finds the subject in a file's name; may be empty.
            """
            with gradio_errors():
                result = predict_files(self.models, files, model, subject_pattern)
                measured, subjects = label_metrics(result), subject_rows(result)
            named = columns(result)
            return {
                "cells": [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)],
                "subjects": [list(row) for row in subjects],
                "subject_predictions": [one.to_dict() for one in result.subject_predictions],
                "figures": [list(row) for row in measured.rows] if measured else [],
                "notes": [*(measured.notes if measured else ()), *result.problems],
                "notice": RESEARCH_NOTICE,
            }

        with gr.Group(visible=False):
            inputs = [files_upload(label="files"), self.model, gr.Textbox("", label="subject_pattern")]
            gr.Button("batch").click(batch, inputs, gr.JSON(label="answers"), api_name="batch", **LIMIT)


def progress(done: int, total: int, seconds: float, subjects: str) -> str:
    """How many of a batch are predicted after so many seconds, and what is known of its subjects."""
    left = max(1, round(seconds / done * (total - done))) if 0 < done < total else None
    text = t("progress_left" if left else "progress", done=done, total=total, seconds=left)
    return (
        f'<p class="lk-headline" role="status">{text}</p>'
        f'<progress max="{total}" value="{done}"></progress>{panels.note(subjects)}'
    )


def subjects_found(subjects: Sequence[str]) -> str:
    """Whose cells these are, in words."""
    counts = Counter(one for one in subjects if one)
    if not counts:
        return t("no_subjects")
    named = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    rest = t("and_more", number=len(counts) - 8) if len(counts) > 8 else ""
    if without := len(subjects) - sum(counts.values()):
        rest += t("files_without", number=without)
    return t("subjects", number=len(counts), named=named, rest=rest)


def batch_summary(result: BatchResult) -> str:
    """A batch as HTML: counts, subjects, metrics on labels, wrong cells, problems."""
    found = Counter(row.decision.outcome for row in result.rows)
    about = about_model(result.model, result.revision)
    key = "rule_point" if result.point else "rule_most_probable"
    rule = t(key, about=about, point=point_name(result.point))
    predicted = t("cells_predicted", number=len(result.rows))
    html = (
        f'<p class="lk-headline" role="status">{predicted}</p>'
        f"{panels.counts({outcome: found[outcome] for outcome in (*result.classes, *WITHOUT_CLASS)})}"
        f"{panels.note(rule)}{_subjects(result)}"
    )
    if 2 * sum(found[one] for one in REFUSED) > len(result.rows):
        html += panels.note(t("what_helps"))
    if measured := label_metrics(result):
        notes = "".join(map(panels.note, measured.notes))
        html += f"<h2>{t('measured_on_labels')}</h2>{notes}"
        html += panels.table((t("metric"), t("value"), t("interval")), measured.rows)
    if wrong := wrong_rows(result):
        places = {row.name: i for i, row in enumerate(result.rows)}
        shown = _cells([(places[row.name], row) for row in wrong[:SHOWN_WRONG]])
        html += f"<h2>{t('wrong', number=len(wrong))}</h2>{shown}"
    if result.problems:
        lines = list(result.problems[:SHOWN_PROBLEMS])
        if (more := len(result.problems) - SHOWN_PROBLEMS) > 0:
            lines.append(t("and_more_lines", number=more))
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        html += panels.details(t("not_used", number=len(result.problems)), f"<ul>{items}</ul>", is_open=True)
    return html


def _subjects(result: BatchResult) -> str:
    """One prediction for each subject with all its cells; without a rule for subjects, counts by subject."""
    if not result.subject_predictions:
        rows = [tuple(map(str, row)) for row in subject_rows(result)]
        mean = t("mean_probability", label=result.positive)
        heads = (t("subject"), t("cells"), t("in_distribution"), *result.classes, mean)
        return f"{_seen(result)}<h2>{t('by_subject')}</h2>{panels.table(heads, rows)}" if rows else ""
    positive, rows = result.subject_predictions[0].positive_label, []
    for one in result.subject_predictions:
        share = span = "–"
        if one.is_result and one.probability is not None and one.interval is not None:
            share, low, high = (f"{value:.3f}" for value in (one.probability, *one.interval))
            span = t("span", low=low, high=high)
        counted = map(str, (one.cells, one.refused, one.abstained))
        seen = f" ({t('in_training')})" if one.subject in result.trained_on else ""
        rows.append((f"{one.subject}{seen}", outcome_text(one.outcome), share, span, *counted))
    heads = (t("subject"), t("outcome"), t("probability_of", label=positive), t("interval"), t("cells"), t("refused"),
             t("abstained"))  # fmt: skip
    rule = t("subject_rule", rule=result.subject_predictions[0].rule.text)
    strips = ""
    for one in result.subject_predictions:
        numbers = [i for i, row in enumerate(result.rows) if row.subject == one.subject]
        drawn = strip_plot(
            [result.rows[i].probabilities[positive] for i in numbers],
            [result.rows[i].decision.outcome for i in numbers],
            threshold=result.thresholds.operating_points.get(result.point, 0.5),
            cells=numbers,
        )
        reason = f": {one.reason}" if one.reason else ""
        about = panels.note(f"{outcome_text(one.outcome)}{reason}")
        strips += f'<section class="lk-subject"><h3>{escape(one.subject)}</h3>{about}{drawn}</section>'
    return (
        f"{_seen(result)}<h2>{t('one_for_a_subject')}</h2>{panels.table(heads, rows, t('subjects_caption'))}"
        f"{panels.note(rule)}<h2>{t('cells_of_a_subject')}</h2>{panels.note(t('dots', label=positive))}{strips}"
    )


def _seen(result: BatchResult) -> str:
    """A warning where subjects may have trained the model."""
    if not result.trained_on:
        return ""
    return panels.message(t("warning"), t("too_good", subjects=", ".join(sorted(result.trained_on))))


def gallery(result: BatchResult, order: str) -> str:
    """The first 120 cells in one of `ORDERS`, each a button that opens it."""
    key = ORDERS.get(order, ORDERS["names"])
    rows = sorted(enumerate(result.rows), key=lambda numbered: key(numbered[1]))
    more = len(rows) - SHOWN
    return _cells(rows[:SHOWN]) + (panels.note(t("more_below", number=more)) if more > 0 else "")


def _cells(rows: Sequence[tuple[int, BatchRow]]) -> str:
    return f'<ul class="lk-cells">{"".join(_cell(number, row) for number, row in rows)}</ul>'


def _cell(number: int, row: BatchRow) -> str:
    truth = t("is_truly", label=row.truth) if row.truth and row.truth != row.called else ""
    share = f" {percent(row.confidence)}" if row.decision.label else ""
    text = f"{outcome_text(row.decision.outcome)}{share}{truth}"
    wrong = ' class="wrong"' if truth else ""
    # What it shows stands beside it in words.
    picture = f'<img src="{data_uri("image/webp", row.thumbnail)}" alt="" loading="lazy" width="96" height="96">'
    if row.picture:
        name = escape(t("open_file", name=row.name, text=text))
        picture = f'<button type="button" data-cell="{number}" aria-label="{name}">{picture}</button>'
    return f'<li{wrong}>{picture}<b>{escape(text)}</b><span title="{escape(row.name)}">{escape(row.name)}</span></li>'
