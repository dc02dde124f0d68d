"""The whole judgement of a set of answers: evaluation.json for programs, evaluation.html for people.

Everything a reader needs in order not to be misled stands in it: what the figures estimate, which patients may have
trained the model, and how wide the honest interval is beside the naive one.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.evaluation.answering import Answered, AskedCells
from leukoscope.evaluation.draws import DRAWS, LEVEL, Interval
from leukoscope.evaluation.figures import confusion_figure, interval_plot, subject_strip
from leukoscope.evaluation.intervals import cell_intervals, paired_difference, point_figures, subject_intervals
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.evaluation.pages import Section, figure_picture, write_page
from leukoscope.evaluation.patients import judged_by_rule
from leukoscope.models.release_files import write_json

EVALUATION_SCHEMA_VERSION = 1
_FIGURE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_weighted": "F1, weighted",
    "f1_macro": "F1, macro",
    "auroc": "AUROC",
    "auroc_equal_size": "AUROC at equal size",
    "subject_auroc": "AUROC of subjects",
}
_BY_SUBJECT = "_by_subject"
_FEW_SUBJECTS = 20
_WORST = 10
_SHOWN = 20


def figure_name(key: str) -> str:
    """What a person calls a figure of `point_figures`."""
    if key.endswith(_BY_SUBJECT):
        return f"{figure_name(key.removesuffix(_BY_SUBJECT))}, by subject"
    return _FIGURE_NAMES.get(key) or f"recall of {key.removeprefix('recall_')}"


def judge_answers(
    answered: Answered, cells: AskedCells | None, *, compared: Answered | None = None, seed: int = 0
) -> dict[str, Any]:
    """Everything evaluation.json says.

    Args:
        cells: what was asked about, where the data set is at hand.
        compared: another model's answers to the same cells.
        seed: of the intervals' draws.

    Raises:
        LeukoscopeError: no cell at all, or two models that did not answer the same cells.
    """
    answers, unreadable = answered.answers, cells.data.unreadable if cells else ()
    if not answers.cell_ids:
        reason = next(iter((*answered.left_out, *unreadable)), "none was asked about")
        raise LeukoscopeError(f"{answered.name}: not one cell was answered ({reason}); check the cells and --split")
    return {
        "schema_version": EVALUATION_SCHEMA_VERSION,
        "notice": RESEARCH_NOTICE,
        **answered.about(),
        **(cells.about() if cells else {"data": None, "split": None}),
        "left_out": [*unreadable, *answered.left_out],
        "figures": point_figures(answers),
        "intervals": _interval_block(answers, seed),
        "metrics": measure(answers),
        "patients": judged_by_rule(answers, answered.metrics),
        "comparison": compared
        and {**compared.about(), "figures": paired_difference(answers, compared.answers, seed=seed)},
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": _versions(),
    }


def _interval_block(answers: CellPredictions, seed: int) -> dict[str, Any]:
    by_subject, why_not = None, ""
    try:
        by_subject = subject_intervals(answers, seed=seed)
    except LeukoscopeError as error:
        why_not = str(error)
    return {
        "level": LEVEL,
        "draws": DRAWS,
        "seed": seed,
        "method": "bootstrap within class, expanded percentile (Hesterberg 2015, doi:10.1080/00031305.2015.1089789)",
        "subjects": subjects_per_class(answers),
        "by_subject": by_subject,
        "by_subject_missing": why_not,
        "by_cell": cell_intervals(answers, seed=seed),
    }


def subjects_per_class(answers: CellPredictions) -> dict[str, int]:
    """Class → number of known subjects with cells of it."""
    subjects = np.asarray(answers.subjects)
    return {
        label: len(set(subjects[answers.references == k].tolist()) - {""})
        for k, label in enumerate(answers.label_names)
    }


def write_evaluation(folder: Path, evaluation: Mapping[str, Any], answers: CellPredictions) -> Path:
    """Write evaluation.json, predictions.parquet and evaluation.html.

    Returns:
        The page's path.

    Raises:
        LeukoscopeError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        answers.save(folder / "predictions.parquet")
        write_json(folder / "evaluation.json", evaluation)
        title = f"{evaluation['model']['name']} — evaluation"
        return write_page(folder / "evaluation.html", title, _lead(evaluation), list(_sections(evaluation)))
    except OSError as error:
        raise LeukoscopeError(
            f"{folder}: the evaluation cannot be written there ({error.strerror or error}); name another --output_dir"
        ) from None


def _lead(evaluation: Mapping[str, Any]) -> list[str]:
    metrics, data, overlap = evaluation["metrics"], evaluation["data"], evaluation["training_overlap"]
    subjects = f" of {len(metrics['subjects'])} subjects" if metrics["subjects"] else ""
    where = f" from {data['title']}" if data else ""
    synthetic = "Synthetic cells: these figures say nothing about patients." if data and data["synthetic"] else ""
    asked = f"{metrics['cells']:,} cells{subjects}{where}. The figures speak of: {evaluation['estimates']}."
    even = [f"{key}{_BY_SUBJECT}" for key in ("balanced_accuracy", "auroc")]
    pooled = ["balanced_accuracy", "auroc"]
    keys = [key for key in (even if even[0] in evaluation["figures"] else pooled) if key in evaluation["figures"]]
    quoted = [f"{figure_name(key)} {_with_interval(evaluation, key)}" for key in keys]
    result = "; ".join(quoted) + "."
    warning = "" if overlap["verdict"] == "good" else overlap["statement"]
    return [line for line in (warning, synthetic, asked, result[0].upper() + result[1:]) if line]


def _with_interval(evaluation: Mapping[str, Any], key: str) -> str:
    shown = (evaluation["intervals"]["by_subject"] or {}).get(key)
    value = f"{evaluation['figures'][key]:.3f}"
    return (
        f"{value} ({LEVEL:.0%} interval by subject {_range(shown)})" if shown else f"{value} (no interval by subject)"
    )


def _range(interval: Mapping[str, float] | None) -> str:
    return f"{interval['low']:.3f} to {interval['high']:.3f}" if interval else "–"


def _sections(evaluation: Mapping[str, Any]) -> Sequence[Section]:
    parts = [_trained_on(evaluation), _figures(evaluation)]
    if evaluation["metrics"]["subjects"]:
        parts.append(_subjects(evaluation))
    if evaluation["patients"]:
        parts.append(_patients(evaluation["patients"]))
    parts.append(_confusion(evaluation))
    if evaluation["comparison"]:
        parts.append(_comparison(evaluation))
    if evaluation["left_out"]:
        parts.append(_left_out(evaluation["left_out"]))
    return [*parts, _made_from(evaluation)]


def _trained_on(evaluation: Mapping[str, Any]) -> Section:
    overlap = evaluation["training_overlap"]
    return Section("Is this a test?", [overlap["statement"]], verdict=overlap["verdict"])


def figure_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Every figure as a person reads it: name, value, interval by subject, interval by cell."""
    return [(name, f"{value:.3f}", _range(subject), _range(cell)) for name, value, subject, cell in _lines(evaluation)]


def worst_subjects(evaluation: Mapping[str, Any], count: int) -> list[tuple[str, Mapping[str, Any]]]:
    """The subjects with the smallest share of cells answered right: id, and label, cells, accuracy."""
    subjects = evaluation["metrics"]["subjects"].items()
    # Of equal shares, the one that more cells speak for comes first.
    return sorted(subjects, key=lambda item: (item[1]["accuracy"], -item[1]["cells"]))[:count]


def _lines(evaluation: Mapping[str, Any]) -> list[tuple[str, float, Interval | None, Interval | None]]:
    by_subject, by_cell = evaluation["intervals"]["by_subject"] or {}, evaluation["intervals"]["by_cell"]
    return [(figure_name(k), v, by_subject.get(k), by_cell.get(k)) for k, v in evaluation["figures"].items()]


def _figures(evaluation: Mapping[str, Any]) -> Section:
    block = evaluation["intervals"]
    alt = "Every figure with its interval by subject and by cell, as in the table."
    return Section(
        "Figures",
        [*_unit_note(evaluation), *_interval_notes(block), *_seen_note(evaluation)],
        ("figure", "value", f"{block['level']:.0%} interval, by subject", "naive, by cell"),
        figure_rows(evaluation),
        [figure_picture(interval_plot(_lines(evaluation)), alt)],
    )


def _unit_note(evaluation: Mapping[str, Any]) -> Sequence[str]:
    if (evaluation["data"] or {}).get("unit") != "block":
        return []
    return ["This data set publishes no subjects: wherever this page says so, it means a block of neighbouring images."]


def _interval_notes(block: Mapping[str, Any]) -> Sequence[str]:
    if block["by_subject"] is None:
        return [f"No interval by subject: {block['by_subject_missing']}. The naive ones are too narrow."]
    counts = ", ".join(f"{count} {label}" for label, count in block["subjects"].items())
    notes = [
        "“By subject”: a cell weighs 1 / (cells of its subject): the few subjects with most cells do not decide. "
        "“At equal size”: within tenths of the cells' areas, so that size alone gives 0.5.",
        f"An interval by subject says how far a figure may move with other patients like these ({counts}); the naive "
        "one pretends that every cell came from a patient of its own.",
    ]
    if few := [label for label, count in block["subjects"].items() if 0 < count < _FEW_SUBJECTS]:
        notes.append(f"With so few subjects of {' and '.join(few)}, even the interval by subject is rather too narrow.")
    if flat := [figure_name(key) for key, ends in block["by_subject"].items() if ends["low"] == ends["high"]]:
        notes.append(
            f"No width ({', '.join(flat)}) means that every draw gave the same, not that the figure is certain."
        )
    return notes


def _seen_note(evaluation: Mapping[str, Any]) -> Sequence[str]:
    if evaluation["training_overlap"]["verdict"] != "bad":
        return []
    return ["As patients judged here also trained the model, no interval below says what to expect of new ones."]


def _subjects(evaluation: Mapping[str, Any]) -> Section:
    subjects, worst = evaluation["metrics"]["subjects"], worst_subjects(evaluation, _WORST)
    below = sum(s["accuracy"] < 0.5 for s in subjects.values())
    strip = subject_strip(subjects, list(evaluation["metrics"]["per_class"]))
    alt = f"Accuracy of each of {len(subjects)} subjects by class; {below} lie below one half."
    return Section(
        "Subject by subject",
        [f"{below} of {len(subjects)} subjects have most of their cells answered wrong. The {len(worst)} worst:"],
        ("subject", "class", "cells", "answered right"),
        [(name, s["label"], f"{s['cells']:,}", f"{s['accuracy']:.0%}") for name, s in worst],
        [figure_picture(strip, alt)],
    )


def _patients(block: Mapping[str, Any]) -> Section:
    def rate(key: str) -> str:
        one = block[key]
        return f"{key} {one['right']} of {one['of']} ({one['low']:.2f} to {one['high']:.2f})"

    # Wrong persons first, then those without a class.
    order = sorted(
        block["subjects"].items(),
        key=lambda item: (item[1]["outcome"] == item[1]["label"], item[1]["outcome"] == item[1]["called"], item[0]),
    )
    without = block["persons"] - block["given_a_class"]
    text = [
        f"The release's rule for persons gives a class to {block['given_a_class']} of {block['persons']} persons; "
        f"{without} get none. Of those with a class: {rate('sensitivity')}, {rate('specificity')}; in brackets exact "
        "95 % intervals.",
        "Every cell counts here; `leukoscope patient` sets aside those that are out of distribution.",
    ]
    rows = [
        (name, one["label"], one["outcome"], f"{one['probability']:.3f}", _pair(one["interval"]), f"{one['cells']:,}")
        for name, one in order
    ]
    columns = ("person", "class", "outcome", "probability", "95 % interval", "cells")
    return Section("One prediction for a person", text, columns, rows)


def _pair(interval: Sequence[float]) -> str:
    return "{:.3f} to {:.3f}".format(*interval)


def _confusion(evaluation: Mapping[str, Any]) -> Section:
    metrics = evaluation["metrics"]
    figure = confusion_figure(metrics["confusion_matrix"], list(metrics["per_class"]))
    return Section(
        "What was taken for what",
        columns=("class", "precision", "recall", "F1", "cells"),
        rows=[
            (name, f"{c['precision']:.3f}", f"{c['recall']:.3f}", f"{c['f1']:.3f}", f"{c['support']:,}")
            for name, c in metrics["per_class"].items()
        ],
        pictures=[figure_picture(figure, "Confusion matrix: rows the true class, columns the answer.")],
    )


def _comparison(evaluation: Mapping[str, Any]) -> Section:
    other = evaluation["comparison"]
    rows = [
        (
            figure_name(key),
            f"{d['a']:.3f}",
            f"{d['b']:.3f}",
            f"{d['difference']:+.3f}",
            f"{d['low']:+.3f} to {d['high']:+.3f}",
            f"{d['share_a_better']:.0%}",
        )
        for key, d in other["figures"].items()
    ]
    return Section(
        f"Beside {other['model']['name']}",
        [
            f"The other model's figures speak of: {other['estimates']}. {other['training_overlap']['statement']}",
            "Both are judged on the same cells and the same drawn subjects. An interval that holds 0 decides nothing; "
            "the last column is the share of draws in which this model is the better one.",
        ],
        ("figure", "this model", "the other", "difference", f"{LEVEL:.0%} interval, by subject", "better in"),
        rows,
    )


def _left_out(lines: Sequence[str]) -> Section:
    more = [f"… and {len(lines) - _SHOWN} more, in evaluation.json"] if len(lines) > _SHOWN else []
    return Section("Left out", [*lines[:_SHOWN], *more], verdict="warning")


def _made_from(evaluation: Mapping[str, Any]) -> Section:
    data, split, block = evaluation["data"], evaluation["split"], evaluation["intervals"]
    rows = [("model", f"{evaluation['model']['name']} {evaluation['model']['revision']}".strip())]
    if data:
        rows += [("data", data["title"]), ("fingerprint of the data", data["fingerprint"]), ("cite", data["citation"])]
    if split:
        counts = f"{split['cells']:,} of {split['drawn_from']:,}"
        rows.append(("cells asked", f"{split['detail']}: {counts} (seed {split['seed']})"))
    rows.append(("intervals", f"{block['method']}; {block['draws']:,} draws, seed {block['seed']}"))
    rows.append(
        ("made", f"{evaluation['created']}, {', '.join(f'{k} {v}' for k, v in evaluation['versions'].items())}")
    )
    return Section("Made from", columns=("what", "which"), rows=rows)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "timm", "transformers", "scikit-learn", "numpy")
    return {"leukoscope": __version__, "python": platform.python_version(), **{p: version(p) for p in packages}}
