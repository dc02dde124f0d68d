"""Pages as single HTML files, and the evaluation of a model: evaluation.json and evaluation.html.

Besides the metrics, an evaluation records what they estimate, whether tested subjects trained the model, and intervals
by subject beside the naive ones by cell.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.evaluation import bootstrap
from leukoscope.evaluation.evaluate import ModelPredictions, SelectedCells, keep_cells
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.plots import confusion_plot, interval_plot, subject_strip, without_formulas
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.subjects import measure_subject_rule
from leukoscope.files import disk_errors, write_atomic
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.models.release import write_json
from leukoscope.reports import release_tables as tables
from leukoscope.reports.formatting import Table, count, data_uri, encoded, fraction, metric_name, rendered, share, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

EVALUATION_SCHEMA_VERSION = 2
_FEW_SUBJECTS = 20
_WORST = 10
_SHOWN = 20
_NO_SUBJECTS = " Subjects are not known here, so nothing on this page says what to expect of new ones."


@dataclass(frozen=True)
class Picture:
    """A picture within a page; its source is a `data:` URI, from `plot_picture` or `cell_picture`."""

    source: str
    alt: str


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        text: paragraphs of plain text; nothing in it is read as markup.
        table: shown where it has rows.
        pictures: plots across the page.
        verdict: "good", "warning", "bad" or ""; shown as a coloured word.
        terms: word of the table → its meaning; the demo shows them on request.
    """

    heading: str
    text: Sequence[str] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    verdict: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.table:  # a page shows no Markdown
            rows = [[cell.strip("*") for cell in row] for row in self.table.rows]
            object.__setattr__(self, "table", replace(self.table, rows=rows))


def plot_picture(figure: Figure, alt: str) -> Picture:
    """A matplotlib figure as an SVG picture; the figure is closed."""
    from matplotlib import pyplot

    file = io.BytesIO()
    # Without a date, the same figures give the same file.
    without_formulas(figure).savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return Picture(data_uri("image/svg+xml", file.getvalue()), alt)


def cell_picture(image: Image, alt: str, *, side: int = 128) -> Picture:
    """A cell, no larger than `side` pixels, as a JPEG picture."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    return Picture(data_uri("image/jpeg", encoded(small, "JPEG", quality=85)), alt)


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Render a page, its lead paragraphs below the title, and write it."""
    template = Path(__file__).with_name("page.html")
    return write_atomic(path, rendered(template, title=title, lead=lead, sections=sections))


def build_evaluation(
    predicted: ModelPredictions, cells: SelectedCells | None, *, compared: ModelPredictions | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compute the content of evaluation.json; an error for no predicted cell, or two models of other cells.

    Args:
        cells: the cells that were predicted; None where only their predictions are at hand.
        compared: another model's predictions; those of other cells are left out.
    """
    predictions, unreadable = predicted.predictions, cells.data.unreadable if cells else ()
    if not predictions.cell_ids:
        reason = next(iter((*predicted.left_out, *unreadable)), "no cell was given")
        raise LeukoscopeError(f"{predicted.name}: not one cell was predicted ({reason}); check the cells and --split")
    try:
        by_subject, missing = bootstrap.subject_intervals(predictions, seed=seed), ""
    except LeukoscopeError as error:
        by_subject, missing = None, str(error)
    subjects = np.asarray(predictions.subjects)
    of_class = {label: subjects[predictions.references == k] for k, label in enumerate(predictions.label_names)}
    comparison = None
    if compared is not None:
        theirs = keep_cells(compared.predictions, predictions.cell_ids)
        resample = bootstrap.bootstrap_subjects if by_subject else bootstrap.bootstrap_cells
        comparison = {
            **compared.about(),
            "resampled": "subjects" if by_subject else "cells",
            "figures": bootstrap.paired_difference(predictions, theirs, seed=seed, resample=resample),
        }
    return {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        **predicted.about(),
        "unit": predicted.unit,
        **(cells.about() if cells else {"data": None, "split": None}),
        "left_out": [*unreadable, *predicted.left_out],
        "figures": bootstrap.point_metrics(predictions),
        "intervals": {
            "level": bootstrap.LEVEL,
            "draws": bootstrap.BOOTSTRAP_SAMPLES,
            "seed": seed,
            "method": "bootstrap within class, expanded percentile (Hesterberg 2015, "
            "doi:10.1080/00031305.2015.1089789)",
            "subjects": {label: len(set(names.tolist()) - {""}) for label, names in of_class.items()},
            "by_subject": by_subject,
            "by_subject_missing": missing,
            "by_cell": bootstrap.cell_intervals(predictions, seed=seed),
        },
        "metrics": measure(predictions),
        "decisions": predicted.decisions(),
        "subject_rule": measure_subject_rule(predictions, predicted.metrics),
        "comparison": comparison,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": {
            "leukoscope": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "timm", "transformers", "scikit-learn", "numpy")},
        },
    }


def write_evaluation(folder: Path, evaluation: Mapping[str, Any], predictions: CellPredictions) -> Path:
    """Write evaluation.json, predictions.parquet and evaluation.html; give the path of the page."""
    with disk_errors(f"{folder}: the evaluation cannot be written there", "name another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        predictions.save(folder / "predictions.parquet")
        write_json(folder / "evaluation.json", evaluation)
        title = f"{evaluation['model']['name']} — evaluation"
        return write_page(folder / "evaluation.html", title, _lead(evaluation), list(_sections(evaluation)))


def decisions_line(decisions: Mapping[str, Any]) -> str:
    """One sentence on evaluation.json's `decisions`."""
    cells, given = sum(decisions["outcomes"].values()), decisions["given"]
    without = [f"{count(n)} {name}" for name, n in decisions["outcomes"].items() if name in WITHOUT_CLASS]
    right = f", {count(decisions['right'])} of them right" if given else ""
    named = f" ({', '.join(without)})" if without else ""
    return f"The release gives a class to {count(given)} of these {count(cells)} cells{right}{named}."


def _lead(evaluation: Mapping[str, Any]) -> list[str]:
    metrics, data, overlap = evaluation["metrics"], evaluation["data"], evaluation["training_overlap"]
    lines = [] if overlap["verdict"] == "good" else [overlap["statement"]]
    if data and data["synthetic"]:
        lines.append("Synthetic cells: these metrics say nothing about patients.")
    unit = evaluation["unit"]
    subjects = f" of {len(metrics['subjects'])} {unit}s" if metrics["subjects"] else ""
    source = f"{data['title']}: " if data else ""
    lines.append(f"{source}{count(metrics['cells'])} cells{subjects}. The metrics estimate: {evaluation['estimates']}.")
    values = evaluation["figures"]
    suffix = "_by_subject" if "balanced_accuracy_by_subject" in values else ""
    intervals = evaluation["intervals"]["by_subject"] or {}
    results = []
    for key in (f"balanced_accuracy{suffix}", f"auroc{suffix}"):
        if key in values:
            interval = f"{bootstrap.LEVEL:.0%} interval by {unit} {span(intervals[key])}" if key in intervals else ""
            results.append(f"{metric_name(key, unit)} {share(values[key])} ({interval or f'no interval by {unit}'})")
    result = "; ".join(results)
    return [*lines, f"{result[0].upper()}{result[1:]}."]


def _sections(evaluation: Mapping[str, Any]) -> Iterator[Section]:
    overlap, metrics = evaluation["training_overlap"], evaluation["metrics"]
    yield Section("Overlap with the training", [overlap["statement"]], verdict=overlap["verdict"])
    intervals, unit = evaluation["intervals"], evaluation["unit"]
    by_subject, by_cell, figures = intervals["by_subject"] or {}, intervals["by_cell"], evaluation["figures"]
    lines = [(metric_name(key, unit), value, by_subject.get(key), by_cell.get(key)) for key, value in figures.items()]
    alt = f"Every metric with its interval by {unit} and by cell, as in the table."
    plot = plot_picture(interval_plot(lines, unit=unit), alt)
    yield Section("Metrics", list(_interval_notes(evaluation)), tables.metrics_table(figures, intervals, unit), [plot])
    if subjects := metrics["subjects"]:
        yield subjects_section(subjects, list(metrics["per_class"]), unit)
    if evaluation["decisions"]:
        yield Section("Decisions", ["The metrics count every cell.", decisions_line(evaluation["decisions"])])
    if evaluation["subject_rule"]:
        yield _subjects(evaluation["subject_rule"])
    confusion = confusion_plot(metrics["confusion_matrix"], list(metrics["per_class"]))
    alt = "Confusion matrix: rows are the true classes, columns the predicted ones."
    yield Section("Which class is taken for which", (), tables.classes_table(metrics), [plot_picture(confusion, alt)])
    if other := evaluation["comparison"]:
        by_subject = other["resampled"] == "subjects"
        resampled, narrow = (f"{unit}s", "") if by_subject else ("cells", " Intervals by cell are too narrow.")
        yield Section(
            f"Beside {other['model']['name']}",
            [
                f"The other model's metrics estimate: {other['estimates']}. {other['training_overlap']['statement']}",
                f"Both are judged on the same cells and the same bootstrap samples of {resampled}. An "
                f"interval that includes 0 decides nothing.{narrow}",
            ],
            tables.comparison_table(other["figures"], bootstrap.LEVEL, other["resampled"], unit),
        )
    if left_out := evaluation["left_out"]:
        more = [f"… and {len(left_out) - _SHOWN} more, in evaluation.json"] if len(left_out) > _SHOWN else []
        yield Section("Left out", [*left_out[:_SHOWN], *more], verdict="warning")
    data, split = evaluation["data"], evaluation["split"]
    rows = [("model", f"{evaluation['model']['name']} {evaluation['model']['revision']}".strip())]
    if data:
        rows += [("data", data["title"]), ("fingerprint of the data", data["fingerprint"])]
        rows += [("cite", data["citation"])] if data["citation"] else []
    if split:
        counts = f"{count(split['cells'])} of {count(split['drawn_from'])}"
        rows.append(("cells predicted", f"{split['detail']}: {counts} (seed {split['seed']})"))
    samples = f"{count(intervals['draws'])} bootstrap samples, seed {intervals['seed']}"
    rows.append(("intervals", f"{intervals['method']}; {samples}"))
    versions = ", ".join(f"{name} {number}" for name, number in evaluation["versions"].items())
    rows.append(("made", f"{evaluation['created']}, {versions}"))
    yield Section("Made from", table=Table(("what", "which"), rows, text_columns=2))


def subjects_section(subjects: Mapping[str, Any], labels: Sequence[str], unit: str) -> Section:
    """The block "subjects" of an evaluation: a plot of their accuracies, and the worst of them in a table."""
    below = sum(subject["accuracy"] < 0.5 for subject in subjects.values())
    name, worst = tables.worst_first(subjects)[0]
    alt = (
        f"Accuracy of each of {len(subjects)} {unit}s by class; the worst is {name} ({worst['label']}) with "
        f"{share(worst['accuracy'])} of {worst['cells']} cells predicted correctly"
    )
    shown = min(_WORST, len(subjects))
    text = f"{below} of {len(subjects)} {unit}s have most of their cells predicted wrong. The {shown} worst:"
    plot = plot_picture(subject_strip(subjects, labels, unit), alt)
    return Section(f"{unit.capitalize()} by {unit}", [text], tables.subjects_table(subjects, unit, most=_WORST), [plot])


def _interval_notes(evaluation: Mapping[str, Any]) -> Iterator[str]:
    intervals, unit = evaluation["intervals"], evaluation["unit"]
    if unit == "block":
        yield "This data set publishes no subjects: blocks of neighbouring images stand in for them."
    if intervals["by_subject"] is None:
        yield f"No interval by {unit}: {intervals['by_subject_missing']}. The naive ones are too narrow."
    else:
        counts = ", ".join(f"{number} {label}" for label, number in intervals["subjects"].items())
        yield (
            f"“By {unit}”: a cell weighs 1 / (cells of its {unit}): the few {unit}s with most cells do not decide. "
            f"“At equal size”: within tenths of the cells' areas, every {unit} weighing the same, so that size alone "
            "gives little more than 0.5."
        )
        limit = "" if unit == "subject" else _NO_SUBJECTS
        yield (
            f"An interval by {unit} says how far a metric may move with other {unit}s like these ({counts}); the "
            f"naive one assumes that every cell came from a {unit} of its own.{limit}"
        )
        if few := [label for label, number in intervals["subjects"].items() if 0 < number < _FEW_SUBJECTS]:
            yield f"With so few {unit}s of {' and '.join(few)}, even the interval by {unit} is rather too narrow."
        if flat := [key for key, ends in intervals["by_subject"].items() if ends["low"] == ends["high"]]:
            named = ", ".join(metric_name(key, unit) for key in flat)
            yield (
                f"No width ({named}) means that every bootstrap sample gave the same, not that the metric is certain."
            )
    if evaluation["training_overlap"]["verdict"] == "bad":
        yield "As subjects tested here also trained the model, no interval below says what to expect of new ones."


def _subjects(block: Mapping[str, Any]) -> Section:
    # Wrong subjects first, then those without a class.
    order = sorted(
        block["subjects"].items(),
        key=lambda item: (item[1]["outcome"] == item[1]["label"], item[1]["outcome"] == item[1]["called"], item[0]),
    )
    subjects = len(order)
    text = [
        f"The release's rule for subjects gives a class to {block['given_a_class']} of {subjects} subjects; "
        f"{subjects - block['given_a_class']} get none. Of those with a class: sensitivity "
        f"{fraction(block['sensitivity'])}, specificity {fraction(block['specificity'])}; in brackets exact 95 % "
        "intervals.",
        "Every cell counts here; `leukoscope patient` leaves out those that are out of distribution.",
    ]
    rows = [
        [name, one["label"], one["outcome"], share(one["probability"]), span(one["interval"]), count(one["cells"])]
        for name, one in order
    ]
    columns = ("subject", "class", "outcome", "probability", "95 % interval", "cells")
    return Section("One prediction for a subject", text, Table(columns, rows, text_columns=3))
